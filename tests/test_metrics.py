import itertools
import unicodedata

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from skminilm import metrics
from skminilm.metrics import (
    LeaveOneLanguageOut,
    TrainOneLanguageTestOthers,
    mlqa_exact_match,
    mlqa_f1,
    score_by_language,
)

LANGUAGES = ["ar", "de", "el", "en", "es", "hi", "ro", "ru", "sw", "th", "tr", "vi", "zh"]

# Language, reference, answer, and what mlqa_evaluation_v1.py gives for F1 and exact match.
OFFICIAL = [
    ("en", "the Eiffel Tower", "Eiffel Tower.", 1.0, 1.0),
    ("en", "an apple a day", "apple", 2 / 3, 0.0),
    ("en", "to be or not to be", "to be to to", 0.6, 0.0),
    ("en", "$5 + $3", "5 3", 1.0, 1.0),
    ("en", "co-operation", "cooperation", 1.0, 1.0),
    ("es", "la batalla de las Navas", "Batalla de Navas", 1.0, 1.0),
    ("de", "der Große Kurfürst", "GROSSE KURFÜRST", 0.5, 0.0),
    ("de", "die Straße", "Straße", 1.0, 1.0),
    ("en", "die Straße", "Straße", 2 / 3, 0.0),
    ("ar", "في القرن العشرين", "قرن عشرين", 0.8, 0.0),
    ("ar", "سؤال؟", "سؤ", 1.0, 1.0),
    ("hi", "१५ अगस्त १९४७।", "15 अगस्त १९४७", 2 / 3, 0.0),
    ("hi", "नई दिल्ली।", "नई दिल्ली", 1.0, 1.0),
    ("vi", "những người của Hà Nội", "người Hà Nội", 1.0, 1.0),
    ("zh", "在北京大学", "北京", 4 / 7, 0.0),
    ("zh", "《红楼梦》", "红 楼 梦", 1.0, 1.0),
    ("zh", "iPhone手机", "iphone 手机", 1.0, 1.0),
    ("zh", "カナダの首都", "首都", 0.8, 0.0),
]


@pytest.mark.parametrize(("language", "reference", "answer", "f1", "exact"), OFFICIAL)
def test_answers_score_as_in_the_official_evaluation(language, reference, answer, f1, exact):
    assert mlqa_f1([reference], [answer], language) == pytest.approx(f1)
    assert mlqa_exact_match([reference], [answer], language) == exact


@pytest.mark.parametrize(
    ("code", "short"),
    [
        ("zho_Hans", "zh"),
        ("zh-CN", "zh"),
        ("cmn_Hani", "zh"),
        ("arb_Arab", "ar"),
        ("DE", "de"),
        ("es-419", "es"),
        ("ara", "ar"),
        ("chi", "zh"),
        ("deu", "de"),
        ("eng", "en"),
        ("ger", "de"),
        ("spa", "es"),
        ("vie", "vi"),
        ("zho", "zh"),
    ],
)
def test_long_codes_have_the_rules_of_the_language(code, short):
    rows = [row for row in OFFICIAL if row[0] == short]
    for _, reference, answer, f1, _ in rows:
        assert mlqa_f1([reference], [answer], code) == pytest.approx(f1)
    plain = [mlqa_f1([reference], [answer], "xx") for _, reference, answer, _, _ in rows]
    assert plain != pytest.approx([f1 for *_, f1, _ in rows])


ARTICLES = {
    "ar": "ال",
    "de": "ein eine einen einem eines einer der die das den dem des",
    "en": "a an the",
    "es": "un una unos unas el la los las",
    "vi": "của là cái chiếc những",
}


@pytest.mark.parametrize("language", ARTICLES)
def test_each_article_of_a_language_counts_for_nothing(language):
    for article in ARTICLES[language].split():
        assert mlqa_exact_match([f"{article} x1"], ["x1"], language) == 1, article


def test_a_language_without_rules_keeps_its_articles_and_splits_at_whitespace():
    assert mlqa_f1(["la o casă veche"], ["casă"], "ro") == pytest.approx(0.4)
    assert mlqa_f1(["กรุงเทพมหานคร"], ["กรุงเทพ"], "th") == 0


def test_composed_characters_and_combining_marks_differ():
    composed = "sắc lệnh"
    assert mlqa_exact_match([composed], [unicodedata.normalize("NFD", composed)], "vi") == 0
    marks = "हिन्दी"  # vowel signs and virama are no punctuation
    assert mlqa_f1([marks], ["हनद"], "hi") == 0


@pytest.mark.parametrize(
    ("references", "answer", "f1", "exact"),
    [
        (["1920s", "the 1920s", "in the 1920s"], "In the 1920s!", 1.0, 1.0),
        ([("in 1920", 3), ("1920", 6)], "1920", 1.0, 1.0),
        (("1920", 6), "1920", 1.0, 1.0),
        (["1920", 6], "1920", 1.0, 1.0),
        (("1920", None), "1920", 1.0, 1.0),
        (("1920", "1921"), "1921", 1.0, 1.0),
        (np.array(["1920", "1921"]), "1921", 1.0, 1.0),
        (["red house", "blue house"], "green house", 0.5, 0.0),
    ],
)
def test_the_best_of_several_references_counts(references, answer, f1, exact):
    assert mlqa_f1([references], [answer]) == pytest.approx(f1)
    assert mlqa_exact_match([references], [answer]) == exact


@pytest.mark.parametrize("nothing", [None, "", [], float("nan"), pd.NA, "..."])
def test_no_answer_is_right_where_there_is_none(nothing):
    answers = [nothing, ""] if not isinstance(nothing, list) else ["", ""]
    assert mlqa_f1([nothing, "Tirana"], answers) == 0.5
    assert mlqa_exact_match([nothing, "Tirana"], answers) == 0.5
    assert mlqa_f1([nothing], ["Tirana"]) == 0


@pytest.mark.parametrize(
    "container",
    [
        list,
        tuple,
        lambda x: np.array(x, dtype=object),
        pd.Series,
        pl.Series,
        pl.Series(["x"]).to_arrow().__class__,
    ],
)
def test_containers(container):
    if container not in (list, tuple) and container.__module__.startswith("pyarrow"):
        pa = pytest.importorskip("pyarrow")
        container = pa.array
    y_true, y_pred = container(["Dar es Salaam", "北京"]), container(["Dar", "北京"])
    assert mlqa_f1(y_true, y_pred, container(["sw", "zh"])) == pytest.approx(0.75)


def test_languages_by_their_names_are_refused():
    with pytest.raises(ValueError, match=r"languages must hold codes: row 1 is 'German'.*such as 'de'"):
        mlqa_f1(["a", "der Hund"], ["a", "Hund"], ["en", "German"])
    assert mlqa_f1(["der Hund"], ["Hund"], "deu_Latn") == mlqa_f1(["der Hund"], ["Hund"], "de-AT") == 1


def test_sample_weight_weights_the_mean():
    assert mlqa_f1(["a1", "b"], ["a1", "c"], sample_weight=[3, 1]) == 0.75
    assert mlqa_exact_match(["a1", "b"], ["a1", "c"], sample_weight=[1, 3]) == 0.25


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((["x"], ["x", "y"]), ValueError, "y_true has none for row 1"),
        ((["x", "y", "z"], ["x", "y"]), ValueError, "row 2 of y_true is left over"),
        ((["x", "y"], ["x", "y"], ["en"]), ValueError, "languages has none for row 1"),
        ((["x", "y"], ["x", "y"], ["en", None]), ValueError, "row 1 is None"),
        ((["x", "y"], ["x", "y"], ["en", float("nan")]), ValueError, "row 1 is nan"),
        ((["x", "y"], ["x", "y"], ["en", ""]), ValueError, "languages has a missing value: row 1 is ''"),
        ((["x", "y"], ["x", "y"], ["en", 7]), TypeError, "row 1 is 7"),
        ((["x", 5], ["x", "y"]), TypeError, "no answer in row 1: it is 5"),
        ((["x", ["y", 5.5]], ["x", "y"]), TypeError, "no answer in row 1"),
        ((["x", "y"], ["x", 5]), TypeError, "row 1 is 5"),
        (("x", ["x"]), TypeError, "y_true is a str"),
        ((["x"], {"0": "x"}), TypeError, "y_pred is a dict"),
        (({"x", "y"}, ["x", "y"]), TypeError, "y_true is a set"),
        ((frozenset("xy"), ["x", "y"]), TypeError, "y_true is a frozenset"),
        ((["x"], np.array([["x"]])), TypeError, r"shape \(1, 1\)"),
        (([], []), ValueError, "empty"),
    ],
)
def test_bad_answers_are_named(arguments, error, message):
    for metric in (mlqa_f1, mlqa_exact_match):
        with pytest.raises(error, match=message):
            metric(*arguments)


@given(st.text(), st.text(), st.sampled_from(LANGUAGES))
def test_f1_is_symmetric_bounded_and_one_for_the_same_answer(reference, answer, language):
    f1 = mlqa_f1([reference], [answer], language)
    assert 0 <= f1 <= 1
    assert f1 == mlqa_f1([answer], [reference], language)
    assert mlqa_f1([answer], [answer], language) == mlqa_exact_match([answer], [answer], language) == 1
    assert mlqa_exact_match([reference], [answer], language) <= f1


class Answerer:
    """Answers with the first word of the context."""

    def __init__(self):
        self.calls = 0

    def predict_spans(self, X, n_best=1):
        raise NotImplementedError

    def predict(self, X):
        self.calls += 1
        return np.array([context.split()[0] for _, context in X], dtype=object)


def test_classifier_by_language(english, requests):
    X, y = english
    classifier = make_pipeline(CountVectorizer(), LogisticRegression()).fit(X, y)
    keep = np.isin(requests.languages, ["es", "en"])
    X = [text for text, kept in zip(requests.data, keep, strict=True) if kept]
    y, languages = np.array(requests.target_names)[requests.target[keep]], requests.languages[keep]
    frame = score_by_language(classifier, X, y.tolist(), languages)
    assert isinstance(frame, pd.DataFrame)
    assert frame.columns.tolist() == ["language", "n", "accuracy", "low", "high"]
    assert frame["language"].tolist() == list(dict.fromkeys(languages))
    assert frame["n"].tolist() == [64, 64]
    correct = classifier.predict(X) == y
    for _, row in frame.iterrows():
        assert row["accuracy"] == correct[languages == row["language"]].mean()
        assert row["low"] < row["accuracy"] < row["high"] or row["accuracy"] == row["high"] == 1


def test_interval_of_an_accuracy_is_wilsons():
    classifier = DummyClassifier(strategy="constant", constant="x").fit([[0]] * 2, ["x", "y"])
    frame = score_by_language(classifier, [[0]] * 10, ["x"] * 8 + ["y"] * 2, ["sw"] * 10)
    z, n, share = 1.959964, 10, 0.8
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert frame.loc[0, ["low", "high"]].tolist() == pytest.approx([centre - half, centre + half], abs=1e-6)
    narrow = score_by_language(
        classifier, [[0]] * 10, ["x"] * 8 + ["y"] * 2, pl.Series(["sw"] * 10), confidence=0.5
    )
    assert frame["low"][0] < narrow["low"][0] < narrow["high"][0] < frame["high"][0]


def test_question_answerer_by_language():
    answerer = Answerer()
    X = [("?", "Wien ist groß"), ("?", "北京 很大"), ("?", "Graz ist klein"), ("?", "Linz")]
    y = [[("Wien", 0), ("in Wien", 0)], ("北京城", 0), "Graz", None]
    frame = score_by_language(answerer, X, y, ["de", "zh", "de", "de"])
    assert answerer.calls == 1
    assert frame.columns.tolist() == ["language", "n", "f1", "exact_match", "low", "high"]
    assert frame.loc[1, :"exact_match"].tolist() == ["zh", 1, 0.8, 0.0]
    assert frame.loc[0, :"exact_match"].tolist() == pytest.approx(["de", 3, 2 / 3, 2 / 3])
    wilsons = binomtest(2, 3).proportion_ci(0.95, method="wilson")  # the rows have 1, 1 and 0
    assert frame.loc[0, ["low", "high"]].tolist() == pytest.approx([*wilsons])
    columns = pd.DataFrame({"text": ["Wien", "北京城", "Graz", None], "start": [0, 0, None, None]})
    pd.testing.assert_frame_equal(score_by_language(answerer, X, columns, ["de", "zh", "de", "de"]), frame)


@pytest.mark.parametrize("has_polars", [True, False])
def test_frame_without_pandas(monkeypatch, has_polars):
    import importlib

    original = importlib.import_module

    def fake(name, *arguments):
        if name == "pandas" or (name == "polars" and not has_polars):
            raise ImportError(name)
        return original(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", fake)
    if has_polars:
        frame = score_by_language(Answerer(), [("?", "x")], ["x"], ["en"])
        assert isinstance(frame, pl.DataFrame)
        assert frame.row(0) == ("en", 1, 1.0, 1.0, pytest.approx(0.206549, abs=1e-6), 1.0)
    else:
        with pytest.raises(ImportError, match="pip install pandas"):
            score_by_language(Answerer(), [("?", "x")], ["x"], ["en"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((CountVectorizer(), ["x"], ["x"], ["en"]), TypeError, "CountVectorizer is neither"),
        ((Answerer(), [("?", "x")], ["x"], "en"), TypeError, "languages is a str"),
        ((Answerer(), [("?", "x")], ["x"], [None]), ValueError, "row 0 is None"),
        ((Answerer(), [], [], []), ValueError, "y is empty"),
        ((Answerer(), [("?", "x")], ["x", "y"], ["en", "en"]), ValueError, "row 1 of y is left over"),
        ((Answerer(), [("?", "x")], ["x"], ["en", "de"]), ValueError, "row 1 of languages is left over"),
    ],
)
def test_bad_scoring_calls_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        score_by_language(*arguments)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match=f"confidence is {confidence}"):
        score_by_language(Answerer(), [("?", "x")], ["x"], ["en"], confidence=confidence)


def test_a_label_that_is_missing_is_named():
    classifier = DummyClassifier().fit([[0]] * 2, ["x", "y"])
    with pytest.raises(ValueError, match="row 1 is None"):
        score_by_language(classifier, [[0]] * 2, ["x", None], ["en", "en"])


@st.composite
def parallel_rows(draw):
    """Languages and translation numbers of rows in any order, with some translations missing."""
    names = draw(st.lists(st.sampled_from(LANGUAGES), min_size=2, max_size=4, unique=True))
    rows = [(name, item) for name in names for item in range(draw(st.integers(3, 8)))]
    rows += [(name, f"only in {name} {k}") for name in names for k in range(draw(st.integers(0, 2)))]
    rows = draw(st.permutations(rows))
    return [name for name, _ in rows], [str(item) for _, item in rows]


@given(parallel_rows(), st.integers(2, 3), st.booleans())
def test_no_translation_of_a_test_row_is_trained_on(rows, n_folds, leave_one_out):
    languages, translations = rows
    splitter = (
        LeaveOneLanguageOut(translations, n_folds=n_folds)
        if leave_one_out
        else TrainOneLanguageTestOthers(languages[0], translations, n_folds=n_folds)
    )
    try:
        splits = list(splitter.split(languages, groups=languages))
    except ValueError as error:
        assume("Nothing is left to train on" not in str(error))
        raise
    assert len(splits) == splitter.get_n_splits(groups=languages)
    tested = []
    for train, test in splits:
        assert len(train)
        assert len(test)
        assert len({languages[row] for row in test}) == 1
        assert languages[test[0]] not in {languages[row] for row in train}
        assert not {translations[row] for row in train} & {translations[row] for row in test}
        if not leave_one_out:
            assert {languages[row] for row in train} == {languages[0]}
        tested += test.tolist()
        # Nothing is left out of training that could have been in it.
        held = {translations[row] for row in test}
        others = [row for row, name in enumerate(languages) if name != languages[test[0]]]
        if leave_one_out:
            assert train.tolist() == [row for row in others if translations[row] not in held]
    expected = [row for row, name in enumerate(languages) if leave_one_out or name != languages[0]]
    assert sorted(tested) == expected


@given(st.lists(st.sampled_from(LANGUAGES), min_size=2, max_size=30).filter(lambda x: len(set(x)) > 1))
def test_without_translations_languages_alone_are_kept_apart(languages):
    array = np.array(languages)
    splits = list(LeaveOneLanguageOut().split(array, groups=languages))
    assert [languages[test[0]] for _, test in splits] == list(dict.fromkeys(languages))
    for train, test in splits:
        assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(len(array)))
        assert (array[test] == array[test[0]]).all()
        assert (array[train] != array[test[0]]).all()
    splits = list(TrainOneLanguageTestOthers(languages[-1]).split(array, groups=languages))
    assert len(splits) == len(set(languages)) - 1
    for train, test in splits:
        assert np.array_equal(train, np.flatnonzero(array == languages[-1]))
        assert np.array_equal(test, np.flatnonzero(array == array[test[0]]))


def test_all_languages_of_a_part_share_the_training_rows(requests):
    splitter = TrainOneLanguageTestOthers(translations=requests.groups, n_folds=4)
    splits = list(splitter.split(requests.data, groups=requests.languages))
    assert len(splits) == 4 * 15
    for part in range(4):
        trains = [train for train, _ in splits[15 * part : 15 * (part + 1)]]
        assert all(np.array_equal(train, trains[0]) for train in trains)
        assert len(trains[0]) == 48
    again = list(splitter.split(requests.data, groups=requests.languages))
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(splits, again, strict=True))


@pytest.mark.parametrize("splitter", [LeaveOneLanguageOut, TrainOneLanguageTestOthers])
def test_splitters_as_cv(requests, splitter):
    rows = np.isin(requests.languages, ["en", "es", "pt"])
    cv = splitter(translations=requests.groups[rows], n_folds=2)
    pipeline = make_pipeline(CountVectorizer(analyzer="char"), MultinomialNB())
    X, y = np.array(requests.data, dtype=object)[rows], requests.target[rows]
    languages = requests.languages[rows]
    n_splits = 6 if splitter is LeaveOneLanguageOut else 4
    scores = cross_val_score(pipeline, X, y, groups=languages, cv=cv)
    assert scores.shape == (n_splits,)
    search = GridSearchCV(pipeline, {"multinomialnb__alpha": [0.1, 1.0]}, cv=cv)
    search.fit(X, y, groups=languages)
    assert search.n_splits_ == n_splits
    with sklearn.config_context(enable_metadata_routing=True):
        routed = cross_val_score(pipeline, X, y, params={"groups": languages}, cv=cv)
    assert np.array_equal(scores, routed)
    assert repr(cv).startswith(splitter.__name__ + "(")


@pytest.mark.parametrize(
    ("splitter", "groups", "message"),
    [
        (LeaveOneLanguageOut(), None, "pass groups=languages"),
        (LeaveOneLanguageOut(), ["en"] * 4, "one language only"),
        (LeaveOneLanguageOut(), ["en", "de", None, "de"], "groups has a missing value: row 2 is None"),
        (LeaveOneLanguageOut([0, 1, 0]), ["en", "en", "de", "de"], "translations has none for row 3"),
        (LeaveOneLanguageOut([0, 1, 0, None]), ["en", "en", "de", "de"], "row 3 is None"),
        (
            LeaveOneLanguageOut([0, 1, 0, 1]),
            ["en", "en", "de", "de"],
            "2 different values, fewer than n_folds=5",
        ),
        (LeaveOneLanguageOut([0, 1, 0, 1], n_folds=1), ["en", "en", "de", "de"], "n_folds is 1"),
        (
            LeaveOneLanguageOut([0, 1, 0, 1], n_folds=2, random_state=None),
            ["en", "en", "de", "de"],
            "random_state is None",
        ),
        (TrainOneLanguageTestOthers("fr"), ["en", "en", "de", "de"], "train_language is 'fr'"),
        (TrainOneLanguageTestOthers(), ["en"] * 4, "no other to test on"),
        (
            TrainOneLanguageTestOthers(translations=[0, 0, 0, 1], n_folds=2),
            ["en", "en", "de", "de"],
            "Nothing is left",
        ),
        (
            LeaveOneLanguageOut([0, 0, 0, 1], n_folds=2),
            ["en", "en", "de", "en"],
            r"train on for 'en', part [01]: every other row",
        ),
    ],
)
def test_bad_splits_are_named(splitter, groups, message):
    with pytest.raises(ValueError, match=message):
        list(splitter.split(["x"] * 4, groups=groups))


@pytest.mark.parametrize("splitter", [LeaveOneLanguageOut(), TrainOneLanguageTestOthers()])
def test_languages_of_another_number_of_rows_are_refused(splitter):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        list(splitter.split(["x"] * 5, groups=["en", "en", "de"]))


@pytest.mark.parametrize("kind", ["LeaveOneLanguageOut", "TrainOneLanguageTestOthers"])
def test_random_state_draws_the_folds(kind):
    groups, translations = ["en", "de"] * 50, np.repeat(np.arange(50), 2)

    def parts(seed):
        splitter = getattr(metrics, kind)(translations=translations, random_state=seed)
        return [test.tolist() for _, test in splitter.split(groups, groups=groups)]

    assert parts(0) == parts(0)
    assert parts(0) != parts(1)


def test_labels_of_another_type_are_no_wrong_answers():
    classifier = DummyClassifier().fit(["a", "b"], ["1", "1"])
    with pytest.raises(ValueError, match="y holds 1 and the like, and the estimator predicts '1'"):
        score_by_language(classifier, ["a", "b"], [1, 0], ["en", "en"])


def test_translations_that_are_lists_are_named():
    splitter = LeaveOneLanguageOut(translations=[[0, 1], [1, 1]], n_folds=2)
    with pytest.raises(TypeError, match=r"row 0 is \[0, 1\]"):
        list(splitter.split(["a", "b"], groups=["en", "sw"]))


@pytest.mark.parametrize("translations", [None, [0, 1, 0, 1, 0, 1]])
def test_languages_come_in_the_order_of_first_appearance(translations):
    languages = ["sw", "sw", "en", "en", "de", "de"]
    for splitter, expected in (
        (LeaveOneLanguageOut(translations, n_folds=2), ["sw", "en", "de"]),
        (TrainOneLanguageTestOthers("en", translations, n_folds=2), ["sw", "de"]),
    ):
        tested = [languages[test[0]] for _, test in splitter.split(languages, groups=languages)]
        assert list(dict.fromkeys(tested)) == expected


def scores_of_answers(values, languages):
    """Return the frame of answers whose F1 are `values`: 0, one half, two thirds or 1."""

    class Answerer:
        def predict_spans(self, X): ...

        def predict(self, X):
            return ["yes"] * len(X)

    references = {0.0: "no", 0.5: "yes or no", 2 / 3: "yes indeed", 1.0: "yes"}
    return score_by_language(Answerer(), values, [references[value] for value in values], languages)


@pytest.mark.parametrize("n_right", [0, 1, 4, 5])
def test_answers_that_are_all_right_or_wrong_have_wilsons_interval(n_right):
    frame = scores_of_answers([1.0] * n_right + [0.0] * (5 - n_right), ["sw"] * 5)
    wilsons = binomtest(n_right, 5).proportion_ci(0.95, method="wilson")
    assert frame.loc[0, ["low", "high"]].tolist() == pytest.approx([*wilsons])


def test_interval_of_a_mean_f1_is_the_normal_one_where_rows_are_many():
    values = np.tile([0.0, 0.5, 1.0, 1.0], 2500)
    frame = scores_of_answers(values.tolist(), ["sw"] * len(values))
    half = 1.959964 * values.std() / np.sqrt(len(values))
    assert frame.loc[0, ["low", "high"]].tolist() == pytest.approx([0.625 - half, 0.625 + half], abs=2e-4)


@pytest.mark.parametrize("n", [3, 10, 30, 100])
@pytest.mark.parametrize(
    "shares",  # of rows with an F1 of 0, 1/2, 2/3 and 1
    [
        (0.03, 0.04, 0, 0.93),
        (0.1, 0.1, 0, 0.8),
        (0.7, 0.2, 0, 0.1),
        (0.2, 0.6, 0, 0.2),
        (0, 0, 0.1, 0.9),
        (0, 0, 0.3, 0.7),
        (0.9, 0.1, 0, 0),
        (0.2, 0.2, 0.1, 0.5),
    ],
)
def test_interval_of_a_mean_f1_holds_the_true_one_as_often_as_it_says(shares, n):
    random = np.random.RandomState(0)
    languages = ["".join(letters) for letters in itertools.product("abcdef", repeat=3)]  # 216 samples
    values = random.choice([0.0, 0.5, 2 / 3, 1.0], (len(languages), n), p=shares)
    frame = scores_of_answers(values.ravel().tolist(), np.repeat(languages, n).tolist())
    low, high = frame["low"].to_numpy(), frame["high"].to_numpy()
    assert low.min() >= 0
    assert high.max() <= 1
    assert (low <= frame["f1"]).all()
    assert (frame["f1"] <= high).all()
    truth = np.dot(shares, [0.0, 0.5, 2 / 3, 1.0])
    assert ((low <= truth) & (truth <= high)).mean() > 0.89  # 0.95 on average over many distributions


def test_scores_come_in_the_order_of_first_appearance():
    classifier = DummyClassifier(strategy="constant", constant="x").fit([[0]] * 2, ["x", "y"])
    frame = score_by_language(classifier, [[0]] * 4, ["x", "x", "y", "x"], ["sw", "en", "de", "en"])
    assert frame["language"].tolist() == ["sw", "en", "de"]
    assert frame["accuracy"].tolist() == [1, 1, 0]


def test_rows_without_translations_are_trained_on_in_every_split():
    languages = ["en"] * 8 + ["sw"] * 4
    splitter = TrainOneLanguageTestOthers("en", [*range(8), *range(4)], n_folds=2)
    for train, _ in splitter.split(languages, groups=languages):
        assert {4, 5, 6, 7} <= set(train.tolist())


def test_han_characters_behind_u9fa5_are_no_tokens_of_their_own():
    assert mlqa_f1(["\u9fa6\u9fa7"], ["\u9fa6"], "zh") == 0  # as in the official script
    assert mlqa_f1(["\u9fa4\u9fa5"], ["\u9fa5"], "zh") == pytest.approx(2 / 3)
