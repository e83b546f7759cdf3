"""The command line on tiny files and a tiny checkpoint."""

import gzip
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("rich")

from rich.console import Console  # noqa: E402
from sklearn.utils import Bunch  # noqa: E402

import skminilm  # noqa: E402
from skminilm import MiniLMClassifier, MiniLMQuestionAnswerer  # noqa: E402
from skminilm.cli import _xnli  # noqa: E402
from skminilm.cli._app import app  # noqa: E402
from skminilm.cli._evaluation import (  # noqa: E402
    finish,
    first_of_each_language,
    fit_and_save,
    means_of,
    printable,
    table_of,
    warmup_ratio,
)
from skminilm.cli._output import check_output_dir, describe_files, write_model, write_results  # noqa: E402
from skminilm.cli._published import MLQA_AVERAGE, MLQA_F1, XNLI_ACCURACY, XNLI_AVERAGE  # noqa: E402
from skminilm.cli._xnli import split_dev  # noqa: E402
from skminilm.datasets import load_xnli  # noqa: E402

LANGUAGES = ["en", "sw", "th"]
LABELS = ["entailment", "neutral", "contradiction"]
FAST = [
    "--epochs",
    "2",
    "--batch-size",
    "8",
    "--max-length",
    "64",
    "--precision",
    "fp32",
    "--device",
    "cpu",
    "--quiet",
]


def call(*arguments):
    result = typer_testing.CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def pairs(requests, language, items):
    """Premise, hypothesis and label of some requests."""
    texts = [text for text, name in zip(requests.data, requests.languages, strict=True) if name == language]
    return [(texts[item], texts[(item * 5 + 1) % 64], LABELS[item % 3]) for item in items]


def write(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join("\t".join(row) + "\n" for row in [header, *rows]).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def official(tmp_path, requests):
    """XNLI-1.0 and XNLI-MT-1.0."""
    folder = tmp_path / "data"
    for split, items in (("dev", range(24, 36)), ("test", range(36, 60))):
        rows = [
            [language, label, premise, hypothesis, str(item)]
            for language in LANGUAGES
            for item, (premise, hypothesis, label) in zip(
                items, pairs(requests, language, items), strict=True
            )
        ]
        header = ["language", "gold_label", "sentence1", "sentence2", "pairID"]
        write(folder / "XNLI-1.0" / f"xnli.{split}.tsv", header, rows)
    for language in ("en", "sw"):
        rows = [
            [premise, hypothesis, label.replace("contradiction", "contradictory")]
            for premise, hypothesis, label in pairs(requests, language, range(24))
        ]
        write(
            folder / f"XNLI-MT-1.0/multinli/multinli.train.{language}.tsv", ["premise", "hypo", "label"], rows
        )
    return folder


@pytest.fixture
def compact(tmp_path, requests):
    """XNLI dev in one file."""
    folder = tmp_path / "data"
    rows = [
        [language, "dev", label, premise, hypothesis]
        for language in LANGUAGES
        for premise, hypothesis, label in pairs(requests, language, range(60))
    ]
    write(folder / "xnli_dev.tsv.gz", ["lang", "split", "label", "premise", "hypothesis"], rows)
    return folder


def test_version_and_options():
    assert call("--version").output == f"skminilm {skminilm.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "skminilm", "--help"], capture_output=True, text=True, check=True
    )
    assert "xnli" in done.stdout
    for command, has_head in (("xnli", True), ("mlqa", False)):
        assert ("'head'" in call(command, "--help").output) is has_head


def test_xnli(official, xlmr_folder, tmp_path):
    out = tmp_path / "out"
    command = ["xnli", "--data-dir", official, "--model", xlmr_folder, "--output-dir", out, *FAST]
    result = call(*command, "--train-language", "sw")
    assert result.exit_code == 0, result.output
    results = json.loads((out / "results.json").read_text())
    assert results["skminilm_command"] == "xnli"
    assert [row["language"] for row in results["scores"]] == LANGUAGES
    for row in results["scores"]:
        assert row["n"] == 24
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
    assert results["mean"]["accuracy"] == pytest.approx(np.mean([r["accuracy"] for r in results["scores"]]))
    assert results["data"]["train"]["languages"] == ["sw"]
    assert results["data"]["train"]["n_rows"] == 24
    assert results["data"]["dev"]["n_rows"] == 36
    assert [len(results["data"][part]["files"][0]["sha256"]) for part in ("train", "dev", "test")] == [64] * 3
    settings = results["settings"]
    assert settings["trainable"] == "all"
    assert settings["early_stopping"] is True
    assert settings["n_iter_no_change"] == settings["epochs"] == 2
    assert settings["warmup_ratio"] == 0.1
    assert results["fit"]["n_epochs"] == len(results["fit"]["history"]) == 2
    assert "validation_score" in results["fit"]["history"][0]
    assert set(results["versions"]) >= {"python", "skminilm", "torch"}
    assert results["published"]["accuracy"]["sw"] == 63.3
    assert "63.3" in result.output
    assert "71.1" not in result.output  # the mean of fifteen languages, and here are fewer

    # The model that was saved is the one that was scored.
    test = load_xnli(official, split="test")
    correct = MiniLMClassifier.load(out / "model").predict(test.data) == test.target
    for row in results["scores"]:
        assert row["accuracy"] == pytest.approx(correct[test.languages == row["language"]].mean())

    # An earlier result is replaced.
    result = call(*command, "--epochs", "1", "--max-rows", "9")
    assert result.exit_code == 0
    assert "first 9 a language" in " ".join(result.output.split())
    results = json.loads((out / "results.json").read_text())
    assert results["data"]["train"]["languages"] == ["en"]
    assert results["data"]["train"]["n_rows"] == 9
    assert [row["n"] for row in results["scores"]] == [9, 9, 9]


def test_test_is_predicted_once_and_after_the_selection(official, xlmr_folder, tmp_path, monkeypatch):
    seen = []
    original = MiniLMClassifier.predict

    def predict(self, X):
        seen.append((len(X), hasattr(self, "best_epoch_")))
        return original(self, X)

    monkeypatch.setattr(MiniLMClassifier, "predict", predict)
    call("xnli", "--data-dir", official, "--model", xlmr_folder, "--output-dir", tmp_path / "out", *FAST)
    assert seen == [(72, True)]


def test_xnli_from_dev_alone(compact, xlmr_folder, tmp_path):
    out = tmp_path / "out"
    command = [
        "xnli",
        "--data-dir",
        compact,
        "--model",
        xlmr_folder,
        "--output-dir",
        out,
        *FAST,
        "--from-dev",
    ]
    assert call(*command, "--train-rows", 40, "--test-rows", 20).exit_code == 0
    results = json.loads((out / "results.json").read_text())
    assert results["options"]["from_dev"] is True
    assert results["data"]["train"]["n_rows"] == 40
    assert results["data"]["dev"] is None
    assert results["settings"]["early_stopping"] is False
    assert [row["n"] for row in results["scores"]] == [20, 20, 20]
    result = call(*command, "--train-rows", 41, "--test-rows", 20)
    assert result.exit_code == 1
    assert "no pair may be in both" in result.output


def test_from_dev_alone_divides_into_2000_and_490_pairs(compact, xlmr_folder, tmp_path, monkeypatch):
    seen = []

    def stop(dev, language, train_rows, test_rows):
        seen.append((language, train_rows, test_rows))
        raise ValueError("enough")

    monkeypatch.setattr("skminilm.cli._xnli.split_dev", stop)
    command = ["xnli", "--data-dir", compact, "--model", xlmr_folder, "--output-dir", tmp_path / "out", *FAST]
    call(*command, "--from-dev")
    assert seen == [("en", 2000, 490)]


def test_the_title_says_what_was_trained_on_and_scored(compact, xlmr_folder, tmp_path):
    command = ["xnli", "--data-dir", compact, "--model", xlmr_folder, "--output-dir", tmp_path / "out", *FAST]
    result = call(*command, "--from-dev", "--train-rows", 30, "--test-rows", 12, "--epochs", 1)
    title = "the last 12 pairs of XNLI dev: accuracy in %, trained on 30 pairs in 'en'"
    assert title in " ".join(result.output.split())


@pytest.mark.parametrize(("train_rows", "test_rows", "n_dev"), [(40, 20, 0), (30, 20, 10), (1, 1, 58)])
def test_no_pair_is_in_two_parts(compact, requests, train_rows, test_rows, n_dev):
    dev = load_xnli(compact, split="dev")
    training, selection, test = split_dev(dev, "en", train_rows, test_rows)
    assert set(training.languages) == {"en"}
    assert training.data.tolist() == dev.data[dev.languages == "en"][:train_rows].tolist()
    assert test.data[test.languages == "th"].tolist() == dev.data[dev.languages == "th"][-test_rows:].tolist()
    parts = [set(part.groups) for part in (training, selection, test) if part is not None]
    assert [len(part) for part in parts] == [n for n in (train_rows, n_dev, test_rows) if n]
    assert len(set.union(*parts)) == sum(len(part) for part in parts)


def test_a_wrong_data_folder_lists_the_files(tmp_path):
    result = call("xnli", "--data-dir", tmp_path, "--output-dir", tmp_path / "out")
    assert result.exit_code == 1
    assert str(tmp_path / "XNLI-MT-1.0/multinli/multinli.train.en.tsv") in result.output
    assert "--from-dev" in result.output
    result = call("xnli", "--data-dir", tmp_path, "--output-dir", tmp_path / "out", "--from-dev")
    assert result.exit_code == 1
    assert str(tmp_path / "xnli_dev.tsv.gz") in result.output
    assert not (tmp_path / "out").exists()


def test_a_language_that_is_not_there_is_named(compact, tmp_path):
    arguments = [
        "--output-dir",
        tmp_path / "out",
        "--train-language",
        "it",
        "--train-rows",
        9,
        "--test-rows",
        9,
    ]
    result = call("xnli", "--data-dir", compact, "--from-dev", *arguments)
    assert result.exit_code == 1
    assert "--train-language=it" in result.output
    assert "en, sw, th" in result.output


@pytest.mark.parametrize("content", ["thesis.txt", "results.json", "model"])
def test_a_folder_with_something_else_is_left_alone(official, tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / content).write_text('{"mine": 1}')
    result = call("xnli", "--data-dir", official, "--output-dir", out)
    assert result.exit_code == 1
    assert content in result.output
    assert "Choose another --output-dir" in result.output
    assert (out / content).read_text() == '{"mine": 1}'
    result = call("xnli", "--data-dir", official, "--output-dir", out / content)
    assert result.exit_code == 1
    assert "is a file" in result.output


def test_what_an_ended_process_left_is_no_harm(tmp_path):
    (tmp_path / "results.json").write_text('{"skminilm_command": "xnli"}')
    (tmp_path / ".results.json").write_text("{")
    check_output_dir(tmp_path, "xnli")
    write_results(tmp_path, "xnli", MiniLMClassifier(epochs=7), {"scores": []})
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["scores"] == []
    assert results["settings"]["epochs"] == 7


@pytest.mark.parametrize(
    ("warmup_steps", "n_rows", "expected"),
    [(None, 392_702, 500 / 15_340), (None, 2000, 0.1), (40, 2000, 0.5), (500, 2000, 1.0), (0, 2000, 0.0)],
)
def test_steps_of_warmup_become_a_share(warmup_steps, n_rows, expected):
    assert warmup_ratio(warmup_steps, n_rows, batch_size=128, epochs=5) == pytest.approx(expected)


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_the_message_says_what_to_install(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from skminilm.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.returncode == 1
    assert 'pip install "skminilm[cli]"' in result.stderr
    assert "Traceback" not in result.stderr


def test_help_names_both_commands():
    result = call("--help")
    assert "xnli" in result.output
    assert "mlqa" in result.output
    assert "--train-language" in call("xnli", "--help").output


CONTEXTS = {
    "en": ("Vienna lies on the Danube and Graz on the Mur.", "Where does Vienna lie?", "on the Danube"),
    "de": ("Wien liegt an der Donau und Graz an der Mur.", "Wo liegt Wien?", "an der Donau"),
    "zh": ("维也纳位于多瑙河畔，格拉茨位于穆尔河畔。", "维也纳在哪里？", "多瑙河畔"),
}


def squad(path, languages, n=1):
    """Write questions in the layout of SQuAD."""
    path.parent.mkdir(parents=True, exist_ok=True)
    paragraphs = []
    for language in languages:
        context, question, answer = CONTEXTS[language]
        answers = [{"text": answer, "answer_start": context.index(answer)}]
        qas = [{"id": f"{language}{k}", "question": question, "answers": answers} for k in range(n)]
        paragraphs.append({"context": context, "qas": qas})
    path.write_text(json.dumps({"version": "1.1", "data": [{"paragraphs": paragraphs}]}))


FAST_QA = [*FAST, "--stride", "8"]


@pytest.mark.parametrize(("test_set", "title"), [("mlqa", "MLQA test"), ("xquad", "XQuAD test")])
def test_mlqa(tmp_path, xlmr_folder, test_set, title):
    out, data = tmp_path / "out", tmp_path / "data"
    squad(data / "train-v1.1.json", ["en"], n=8)
    for language in CONTEXTS:
        name = "xquad.{0}.json" if test_set == "xquad" else "MLQA_V1/test/test-context-{0}-question-{0}.json"
        squad(data / name.format(language), [language], n=2)
    result = call("mlqa", "--data-dir", data, "--model", xlmr_folder, "--output-dir", out, *FAST_QA)
    assert result.exit_code == 0, result.output
    results = json.loads((out / "results.json").read_text())
    assert results["skminilm_command"] == "mlqa"
    assert results["options"]["test_set"] == test_set
    assert [row["language"] for row in results["scores"]] == sorted(CONTEXTS)
    for row in results["scores"]:
        assert row["n"] == 2
        assert 0 <= row["exact_match"] <= row["f1"] <= 1
    assert set(results["mean"]) == {"f1", "exact_match"}
    assert results["data"]["train"]["n_rows"] == 8
    assert len(results["data"]["test"]["files"]) == 3
    assert ("79.4" in result.output) == (test_set == "mlqa")
    assert title in " ".join(result.output.split())

    answerer = MiniLMQuestionAnswerer.load(out / "model")
    context, question, answer = CONTEXTS["de"]
    german = next(row for row in results["scores"] if row["language"] == "de")
    assert german["f1"] == pytest.approx(answerer.score([[question, context]], [answer], languages="de"))


def test_mlqa_with_compact_files(tmp_path, xlmr_folder):
    data = tmp_path / "data"
    data.mkdir()
    for name, languages in (("tydiqa_goldp", ["en", "de"]), ("xquad", ["zh"])):
        lines = []
        for language in languages:
            context, question, answer = CONTEXTS[language]
            record = {"lang": language, "context": context, "question": question, "id": language}
            lines.append({**record, "answer_text": answer, "answer_start": context.index(answer)})
        content = "".join(json.dumps(line) + "\n" for line in lines)
        (data / f"{name}.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    command = ["mlqa", "--data-dir", data, "--model", xlmr_folder, "--output-dir", tmp_path / "out", *FAST_QA]
    result = call(*command, "--train-language", "de", "--max-rows", "1")
    assert result.exit_code == 0
    assert "first 1 a language" in " ".join(result.output.split())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["data"]["train"]["languages"] == ["de"]
    assert [row["language"] for row in results["scores"]] == ["zh"]


def test_mlqa_and_squad_1_come_first_where_others_are_there_too(tmp_path, xlmr_folder, monkeypatch):
    seen = []

    def stop(folder, command, estimator, X, y, **options):
        seen.append(len(y))
        raise ValueError("enough")

    monkeypatch.setattr("skminilm.cli._mlqa.fit_and_save", stop)
    monkeypatch.setattr("skminilm.cli._mlqa.load_xquad", stop)
    data = tmp_path / "data"
    for n, name in enumerate(
        ["tydiqa-goldp-v1.1-train.json", "train-v2.0.json", "train-v1.1.json", "xquad.de.json"], start=1
    ):
        squad(data / name, ["de"], n=n)
    squad(data / "MLQA_V1/test/test-context-de-question-de.json", ["de"])
    call("mlqa", "--data-dir", data, "--model", xlmr_folder, "--output-dir", tmp_path / "out", *FAST_QA)
    assert seen == [3]


def test_data_sets_of_the_hub(tmp_path, xlmr_folder, requests, write_xnli_copy, write_questions_copy):
    splits = {"train": range(24), "validation": range(24, 36), "test": range(36, 48)}
    configs = {
        language: {split: pairs(requests, language, items) for split, items in splits.items()}
        for language in LANGUAGES
    }
    data = write_xnli_copy(tmp_path / "xnli", configs)
    command = ["--model", xlmr_folder, "--output-dir", tmp_path / "xnli_out", *FAST, "--epochs", 1]
    result = call("xnli", "--data-dir", data, *command, "--train-language", "sw")
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "xnli_out" / "results.json").read_text())
    assert results["data"]["train"]["languages"] == ["sw"]
    assert results["data"]["dev"]["n_rows"] == 36
    assert [(row["language"], row["n"]) for row in results["scores"]] == [(name, 12) for name in LANGUAGES]
    assert len(results["data"]["test"]["files"]) == 3

    rows = {
        language: [
            (context, question, {"answer_start": [context.index(answer)], "text": [answer]}, "q")
            for context, question, answer in [entry]
        ]
        for language, entry in CONTEXTS.items()
    }
    mlqa = write_questions_copy(
        tmp_path / "mlqa", {f"mlqa.{n}.{n}": {"test": some} for n, some in rows.items()}
    )
    train = write_questions_copy(tmp_path / "squad", {"plain_text": {"train": rows["en"] * 8}})
    command = ["--model", xlmr_folder, "--output-dir", tmp_path / "mlqa_out", *FAST_QA, "--epochs", 1]
    result = call("mlqa", "--data-dir", mlqa, *command)
    assert result.exit_code == 1
    assert "--train-file, such as rajpurkar/squad" in result.output
    result = call("mlqa", "--data-dir", mlqa, "--train-file", train, *command)
    assert result.exit_code == 0, result.output
    assert "trained on squad, 8 questions" in " ".join(result.output.split())
    results = json.loads((tmp_path / "mlqa_out" / "results.json").read_text())
    assert results["options"]["test_set"] == "mlqa"
    assert [row["language"] for row in results["scores"]] == list(CONTEXTS)


def test_files_of_the_hub_are_told_by_their_address(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    address = "hf://datasets/facebook/xnli@0123/en/test-00000-of-00001.parquet"
    here, there = describe_files([tmp_path / "x", address])
    assert here["path"] == str(tmp_path / "x")
    assert len(here["sha256"]) == 64
    assert there == {"path": address}


def test_mlqa_lists_the_files_looked_for(tmp_path):
    result = call("mlqa", "--data-dir", tmp_path, "--output-dir", tmp_path / "out")
    assert result.exit_code == 1
    assert str(tmp_path / "MLQA_V1/test/test-context-<language>-question-<language>.json") in result.output
    assert str(tmp_path / "xquad.jsonl.gz") in result.output
    squad(tmp_path / "xquad.de.json", ["de"])
    result = call("mlqa", "--data-dir", tmp_path, "--output-dir", tmp_path / "out")
    assert result.exit_code == 1
    assert str(tmp_path / "train-v1.1.json") in result.output
    result = call("mlqa", "--data-dir", tmp_path, "--output-dir", tmp_path / "out", "--test-set", "mlqa")
    assert result.exit_code == 1
    assert "xquad" not in result.output


def test_an_interrupted_training_is_no_result(compact, xlmr_folder, tmp_path, monkeypatch):
    def interrupted(self, *arguments, **options):
        import warnings

        warnings.warn("Training interrupted by user.", UserWarning, stacklevel=2)

    monkeypatch.setattr(MiniLMClassifier, "fit", interrupted)
    command = ["xnli", "--data-dir", compact, "--model", xlmr_folder, "--output-dir", tmp_path / "out", *FAST]
    result = call(*command, "--from-dev", "--train-rows", 20, "--test-rows", 10)
    assert result.exit_code != 0
    assert not (tmp_path / "out").exists()


def test_options_that_would_do_nothing_are_refused(official, tmp_path):
    result = call("xnli", "--data-dir", official, "--output-dir", tmp_path / "out", "--train-rows", 20)
    assert result.exit_code == 1
    assert "with --from-dev alone" in result.stderr
    result = call(
        "xnli", "--data-dir", tmp_path / "nowhere", "--output-dir", tmp_path / "out", "--pooling", "foo"
    )
    assert result.exit_code == 1
    assert "pooling" in result.stderr  # said before the data is looked for


def test_a_model_folder_with_something_else_is_left_alone(compact, xlmr_folder, tmp_path):
    out = tmp_path / "out"
    command = [
        "xnli",
        "--data-dir",
        compact,
        "--model",
        xlmr_folder,
        "--output-dir",
        out,
        *FAST,
        "--max-rows",
        8,
    ]
    command += ["--from-dev", "--train-rows", 20, "--test-rows", 10, "--trainable", 1]
    assert call(*command).exit_code == 0
    before = (out / "results.json").read_text()
    (out / "model" / "notes.txt").write_text("mine")
    result = call(*command)
    assert result.exit_code == 1
    assert "holds something else" in result.stderr
    assert (out / "results.json").read_text() == before
    (out / "model" / "notes.txt").unlink()
    squad(tmp_path / "train-v1.1.json", ["en"], n=2)
    squad(tmp_path / "xquad.en.json", ["en"], n=2)
    result = call("mlqa", "--data-dir", tmp_path, "--model", xlmr_folder, "--output-dir", out, *FAST_QA)
    assert result.exit_code == 1
    assert "holds what skminilm xnli wrote: nothing is overwritten" in " ".join(result.stderr.split())
    assert (out / "results.json").read_text() == before
    assert call(*command).exit_code == 0
    assert "not written yet" not in (out / "results.json").read_text()


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("mlqa", {"stride": 9, "max_answer_length": 11, "head_learning_rate": 0.5}),
        ("xnli", {"init_head": "probe", "pooling": "mean", "head_learning_rate": 0.5}),
    ],
)
def test_every_option_of_a_command_arrives(monkeypatch, tmp_path, command, options):
    seen = {}
    monkeypatch.setattr(
        f"skminilm.cli._{command}.run_{command}", lambda *_, **k: seen.update(k["parameters"])
    )
    options = {
        "epochs": 7, "batch_size": 5, "learning_rate": 0.25, "weight_decay": 0.125, "max_length": 99,
        "trainable": 3, "precision": "fp32", "device": "cpu", **options,
    }  # fmt: skip
    arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    folders = ["--data-dir", tmp_path, "--output-dir", tmp_path / "out"]
    result = call(command, *folders, *arguments, "--seed", "13", "--quiet")
    assert result.exit_code == 0, result.output
    expected = {**options, "random_state": 13, "verbose": 0}
    assert seen == expected | ({"refit_head": False} if command == "xnli" else {})


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "xnli",
            {
                "trainable": "all", "init_head": "random", "pooling": "auto", "refit_head": False, "epochs": 5,
                "batch_size": 128, "learning_rate": 5e-5, "head_learning_rate": 1e-2, "weight_decay": 0.001,
                "max_length": 128, "precision": "auto", "device": "auto", "random_state": 42, "verbose": 1,
            },
        ),
        (
            "mlqa",
            {
                "trainable": "all", "epochs": 3, "batch_size": 32, "learning_rate": 3e-5,
                "head_learning_rate": 1e-2, "weight_decay": 0.0, "max_length": 384, "stride": 128,
                "max_answer_length": 30, "precision": "auto", "device": "auto", "random_state": 42, "verbose": 1,
            },
        ),
    ],
)  # fmt: skip
def test_defaults_of_a_command(monkeypatch, tmp_path, command, expected):
    seen = {}
    monkeypatch.setattr(
        f"skminilm.cli._{command}.run_{command}", lambda *_, **k: seen.update(k["parameters"])
    )
    assert call(command, "--data-dir", tmp_path, "--output-dir", tmp_path / "out").exit_code == 0
    assert seen == expected


def test_the_head_is_fitted_anew_where_it_is_asked_for(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr("skminilm.cli._xnli.run_xnli", lambda *_, **k: seen.update(k["parameters"]))
    call("xnli", "--data-dir", tmp_path, "--output-dir", tmp_path / "out", "--refit-head")
    assert seen["refit_head"] is True


def test_steps_of_warmup_are_counted_in_windows(tmp_path, xlmr_folder, monkeypatch):
    qas = [{"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}]
    content = json.dumps({"data": [{"paragraphs": [{"context": "Ada comes today. " * 50, "qas": qas}]}]})
    for name in ("train-v1.1.json", "xquad.en.json"):
        (tmp_path / name).write_text(content)
    counted = []

    def stop(warmup_steps, n_rows, batch_size, epochs):
        counted.append(n_rows)
        raise ValueError("enough")

    monkeypatch.setattr("skminilm.cli._mlqa.warmup_ratio", stop)
    command = ["mlqa", "--data-dir", tmp_path, "--output-dir", tmp_path / "out", "--model", xlmr_folder]
    command += ["--max-length", 64, "--stride", 8]
    assert call(*command).exit_code == 1
    assert counted
    assert counted[0] > 3


def test_steps_of_warmup_reach_the_estimator(official, xlmr_folder, tmp_path, monkeypatch):
    seen = []

    def stop(folder, command, estimator, *arguments, **options):
        seen.append(estimator.warmup_ratio)
        raise ValueError("enough")

    squad(tmp_path / "data" / "train-v1.1.json", ["en"], n=24)
    squad(tmp_path / "data" / "xquad.de.json", ["de"], n=24)
    for command in ("xnli", "mlqa"):  # 24 rows in steps of 8, twice
        monkeypatch.setattr(f"skminilm.cli._{command}.fit_and_save", stop)
        folders = ["--data-dir", official, "--output-dir", tmp_path / "out", "--model", xlmr_folder]
        call(command, *folders, *FAST, *(["--stride", 8] if command == "mlqa" else []), "--warmup-steps", 3)
    assert seen == [0.5, 0.5]


def test_a_terminal_that_fails_costs_no_training(compact, xlmr_folder, tmp_path, monkeypatch):
    from skminilm.cli import _evaluation

    def broken(renderable, **_):
        if not isinstance(renderable, str):
            raise BrokenPipeError("nobody reads on")

    monkeypatch.setattr(_evaluation.console, "print", broken)
    out = tmp_path / "out"
    command = ["xnli", "--data-dir", compact, "--model", xlmr_folder, "--output-dir", out, "--from-dev"]
    result = call(*command, "--train-rows", "30", "--test-rows", "12", *FAST)
    assert result.exit_code == 1
    assert "nobody reads on" in result.stderr
    assert len(json.loads((out / "results.json").read_text())["scores"]) == len(LANGUAGES)
    MiniLMClassifier.load(out / "model")


@pytest.mark.parametrize("command", ["xnli", "mlqa"])
def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path, command):
    (tmp_path / "file").write_text("notes")
    result = call(command, "--data-dir", tmp_path, "--output-dir", tmp_path / "file" / "deeper" / "out")
    assert result.exit_code == 1
    assert "lies below the file" in result.stderr


def test_a_folder_without_the_right_to_write_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    result = call("xnli", "--data-dir", tmp_path, "--output-dir", tmp_path / "out")
    assert result.exit_code == 1
    assert f"{tmp_path} cannot be written. Choose another --output-dir" in " ".join(result.stderr.split())


def test_brackets_in_paths_are_no_markup(compact, xlmr_folder, tmp_path):
    out = tmp_path / "out[en]" / "[/x]"
    command = ["xnli", "--data-dir", compact, "--model", xlmr_folder, "--output-dir", out, "--from-dev"]
    result = call(*command, "--train-rows", "30", "--test-rows", "12", *FAST, "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert f"Written: {out / 'results.json'}" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainable", "99"], "trainable=99"),
        (["--max-length", "9999"], "max_length=9999"),
        (["--device", "cuda:77"], "cuda:77"),
    ],
)
@pytest.mark.parametrize("command", ["xnli", "mlqa"])
def test_wrong_options_are_found_before_data_is_read(tmp_path, command, options, message):
    result = call(command, "--data-dir", tmp_path, "--output-dir", tmp_path / "out", *options)
    assert result.exit_code == 1
    assert message in result.stderr


def test_too_few_tokens_for_a_pair_are_found_before_data_is_read(tmp_path):
    result = call("xnli", "--data-dir", tmp_path, "--output-dir", tmp_path / "out", "--max-length", "3")
    assert result.exit_code == 1
    assert "max_length=3 leaves no room for text" in result.stderr


def test_questions_without_an_answer_in_a_window_can_be_left_out(tmp_path, xlmr_folder):
    questions = [
        {"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]},
        {"id": "2", "question": "Who?", "answers": [{"text": "Ada comes today. " * 9, "answer_start": 0}]},
    ]
    content = json.dumps(
        {"data": [{"paragraphs": [{"context": "Ada comes today. " * 50, "qas": questions}]}]}
    )
    (tmp_path / "train-v1.1.json").write_text(content)
    (tmp_path / "xquad.en.json").write_text(content)
    out = tmp_path / "out"
    command = ["mlqa", "--data-dir", tmp_path, "--model", xlmr_folder, "--output-dir", out, *FAST]
    command += ["--max-length", "32", "--stride", "8"]
    result = call(*command)
    assert result.exit_code == 1
    assert "on_missing_answer" in result.stderr
    with pytest.warns(UserWarning, match="1 of 2"):
        result = call(*command, "--on-missing-answer", "drop")
    assert result.exit_code == 0, result.output
    assert json.loads((out / "results.json").read_text())["options"]["on_missing_answer"] == "drop"


def test_what_cannot_be_scored_is_found_before_training(tmp_path, xlmr_folder, monkeypatch):
    def training(*arguments, **options):
        raise AssertionError("this came too late")

    data = tmp_path / "data"
    squad(data / "train-v1.1.json", ["en"], n=8)
    test = data / "MLQA_V1/test/test-context-de-question-de.json"
    squad(test, ["de"], n=2)
    content = json.loads(test.read_text(encoding="utf-8"))
    content["data"][0]["paragraphs"][0]["qas"][0]["question"] = " "
    test.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(MiniLMQuestionAnswerer, "fit", training)
    result = call(
        "mlqa", "--data-dir", data, "--model", xlmr_folder, "--output-dir", tmp_path / "out", *FAST_QA
    )
    assert result.exit_code == 1
    assert f"What is to be scored ({test})" in result.stderr.replace("\n", "")
    assert "empty question: row 0" in " ".join(result.stderr.split())


def test_a_language_without_a_name_is_found_before_training(official, xlmr_folder, tmp_path, monkeypatch):
    test = official / "XNLI-1.0" / "xnli.test.tsv"
    test.write_text(test.read_text(encoding="utf-8").replace("\nsw\t", "\n\t"), encoding="utf-8")
    monkeypatch.setattr(MiniLMClassifier, "fit", lambda *_, **__: pytest.fail("this came too late"))
    folders = ["--data-dir", official, "--model", xlmr_folder, "--output-dir", tmp_path / "out"]
    result = call("xnli", *folders, *FAST)
    assert result.exit_code == 1
    assert "languages has a missing value: row 24 is ''" in " ".join(result.stderr.split())


def test_a_model_is_kept_where_scoring_fails(official, xlmr_folder, tmp_path, monkeypatch):
    def failing(*arguments):
        raise OSError("the disk is full")

    out = tmp_path / "d\udce9"
    command = ["xnli", "--data-dir", official, "--model", xlmr_folder, "--output-dir", out, *FAST]
    with monkeypatch.context() as patch:
        patch.setattr(_xnli, "rows_by_language", failing)
        assert call(*command).exit_code == 1
    assert MiniLMClassifier.load(out / "model").classes_.size == 3
    assert "not computed yet" in (out / "results.json").read_text()
    assert call(*command).exit_code == 0
    assert "not computed yet" not in (out / "results.json").read_text()


def test_a_save_that_fails_leaves_word_that_the_model_is_of_an_earlier_run(tmp_path):
    def failing(path):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_model(tmp_path / "out", "xnli", SimpleNamespace(save=failing))
    assert json.loads((tmp_path / "out" / "results.json").read_text())["model"] == "not written yet"


def test_mlqa_counts_the_best_of_several_answers(tmp_path, xlmr_folder, monkeypatch):
    out, data = tmp_path / "out", tmp_path / "data"
    squad(data / "train-v1.1.json", ["en"], n=8)
    squad(data / "xquad.de.json", ["de"], n=1)
    content = json.loads((data / "xquad.de.json").read_text())
    paragraph = content["data"][0]["paragraphs"][0]
    word = paragraph["context"].split()[0]
    paragraph["qas"][0]["answers"].append({"text": word, "answer_start": 0})
    (data / "xquad.de.json").write_text(json.dumps(content))
    monkeypatch.setattr(MiniLMQuestionAnswerer, "predict", lambda self, X: np.array([word] * len(X), object))
    result = call("mlqa", "--data-dir", data, "--model", xlmr_folder, "--output-dir", out, *FAST_QA)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "results.json").read_text())["mean"]["f1"] == 1


def test_means_are_over_languages():
    assert means_of([{"n": 1, "f1": 1.0}, {"n": 9, "f1": 0.0}], ["f1"]) == {"f1": 0.5}


def test_the_first_rows_stay_in_the_order_of_the_file():
    data = Bunch(data=np.arange(5), languages=np.array(["sw", "en", "sw", "en", "en"]), files=["x"])
    assert first_of_each_language(data, 2).data.tolist() == [0, 1, 2, 3]


def shown(scores, published, average):
    console = Console(width=100, record=True, file=io.StringIO())
    means = {"accuracy": np.mean([row["accuracy"] for row in scores])}
    console.print(table_of(scores, means, {"accuracy": "accuracy"}, published, average, "title", "caption"))
    return [line.split() for line in console.export_text().replace("│", " ").splitlines()]


def test_a_table_shows_percent_beside_what_is_published():
    scores = [
        {"language": "sw", "n": 1234, "accuracy": 0.5, "low": 0.4321, "high": 0.5678},
        {"language": "en", "n": 9, "accuracy": 0.75, "low": 0.5, "high": 1.0},
    ]
    rows = shown(scores, {"en": 81.5, "sw": 63.3}, 71.1)
    assert ["en", "9", "75.0", "50.0", "to", "100.0", "81.5"] in rows
    assert ["sw", "1,234", "50.0", "43.2", "to", "56.8", "63.3"] in rows
    assert ["mean", "62.5", "71.1"] in rows
    assert ["mean", "62.5"] in shown(scores, {"en": 81.5, "sw": 63.3, "th": 67.8}, 71.1)


def test_what_is_published_of_languages_has_the_published_mean():
    assert len(XNLI_ACCURACY) == 15
    assert np.mean(list(XNLI_ACCURACY.values())) == pytest.approx(XNLI_AVERAGE, abs=0.051)
    assert np.mean(list(MLQA_F1.values())) == pytest.approx(MLQA_AVERAGE, abs=0.051)


def test_results_say_which_epoch_was_best(tmp_path, monkeypatch, capsys):
    estimator = SimpleNamespace(fit=lambda *_, **__: None, n_iter_=3, best_epoch_=1, history_=[{}] * 3)
    monkeypatch.setattr("skminilm.cli._evaluation.write_model", lambda *_: None)
    monkeypatch.setattr("skminilm.cli._evaluation.write_results", lambda folder, *_: folder / "results.json")
    fitted = fit_and_save(tmp_path, "xnli", estimator, ["x"], ["y"])
    assert (fitted["n_epochs"], fitted["best_epoch"]) == (3, 1)
    for best, is_said in ((1, False), (0, True)):
        estimator.best_epoch_ = best
        finish(tmp_path, "xnli", estimator, {}, "table")
        assert ("No epoch was better than the untrained start" in capsys.readouterr().out) is is_said


def test_what_steers_a_terminal_is_spelt_out():
    assert printable("e\x1b]0;title\x07\u202ex\n") == "e\\x1b]0;title\\x07\\u202ex\n"


def test_what_is_printed_suits_the_encoding_of_the_output(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    print(printable("out/modèle-模型"))  # noqa: T201
    assert printable("out/modèle-模型") == "out/modèle-\\u6a21\\u578b"
