"""Readers of public data sets, on small files in their layouts."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skminilm.datasets import load_mlqa, load_squad, load_tydiqa_goldp, load_xnli, load_xquad
from skminilm.metrics import mlqa_f1

XNLI_COLUMNS = [
    "language",
    "gold_label",
    "sentence1_binary_parse",
    "sentence2_binary_parse",
    "sentence1_parse",
    "sentence2_parse",
    "sentence1",
    "sentence2",
    "promptID",
    "pairID",
    "genre",
    "label1",
    "label2",
    "label3",
    "label4",
    "label5",
    "sentence1_tokenized",
    "sentence2_tokenized",
    "match",
]

# Language, label, premise, hypothesis, pair. Quotes, U+2028 and a carriage return are part of the texts.
XNLI_ROWS = [
    ("en", "neutral", "He said \"Mama, I'm home.", "He called his mother.", "10"),
    ("en", "contradiction", "He said \"Mama, I'm home.", "He didn't say a word.", "11"),
    ("ar", "contradiction", "وقال، ماما، لقد عدت للمنزل.", "لم ينطق ببنت شفة.", "11"),
    ("ar", "neutral", "وقال، ماما، لقد عدت للمنزل.", "اتصل بأمه.", "10"),
    ("th", "neutral", "และเขาพูดว่า\u2028ม๊า", "เขาโทรหา\rแม่", "10"),
    ("th", "entailment", "และเขาพูดว่า ม๊า", '"', "12"),
]


def write_xnli(path, rows=XNLI_ROWS, columns=XNLI_COLUMNS, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ["language", "gold_label", "sentence1", "sentence2", "pairID"]
    records = [{**dict.fromkeys(columns, "x"), **dict(zip(names, row, strict=True))} for row in rows]
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(record, ensure_ascii=False) + end for record in records)
    else:
        lines = [columns, *([record[column] for column in columns] for record in records)]
        text = "".join("\t".join(line) + end for line in lines)
    path.write_bytes(text.encode())


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name", ["XNLI-1.0/xnli.dev.tsv", "XNLI-1.0/xnli.dev.jsonl", "xnli.dev.tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_xnli(tmp_path, name, end):
    write_xnli(tmp_path / name, end=end)
    xnli = load_xnli(tmp_path, split="dev")
    assert [tuple(row) for row in xnli.data] == [row[2:4] for row in XNLI_ROWS]
    assert xnli.target.tolist() == [row[1] for row in XNLI_ROWS]
    assert xnli.languages.tolist() == ["en", "en", "ar", "ar", "th", "th"]
    assert xnli.groups.tolist() == [0, 1, 1, 0, 0, 2]
    assert xnli.files == [tmp_path / name]
    X, y = load_xnli(tmp_path, split="dev", languages=["th", "en"], return_X_y=True)
    assert X[:, 1].tolist() == [row[3] for row in XNLI_ROWS if row[0] != "ar"]
    assert len(y) == 4


def test_files_in_the_folder_of_xnli_come_first(tmp_path):
    names = ["XNLI-1.0/xnli.dev.tsv", "XNLI-1.0/xnli.dev.jsonl", "xnli.dev.tsv"]
    for name in names:
        write_xnli(tmp_path / name)
    for name in names:
        assert load_xnli(tmp_path, split="dev").files == [tmp_path / name]
        (tmp_path / name).unlink()


def test_compact_xnli(tmp_path):
    rows = ["\t".join([row[0], "test", *row[1:4]]) for row in XNLI_ROWS]
    write_lines(tmp_path / "xnli_test.tsv.gz", ["lang\tsplit\tlabel\tpremise\thypothesis", *rows])
    xnli = load_xnli(tmp_path)
    assert [tuple(row) for row in xnli.data] == [row[2:4] for row in XNLI_ROWS]
    assert xnli.groups.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("folder", ["XNLI-MT-1.0/multinli", "multinli", "."])
def test_xnli_training_files(tmp_path, folder):
    for language, premise in [("en", "Product and geography."), ("sw", "Bidhaa na jiografia.")]:
        rows = [f"{premise}\tTwo words.\t{label}" for label in ("neutral", "contradictory", "entailment")]
        write_lines(tmp_path / folder / f"multinli.train.{language}.tsv", ["premise\thypo\tlabel", *rows])
    english = load_xnli(tmp_path, split="train")
    assert english.target.tolist() == ["neutral", "contradiction", "entailment"]
    assert set(english.languages) == {"en"}
    both = load_xnli(tmp_path, split="train", languages=["sw", "en"])
    assert both.languages.tolist() == ["sw"] * 3 + ["en"] * 3
    assert both.groups.tolist() == [0, 1, 2, 0, 1, 2]
    assert both.data[0].tolist() == ["Bidhaa na jiografia.", "Two words."]


def test_missing_xnli_files_are_listed(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_xnli(tmp_path, split="test")
    for name in ["XNLI-1.0/xnli.test.tsv", "XNLI-1.0/xnli.test.jsonl", "xnli.test.tsv", "xnli_test.tsv.gz"]:
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"XNLI-MT-1\.0/multinli/multinli\.train\.ur\.tsv"):
        load_xnli(tmp_path, split="train", languages=["ur"])
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load_xnli(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        (
            "xnli.dev.tsv",
            ["language\tgold_label\tsentence1", "en\tneutral\tx"],
            "line 1: the column 'sentence2'",
        ),
        (
            "xnli.dev.tsv",
            ["language\tgold_label\tsentence1\tsentence2", "en\tneutral\tx\ty", "en\tneutral\tx"],
            "line 3: 3 fields, expected 4",
        ),
        (
            "xnli.dev.tsv",
            ["language\tgold_label\tsentence1\tsentence2", "en\t-\tx\ty"],
            "line 2: the field 'gold_label' is '-'",
        ),
        (
            "xnli.dev.tsv",
            ["language\tgold_label\tsentence1\tsentence2", "en\tneutral\tx\ty", "\t\t\t"],
            "line 3: the field 'gold_label' is ''",
        ),
        ("xnli.dev.jsonl", ['{"language": "en"}'], "line 1: the field 'gold_label' is missing"),
        ("xnli.dev.jsonl", ["", "{"], "line 2: no valid JSON"),
        ("xnli.dev.jsonl", ["[]"], "line 1: expected a JSON object"),
        (
            "xnli.dev.jsonl",
            ['{"language": "en", "gold_label": "neutral", "sentence1": "x", "sentence2": 5}'],
            "line 1: the field 'sentence2' is 5, expected str",
        ),
        (
            "xnli_dev.tsv.gz",
            ["lang\tsplit\tlabel\tpremise\thypothesis", "en\ttest\tneutral\tx\ty"],
            "line 2: the field 'split' is 'test', expected 'dev'",
        ),
        ("xnli.dev.tsv", ["language\tgold_label\tsentence1\tsentence2"], "has no rows"),
    ],
)
def test_bad_xnli_lines_are_named(tmp_path, name, lines, message):
    write_lines(tmp_path / name, lines)
    with pytest.raises(ValueError, match=message) as error:
        load_xnli(tmp_path, split="dev")
    assert str(tmp_path / name) in str(error.value)


def test_files_that_are_damaged(tmp_path):
    (tmp_path / "xnli.dev.tsv").write_bytes(b"language\xff")
    with pytest.raises(ValueError, match=r"xnli\.dev\.tsv cannot be read"):
        load_xnli(tmp_path, split="dev")
    packed = gzip.compress(b"lang" * 99)
    for damaged in (packed[:15], packed[:12] + b"\xff" * 9, b"lang"):
        (tmp_path / "xnli_test.tsv.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"xnli_test\.tsv\.gz cannot be read"):
            load_xnli(tmp_path)


def test_xnli_calls_that_cannot_be_met(tmp_path):
    write_xnli(tmp_path / "xnli.dev.tsv")
    with pytest.raises(ValueError, match="no rows in 'it': its languages are en, ar, th"):
        load_xnli(tmp_path, split="dev", languages="it")
    with pytest.raises(ValueError, match="split is 'validation'"):
        load_xnli(tmp_path, split="validation")


GERMAN = "Wien liegt an der Donau. Graz liegt an der Mur."
HINDI = "नई दिल्ली भारत की राजधानी है।"
CHINESE = "北京大学在北京。😀上海"


def squad(*paragraphs, version="1.1"):
    """Paragraphs (context, [(id, question, [(text, start)])]) in the layout of SQuAD."""
    content = []
    for context, questions in paragraphs:
        qas = [
            {
                "id": question_id,
                "question": question,
                "answers": [{"text": text, "answer_start": start} for text, start in answers],
            }
            for question_id, question, answers in questions
        ]
        content.append({"title": "x", "paragraphs": [{"context": context, "qas": qas}]})
    return {"version": version, "data": content}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def test_squad(tmp_path):
    content = squad(
        (
            GERMAN,
            [("a", "Wo liegt Wien?", [("an der Donau", 11), ("Donau", 18)]), ("b", "Wo liegt Linz?", [])],
        ),
        (CHINESE, [("c", "北京大学在哪？", [("北京", 5)]), ("d", "?", [("上海", 9)])]),
        version="v2.0",
    )
    impossible = content["data"][0]["paragraphs"][0]["qas"][1]
    impossible.update(is_impossible=True, plausible_answers=[{"text": "Mur", "answer_start": 43}])
    write_json(tmp_path / "dev-v2.0.json", content)
    data = load_squad(tmp_path / "dev-v2.0.json")
    assert data.data[0].tolist() == ["Wo liegt Wien?", GERMAN]
    assert data.answers.tolist() == [[("an der Donau", 11), ("Donau", 18)], [], [("北京", 5)], [("上海", 9)]]
    assert data.target.tolist() == [("an der Donau", 11), None, ("北京", 5), ("上海", 9)]
    assert data.ids.tolist() == ["a", "b", "c", "d"]
    assert data.languages.tolist() == ["en"] * 4
    assert mlqa_f1(data.answers, ["Donau", "", "北京", "上海"], data.languages) == 1


def test_mlqa(tmp_path):
    for context_language, context, answer in [("de", GERMAN, ("Mur", 43)), ("hi", HINDI, ("भारत", 10))]:
        for question_language in ("de", "hi", "en"):
            name = f"test-context-{context_language}-question-{question_language}.json"
            questions = [("q1", f"{question_language}?", [answer])]
            write_json(tmp_path / "MLQA_V1" / "test" / name, squad((context, questions), version="1.0"))
    for folder in (tmp_path, tmp_path / "MLQA_V1"):
        data = load_mlqa(folder)
        assert data.languages.tolist() == ["de", "hi"]
        assert data.data[:, 0].tolist() == ["de?", "hi?"]
        assert data.groups.tolist() == [0, 0]
    data = load_mlqa(tmp_path, languages="hi", question_language="en")
    assert data.data.tolist() == [["en?", HINDI]]
    assert data.files[0].name == "test-context-hi-question-en.json"
    with pytest.raises(FileNotFoundError, match=r"dev/dev-context-<language>-question-<language>\.json"):
        load_mlqa(tmp_path, split="dev")
    with pytest.raises(ValueError, match="no rows in 'vi': its languages are de, hi"):
        load_mlqa(tmp_path, languages=["vi"])
    with pytest.raises(ValueError, match="split is 'train'"):
        load_mlqa(tmp_path, split="train")


@pytest.mark.parametrize("folder", ["xquad", "."])
def test_xquad(tmp_path, folder):
    write_json(tmp_path / folder / "xquad.zh.json", squad((CHINESE, [("q1", "?", [("上海", 9)])])))
    write_json(tmp_path / folder / "xquad.de.json", squad((GERMAN, [("q1", "?", [("Mur", 43)])])))
    data = load_xquad(tmp_path)
    assert data.languages.tolist() == ["de", "zh"]
    assert data.groups.tolist() == [0, 0]
    assert load_xquad(tmp_path, languages="zh").data[0, 1] == CHINESE
    with pytest.raises(FileNotFoundError, match=r"xquad\.<language>\.json(.|\n)*xquad\.jsonl\.gz"):
        load_xquad(tmp_path / "nowhere")


def test_languages_may_have_three_letters(tmp_path):
    write_json(tmp_path / "xquad.fil.json", squad((GERMAN, [("q1", "?", [("Mur", 43)])])))
    assert load_xquad(tmp_path).languages.tolist() == ["fil"]


def compact(language, context, answer, start, **others):
    record = {
        "lang": language,
        "context": context,
        "question": "?",
        "id": f"{language}1",
        "answer_text": answer,
    }
    return json.dumps({**record, "answer_start": start, **others}, ensure_ascii=False)


def test_compact_files(tmp_path):
    write_lines(
        tmp_path / "xquad.jsonl.gz",
        [compact("de", GERMAN, "Mur", 43), compact("zh", CHINESE, "上海", 9), compact("hi", HINDI, "", -1)],
    )
    data = load_xquad(tmp_path)
    assert data.languages.tolist() == ["de", "zh", "hi"]
    assert data.target.tolist() == [("Mur", 43), ("上海", 9), None]
    write_lines(
        tmp_path / "tydiqa_goldp.jsonl.gz",
        [compact("sw", GERMAN, "Mur", 43, answers=["Mur", "der Mur"]), compact("ko", CHINESE, "上海", 9)],
    )
    data = load_tydiqa_goldp(tmp_path, languages=["sw"])
    assert data.answers.tolist() == [[("Mur", 43), ("der Mur", None)]]
    assert load_squad(tmp_path / "tydiqa_goldp.jsonl.gz").languages.tolist() == ["sw", "ko"]


def test_an_id_tells_the_language_of_a_line_that_does_not(tmp_path):
    record = json.loads(compact("x", CHINESE, "上海", 9, id="korean-5"))
    del record["lang"]
    write_lines(tmp_path / "x.jsonl", [json.dumps(record)])
    assert load_squad(tmp_path / "x.jsonl").languages.tolist() == ["ko"]


def test_tydiqa(tmp_path):
    questions = [("swahili--123-4", "?", [("Mur", 43)]), ("bengali-5-0", "?", [("Graz", 25)])]
    write_json(tmp_path / "tydiqa-goldp-v1.1-train.json", squad((GERMAN, questions)))
    assert load_tydiqa_goldp(tmp_path).languages.tolist() == ["sw", "bn"]
    assert load_tydiqa_goldp(tmp_path, languages="bn").target.tolist() == [("Graz", 25)]
    with pytest.raises(FileNotFoundError, match=r"tydiqa-goldp-v1\.1-dev\.json"):
        load_tydiqa_goldp(tmp_path, split="dev")
    with pytest.raises(ValueError, match="split is 'test'"):
        load_tydiqa_goldp(tmp_path, split="test")


TYDI = {
    "arabic": "ar", "bengali": "bn", "english": "en", "finnish": "fi", "indonesian": "id", "japanese": "ja",
    "korean": "ko", "russian": "ru", "swahili": "sw", "telugu": "te", "thai": "th",
}  # fmt: skip


def test_ids_of_tydiqa_tell_all_its_languages(tmp_path):
    questions = [(f"{name}-1-0", "?", [("Mur", 43)]) for name in TYDI]
    write_json(tmp_path / "tydiqa-goldp-v1.1-train.json", squad((GERMAN, questions)))
    assert load_tydiqa_goldp(tmp_path).languages.tolist() == list(TYDI.values())


def test_a_training_file_does_not_stand_in_for_dev(tmp_path):
    write_lines(tmp_path / "tydiqa_goldp.jsonl.gz", [compact("sw", GERMAN, "Mur", 43)])
    with pytest.raises(FileNotFoundError, match=r"tydiqa-goldp-v1\.1-dev\.json"):
        load_tydiqa_goldp(tmp_path, split="dev")


@pytest.mark.parametrize(
    ("context", "answer", "start", "hint"),
    [
        (HINDI, "भारत", len(HINDI[:10].encode()), "fits bytes of UTF-8"),
        (CHINESE, "上海", 10, "first occurs at 9"),
        (GERMAN, "Donau", -29, "first occurs at 18"),
        (GERMAN, "Linz", 0, "the context has 'Wien'"),
        (GERMAN, "", 0, "an answer is empty"),
    ],
)
def test_answers_that_are_elsewhere_are_named(tmp_path, context, answer, start, hint):
    write_json(tmp_path / "x.json", squad((context, [("q7", "?", [(answer, start)])])))
    with pytest.raises(ValueError, match=hint) as error:
        load_squad(tmp_path / "x.json")
    assert "x.json, question 'q7'" in str(error.value)


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_offsets_count_characters_of_any_text(tmp_path_factory, answer, before, after):
    path = tmp_path_factory.mktemp("any") / "x.json"
    write_json(path, squad((before + answer + after, [("q", "?", [(answer, len(before))])])))
    assert load_squad(path).target[0] == (answer, len(before))
    lines = path.with_name("x.jsonl")
    lines.write_bytes(compact("th", before + answer + after, answer, len(before)).encode())
    assert load_squad(lines).data[0, 1] == before + answer + after


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("data"), "the field 'data' is missing"),
        (
            lambda content: content["data"].append("x"),
            "article 1: the field 'paragraphs' is missing; there is 'x'",
        ),
        (
            lambda content: content["data"][0]["paragraphs"][0].update(context=None),
            "article 0, paragraph 0: the field 'context' is None",
        ),
        (
            lambda content: content["data"][0]["paragraphs"].append({"context": None, "qas": []}),
            "article 0, paragraph 1: the field 'context' is None",
        ),
        (
            lambda content: content["data"][0]["paragraphs"][0]["qas"][0].pop("answers"),
            "question 'a': the field 'answers' is missing",
        ),
        (
            lambda content: content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0].update(
                answer_start="3"
            ),
            "question 'a': the field 'answer_start' is '3', expected int",
        ),
        (
            lambda content: content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0].update(
                answer_start=True
            ),
            "question 'a': the field 'answer_start' is True, expected int",
        ),
        (lambda content: content["data"].clear(), "has no questions"),
    ],
)
def test_bad_squad_fields_are_named(tmp_path, change, message):
    content = squad((GERMAN, [("a", "?", [("Mur", 43)])]))
    change(content)
    write_json(tmp_path / "x.json", content)
    with pytest.raises(ValueError, match=message):
        load_squad(tmp_path / "x.json")


def test_bad_lines_of_questions_are_named(tmp_path):
    path = tmp_path / "x.jsonl"
    good = compact("de", GERMAN, "Mur", 43)
    for bad, message in [
        (compact("de", GERMAN, "Mur", 40), "line 2: the answer 'Mur' is not at answer_start=40"),
        (compact("de", GERMAN, "Mur", None), "line 2: the field 'answer_start' is None"),
        (compact("de", GERMAN, "Mur", 43, answers=[5]), "line 2: the field 'answers' holds 5"),
        (compact(5, GERMAN, "Mur", 43), "line 2: the field 'lang' is 5"),
    ]:
        write_lines(path, [good, bad])
        with pytest.raises(ValueError, match=message):
            load_squad(path)
    with pytest.raises(FileNotFoundError, match="is no file"):
        load_squad(tmp_path)


def test_rows_can_be_selected_by_a_mask(tmp_path):
    write_lines(
        tmp_path / "xquad.jsonl.gz", [compact("de", GERMAN, "Mur", 43), compact("zh", CHINESE, "上海", 9)]
    )
    data = load_xquad(tmp_path)
    mask = data.languages == "zh"
    assert data.data[mask].shape == (1, 2)
    assert data.answers[mask].tolist() == [[("上海", 9)]]
    assert np.array_equal(data.ids[mask], ["zh1"])


def test_a_byte_order_mark_is_no_text(tmp_path):
    qas = [{"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}]
    content = {"data": [{"paragraphs": [{"context": "Ada comes.", "qas": qas}]}]}
    (tmp_path / "train.json").write_text(json.dumps(content), encoding="utf-8-sig")
    assert load_squad(tmp_path / "train.json").data.tolist() == [["Who?", "Ada comes."]]
    lines = "premise\thypo\tlabel\na\tb\tneutral\n"
    (tmp_path / "multinli.train.en.tsv").write_text(lines, encoding="utf-8-sig")
    assert load_xnli(tmp_path, split="train").data.tolist() == [["a", "b"]]


def test_languages_are_read_once_each(tmp_path):
    (tmp_path / "multinli.train.en.tsv").write_text("premise\thypo\tlabel\nA\tB\tneutral\n\n")
    for languages in (["en", "en"], np.array(["en", "en"]), "en", None):
        read = load_xnli(tmp_path, split="train", languages=languages)
        assert read.data.tolist() == [["A", "B"]]
    with pytest.raises(ValueError, match="languages is empty"):
        load_xnli(tmp_path, split="train", languages=[])
    (tmp_path / "xquad.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(ValueError, match="languages is empty"):
        load_xquad(tmp_path, languages=[])


@pytest.mark.parametrize("name", ["xnli.dev.tsv", "xnli.dev.jsonl"])
def test_pairs_without_an_id_are_told_by_their_place(tmp_path, name):
    rows = [("en", "neutral", "a", "b", ""), ("en", "neutral", "c", "d", ""), ("de", "neutral", "a", "b", "")]
    write_xnli(tmp_path / name, rows)
    assert load_xnli(tmp_path, split="dev").groups.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "notes", [b"---\nMy notes: on: data\n---\n", b"MLQA \xa9 2019\n", b"---\n- a\n---\n"]
)
def test_notes_beside_the_files_are_no_card_of_the_hub(tmp_path, notes):
    (tmp_path / "multinli.train.en.tsv").write_text("premise\thypo\tlabel\nA\tB\tneutral\n")
    (tmp_path / "README.md").write_bytes(notes)
    assert load_xnli(tmp_path, split="train").target.tolist() == ["neutral"]


def test_half_a_surrogate_pair_does_not_hide_the_question(tmp_path):
    qas = [{"id": "7", "question": "Who?", "answers": [{"text": "zz", "answer_start": 0}]}]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "A \ud83d b", "qas": qas}]}]}))
    with pytest.raises(ValueError, match=r"'7'.*is not at answer_start=0"):
        load_squad(path)


def test_an_answer_that_is_part_of_the_first_counts_too(tmp_path):
    start = GERMAN.index("Mur")
    answer = GERMAN[start : start + 6]
    write_lines(tmp_path / "x.jsonl", [compact("de", GERMAN, answer, start, answers=[answer, "Mur"])])
    assert load_squad(tmp_path / "x.jsonl").answers.tolist() == [[(answer, start), ("Mur", None)]]


def test_a_pair_of_number_0_has_an_id(tmp_path):
    def line(language, pair):
        return json.dumps(
            {
                "language": language,
                "gold_label": "neutral",
                "sentence1": "a",
                "sentence2": "b",
                "pairID": pair,
            }
        )

    write_lines(tmp_path / "xnli.dev.jsonl", [line("en", 1), line("en", 0), line("de", 0), line("de", 1)])
    assert load_xnli(tmp_path, split="dev").groups.tolist() == [0, 1, 1, 0]
