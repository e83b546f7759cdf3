"""MiniLMZeroShotClassifier: by similarity, by entailment, in searches and pipelines, what is refused."""

from __future__ import annotations

import copy
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline

from skminilm import MiniLMClassifier, MiniLMZeroShotClassifier, clear_cache

TEXTS = [
    "Das Parlament stimmte ab.",
    "El partido terminó con dos goles.",
    "طبخت أمي حساء لذيذا",
    "议会通过了新法律。",
]
LABELS = ["sports", "cooking", "politics"]
TOPICS = {0: "sports", 1: "cooking", 2: "politics"}


@pytest.fixture(scope="module")
def nli():
    """Knows of three topics what they entail: hypotheses about them, in two languages."""
    premises = {
        "sports": [
            "The team scored two goals.",
            "Der Läufer gewann das Rennen.",
            "She won the tennis match.",
        ],
        "cooking": [
            "Boil the soup for an hour.",
            "Die Pfanne ist heiß, das Essen fertig.",
            "Add salt to the dish.",
        ],
        "politics": [
            "The parliament voted on the law.",
            "Der Minister trat zurück.",
            "The election is on Sunday.",
        ],
    }
    X, y = [], []
    for topic, texts in premises.items():
        for text in texts:
            for label in LABELS:
                X.append((text, f"This text is about {label}."))
                y.append("entailment" if label == topic else "contradiction")
    return MiniLMClassifier(trainable="head", epochs=30, random_state=0).fit(X, y)


def test_similarity_in_several_languages():
    model = MiniLMZeroShotClassifier(labels=LABELS).fit()
    assert model.classes_.tolist() == sorted(LABELS)
    assert model.predict(TEXTS).tolist() == ["politics", "sports", "cooking", "politics"]
    probabilities = model.predict_proba(TEXTS)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert (probabilities.max(axis=1) > 0.5).all()
    assert (model.offsets_ == 0).all()


def test_labels_come_from_y_and_texts_centre_the_scores(requests):
    names = np.array([name.replace("_", " ") for name in requests.target_names])
    X, y = requests.data[::4], names[requests.target[::4]]
    options = dict(precision="fp32")  # no rounding moves a text from one label to another
    model = MiniLMZeroShotClassifier(center=True, **options).fit(X, y)
    assert set(model.classes_) == set(y)
    np.testing.assert_allclose(model.decision_function(X).mean(axis=0), 0, atol=1e-5)
    plain = MiniLMZeroShotClassifier(labels=sorted(set(y)), **options).fit()
    assert model.score(X, y) > plain.score(X, y) > 0.5  # chance is 0.125


def test_the_mix_of_classes_in_fit_counts_only_where_it_is_asked_to(requests):
    y = np.array([name.replace("_", " ") for name in requests.target_names])[requests.target]
    most = np.flatnonzero(y == y[0])[:20].tolist() + np.flatnonzero(y != y[0])[:2].tolist()
    labels = sorted(set(y))
    texts = [requests.data[i] for i in most]
    expected = MiniLMZeroShotClassifier(labels=labels).fit().predict(texts)
    found = MiniLMZeroShotClassifier(labels=labels).fit(texts, y[most])
    np.testing.assert_array_equal(found.predict(texts), expected)
    assert (found.offsets_ == 0).all()
    centred, balanced = (
        MiniLMZeroShotClassifier(labels=labels, center=True).fit(X) for X in (texts, requests.data[::4])
    )
    shift = centred.offsets_ - balanced.offsets_
    assert labels[shift.argmax()] == y[0]
    assert shift.max() > 0.005


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_what_the_process_wants_of_transformers_is_another_matter(container, tmp_path):
    expected = MiniLMZeroShotClassifier(labels=LABELS, center=True).fit(TEXTS).predict_proba(TEXTS)
    with config_context(transform_output=container):
        model = MiniLMZeroShotClassifier(labels=LABELS, center=True).fit(TEXTS)
        np.testing.assert_array_equal(model.predict_proba(TEXTS), expected)
        model.save(tmp_path)


def test_logarithms_of_probabilities(nli):
    for options in ({}, {"nli": nli}, {"nli": nli, "multi_label": True}):
        model = MiniLMZeroShotClassifier(labels=LABELS, **options).fit()
        np.testing.assert_allclose(
            model.predict_log_proba(TEXTS), np.log(model.predict_proba(TEXTS)), atol=1e-6
        )


def test_labels_in_the_place_of_the_model_are_told_where_they_go():
    with pytest.raises(TypeError, match=r"model is \['sports', .*: expected a str or a path.* labels="):
        MiniLMZeroShotClassifier(LABELS).fit()


def test_means_need_texts(nli):
    with pytest.raises(ValueError, match="center=True takes means over the texts of fit: give X"):
        MiniLMZeroShotClassifier(labels=LABELS, center=True).fit()
    with pytest.raises(ValueError, match="nli computes none"):
        MiniLMZeroShotClassifier(labels=LABELS, center=True, nli=nli).fit(TEXTS)


@pytest.mark.parametrize(
    ("option", "value"),
    [("model", "elsewhere"), ("revision", "v2"), ("prompt", "x: "), ("precision", "fp32"), ("device", "cpu")],
)
def test_options_that_nli_makes_idle_are_refused(nli, option, value):
    with pytest.raises(ValueError, match=f"{option}='{value}' is for similarities, and nli brings its own"):
        MiniLMZeroShotClassifier(labels=LABELS, nli=nli, **{option: value}).fit()


def test_y_is_checked_without_texts_too():
    with pytest.raises(ValueError, match="y has a label that labels lacks: row 1 is 'travel'"):
        MiniLMZeroShotClassifier(labels=LABELS).fit(None, ["sports", "travel"])


@pytest.mark.parametrize("temperature", [1e-320, 1e-5, 1e18])
def test_no_temperature_changes_the_label(temperature):
    expected = MiniLMZeroShotClassifier(labels=LABELS).fit().predict(TEXTS)
    model = MiniLMZeroShotClassifier(labels=LABELS, temperature=temperature).fit()
    np.testing.assert_array_equal(model.predict(TEXTS), expected)
    np.testing.assert_allclose(model.predict_proba(TEXTS).sum(axis=1), 1)


@pytest.mark.parametrize(
    ("options", "y", "message"),
    [
        ({"labels": {"a", "b"}}, None, "expected a list of str"),
        ({"labels": ["a", "b"], "hypothesis_template": "\ud800{}"}, None, "is not valid Unicode"),
        ({}, ["a", "", "b"], "empty label ''"),
        (
            {"labels": ["a", "b"], "nli": FrozenEstimator(LogisticRegression())},
            None,
            "nli is LogisticRegression",
        ),
        ({"labels": ["a", "b"]}, [0, 1, 0], r"row 0 is 0.*VotingClassifier.*labels=\{0: 'words'"),
    ],
    ids=["set", "template", "empty", "nli", "numbered"],
)
def test_what_no_label_can_be(options, y, message):
    with pytest.raises((TypeError, ValueError), match=message):
        MiniLMZeroShotClassifier(**options).fit(None if y is None else ["x"] * len(y), y)


def test_codes_are_said_in_words():
    model = MiniLMZeroShotClassifier(labels=TOPICS).fit(TEXTS, [2, 0, 1, 2])
    assert model.classes_.tolist() == [0, 1, 2]
    assert model.predict(TEXTS).tolist() == [2, 0, 1, 2]
    reversed_ = MiniLMZeroShotClassifier(labels=dict(reversed(TOPICS.items()))).fit()
    assert reversed_.classes_.tolist() == [0, 1, 2]
    assert reversed_.predict(TEXTS).tolist() == [2, 0, 1, 2]


def test_two_labels_have_one_score_a_text():
    model = MiniLMZeroShotClassifier(labels=["politics", "cooking"]).fit()
    scores = model.decision_function(TEXTS)
    assert scores.shape == (4,)
    np.testing.assert_array_equal(model.classes_[(scores > 0).astype(int)], model.predict(TEXTS))


def test_entailment(nli):
    model = MiniLMZeroShotClassifier(labels=LABELS, nli=nli).fit(TEXTS)
    assert model.predict(["The players won.", "The government fell."]).tolist() == ["sports", "politics"]
    np.testing.assert_allclose(model.predict_proba(TEXTS).sum(axis=1), 1, rtol=1e-5)


def test_labels_by_themselves(nli):
    model = MiniLMZeroShotClassifier(labels=LABELS, nli=nli, multi_label=True)
    y = np.array([[1, 0, 0], [0, 0, 1]])
    X = ["The players won.", "The government fell."]
    model.fit(X, y)
    assert model.classes_.tolist() == LABELS
    probabilities = model.predict_proba(X)
    np.testing.assert_array_equal(model.predict(X), (probabilities > 0.5).astype(int))
    assert model.predict(X).shape == (2, 3)
    # One label alone is judged as it is among others.
    alone = clone(model).set_params(labels=["sports"]).fit(X)
    np.testing.assert_allclose(alone.predict_proba(X)[:, 0], probabilities[:, 0], rtol=1e-4)


def test_nli_is_shared_by_clones_and_kept(nli, tmp_path, monkeypatch):
    model = clone(MiniLMZeroShotClassifier(labels=LABELS, nli=nli))
    assert model.nli.weights_digest_ == nli.weights_digest_
    assert model.nli.coef_ is nli.coef_
    model.set_params(nli__verbose=1)
    assert nli.verbose == 0
    model.set_params(nli__verbose=0)
    assert np.isfinite(
        cross_val_score(model, TEXTS, ["politics", "sports", "cooking", "politics"], cv=2)
    ).all()
    expected = model.fit().predict_proba(TEXTS)
    model.save(tmp_path / "zero_shot")
    np.testing.assert_array_equal(
        MiniLMZeroShotClassifier.load(tmp_path / "zero_shot").predict_proba(TEXTS), expected
    )
    joblib.dump(model, tmp_path / "zero_shot.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "zero_shot.joblib").predict_proba(TEXTS), expected)
    nli.save(tmp_path / "nli")
    from_folder = MiniLMZeroShotClassifier(labels=LABELS, nli=str(tmp_path / "nli")).fit()
    monkeypatch.setattr(MiniLMClassifier, "load", None)  # the files did not change: they are not read again
    np.testing.assert_array_equal(from_folder.predict_proba(TEXTS), expected)


def test_nli_of_a_frame(nli):
    pairs = pd.DataFrame([("a", "b"), ("c", "d")], columns=["Premise", "Hypothesis"])
    options = dict(trainable="head", epochs=1, random_state=0)
    named = MiniLMClassifier(**options).fit(pairs, ["entailment", "contradiction"])
    unnamed = MiniLMClassifier(**options).fit(pairs.to_numpy(), ["entailment", "contradiction"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the pairs are made here: their columns are the right ones
        probabilities = [
            MiniLMZeroShotClassifier(labels=LABELS, nli=one).fit().predict_proba(TEXTS)
            for one in (named, unnamed)
        ]
    np.testing.assert_array_equal(*probabilities)
    swapped = MiniLMClassifier(**options).fit(
        pairs[["Hypothesis", "Premise"]], ["entailment", "contradiction"]
    )
    with pytest.raises(ValueError, match=r"fitted on the columns hypothesis, premise.*the text first"):
        MiniLMZeroShotClassifier(labels=LABELS, nli=swapped).fit()


def test_parameters_of_nli_are_checked(nli):
    model = MiniLMZeroShotClassifier(labels=LABELS, nli=copy.copy(nli)).fit()
    with pytest.raises(ValueError, match="'precision' parameter"):
        model.set_params(nli__precision="int3").predict(TEXTS)


def test_each_pair_is_computed_once(nli, monkeypatch, computed):
    from skminilm import _entailment

    monkeypatch.setattr(_entailment, "_SLICE_PAIRS", 6)  # two texts at a time
    model = MiniLMZeroShotClassifier(labels=LABELS, nli=nli).fit()
    clear_cache()
    expected = model.predict_proba(TEXTS)
    # Pairs, and each text and each hypothesis by itself.
    once = len(TEXTS) * len(LABELS) + len(TEXTS) + len(LABELS)
    assert sum(computed) == once
    computed.clear()
    clear_cache()
    np.testing.assert_array_equal(model.predict_proba(TEXTS * 3), np.tile(expected, (3, 1)))
    assert sum(computed) == once


def test_nli_in_the_home_folder(nli, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    nli.save("~/nli")
    assert MiniLMZeroShotClassifier(labels=LABELS, nli="~/nli").fit().predict(TEXTS[:1]) == ["politics"]


def test_nli_in_a_grid(nli, tmp_path):
    y = ["politics", "sports", "cooking", "politics"]
    grid = {"nli": [None, FrozenEstimator(nli)]}
    search = GridSearchCV(MiniLMZeroShotClassifier(labels=LABELS), grid, cv=2, error_score="raise")
    assert np.isfinite(search.fit(TEXTS, y).cv_results_["mean_test_score"]).all()
    model = MiniLMZeroShotClassifier(labels=LABELS, nli=FrozenEstimator(nli)).fit()
    model.save(tmp_path / "frozen")
    loaded = MiniLMZeroShotClassifier.load(tmp_path / "frozen")
    assert isinstance(loaded.nli, FrozenEstimator)
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), model.predict_proba(TEXTS))
    with pytest.raises(ValueError, match=r"give FrozenEstimator\(nli\)"):
        GridSearchCV(MiniLMZeroShotClassifier(labels=LABELS), {"nli": [nli]}, cv=2, error_score="raise").fit(
            TEXTS, y
        )


def test_a_search_over_what_only_a_fit_of_nli_reads_is_refused(nli):
    model = MiniLMZeroShotClassifier(labels=LABELS, nli=nli)
    with pytest.raises(ValueError, match=r"nli__epochs would change nothing.*device, precision, verbose"):
        GridSearchCV(model, {"nli__epochs": [1, 2]}, cv=2).fit(TEXTS, ["sports", "cooking"] * 2)
    assert clone(model).set_params(nli__verbose=1, multi_label=True).nli.verbose == 1
    assert clone(model).set_params(nli=None, prompt="x: ").nli is None
    with pytest.raises(ValueError, match="Invalid parameter 'nothing'"):
        model.set_params(nothing=1)


def test_numbered_classes_in_calibration_and_cross_validation():
    X, y = TEXTS * 2, np.array(["politics", "sports", "cooking", "politics"] * 2)
    numbered = MiniLMZeroShotClassifier(labels=dict(enumerate(sorted(LABELS))))
    found = cross_val_predict(numbered, X, y, cv=2, method="predict_proba")
    assert found.argmax(axis=1).tolist() == [1, 2, 0, 1] * 2
    codes = np.unique(y, return_inverse=True)[1]
    calibrated = CalibratedClassifierCV(numbered, cv=2, ensemble=False).fit(X, codes)
    assert calibrated.predict(X).tolist() == codes.tolist()
    with pytest.raises(ValueError, match=r"cross_val_predict.*labels=\{0: 'words'"):
        cross_val_predict(MiniLMZeroShotClassifier(labels=LABELS), X, y, cv=2, method="predict_proba")


def test_what_changed_since_fit_is_refused(nli, tmp_path):
    for changed in ({"nli": None}, {"multi_label": True}):
        model = MiniLMZeroShotClassifier(labels=LABELS, nli=nli).fit()
        with pytest.raises(ValueError, match="changed since fit"):
            model.set_params(**changed).predict(TEXTS)
    nli.save(tmp_path / "nli")
    model = MiniLMZeroShotClassifier(labels=LABELS, nli=tmp_path / "nli").fit()
    model.predict(TEXTS)
    other = MiniLMClassifier(trainable="head", epochs=1, random_state=1)
    other.fit([("a", "b"), ("c", "d")], ["entailment", "contradiction"]).save(tmp_path / "nli")
    with pytest.raises(ValueError, match="another classifier than in fit"):
        model.predict(TEXTS)


@pytest.mark.parametrize(
    "changes", [{"labels": ["sports", "food"]}, {"labels": None}, {"hypothesis_template": "On {}."}], ids=str
)
def test_other_hypotheses_than_at_fit_are_refused(changes):
    classifier = MiniLMZeroShotClassifier(labels={"s": "sports", "f": "food"}).fit()
    assert classifier.predict(["He scored two goals."]) == ["s"]
    with pytest.raises(ValueError, match="labels or hypothesis_template was changed since fit: fit again"):
        classifier.set_params(**changes).predict(["He scored two goals."])


def test_slices_change_nothing(nli, monkeypatch):
    model = MiniLMZeroShotClassifier(labels=LABELS, nli=nli).fit()
    expected = model.predict_proba(TEXTS)
    monkeypatch.setattr("skminilm._entailment._SLICE_PAIRS", 4)
    np.testing.assert_allclose(model.predict_proba(TEXTS), expected, rtol=1e-5)


@pytest.mark.parametrize("n_pairs", [4, 8192])
def test_one_warning_counts_the_texts_of_all_slices(nli, monkeypatch, n_pairs):
    monkeypatch.setattr("skminilm._entailment._SLICE_PAIRS", n_pairs)
    model = MiniLMZeroShotClassifier(labels=LABELS, nli=nli).fit()
    with pytest.warns(UserWarning, match="were cut off") as caught:
        model.predict_proba([TEXTS[0] * 20, *TEXTS, TEXTS[1] * 60, TEXTS[2]])
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith("2 of 7 texts have more than max_length=128 tokens")
    assert "the longest, row 5, has" in message
    assert caught[0].filename == __file__


def test_a_pair_is_as_long_as_with_its_longest_hypothesis(nli):
    model = MiniLMZeroShotClassifier(labels={0: "cooking", 1: "sports " * 130}, nli=nli).fit()
    with pytest.warns(UserWarning, match="2 of 2 texts have more than max_length=128 tokens"):
        model.predict_proba(TEXTS[:2])


def test_search_and_pipeline():
    y = ["politics", "sports", "cooking", "politics"] * 3
    search = GridSearchCV(
        make_pipeline(MiniLMZeroShotClassifier(labels=LABELS)),
        {"minilmzeroshotclassifier__hypothesis_template": ["{}", "This text is about {}."]},
        cv=3,
        error_score="raise",
    ).fit(TEXTS * 3, y)
    assert search.best_score_ > 0.9
    frame = pd.DataFrame({"text": TEXTS})
    model = MiniLMZeroShotClassifier().fit(frame, y[:4])
    assert list(model.feature_names_in_) == ["text"]
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame.rename(columns={"text": "other"}))


def test_temperature_changes_probabilities_not_labels():
    sharp, even = (MiniLMZeroShotClassifier(labels=LABELS, temperature=t).fit() for t in (0.001, 1.0))
    np.testing.assert_array_equal(sharp.predict(TEXTS), even.predict(TEXTS))
    assert sharp.predict_proba(TEXTS).max() > 0.99 > 0.4 > even.predict_proba(TEXTS).max()


@pytest.mark.parametrize(
    ("parameters", "y", "error", "message"),
    [
        ({}, None, ValueError, "target y is None: give the candidates"),
        ({}, [0, 1, 0, 1], ValueError, r"labels \[0, 1\], which say nothing in words"),
        ({}, [0.5, 1.5, 2.5, 3.5], ValueError, "y is continuous"),
        ({}, ["a", "a", "a", "a"], ValueError, "one class only, 'a'"),
        ({"labels": []}, None, ValueError, "labels has 0: give at least 2"),
        ({"labels": ["a"]}, None, ValueError, "labels has 1"),
        ({"labels": "sports"}, None, TypeError, "labels is 'sports'"),
        ({"labels": ["a", " "]}, None, ValueError, "empty one: number 1 is ' '"),
        ({"labels": ["a", "b", "a"]}, None, ValueError, "repeats 'a': number 0 and 2"),
        (
            {"labels": ["sport", "b", " sport"]},
            None,
            ValueError,
            "' sport' and 'sport' are the same to the network",
        ),
        ({"labels": ["\u00e9t\u00e9", "e\u0301te\u0301"]}, None, ValueError, "are the same to the network"),
        ({"labels": ["sport", "sport\u200b"]}, None, ValueError, "are the same to the network"),
        ({"labels": ["sport", "\u200b"]}, None, ValueError, r"label '\\u200b' says nothing"),
        (
            {},
            ["sport", "b", "sport ", "b"],
            ValueError,
            "labels 'sport' and 'sport ' are the same to the network",
        ),
        ({}, ["a", "\ufeff", "a", "b"], ValueError, r"label '\\ufeff' says nothing"),
        ({"labels": [0, 1]}, None, TypeError, "labels must hold str: number 0 is 0"),
        ({"labels": LABELS}, ["sports", "x", "sports", "sports"], ValueError, "row 1 is 'x'"),
        ({"labels": LABELS, "hypothesis_template": "About"}, None, ValueError, "has no {} where"),
        ({"labels": LABELS, "multi_label": True}, None, ValueError, "multi_label=True needs nli"),
        ({"labels": LABELS, "nli": MiniLMClassifier()}, None, ValueError, "nli is not fitted"),
        ({"labels": LABELS, "temperature": 0}, None, ValueError, "temperature"),
    ],
)
def test_bad_input_is_named(parameters, y, error, message):
    with pytest.raises(error, match=message):
        MiniLMZeroShotClassifier(**parameters).fit(TEXTS, y)


def test_nli_of_another_kind_is_refused():
    other = MiniLMClassifier(trainable="head", epochs=1).fit(TEXTS, ["a", "b", "a", "b"])
    with pytest.raises(ValueError, match="nli needs the class 'entailment', and has"):
        MiniLMZeroShotClassifier(labels=LABELS, nli=other).fit()
    single = MiniLMClassifier(trainable="head", epochs=1).fit(TEXTS, ["entailment", "b", "entailment", "b"])
    with pytest.raises(ValueError, match="nli was fitted on single texts"):
        MiniLMZeroShotClassifier(labels=LABELS, nli=single).fit()


def test_pairs_are_refused():
    with pytest.raises(ValueError, match="X has two columns: give one"):
        MiniLMZeroShotClassifier(labels=LABELS).fit([["a", "b"]])


@pytest.mark.parametrize("part", ["coef_", "intercept_"])
def test_another_head_of_nli_is_another_classifier(nli, part):
    nli = copy.copy(nli)
    model = MiniLMZeroShotClassifier(labels=LABELS, nli=nli).fit()
    setattr(nli, part, getattr(nli, part) + 1)
    with pytest.raises(ValueError, match="another classifier than in fit"):
        model.predict(TEXTS)


def test_zero_shot_hands_its_revision_on():
    with pytest.raises(ValueError, match="revision='v1' has no meaning"):
        MiniLMZeroShotClassifier(labels=LABELS, revision="v1").fit()


@pytest.mark.parametrize("changes", [{"prompt": "other: "}, {"prompt": None}, {"precision": "bf16"}], ids=str)
def test_every_parameter_of_the_encoder_counts_in_zero_shot(changes):
    plain = MiniLMZeroShotClassifier(labels=LABELS, precision="fp32").fit()
    changed = MiniLMZeroShotClassifier(**{"labels": LABELS, "precision": "fp32", **changes}).fit()
    assert not np.array_equal(plain.vectors_, changed.vectors_)
    assert not np.array_equal(plain.decision_function(TEXTS), changed.decision_function(TEXTS))


def test_zero_shot_hands_its_device_on():
    with pytest.raises(ValueError, match="device='cuda:99' is not present"):
        MiniLMZeroShotClassifier(labels=LABELS, device="cuda:99").fit()


def test_another_prompt_than_at_fit_is_refused():
    model = MiniLMZeroShotClassifier(labels=LABELS).fit()
    with pytest.raises(ValueError, match="prompt is 'query: ', and fit put 'auto'"):
        model.set_params(prompt="query: ").predict(TEXTS)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({None: "sports", "b": "cooking"}, "labels=.*missing label"),
        ({0: "sports", "b": "cooking"}, "labels=.*mixes labels"),
    ],
)
def test_labels_of_several_types_are_named(nli, labels, message, multi_label):
    with pytest.raises(ValueError, match=message):
        MiniLMZeroShotClassifier(labels=labels, nli=nli, multi_label=multi_label).fit()


def test_score_reads_labels_in_every_container():
    model = MiniLMZeroShotClassifier(labels=TOPICS).fit()
    y = model.predict(TEXTS)
    assert model.score(TEXTS, y.astype(object)) == model.score(TEXTS, pd.Series(y, dtype="Int64")) == 1


def test_temperature_counts_with_nli(nli):
    for multi_label, squash in ((False, lambda s: softmax(s, axis=1)), (True, expit)):
        model = MiniLMZeroShotClassifier(labels=LABELS, nli=nli, multi_label=multi_label).fit()
        scores = model.decision_function(TEXTS)
        np.testing.assert_allclose(
            model.predict_proba(TEXTS), squash(scores), rtol=1e-4, atol=1e-6
        )  # "auto" is 1
        model.set_params(temperature=4.0)
        np.testing.assert_allclose(model.predict_proba(TEXTS), squash(scores / 4), rtol=1e-4, atol=1e-6)


def test_another_classifier_of_the_same_size_in_the_folder_is_noticed(nli, tmp_path):
    nli.save(tmp_path / "nli")
    model = MiniLMZeroShotClassifier(labels=LABELS, nli=tmp_path / "nli").fit()
    model.predict(TEXTS)
    other = copy.copy(nli)
    other.coef_ = nli.coef_[::-1].copy()
    other.save(tmp_path / "nli")
    with pytest.raises(ValueError, match="another classifier"):
        model.predict(TEXTS)


def test_labels_of_another_vocabulary_are_told_apart(transformers_folder):
    MiniLMZeroShotClassifier(transformers_folder, labels=["good", "bad"]).fit()
    with pytest.raises(ValueError, match="'GOOD' and 'good' are the same to the network"):
        MiniLMZeroShotClassifier(transformers_folder, labels=["good", "GOOD"]).fit()
