"""Data sets of the Hugging Face hub, on small copies of their repositories and, offline, by their names."""

import shutil
import sys

import pytest

from skminilm.datasets import load_mlqa, load_squad, load_tydiqa_goldp, load_xnli, load_xquad
from skminilm.datasets._hub import is_hub_dataset

GERMAN = "Wien liegt an der Donau. Graz liegt an der Mur."
CHINESE = "北京大学在北京。😀上海"
MUR = {"answer_start": [43], "text": ["Mur"]}
SHANGHAI = {"answer_start": [9, 5], "text": ["上海", "北京"]}
NONE = {"answer_start": [], "text": []}
XNLI = {
    "en": {
        "train": [("He called.", "He spoke.", "entailment"), ("He called.", "He slept.", "contradiction")],
        "validation": [("It rains.", "It may snow.", "neutral")],
        "test": [("A", "B", "neutral"), ("C", "D", "entailment")],
    },
    "sw": {
        "train": [
            ("Alipiga simu.", "Aliongea.", "entailment"),
            ("Alipiga simu.", "Alilala.", "contradiction"),
        ],
        "validation": [("Mvua inanyesha.", "Labda theluji.", "neutral")],
        "test": [("E", "F", "neutral"), ("G\r\u2028", '"H', "entailment")],
    },
}


@pytest.fixture
def offline(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    import huggingface_hub

    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


def test_xnli(tmp_path, write_xnli_copy):
    folder = write_xnli_copy(tmp_path / "xnli", XNLI)
    test = load_xnli(folder)
    assert test.data.tolist() == [list(row[:2]) for texts in XNLI.values() for row in texts["test"]]
    assert test.target.tolist() == ["neutral", "entailment"] * 2
    assert test.languages.tolist() == ["en", "en", "sw", "sw"]
    assert test.groups.tolist() == [0, 1, 0, 1]
    assert test.files == [folder / language / "test-00000-of-00001.parquet" for language in XNLI]
    assert load_xnli(folder, split="train").languages.tolist() == ["en", "en"]
    X, y = load_xnli(folder, split="dev", languages="sw", return_X_y=True)
    assert X.tolist() == [["Mvua inanyesha.", "Labda theluji."]]
    assert y.tolist() == ["neutral"]
    with pytest.raises(ValueError, match="no rows in 'it': its languages are en, sw"):
        load_xnli(folder, languages="it")


def test_rows_without_a_label_are_named(tmp_path, write_xnli_copy):
    folder = write_xnli_copy(tmp_path / "xnli", {"en": {"test": [("a", "b", "neutral"), ("c", "d", -1)]}})
    with pytest.raises(ValueError, match=r"xnli, en test, row 1: the field 'label' is -1"):
        load_xnli(folder)


def test_rows_of_the_hub_are_counted_from_0(tmp_path, write_questions_copy):
    rows = [(GERMAN, "?", MUR, "a"), (GERMAN, "?", MUR, None)]
    folder = write_questions_copy(tmp_path / "squad", {"plain_text": {"train": rows}})
    with pytest.raises(ValueError, match="squad, plain_text train, row 1: the field 'id' is None"):
        load_squad(folder)


def test_mlqa(tmp_path, write_questions_copy):
    pairs = [(context, question) for context in ("de", "zh") for question in ("de", "en", "zh")]
    configs = {
        f"mlqa.{context}.{question}": {
            split: [(GERMAN if context == "de" else CHINESE, f"{question} {split}?", answers, "q1")]
            for split in ("test", "validation")
        }
        for context, question in pairs
        for answers in [MUR if context == "de" else SHANGHAI]
    }
    translated = {
        f"mlqa-translate-train.{language}": {"train": [(GERMAN, "?", MUR, "q")]} for language in ("de",)
    }
    folder = write_questions_copy(tmp_path / "mlqa", {**translated, **configs})
    test = load_mlqa(folder)
    assert test.data.tolist() == [["de test?", GERMAN], ["zh test?", CHINESE]]
    assert test.target.tolist() == [("Mur", 43), ("上海", 9)]
    assert test.answers.tolist() == [[("Mur", 43)], [("上海", 9), ("北京", 5)]]
    assert test.languages.tolist() == ["de", "zh"]
    assert test.groups.tolist() == [0, 0]
    dev = load_mlqa(folder, split="dev", languages="zh", question_language="en")
    assert dev.data.tolist() == [["en validation?", CHINESE]]
    assert dev.files == [folder / "mlqa.zh.en" / "validation-00000-of-00001.parquet"]
    with pytest.raises(
        FileNotFoundError, match=r"no configuration 'xquad\.<language>'; there are mlqa-translate"
    ):
        load_xquad(folder)


def test_xquad_squad_and_tydiqa(tmp_path, write_questions_copy):
    xquad = {
        "xquad.de": {"validation": [(GERMAN, "Wo?", MUR, "q")]},
        "xquad.zh": {"validation": [(CHINESE, "?", SHANGHAI, "q")]},
    }
    data = load_xquad(write_questions_copy(tmp_path / "xquad", xquad), languages=["zh"])
    assert data.data.tolist() == [["?", CHINESE]]
    rows = {"train": [(GERMAN, "Wo?", MUR, "a"), (GERMAN, "Wer?", NONE, "b")]}
    data = load_squad(write_questions_copy(tmp_path / "squad_v2", {"squad_v2": rows}))
    assert data.target.tolist() == [("Mur", 43), None]
    assert data.languages.tolist() == ["en", "en"]
    rows = {
        "train": [(GERMAN, "?", MUR, "swahili-1-0")],
        "validation": [(CHINESE, "?", SHANGHAI, "korean-5")],
    }
    folder = write_questions_copy(tmp_path / "tydiqa", {"primary_task": rows, "secondary_task": rows})
    assert load_tydiqa_goldp(folder).languages.tolist() == ["sw"]
    assert load_tydiqa_goldp(folder, split="dev", languages="ko").target.tolist() == [("上海", 9)]
    with pytest.raises(ValueError, match=r"several configurations \(primary_task, secondary_task\)"):
        load_squad(folder)


def test_split_and_languages_of_a_hub_data_set_count(tmp_path, write_questions_copy):
    rows = {
        "train": [(GERMAN, "?", MUR, "swahili-1-0")],
        "validation": [(CHINESE, "?", SHANGHAI, "korean-5"), (GERMAN, "?", MUR, "thai-1")],
    }
    folder = write_questions_copy(tmp_path / "squad", {"plain_text": rows})
    assert load_squad(folder, split="validation").languages.tolist() == ["ko", "th"]
    assert load_squad(folder, split="validation", languages="th").target.tolist() == [("Mur", 43)]


def test_answers_that_are_elsewhere_are_named(tmp_path, write_questions_copy):
    moved = {"answer_start": [3], "text": ["Mur"]}
    folder = write_questions_copy(tmp_path / "squad", {"plain_text": {"train": [(GERMAN, "?", moved, "q7")]}})
    with pytest.raises(ValueError, match=r"squad, plain_text train, question 'q7': .* It first occurs at 43"):
        load_squad(folder)


def test_a_data_set_with_a_loading_script_is_read_from_the_copy_of_the_hub(
    tmp_path, monkeypatch, write_questions_copy
):
    folder = write_questions_copy(tmp_path / "mlqa", {"mlqa.de.de": {"test": [(GERMAN, "Wo?", MUR, "q")]}})
    copy = tmp_path / "copy" / "mlqa.de.de" / "test"
    copy.mkdir(parents=True)
    shutil.move(folder / "mlqa.de.de" / "test-00000-of-00001.parquet", copy / "0000.parquet")
    (folder / "mlqa.py").touch()
    monkeypatch.setattr("skminilm.datasets._hub._PARQUET_COPY", str(tmp_path / "copy"))
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)
    data = load_mlqa(folder)
    assert data.data.tolist() == [["Wo?", GERMAN]]
    assert data.files == [copy / "0000.parquet"]


@pytest.mark.parametrize(
    "load",
    [
        lambda: load_xnli("facebook/xnli"),
        lambda: load_xnli("facebook/xnli", split="train"),
        lambda: load_mlqa("facebook/mlqa"),
        lambda: load_xquad("google/xquad"),
        lambda: load_tydiqa_goldp("google-research-datasets/tydiqa"),
        lambda: load_squad("rajpurkar/squad"),
    ],
)
def test_a_hub_that_cannot_be_reached_is_said(offline, load):
    with pytest.raises(
        ConnectionError, match=r"is no folder here, and the Hugging Face hub.* unset HF_HUB_OFFLINE"
    ):
        load()


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "skminilm\[datasets\]"'):
        load_xnli("facebook/xnli")


def test_what_is_taken_for_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text("---\nlicense: mit\n---\nconfigs: none\n")
    for name in ("facebook/xnli", "rajpurkar/squad_v2", "a.b-c/d.1"):
        assert is_hub_dataset(name)
    for path in ("data", "data/xnli", "squad", "/a/b", "a/b/c", "../a/b"):
        assert not is_hub_dataset(path)
    for name in ("dev.tsv", "train.tsv.gz", "train.jsonl", "train-v1.1.json"):
        assert not is_hub_dataset(f"nowhere/{name}")


@pytest.mark.network
@pytest.mark.slow
def test_the_hub_has_these_layouts():
    pytest.importorskip("datasets")
    xnli = load_xnli("facebook/xnli", languages=["en", "sw"])
    assert (xnli.languages == "sw").sum() == 5010
    assert all("facebook/xnli@" in file for file in xnli.files)
    assert len(load_mlqa("facebook/mlqa", languages="de").data) == 4517
    assert len(load_xquad("google/xquad", languages="th").data) == 1190
    assert len(load_squad("rajpurkar/squad").data) == 87599
    assert len(load_tydiqa_goldp("google-research-datasets/tydiqa").data) == 49881
