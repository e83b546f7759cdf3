"""MiniLMQuestionAnswerer: windows, offsets, what is learned, what is found, what is refused."""

from __future__ import annotations

import re
import shutil
import unicodedata
import warnings
from collections import deque
from itertools import pairwise

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import Pipeline

from skminilm import MiniLMQuestionAnswerer, clear_cache
from skminilm._answers import check_answers
from skminilm._spans import choose_answers
from skminilm._validation import Texts, is_blank
from skminilm._windows import cut_windows, window_starts
from skminilm.checkpoints import load_checkpoint
from skminilm.finetuning import SpanObjective, loop
from skminilm.metrics import mlqa_f1

# The same facts in many scripts, with combining marks and wide characters.
CONTEXTS = {
    "en": ("Where was Marie Curie born?", "Marie Curie was born in Warsaw in 1867.", "Warsaw"),
    "de": ("Wo wurde Marie Curie geboren?", "Marie Curie wurde 1867 in Warschau geboren.", "Warschau"),
    "ru": ("Где родилась Мария Кюри?", "Мария Кюри родилась в Варшаве в 1867 году.", "Варшаве"),
    "el": ("Πού γεννήθηκε η Μαρία Κιουρί;", "Η Μαρία Κιουρί γεννήθηκε στη Βαρσοβία το 1867.", "Βαρσοβία"),
    "ar": ("أين ولدت ماري كوري؟", "ولدت ماري كوري في وارسو عام 1867.", "وارسو"),
    "hi": ("मैरी क्यूरी का जन्म कहाँ हुआ?", "मैरी क्यूरी का जन्म 1867 में वारसॉ में हुआ था।", "वारसॉ"),
    "th": ("มารี กูรี เกิดที่ไหน", "มารี กูรี เกิดที่วอร์ซอในปี 1867", "วอร์ซอ"),
    "zh": ("玛丽·居里出生在哪里？", "玛丽·居里１８６７年出生于华沙。", "华沙"),
    "vi": ("Marie Curie sinh ở đâu?", "Marie Curie sinh ra ở Vac-sa-va năm 1867.", "Vac-sa-va"),
    "emoji": ("Who?", "👩🏽\u200d🔬 Marie  ½ e\u0301t\u00e9 ﬁn 𝔐arie", "e\u0301t\u00e9"),
}
QUESTIONS = [[question, context] for question, context, _ in CONTEXTS.values()]
ANSWERS = [answer for _, _, answer in CONTEXTS.values()]
LONG = " ".join(["Nothing is said here about it."] * 60)
# One step an epoch: then weights and repeated rows are the same sum.
WEIGHED = dict(
    trainable=1,
    epochs=2,
    batch_size=64,
    max_length=64,
    stride=8,
    precision="fp32",
    random_state=0,
    device="cpu",
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_checkpoint("bundled").tokenizer


@pytest.fixture(scope="module")
def answerer():
    """Learned by heart, on the real checkpoint."""
    model = MiniLMQuestionAnswerer(epochs=12, batch_size=5, head_learning_rate=1e-2, random_state=0)
    return model.fit(QUESTIONS, ANSWERS)


def test_answers_are_learned_in_every_script(answerer):
    assert answerer.predict(QUESTIONS).tolist() == ANSWERS
    assert answerer.score(QUESTIONS, ANSWERS) == answerer.exact_match(QUESTIONS, ANSWERS) == 1.0
    probabilities = answerer.predict_proba(QUESTIONS)
    assert probabilities.shape == (len(QUESTIONS),)
    assert ((probabilities > 0.3) & (probabilities <= 1)).all()


def test_spans_are_places_in_the_context(answerer):
    for (_, context), spans in zip(QUESTIONS, answerer.predict_spans(QUESTIONS, n_best=5), strict=True):
        assert 0 < len(spans) <= 5
        assert len({(span.start, span.end) for span in spans}) == len(spans)
        scores = np.array([span.score for span in spans])
        assert (np.diff(scores) <= 0).all()
        assert scores.sum() <= 1 + 1e-6
        for span in spans:
            assert context[span.start : span.end] == span.text
            assert not span.text[0].isspace()
            assert not span.text[-1].isspace()


def test_long_contexts_are_read_in_windows(answerer):
    X = [["Where was Marie Curie born?", f"{LONG} Marie Curie was born in Warsaw in 1867. {LONG}"]]
    (span,) = answerer.predict_spans(X)[0]
    assert (span.text, span.start) == ("Warsaw", X[0][1].index("Warsaw"))


def test_very_long_context(answerer):
    context = "Marie Curie was born in Warsaw. " + "Many other things happened. " * 1800
    assert len(context) > 50_000
    assert answerer.predict([["Where was Marie Curie born?", context]])[0] == "Warsaw"


def test_order_and_company_do_not_matter(answerer):
    model = clone(answerer).set_params(precision="fp32", epochs=1).fit(QUESTIONS[:4], ANSWERS[:4])
    X = [*QUESTIONS, ["Where was Marie Curie born?", f"{LONG} Marie Curie was born in Warsaw. {LONG}"]]
    together = model.predict_spans(X, n_best=2)
    alone = [model.predict_spans([row], n_best=2)[0] for row in X[::-1]][::-1]
    assert [[s[:2] for s in spans] for spans in together] == [[s[:2] for s in spans] for spans in alone]
    np.testing.assert_allclose(
        [s.score for spans in together for s in spans], [s.score for spans in alone for s in spans], rtol=1e-3
    )


def test_no_answer_is_learned_and_can_be_asked_for():
    questions = [
        [f"Where was {name} born?", "Marie Curie was born in Warsaw."] for name in ("Marie Curie", "Kant")
    ]
    model = MiniLMQuestionAnswerer(
        epochs=15, batch_size=2, head_learning_rate=1e-2, no_answer_threshold=0.0, random_state=0
    ).fit(questions, ["Warsaw", None])
    assert model.predict(questions).tolist() == ["Warsaw", ""]
    assert model.predict_spans(questions, n_best=2)[1][0][:2] == (0, 0)
    assert model.score(questions, ["Warsaw", None]) == 1.0
    assert model.set_params(no_answer_threshold=None).predict(questions)[1] != ""
    assert model.set_params(no_answer_threshold=1e6).predict(questions)[1] != ""


def test_no_answer_counts_among_those_asked_for(answerer):
    model = clone(answerer).set_params(no_answer_threshold=-1e9)
    vars(model).update({name: value for name, value in vars(answerer).items() if name.endswith("_")})
    for n_best in (1, 3):
        (spans,) = model.predict_spans(QUESTIONS[:1], n_best=n_best)
        assert len(spans) == n_best
        assert spans[0].text == ""


def test_the_margin_of_no_answer_is_what_the_threshold_is_compared_with(answerer):
    margins = answerer.no_answer_margin(QUESTIONS)
    assert margins.shape == (len(QUESTIONS),)
    model = clone(answerer)
    vars(model).update({name: value for name, value in vars(answerer).items() if name.endswith("_")})
    threshold = float(np.median(margins))
    answered = model.set_params(no_answer_threshold=threshold).predict(QUESTIONS) != ""
    np.testing.assert_array_equal(answered, margins <= threshold)
    spans = model.set_params(no_answer_threshold=-1e9).predict_spans(QUESTIONS[:1], n_best=2)[0]
    assert np.log(spans[0].score / spans[1].score) == pytest.approx(margins[0], rel=1e-4)


def test_each_question_is_computed_once(answerer, computed):
    expected = answerer.predict_spans(QUESTIONS, n_best=2)
    n_windows = sum(computed)
    assert n_windows >= len(QUESTIONS)
    computed.clear()
    assert answerer.predict_spans(QUESTIONS * 3, n_best=2) == expected * 3
    assert sum(computed) == n_windows


def test_cut_questions_are_counted_in_all_rows(answerer):
    X = [["Where " * 400, "Ada came."], QUESTIONS[0], ["Where " * 400, "Ada came."]]
    with pytest.warns(UserWarning, match="2 of 3 questions take more than half"):
        answerer.predict(X)


def test_characters_that_are_several_tokens_hide_no_span(answerer):
    for context in ("a ‷ ‷", "⅐ of ⅑", "㌚ and ㌚㌚ there"):
        all_spans = answerer.predict_spans([["What is it?", context]], n_best=1000)[0]
        for n_best in range(1, len(all_spans) + 1):
            assert len(answerer.predict_spans([["What is it?", context]], n_best=n_best)[0]) == n_best


def test_a_stride_that_hides_long_answers_is_warned_of(xlmr_folder):
    options = dict(trainable=1, epochs=1, max_length=64, random_state=0)
    model = MiniLMQuestionAnswerer(xlmr_folder, stride=8, max_answer_length=9, **options)
    long = [["q", " ".join(f"word{number}" for number in range(60))]]
    with pytest.warns(UserWarning, match=r"stride=8 tokens, less than max_answer_length=9"):
        model.fit(long, ["word3"])
    with pytest.warns(UserWarning, match=r"stride=8 tokens, less than max_answer_length=9"):
        model.predict(long)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict([["q", "one window"]])
        model.set_params(max_answer_length=8).predict(long)


@pytest.mark.parametrize("trainable", [1, "all"])
def test_what_is_trained_and_kept(xlmr_folder, tmp_path, trainable):
    options = dict(max_length=64, stride=8, trainable=trainable, epochs=1, random_state=0, precision="fp32")
    model = MiniLMQuestionAnswerer(str(xlmr_folder), **options).fit(QUESTIONS, ANSWERS)
    layers = {name.split(".")[1] for name in model.weights_ if name.startswith("layers.")}
    assert layers == ({"1"} if trainable == 1 else {"0", "1"})
    again = clone(model).fit(QUESTIONS, ANSWERS)
    assert again.weights_digest_ == model.weights_digest_
    expected = model.predict_spans(QUESTIONS)
    model.save(tmp_path / "saved")
    assert MiniLMQuestionAnswerer.load(tmp_path / "saved").predict_spans(QUESTIONS) == expected
    joblib.dump(model, tmp_path / "model.joblib")
    assert joblib.load(tmp_path / "model.joblib").predict_spans(QUESTIONS) == expected


def test_grid_search_over_a_frame(xlmr_folder):
    frame = pd.DataFrame(QUESTIONS, columns=["question", "context"])
    search = GridSearchCV(
        MiniLMQuestionAnswerer(str(xlmr_folder), epochs=1, max_length=64, stride=8, random_state=0),
        {"max_answer_length": [1, 8]},
        cv=2,
        error_score="raise",
    ).fit(frame, ANSWERS)
    assert list(search.best_estimator_.feature_names_in_) == ["question", "context"]
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize("make_frame", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
def test_columns_are_taken_in_the_order_of_fit(xlmr_folder, make_frame):
    columns = {"q": [question for question, _ in QUESTIONS[:3]], "c": [text for _, text in QUESTIONS[:3]]}
    frame, y = make_frame(columns), ANSWERS[:3]
    swapped = frame[["c", "q"]]
    model = MiniLMQuestionAnswerer(str(xlmr_folder), **WEIGHED).fit(frame, y, X_val=frame, y_val=y)
    assert model.feature_names_in_.tolist() == ["q", "c"]
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        assert model.predict_spans(QUESTIONS[:3]) == model.predict_spans(frame)
    for use in (
        model.predict,
        model.predict_spans,
        lambda X: model.score(X, y),
        lambda X: model.exact_match(X, y),
    ):
        with pytest.raises(
            ValueError, match=r"Names in fit: q, c\. Names in X: c, q\. .* by X\[\['q', 'c'\]\]"
        ):
            use(swapped)
    with pytest.raises(ValueError, match=r"X and X_val must have the same columns: X has q, c, X_val c, q"):
        model.fit(frame, y, X_val=swapped, y_val=y)


@pytest.mark.parametrize("make_frame", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
def test_columns_whose_names_say_another_order_are_refused(make_frame):
    frame = make_frame({"context": ["Ada comes."], "question": ["Who comes?"]})
    with pytest.raises(ValueError, match=r"columns context, question.* X\[\['question', 'context'\]\]"):
        MiniLMQuestionAnswerer().fit(frame, [None])


STILL = dict(epochs=1, learning_rate=1e-12, head_learning_rate=1e-12)  # a fit ends where it began


@pytest.mark.parametrize("trainable", [1, "all", "lora"])
def test_warm_start_goes_on(xlmr_folder, trainable):
    if trainable == "lora":
        pytest.importorskip("peft")
    options = {**WEIGHED, "trainable": trainable, "learning_rate": 1e-3, "warm_start": True}
    model = MiniLMQuestionAnswerer(str(xlmr_folder), **options).fit(QUESTIONS[:6], ANSWERS[:6])
    expected, loss = model.predict_spans(QUESTIONS, n_best=3), model.history_[-1]["loss"]
    # Other windows are no reason to begin anew.
    model.set_params(**STILL, max_length=48, stride=12).fit(QUESTIONS[4:], ANSWERS[4:])
    assert model.n_iter_ == len(model.history_) == model.best_epoch_ == 3
    for spans, before in zip(model.predict_spans(QUESTIONS, n_best=3), expected, strict=True):
        assert [span[:2] for span in spans] == [span[:2] for span in before]
        np.testing.assert_allclose([s.score for s in spans], [s.score for s in before], rtol=1e-4)
    model.set_params(**options).fit(QUESTIONS[:6], ANSWERS[:6])
    assert model.history_[-1]["loss"] < loss
    assert len(model.set_params(warm_start=False).fit(QUESTIONS, ANSWERS).history_) == 2


@pytest.mark.parametrize("save_weights", ["delta", "full"])
def test_a_warm_start_of_what_was_saved(xlmr_folder, tmp_path, save_weights):
    folder = shutil.copytree(xlmr_folder, tmp_path / "base")
    options = {**WEIGHED, "save_weights": save_weights, "warm_start": True}
    model = MiniLMQuestionAnswerer(str(folder), **options).fit(QUESTIONS[:6], ANSWERS[:6])
    model.save(tmp_path / "saved")
    again = MiniLMQuestionAnswerer.load(tmp_path / "saved")
    if save_weights == "full":
        shutil.rmtree(folder)
        clear_cache()
    for answerer in (model, again):
        answerer.fit(QUESTIONS[6:], ANSWERS[6:])
    assert again.weights_digest_ == model.weights_digest_
    np.testing.assert_array_equal(again.coef_, model.coef_)


def test_a_warm_start_from_another_network_is_refused(xlmr_folder):
    model = MiniLMQuestionAnswerer(str(xlmr_folder), **{**WEIGHED, "warm_start": True})
    model.fit(QUESTIONS[:2], ANSWERS[:2])
    weights = model.weights_digest_
    with pytest.raises(
        ValueError, match="had another model or revision: restore them, or set warm_start=False"
    ):
        model.set_params(model="bundled").fit(QUESTIONS[:2], ANSWERS[:2])
    with pytest.raises(ValueError, match="trained other weights than trainable=2"):
        model.set_params(model=str(xlmr_folder), trainable=2).fit(QUESTIONS[:2], ANSWERS[:2])
    assert model.weights_digest_ == weights


def test_early_stopping_may_go_back_to_where_a_warm_start_began(answerer):
    model = clone(answerer)
    vars(model).update({name: value for name, value in vars(answerer).items() if name.endswith("_")})
    model.set_params(warm_start=True, early_stopping=True, epochs=2, learning_rate=0.1)
    model.fit(QUESTIONS[:2], [None, None], X_val=QUESTIONS, y_val=ANSWERS)
    assert model.best_epoch_ == answerer.best_epoch_
    assert model.weights_digest_ == answerer.weights_digest_
    assert model.predict(QUESTIONS).tolist() == ANSWERS


def test_lora(xlmr_folder):
    pytest.importorskip("peft")
    model = MiniLMQuestionAnswerer(str(xlmr_folder), trainable="lora", epochs=1, max_length=64, stride=8)
    model.set_params(random_state=0).fit(QUESTIONS, ANSWERS)
    assert all(name.startswith("layers.") for name in model.weights_)
    untrained = clone(model).set_params(learning_rate=1e-12, head_learning_rate=1e-12).fit(QUESTIONS, ANSWERS)
    found, before = (
        [span[2] for spans in some.predict_spans(QUESTIONS) for span in spans] for some in (model, untrained)
    )
    assert np.abs(np.subtract(found, before)).max() > 1e-4


@pytest.mark.parametrize(
    ("X", "y", "error", "message"),
    [
        (["alone"], ["a"], ValueError, "one column: give two"),
        ([["", "c"]], ["c"], ValueError, "empty question: row 0 is ''"),
        ([["q", "c"], ["q", " \n"]], ["c", "c"], ValueError, "empty context: row 1"),
        ([["q", "\u200b \ufffd"]], ["c"], ValueError, "empty context: row 0"),
        ([["q", "a b"], ["q", "a b"]], ["a", "x"], ValueError, "row 1: the answer 'x' is not in its context"),
        (
            [["q", "Zoe\u0308"]] * 2,
            ["Zoe", "Zo\xeb"],
            ValueError,
            "row 1: .* are in another Unicode normal form",
        ),
        (
            [["q", "Anna came"]] * 2,
            ["Anna", "anna"],
            ValueError,
            "row 1: .* where its letters have another case",
        ),
        ([["q", "a b a"]], [("a", 1)], ValueError, "is not at 1, where the context has ' '; it is at 0"),
        ([["q", "a b a"]], [("a", -1)], ValueError, "is not at -1"),
        ([["q", "a b"]], [3], TypeError, "no answer in row 0: it is 3"),
        ([["q", "ba"]], [("a", True)], TypeError, "no answer in row 0"),
        ([["q", "a b"]], ["a", "b"], ValueError, "y has 2 rows, expected 1"),
        ([["q", "a b"]], None, ValueError, "the target y is None: expected one answer"),
        ([["q", "a b"]], "a", TypeError, "y is a str"),
    ],
)
def test_bad_input_is_named(X, y, error, message):
    with pytest.raises(error, match=message):
        MiniLMQuestionAnswerer().fit(X, y)


@pytest.mark.parametrize(
    ("X_val", "y_val", "error", "message"),
    [
        ([["", "c"]], ["c"], ValueError, "X_val has an empty question: row 0"),
        ("q", ["c"], TypeError, "X_val is a bare str"),
        (QUESTIONS[:1], [3], TypeError, "y_val has no answer in row 0: it is 3"),
        (QUESTIONS[:2], ["a"], ValueError, "y_val has 1 rows, expected 2"),
        (QUESTIONS[:1], None, ValueError, "belong together: y_val is None"),
    ],
)
def test_errors_tell_questions_set_aside_from_the_others(X_val, y_val, error, message):
    with pytest.raises(error, match=message):
        MiniLMQuestionAnswerer(trainable=1).fit(QUESTIONS, ANSWERS, X_val=X_val, y_val=y_val)


def test_questions_are_checked_before_a_checkpoint_is_looked_for():
    with pytest.raises(TypeError, match="X is a bare str"):
        MiniLMQuestionAnswerer("no such folder/at all/here").fit("q", ["a"])


def test_another_architecture_is_refused_with_what_helps(distilbert_folder):
    with pytest.raises(ValueError, match=r"'distilbert'.* Use a BERT-shaped checkpoint such as 'bundled'\.$"):
        MiniLMQuestionAnswerer(distilbert_folder).fit(QUESTIONS, ANSWERS)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"stride": 200}, "stride=200 leaves no room"),
        ({"max_length": 513}, "more than the 512 positions"),
        ({"trainable": "head"}, "trainable"),
        ({"max_answer_length": 0}, "max_answer_length"),
        ({"max_answer_length": True}, "max_answer_length"),
        ({"trainable": True}, r"trainable.* Got True"),
        ({"epochs": True}, "epochs"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        MiniLMQuestionAnswerer(**parameters).fit(QUESTIONS, ANSWERS)


def test_the_largest_stride_that_is_named_is_taken(xlmr_folder):
    options = {**WEIGHED, "epochs": 1}
    with pytest.raises(ValueError, match=r"stride=28 leaves no room .* use at most 27"):
        MiniLMQuestionAnswerer(str(xlmr_folder), **{**options, "stride": 28}).fit(QUESTIONS, ANSWERS)
    MiniLMQuestionAnswerer(str(xlmr_folder), **{**options, "stride": 27}).fit(QUESTIONS[:1], ANSWERS[:1])


@pytest.mark.parametrize("n_best", [True, 0, 1.5])
def test_a_number_of_answers_that_is_none_is_named(answerer, n_best):
    with pytest.raises(ValueError, match=f"n_best={n_best}: expected an int of at least 1"):
        answerer.predict_spans(QUESTIONS[:1], n_best=n_best)


def test_the_revision_of_a_question_answerer_arrives(monkeypatch):
    seen = []

    def stop(model, revision, **options):
        seen.append((model, revision))
        raise OSError("enough")

    monkeypatch.setattr("skminilm._trained_network.open_checkpoint", stop)
    with pytest.raises(OSError, match="enough"):
        MiniLMQuestionAnswerer("owner/name", revision="v2").fit(QUESTIONS, ANSWERS)
    assert seen == [("owner/name", "v2")]


def test_answers_that_are_missing_can_be_left_out(xlmr_folder):
    model = MiniLMQuestionAnswerer(str(xlmr_folder), epochs=1, max_length=64, stride=8, random_state=0)
    with pytest.warns(
        UserWarning, match=r"missing in 1 of 2 rows of y; the first: row 1: the answer 'x' .* left out"
    ):
        model.fit([["q", "a b"], ["q", "a b"]], ["a", "x"], on_missing_answer="drop")
    kept = clone(model).fit([["q", "a b"]], ["a"])
    assert kept.weights_digest_ == model.weights_digest_
    with pytest.raises(ValueError, match=r"missing in 1 of 1 rows of y; .* So no row is left"):
        model.fit([["q", "a b"]], ["x"], on_missing_answer="drop")
    with pytest.raises(ValueError, match="on_missing_answer='skip'"):
        model.fit([["q", "a b"]], ["a"], on_missing_answer="skip")


TWO_WINDOWS = [
    "Where was Marie Curie born?",
    f"Marie Curie was born in Warsaw. {' '.join(['Nothing.'] * 60)}",
]


def fitted_loss(folder, X, y, **options):
    model = MiniLMQuestionAnswerer(str(folder), **WEIGHED).fit(X, y, **options)
    return model.coef_, [record["loss"] for record in model.history_]


def test_weight_0_leaves_a_question_out_of_the_loss(xlmr_folder):
    X, y = [*QUESTIONS[:3], TWO_WINDOWS], [*ANSWERS[:3], "Marie"]
    expected = fitted_loss(xlmr_folder, X[:3], y[:3])
    found = fitted_loss(xlmr_folder, X, y, sample_weight=[1, 1, 1, 0])
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    assert not np.allclose(fitted_loss(xlmr_folder, X, y)[0], expected[0], atol=1e-4)


def test_a_question_of_weight_3_counts_as_three(xlmr_folder):
    X, y = [QUESTIONS[0], TWO_WINDOWS], [ANSWERS[0], "Warsaw"]
    expected = fitted_loss(xlmr_folder, [X[0], X[1], X[1], X[1]], [y[0], y[1], y[1], y[1]])
    for weights in ([1, 3], np.array([0.5, 1.5])):
        found = fitted_loss(xlmr_folder, X, y, sample_weight=weights)
        for got, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


def test_weights_follow_the_rows_that_are_kept(xlmr_folder):
    X, y = [["q", "a b"], *QUESTIONS[:2]], ["x", *ANSWERS[:2]]
    expected = fitted_loss(xlmr_folder, X[1:], y[1:], sample_weight=[1, 4])
    with pytest.warns(UserWarning, match="1 of 3 rows of y; .* left out"):
        found = fitted_loss(xlmr_folder, X, y, sample_weight=[9, 1, 4], on_missing_answer="drop")
    np.testing.assert_array_equal(found[0], expected[0])
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="sample_weight is zero in every row that is left"),
    ):
        fitted_loss(xlmr_folder, X, y, sample_weight=[9, 0, 0], on_missing_answer="drop")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1], r"sample_weight has the shape \(1,\), expected \(2,\)"),
        ([1, -1], r"sample_weight of row 1 is -1\.0"),
        ([1, np.nan], "sample_weight of row 1 is nan"),
        ([0, 0], "sample_weight is zero in every row"),
    ],
)
def test_wrong_weights_are_refused(answerer, xlmr_folder, weights, message):
    with pytest.raises(ValueError, match=message):
        fitted_loss(xlmr_folder, QUESTIONS[:2], ANSWERS[:2], sample_weight=weights)
    with pytest.raises(ValueError, match=message):
        answerer.score(QUESTIONS[:2], ANSWERS[:2], sample_weight=weights)


def test_weights_are_routed(xlmr_folder):
    X, y, weights = QUESTIONS[:2], ANSWERS[:2], [1, 5]
    with sklearn.config_context(enable_metadata_routing=True):
        model = MiniLMQuestionAnswerer(str(xlmr_folder), **WEIGHED)
        model.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        piped = Pipeline([("qa", model)]).fit(X, y, sample_weight=weights)
        right = [*piped.predict(X[:1]), "elsewhere"]
        assert piped.score(X, right, sample_weight=[1, 3]) == 0.25
    expected = fitted_loss(xlmr_folder, X, y, sample_weight=weights)
    np.testing.assert_array_equal(piped["qa"].coef_, expected[0])
    assert not np.array_equal(expected[0], fitted_loss(xlmr_folder, X, y)[0])


def test_languages_are_routed(xlmr_folder, monkeypatch):
    X, y = [["Was?", "die Lampe"]] * 4, ["Lampe"] * 4
    languages = np.array(["de", "en", "en", "en"])  # "die" is no article in English
    monkeypatch.setattr(MiniLMQuestionAnswerer, "predict", lambda self, X: [context for _, context in X])
    model = MiniLMQuestionAnswerer(str(xlmr_folder), **WEIGHED)
    options = dict(cv=KFold(2), params={"languages": languages}, error_score="raise")
    with sklearn.config_context(enable_metadata_routing=True):
        with pytest.raises(UnsetMetadataPassedError, match="set_score_request"):
            cross_val_score(model, X, y, **options)
        model.set_score_request(languages=True)
        scores = cross_val_score(model, X, y, **options)
    np.testing.assert_allclose(scores, [(1 + 2 / 3) / 2, 2 / 3])


def test_scores_are_weighted(answerer):
    y = [ANSWERS[0], "elsewhere"]
    assert answerer.score(QUESTIONS[:2], y) == 0.5
    assert answerer.score(QUESTIONS[:2], y, sample_weight=[3, 1]) == 0.75
    assert answerer.exact_match(QUESTIONS[:2], y, sample_weight=[1, 3]) == 0.25


def test_long_questions_are_cut_with_a_warning(answerer):
    with pytest.warns(UserWarning, match="1 of 2 questions take more than half of max_length=384"):
        found = answerer.predict([["Where was she born? " * 100, CONTEXTS["en"][1]], QUESTIONS[0]])
    assert found[1] == "Warsaw"


def test_a_question_may_take_half_of_what_a_pair_has(tokenizer):
    for n, is_cut in ((30, False), (31, True)):  # of 64, without 4 special ones
        question = " ".join(["a"] * n)
        assert len(tokenizer.locate([question])[0].ids) == n
        windows = cut_windows(tokenizer, Texts([question], ["Ada came."]), 64, 8)
        assert windows.is_cut.tolist() == [is_cut]
        assert windows.context_starts[0] == 1 + 30 + 2


def test_references_are_read():
    answers, problems = check_answers(
        ["b", ("a", 4), [("b", 2), "a"], None, "", np.nan, [], np.array(["c"])], ["a b a c"] * 8
    )
    assert answers == [("b", 2), ("a", 4), ("b", 2), None, None, None, None, ("c", 6)]
    assert problems == [""] * 8


def test_answers_of_the_library_datasets():
    y = [
        {"text": ["b", "a"], "answer_start": [2, 0]},
        {"text": [], "answer_start": []},
        {"text": np.array(["c"], object), "answer_start": np.array([6])},
        {"text": "a", "answer_start": 4},
    ]
    for rows in (y, deque(y)):
        assert check_answers(rows, ["a b a c"] * 4) == ([("b", 2), None, ("c", 6), ("a", 4)], [""] * 4)
    assert mlqa_f1(y, ["b", "", "c", "x"]) == 0.75
    for value in ({"text": ["b"], "answer_start": []}, {"text": ["b"]}, {"text": 1, "answer_start": 2}):
        with pytest.raises(TypeError, match="y has no answer in row 0"):
            check_answers([value], ["a b"])


def test_an_answer_without_a_place_is_no_part_of_a_word():
    for answer, context, start in (
        ("libs", "Package: libseccomp2\nSection: libs", 30),
        ("art", "The party sells art.", 16),
        ("9", "He was born in 1980; he is 9.", 27),
        ("art", "party, start", 1),  # where it stands in words alone, the first of them
        ("서울", "서울은 서울", 0),  # particles are written together with the word
        ("首都", "中国的首都。首都", 3),
        ("art", "art", 0),
        ("искусство", "искусствовед и искусство", 15),
    ):
        assert check_answers([answer], [context]) == ([(answer, start)], [""])


def test_places_that_are_no_int():
    for place in (4.0, np.float32(4), np.int32(4)):
        assert check_answers([("a", place)], ["a b a c"])[0] == [("a", 4)]
        assert check_answers([[("a", place), "b"]], ["a b a c"])[0] == [("a", 4)]
    assert check_answers([("a", np.nan)], ["a b a c"])[0] == [("a", 0)]
    for value in (("a", "4"), ("a", 4.5), {"text": "a", "answer_start": "4"}, [("a", "4")]):
        with pytest.raises(TypeError, match=r"y has no answer in row 0: it is .* A start has to be an int"):
            check_answers([value], ["a b a c"])
    assert mlqa_f1([["seven", "7"], ("7", "8")], ["7", "8"]) == 1  # several answers
    with pytest.raises(TypeError, match=r"y\.astype\(str\)"):
        check_answers([1998], ["in 1998"])


@pytest.mark.parametrize(
    ("answer", "context"),
    [
        ("10 km", "10\xa0km"),
        ("one two", "one\r\ntwo"),
        ('"a"', "“a”"),
        ("it's", "it\u2019s"),
        ("1-2", "1\u20132"),
    ],
)
def test_an_answer_whose_signs_are_others_is_told(answer, context):
    assert (
        "where whitespace, dashes or quotation marks are others" in check_answers([answer], [context])[1][0]
    )


def test_columns_that_were_swapped_are_told():
    X, y = [["The key is under the mat.", "Where is the key?"]], ["under the mat"]
    with pytest.raises(
        ValueError, match=r"is not in its context .* it is in the question: are the columns in the order"
    ):
        MiniLMQuestionAnswerer().fit(X, y)
    frame = pd.DataFrame(X, columns=["Context", "Question"])
    with pytest.raises(ValueError, match=r"give the question first, X\[\['Question', 'Context'\]\]"):
        MiniLMQuestionAnswerer().fit(frame, y)


def test_answers_that_are_too_long_to_be_found_are_told():
    X = [["Who?", "Ada Lovelace of London."], ["When?", "On a day in May."]]
    answerer = MiniLMQuestionAnswerer(trainable=1, epochs=1, max_answer_length=4, random_state=0)
    with pytest.warns(
        UserWarning,
        match=r"1 of 2 answers in y have .*=4 tokens, the first in row 0, .* set max_answer_length=(\d)",
    ) as found:
        answerer.fit(X, ["Ada Lovelace of London", "May"])
    needed = int(re.search(r"set max_answer_length=(\d)", str(found[0].message))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answerer.set_params(max_answer_length=needed).fit(X, ["Ada Lovelace of London", "May"])


@pytest.mark.parametrize(
    ("n_windows", "n_epochs"), [(2, 10), (150, 10), (300, 6), (900, 3), (1000, 2), (10**6, 2)]
)
def test_few_questions_are_passed_over_more_often(n_windows, n_epochs):
    assert MiniLMQuestionAnswerer()._n_epochs(n_windows) == n_epochs
    assert MiniLMQuestionAnswerer(epochs=3)._n_epochs(n_windows) == 3


@pytest.mark.parametrize("empty", [("", 0), ["", ""], [("", 0), ""]])
def test_empty_answers_are_no_answer(empty):
    assert check_answers([empty], ["a context"]) == ([None], [""])
    answers, _ = check_answers([["", ("context", 2)]], ["a context"])
    assert answers == [("context", 2)]


@pytest.mark.parametrize(
    "y",
    [
        pd.DataFrame({"text": ["b", "a", None], "start": [2, 4, np.nan]}),
        pl.DataFrame({"text": ["b", "a", None], "start": [2, 4, None]}),
        np.array([("b", 2), ("a", 4), (None, None)], dtype=object),
        pd.DataFrame({"text": ["b", "a", None], "start": ["2", "4.0", None]}, dtype=str),
        pl.DataFrame({"text": ["b", "a", None], "start": ["2", " 4", None]}),
        np.array([("b", "2"), ("a", "4"), ("", "")]),
    ],
    ids=["pandas", "polars", "numpy", "pandas, str", "polars, str", "numpy, str"],
)
def test_answers_and_their_places_in_two_columns(y):
    answers, problems = check_answers(y, ["a b a c"] * 3)
    assert answers == [("b", 2), ("a", 4), None]
    assert problems == [""] * 3


def test_places_that_an_array_of_str_holds_are_no_answers():
    y = np.array([("b", 2), ("a", 4)])
    assert check_answers(y, ["a b a c"] * 2) == ([("b", 2), ("a", 4)], ["", ""])
    assert mlqa_f1(y, ["2", "a"]) == 0.5
    assert check_answers(np.array([("b", 3)]), ["a b a c"])[1][0].startswith(
        "row 0: the answer 'b' is not at 3"
    )
    assert mlqa_f1(np.array([("b", "c")]), ["c"]) == 1  # two answers


def test_annotators_who_found_no_answer_do_not_count_beside_others():
    for answers in ([None, "b"], ["b", None], [np.nan, ("b", 2)], (None, "b")):
        assert check_answers([answers], ["a b a c"])[0][0] == ("b", 2)
        assert mlqa_f1([answers], [""]) == 0
    assert check_answers([[None, None]], ["a"]) == ([None], [""])


@pytest.mark.parametrize(
    "container", [lambda y: pd.DataFrame({"y": y}), lambda y: np.array(y, object)[:, None]]
)
def test_answers_in_one_column(container):
    y = container(["b", "c", None])
    assert check_answers(y, ["a b a c"] * 3)[0] == [("b", 2), ("c", 6), None]
    assert mlqa_f1(y, ["b", "c", ""]) == 1
    with pytest.raises(TypeError, match="y has 3 columns: expected one of answers, or two"):
        check_answers(np.array([["a", "b", "c"]]), ["a b a c"])


@given(st.integers(1, 400), st.integers(3, 90), st.data())
def test_windows_cover_everything(n_tokens, size, data):
    stride = data.draw(st.integers(0, size - 1))
    starts = list(window_starts(n_tokens, size, stride))
    assert starts[0] == 0
    assert starts[-1] + size >= n_tokens
    assert all(later - earlier == size - stride for earlier, later in pairwise(starts))
    assert len(starts) == 1 or starts[-2] + size < n_tokens  # none too many


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80).filter(str.strip),
    st.data(),
)
def test_tokens_of_an_answer_hold_it(tokenizer, context, data):
    """Whatever the text, the span of an answer's tokens covers the answer."""
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    answers, problems = check_answers([(context[start:end], start)], [context])
    if problems[0]:
        assert all(map(is_blank, context[start:end]))
        return
    windows = cut_windows(tokenizer, Texts(["q"], [context]), 512, 16)
    first, last, *_ = windows.targets(answers)[0]
    if first == 0:
        return  # no token stands for it: control characters, say
    found = windows.span(0, first, last, context)
    # No token need stand for what is not seen round it: whitespace, zero-width and control characters.
    seen = [place for place in range(start, end) if unicodedata.category(context[place])[0] not in "CZ"]
    if seen:
        assert found[0] <= seen[0]
        assert found[1] > seen[-1]


def test_answers_that_a_window_cuts_off_are_not_its_target(tokenizer):
    context = " ".join(f"word{number}" for number in range(200))
    texts = Texts(["q"], [context])
    windows = cut_windows(tokenizer, texts, 64, 16)
    answers, _ = check_answers(["word100"], [context])
    targets = windows.targets(answers)
    holding = np.flatnonzero(targets[:, 0])
    assert 0 < len(holding) < len(targets)
    for window in holding:
        start, end = windows.span(window, *targets[window, :2], context)
        assert context[start:end] == "word100"


@pytest.mark.parametrize("stride", [0, 8, 16, 20])
def test_probabilities_add_up_to_1_over_windows(xlmr_folder, stride):
    """Each span is looked for in one window, however many show it."""
    context = " ".join(f"word{number}" for number in range(60))
    model = MiniLMQuestionAnswerer(
        str(xlmr_folder),
        trainable=1,
        epochs=1,
        max_length=64,
        stride=stride,
        max_answer_length=4,
        random_state=0,
    ).fit([["q", context]], ["word7"])
    (spans,) = model.predict_spans([["q", context]], n_best=2000)
    (with_none,) = model.set_params(no_answer_threshold=-1e9).predict_spans([["q", context]], n_best=2000)
    assert with_none[0].text == ""
    assert len({(span.start, span.end) for span in spans}) == len(spans) > 400
    total = sum(span.score for span in spans) + with_none[0].score
    assert total == pytest.approx(1, abs=1e-4)


def test_scores_that_are_not_finite_are_an_error(tokenizer):
    windows = cut_windows(tokenizer, Texts(["q"], ["a context"]), 64, 16)
    with pytest.raises(FloatingPointError, match="context 'a context' are not finite"):
        choose_answers(windows, np.full((1, 5), np.nan, np.float32), ["a context"], 1, None)


@pytest.mark.parametrize("total", [np.nan, np.inf])
def test_a_sum_over_spans_that_is_not_finite_is_an_error(tokenizer, total):
    windows = cut_windows(tokenizer, Texts(["q"], ["a context"]), 64, 16)
    found = np.zeros((1, 5), np.float32)
    found[0, 1] = total
    with pytest.raises(FloatingPointError, match="context 'a context' are not finite"):
        choose_answers(windows, found, ["a context"], 1, None)


def test_the_first_context_without_finite_scores_is_named(tokenizer):
    contexts = ["fine", "broken here", "broken there"]
    windows = cut_windows(tokenizer, Texts(["q"] * 3, contexts), 64, 16)
    found = np.full((3, 5), np.nan, np.float32)
    found[0] = 0.0
    with pytest.raises(FloatingPointError, match="context 'broken here' are not finite"):
        choose_answers(windows, found, contexts, 1, None)


def test_an_answer_that_no_window_holds_is_named(xlmr_folder):
    context = " ".join(f"word{number}" for number in range(100))
    answer = context[context.index("word20") : context.index("word60")].strip()
    model = MiniLMQuestionAnswerer(str(xlmr_folder), epochs=1, max_length=64, stride=16)
    X, y = [["q", context], ["q", context]], ["word3", answer]
    with pytest.raises(ValueError, match=r"row 1: the answer 'word20 .* is too long for windows"):
        model.fit(X, y)
    with pytest.warns(UserWarning, match=r"1 of 2 rows of y; .* left out"):
        model.fit(X, y, on_missing_answer="drop")


def test_whitespace_behind_an_answer_does_not_count(tokenizer):
    texts = Texts(["q"], ["Morgen kommt Ada heute an."])
    windows = cut_windows(tokenizer, texts, 64, 16)
    expected = windows.targets(check_answers([("Ada", 13)], texts.second)[0])
    np.testing.assert_array_equal(windows.targets(check_answers([("Ada ", 13)], texts.second)[0]), expected)


def test_questions_set_aside_choose_the_epoch(xlmr_folder, monkeypatch):
    options = dict(max_length=64, stride=8, random_state=0, trainable=1, epochs=3)
    plain = MiniLMQuestionAnswerer(str(xlmr_folder), **options).fit(QUESTIONS, ANSWERS)
    watched = MiniLMQuestionAnswerer(str(xlmr_folder), **options)
    watched.fit(QUESTIONS, ANSWERS, X_val=QUESTIONS[:3], y_val=ANSWERS[:3])
    assert watched.weights_digest_ == plain.weights_digest_
    scores = [record["validation_score"] for record in watched.history_]
    assert len(scores) == 3
    assert all(0 <= score <= 1 for score in scores)
    stopped = MiniLMQuestionAnswerer(str(xlmr_folder), early_stopping=True, **options)
    with monkeypatch.context() as patch:
        figures = iter([(9.0, 0.0), (3.0, 0.2), (2.0, 0.6), (1.0, 0.4)])  # of the start and of three epochs
        patch.setattr(loop._Training, "_validate", lambda self: next(figures))
        stopped.fit(QUESTIONS, ANSWERS, X_val=QUESTIONS[:3], y_val=ANSWERS[:3])
    assert stopped.best_epoch_ == 2
    assert stopped.weights_digest_ != plain.weights_digest_  # of the last epoch
    with pytest.raises(ValueError, match="early_stopping=True needs questions"):
        stopped.fit(QUESTIONS, ANSWERS)
    with pytest.raises(ValueError, match="belong together"):
        stopped.fit(QUESTIONS, ANSWERS, X_val=QUESTIONS)
    with pytest.raises(ValueError, match=r"in 1 of 1 rows of y_val; .* row 0: the answer 'x'"):
        stopped.fit(QUESTIONS, ANSWERS, X_val=QUESTIONS[:1], y_val=["x"])


def test_windows_of_predictions_are_checked_too(answerer):
    for parameters, message in (({"max_length": 513}, "512 positions"), ({"stride": 383}, "stride=383")):
        model = clone(answerer).set_params(**parameters)
        for name, value in vars(answerer).items():
            if name.endswith("_"):
                setattr(model, name, value)
        with pytest.raises(ValueError, match=message):
            model.predict(QUESTIONS[:1])


def test_other_vocabularies_are_refused(transformers_folder):
    with pytest.raises(ValueError, match="reads no question together with its context"):
        MiniLMQuestionAnswerer(str(transformers_folder)).fit(QUESTIONS, ANSWERS)


def test_quiet_by_default(capsys, xlmr_folder):
    model = MiniLMQuestionAnswerer(str(xlmr_folder), epochs=1, max_length=64, stride=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(QUESTIONS, ANSWERS).predict(QUESTIONS)
    assert capsys.readouterr() == ("", "")
    model.set_params(verbose=1).predict(QUESTIONS)
    assert "answer" in capsys.readouterr().err


@pytest.mark.parametrize("max_answer_length", [1, 4, 8, 12, 16])
def test_the_longest_answer_fits_in_the_window_that_looks_for_it(max_answer_length):
    context = " ".join(f"word{number}" for number in range(100))
    tokenizer = load_checkpoint("bundled").tokenizer
    windows = cut_windows(tokenizer, Texts(["q"], [context]), 64, 16, max_answer_length)
    assert len(windows.own_stops) > 2
    assert (windows.own_stops + max_answer_length - 1 <= windows.context_stops)[:-1].all()


@pytest.mark.parametrize("stride", [8, 16])
def test_tokens_belong_to_the_window_that_shows_more_round_them(tokenizer, stride):
    context = " ".join(f"word{number}" for number in range(100))
    windows = cut_windows(tokenizer, Texts(["q"], [context]), 64, stride)
    assert (windows.own_stops == windows.context_stops - stride // 2)[:-1].all()


def test_the_window_that_holds_the_answer_says_whether_there_is_one():
    context = " ".join(f"word{number}" for number in range(40))
    windows = cut_windows(load_checkpoint("bundled").tokenizer, Texts(["q"], [context]), 64, 16)
    found = np.full((len(windows.own_starts), 5), -9.0, np.float32)
    found[:, 0] = 5.0  # no answer in any window
    found[:, 3:] = windows.own_starts[:, None]
    found[1, :3] = -5.0, 4.0, 4.0  # but in this one
    ((span,),), _ = choose_answers(windows, found, [context], 1, 0.0)
    assert span.text
    assert span.score > 0.9


@pytest.mark.parametrize(("stride", "max_answer_length"), [(8, 7), (16, 4), (16, 12)])
def test_windows_find_the_spans_that_one_window_finds(xlmr_folder, stride, max_answer_length):
    context = " ".join(f"word{number}" for number in range(60))
    X = [["q", context]]
    options = dict(trainable=1, epochs=1, max_answer_length=max_answer_length, random_state=0)
    model = MiniLMQuestionAnswerer(str(xlmr_folder), max_length=64, stride=stride, **options)
    model.fit([["q", "a b"]], ["a"])
    checkpoint = load_checkpoint(str(xlmr_folder))

    whole = cut_windows(checkpoint.tokenizer, Texts(["q"], [context]), 512, 0)
    n = len(whole.contexts[0].ids)
    tokens = whole.contexts[0]
    expected = set()
    for first in range(n):
        for last in range(first, min(n, first + max_answer_length)):
            start, end = whole.span(
                0, first + int(whole.context_starts[0]), last + int(whole.context_starts[0]), context
            )
            if start < end:
                expected.add((start, end))
    assert len(tokens.ids) > 64
    (spans,) = model.predict_spans(X, n_best=5000)
    assert {(span.start, span.end) for span in spans} == expected


def test_a_span_is_predicted_where_it_is_likelier_than_none():
    objective = SpanObjective(4)
    targets = torch.tensor([[2, 3, 2, 5, 6], [0, 0, 2, 5, 6]])
    outputs = torch.zeros(12, 2)
    outputs[2, 0] = outputs[3, 1] = 5.0  # of the first window: its answer
    outputs[6] = 5.0  # of the second: none
    predictions = objective.predictions(outputs, targets)
    assert predictions.tolist() == [[2, 3], [0, 0]]
    assert objective.score(predictions.numpy(), targets.numpy(), np.ones(2)) == 1.0


def test_the_loss_of_a_span_is_the_mean_of_both_ends():
    targets = torch.tensor([[2, 3, 2, 5, 6]])
    losses = SpanObjective(4).losses(torch.zeros(6, 2), targets)
    assert losses.tolist() == pytest.approx([np.log(4)])  # 3 tokens of the context, and none


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 2},
        {"learning_rate": 1e-3},
        {"head_learning_rate": 1e-4},
        {"weight_decay": 10.0},
        {"warmup_ratio": 0.9},
        {"epochs": 3},
        {"precision": "bf16"},
        {"random_state": 7},
    ],
    ids=str,
)
def test_every_training_parameter_of_answers_counts(xlmr_folder, changes):
    options = {**WEIGHED, "batch_size": 5}
    plain = MiniLMQuestionAnswerer(str(xlmr_folder), **options).fit(QUESTIONS, ANSWERS)
    changed = MiniLMQuestionAnswerer(str(xlmr_folder), **{**options, **changes}).fit(QUESTIONS, ANSWERS)
    assert np.abs(plain.coef_ - changed.coef_).max() > 1e-6
    arrays = changed.weights_
    assert max(np.abs(arrays[name] - array).max() for name, array in plain.weights_.items()) > 0


def test_auto_is_the_learning_rate_of_questions(xlmr_folder):
    rates = {"auto": 2e-4, 2e-4: 2e-4}
    fits = [
        MiniLMQuestionAnswerer(str(xlmr_folder), learning_rate=r, **WEIGHED).fit(QUESTIONS, ANSWERS)
        for r in rates
    ]
    assert fits[0].weights_digest_ == fits[1].weights_digest_


def test_precision_counts_in_predictions_of_answers(xlmr_folder):
    model = MiniLMQuestionAnswerer(str(xlmr_folder), **WEIGHED).fit(QUESTIONS, ANSWERS)
    expected = model.predict_proba(QUESTIONS)
    assert np.abs(model.set_params(precision="bf16").predict_proba(QUESTIONS) - expected).max() > 1e-7


def test_cut_questions_of_all_slices_count(xlmr_folder, monkeypatch):
    model = MiniLMQuestionAnswerer(str(xlmr_folder), **WEIGHED).fit(QUESTIONS, ANSWERS)
    monkeypatch.setattr("skminilm._question_answerer._SLICE_CHARACTERS", 100)
    long = ["Where was she born? " * 20, QUESTIONS[0][1]]
    with pytest.warns(UserWarning, match="2 of 4 questions take more than half"):
        model.predict([long, QUESTIONS[0], long, QUESTIONS[1]])


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        ("គាត់\u200bរស់នៅ\u200bភ្នំពេញ\u200bឥឡូវ", "ភ្នំពេញ"),
        ("الاسم هو\u200f علي\u200f ولا غيره", "علي"),
        ("این\u200c کتاب\u200c است", "کتاب"),
        ("It is \u200eAda\u200e now", "Ada"),
        ("It is \x01\x02 Ada\x1f now", "Ada"),
    ],
)
def test_what_is_invisible_is_no_part_of_an_answer(tokenizer, context, answer):
    windows = cut_windows(tokenizer, Texts(["Who?"], [context], None), 64, 8)
    (target,) = windows.targets(check_answers([answer], [context])[0])
    start, end = windows.span(0, target[0], target[1], context)
    assert context[start:end] == answer


@pytest.mark.parametrize("sign", [" ", "\u200f", "\u200b", "\ufeff", " \u200e "])
def test_signs_that_are_not_seen_at_the_end_of_an_answer_are_no_part_of_it(sign):
    contexts = [f"Yesterday {name}{sign} Smith came here." for name in ("Ada", "Eva", "Omar")]
    tokenizer = load_checkpoint("bundled").tokenizer
    texts = Texts(["Who came?"] * 3, contexts)
    windows = cut_windows(tokenizer, texts, 64, 8)
    answers, problems = check_answers([c[10 : c.index(" Smith")] for c in contexts], contexts)
    assert not any(problems)
    for window, (first, last, *_) in enumerate(windows.targets(answers)):
        start, end = windows.span(window, first, last, contexts[window])
        assert contexts[window][start:end] in ("Ada", "Eva", "Omar")


def test_an_answer_that_is_not_seen_is_refused():
    _, problems = check_answers(["\u200b", "\ufeff "], ["Marie\u200b", "\ufeff in Warsaw"])
    assert all("is only whitespace, or signs that are not seen" in problem for problem in problems)


def test_every_sign_that_is_not_seen_is_blank():
    codes = [
        0xAD,
        0x61C,
        *range(0x200B, 0x2010),
        *range(0x202A, 0x202F),
        *range(0x2060, 0x2065),
        *range(0x2066, 0x206A),
    ]
    assert all(is_blank(chr(code)) for code in [*codes, *range(0x20), *range(0x7F, 0xA1), 0xFEFF])


@pytest.mark.parametrize("sign", ["\ufffd", "\u2581"])
def test_signs_that_are_read_as_a_space_are_no_part_of_an_answer(tokenizer, sign):
    texts = Texts(["q"], [f"It is Ada{sign}Lovelace who came"])
    windows = cut_windows(tokenizer, texts, 64, 8)
    expected = windows.targets(check_answers([("Ada", 6)], texts.second)[0])
    np.testing.assert_array_equal(
        windows.targets(check_answers([(f"Ada{sign}", 6)], texts.second)[0]), expected
    )
    assert windows.span(0, *expected[0, :2], texts.second[0]) == (6, 9)


def test_more_spans_than_there_are(answerer):
    question = [["Who?", "Ada came."]]
    every = answerer.predict_spans(question, n_best=10**9)
    assert answerer.predict_spans(question, n_best=1000) == every
    assert 1 < len(every[0]) < 50


@pytest.mark.parametrize("context", ["１８６７ 年 ＡＢＣ 年", "玛丽 居里 出生 于 华沙"])
def test_fewer_answers_are_the_first_of_more(answerer, context):
    (every,) = answerer.predict_spans([["Who came?", context]], n_best=1000)
    for n_best in range(1, 10):
        (spans,) = answerer.predict_spans([["Who came?", context]], n_best=n_best)
        assert len(spans) == min(n_best, len(every))
        assert [span.text for span in spans] == [span.text for span in every[:n_best]]


def test_of_spans_with_the_same_text_the_best_counts(tokenizer):
    context = "Ada 年"  # tokens: Ada, the space alone, 年
    windows = cut_windows(tokenizer, Texts(["q"], [context]), 64, 16)
    assert len(windows.contexts[0].ids) == 3
    year = windows.context_starts[0] + 2
    found = np.array([[-9.0, 3.0, 2.0, 1.0, year, year - 1, year, year]], np.float32)
    ((span,),), _ = choose_answers(windows, found, [context], 5, None)
    assert span.text == "年"
    assert span.score == pytest.approx(np.exp(2 - np.logaddexp(-9, 3)))


def test_answers_are_scored_by_the_rules_of_their_language(xlmr_folder, monkeypatch):
    model = MiniLMQuestionAnswerer(str(xlmr_folder))
    monkeypatch.setattr(MiniLMQuestionAnswerer, "predict", lambda self, X: np.array(["das Haus"], object))
    for score in (model.score, model.exact_match):
        assert score([("?", "x")], ["Haus"], languages="de") == 1
        assert score([("?", "x")], ["Haus"]) < 1


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_of_questions_counts(xlmr_folder, monkeypatch, patience):
    monkeypatch.setattr(loop._Training, "_validate", lambda self: (1.0, 0.0))
    options = dict(trainable=1, epochs=5, max_length=64, stride=8, random_state=0)
    model = MiniLMQuestionAnswerer(
        str(xlmr_folder), early_stopping=True, n_iter_no_change=patience, **options
    )
    model.fit(QUESTIONS, ANSWERS, X_val=QUESTIONS, y_val=ANSWERS)
    assert (model.n_iter_, model.best_epoch_) == (patience, 0)


@pytest.mark.parametrize("start", [np.nan, None, ""])
def test_an_answer_without_its_place(start):
    y = np.array([("a", start), ("b", 2)], dtype=object)
    assert check_answers(y, ["a b a c"] * 2) == ([("a", 0), ("b", 2)], ["", ""])


def test_places_that_are_no_whole_numbers():
    with pytest.raises(TypeError, match=r"y has no answer in row 0: it is \('b', 2\.5\)"):
        check_answers(pd.DataFrame({"text": ["b"], "start": [2.5]}), ["a b a c"])
    with pytest.raises(TypeError, match=r"y has no answer in row 0: it is \('b', True\)"):
        check_answers(np.array([("b", True)], dtype=object), ["a b a c"])


def test_places_before_the_context():
    assert "is not at -1" in check_answers(np.array([("b", "-1")]), ["a b"])[1][0]


def test_more_keys_than_squad_has():
    y = [{"text": ["b"], "answer_start": [2], "language": "en"}]
    with pytest.raises(TypeError, match="y has no answer in row 0"):
        check_answers(y, ["a b"])


def test_second_answers():
    y = np.array([("b", "2 a"), ("a", "c"), ("a", "")])
    assert check_answers(y, ["2 a b c"] * 3)[0] == [("b", 4), ("a", 2), ("a", 2)]
    assert mlqa_f1([["b", "2"], ["a", "c"]], ["2", "c"]) == 1


@pytest.mark.parametrize("odd", ["c", "-", "0.5", "1" * 5000, "true"])
@pytest.mark.parametrize("position", ["2", 2, 2.0])
def test_a_place_that_is_none_among_others(odd, position):
    """One odd cell turns none of the others into second answers."""
    y = np.array([("b", position), ("a", odd), ("a", None)], dtype=object)
    with pytest.raises(TypeError, match=rf"y has '{odd[:3]}.* in row 1 .* give y as a list of lists"):
        check_answers(y, ["2 a b c"] * 3)
    with pytest.raises(TypeError, match=r"y_true has .* in row 1"):
        mlqa_f1(y, ["b", "a", "a"], "en")


@pytest.mark.parametrize(
    "y",
    [
        np.array([("b", 4), ("a", np.nan)]),
        pd.DataFrame({"text": ["b", "a"], "start": ["4.0", "None"]}),
        np.array([("b", "4"), ("a", None)], dtype=object),
        np.array([("b", "4"), ("a", 0)], dtype=object),
        np.array([("b", 4), ("a", "0")], dtype=object),
    ],
)
def test_places_of_which_one_is_missing_or_of_another_type(y):
    """None of them may become a second answer."""
    assert check_answers(y, ["b a b", "a b"]) == ([("b", 4), ("a", 0)], ["", ""])
