"""The estimators inside everything that scikit-learn builds of estimators, on real text."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from email.message import Message
from importlib.metadata import PackageNotFoundError

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    BaggingClassifier,
    BaggingRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
)
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import RFE, SequentialFeatureSelector
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_validate,
    learning_curve,
)
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier, RegressorChain
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.utils import get_tags

from skminilm import (
    MiniLMClassifier,
    MiniLMEncoder,
    MiniLMQuestionAnswerer,
    MiniLMRegressor,
    MiniLMZeroShotClassifier,
)
from skminilm._base import documentation_address

HEAD = dict(trainable="head", epochs=1, random_state=0)


@pytest.fixture
def head():
    return MiniLMClassifier(**HEAD)


@pytest.fixture
def pipeline():
    return Pipeline([("enc", MiniLMEncoder()), ("clf", LogisticRegression(C=10))])


@pytest.fixture(scope="module")
def frame(english):
    X, y = english
    return pd.DataFrame({"text": X, "channel": ["mail", "chat"] * (len(X) // 2)}), y


def test_feature_union(english):
    X, y = english
    union = FeatureUnion([("dense", MiniLMEncoder()), ("sparse", TfidfVectorizer())])
    model = make_pipeline(union, LogisticRegression(C=10)).fit(X, y)
    assert model.score(X, y) > 0.9


@pytest.mark.parametrize("column", ["text", ["text"]], ids=str)
def test_column_transformer(frame, column):
    X, y = frame
    columns = ColumnTransformer([("text", MiniLMEncoder(), column), ("rest", OneHotEncoder(), ["channel"])])
    model = make_pipeline(columns, LogisticRegression(C=10)).fit(X, y)
    assert model.score(X, y) > 0.9
    names = columns.fit(X).get_feature_names_out()
    assert (names[0], names[383], len(names)) == ("text__minilmencoder0", "text__minilmencoder383", 386)


def test_searches(english, pipeline):
    X, y = english
    grid = {"clf": [DummyClassifier(), LogisticRegression(C=10)], "enc__pooling": ["mean", "cls"]}
    options = dict(cv=2, error_score="raise")
    searches = [
        GridSearchCV(pipeline, grid, **options),
        RandomizedSearchCV(pipeline, grid, n_iter=3, random_state=0, **options),
        HalvingGridSearchCV(pipeline, grid, min_resources=32, factor=2, random_state=0, **options),
    ]
    for search in searches:
        assert search.fit(X, y).best_score_ > 0.3  # by chance 0.125
        assert isinstance(search.best_params_["clf"], LogisticRegression)


def test_a_grid_over_models_and_over_what_is_trained(english, transformers_folder):
    X, y = english
    pipeline = Pipeline([("enc", MiniLMEncoder(max_length=64)), ("clf", LogisticRegression(C=10))])
    search = GridSearchCV(pipeline, {"enc__model": ["bundled", transformers_folder]}, cv=2).fit(X, y)
    bundled, tiny = search.cv_results_["mean_test_score"]
    assert bundled > tiny
    trained = Pipeline([("clf", MiniLMClassifier(epochs=1, random_state=0))])
    search = GridSearchCV(trained, {"clf__trainable": ["head", 1]}, cv=2, error_score="raise").fit(X, y)
    assert (search.cv_results_["mean_test_score"] > 0.3).all()  # by chance 0.125


def test_cross_validation_in_all_forms(english, head):
    X, y = english
    predicted = cross_val_predict(head, X, y, cv=2, method="predict_proba")
    hits = np.unique(y)[predicted.argmax(axis=1)] == y
    result = cross_validate(head, X, y, cv=2, return_estimator=True, error_score="raise")
    assert np.mean(result["test_score"]) == hits.mean() > 0.5  # by chance 0.125
    for estimator, score in zip(result["estimator"], result["test_score"], strict=True):
        assert estimator.score(X, y) == (1 + score) / 2  # all that it was trained on is learned
    options = dict(train_sizes=[0.5, 1.0], shuffle=True, random_state=0, error_score="raise")
    sizes, train_scores, test_scores = learning_curve(head, X, y, cv=2, **options)
    assert sizes.tolist() == [16, 32]
    assert (train_scores == 1).all()
    few, all_of_them = test_scores.mean(axis=1)
    assert 0.25 < few < all_of_them


def test_calibration(english, head):
    from sklearn.calibration import CalibratedClassifierCV

    X, y = english
    methods = ["sigmoid", "temperature"] if sklearn.__version__ >= "1.8" else ["sigmoid"]
    for method in methods:
        calibrated = CalibratedClassifierCV(head, method=method, cv=2).fit(X[::2], y[::2])
        probabilities = calibrated.predict_proba(X[1::2])
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
        of_the_truth = probabilities[np.arange(32), np.searchsorted(calibrated.classes_, y[1::2])]
        assert np.log(of_the_truth).mean() > np.log(1 / 8) + 0.3  # eight equal ones have log(1 / 8)


def test_a_tuned_threshold(english, head):
    X, y = english
    is_delivery = y == "delivery"  # 8 of 64
    tuned = TunedThresholdClassifierCV(head, cv=2).fit(X, is_delivery)
    assert balanced_accuracy_score(is_delivery, tuned.predict(X)) > 0.9
    np.testing.assert_array_equal(tuned.predict(X), tuned.predict_proba(X)[:, 1] >= tuned.best_threshold_)


def test_ensembles(english, head, pipeline):
    X, y = english
    members = [("head", head), ("pipeline", pipeline)]
    assert VotingClassifier(members, voting="soft").fit(X, y).score(X, y) > 0.9
    assert StackingClassifier(members, LogisticRegression(), cv=2).fit(X, y).score(X, y) > 0.9


def test_ensembles_of_labels_in_words(english, head):
    """They number the classes."""
    X, y = english
    classes = sorted(set(y))
    words = [name.replace("_", " ") for name in classes]
    zero_shot = MiniLMZeroShotClassifier(labels=dict(enumerate(words)))
    members = [("zero_shot", zero_shot), ("head", head)]
    expected = np.array(classes)[zero_shot.fit().predict(X)]
    alone = np.mean(expected == y)
    assert alone > 0.5
    np.testing.assert_array_equal(VotingClassifier(members[:1]).fit(X, y).predict(X), expected)
    assert VotingClassifier(members, voting="soft").fit(X, y).score(X, y) > alone
    final = LogisticRegression(C=100)
    assert StackingClassifier(members[:1], final, cv=2).fit(X, y).score(X, y) > alone
    assert StackingClassifier(members, final, cv=2).fit(X, y).score(X, y) > alone
    unnumbered = [("zero_shot", clone(zero_shot).set_params(labels=classes))]
    for ensemble in (VotingClassifier(unnumbered), StackingClassifier(unnumbered, final, cv=2)):
        with pytest.raises(ValueError, match=r"give labels=\{0: 'words', ...\}"):
            ensemble.fit(X, y)


def test_one_against_the_rest_and_several_outputs(english, head):
    X, y = english
    assert OneVsRestClassifier(head).fit(X, y).score(X, y) > 0.9
    both = np.column_stack([y, np.isin(y, sorted(set(y))[:4])])
    predicted = MultiOutputClassifier(head).fit(X, both).predict(X)
    assert (predicted == both).mean(axis=0).min() > 0.9


@pytest.fixture(scope="module")
def few(english):
    """24 texts, as a list and as a data frame, of three intents."""
    X = english[0][:24]
    return X, pd.DataFrame({"text": X}), np.repeat([0, 1, 2], 8)


def both_orders(y):
    """Two outputs."""
    return np.column_stack([y, y[::-1]])


CLASSIFIER, REGRESSOR = MiniLMClassifier(**HEAD), MiniLMRegressor(**HEAD)
MEMBER = [("member", CLASSIFIER)]


@pytest.mark.parametrize(
    ("meta", "target"),
    [
        (RFE(CLASSIFIER), None),
        (SequentialFeatureSelector(CLASSIFIER, cv=2), None),
        (OneVsOneClassifier(CLASSIFIER), None),
        (SelfTrainingClassifier(CLASSIFIER), lambda y: np.where(np.arange(24) % 2, y, -1)),
        (ClassifierChain(CLASSIFIER), lambda y: both_orders(y == 0)),
        (RegressorChain(REGRESSOR), both_orders),
        (StackingClassifier(MEMBER, LogisticRegression(), cv=2, passthrough=True), None),
        (StackingRegressor([("member", REGRESSOR)], Ridge(), cv=2, passthrough=True), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseEstimator) else "",
)
def test_what_wants_numbers_refuses_texts_and_takes_the_encoder_in_front(
    meta, target, few, transformers_folder
):
    texts, frame, y = few
    y = target(y) if target else y
    with pytest.raises(ValueError, match=r"got 1D array|must have same number of dimensions"):
        meta.fit(texts, y)
    with pytest.raises(ValueError, match="could not convert string to float"):
        meta.fit(frame, y)
    linear = Ridge() if "Regressor" in type(meta).__name__ else LogisticRegression(max_iter=1000)
    options = {"estimators": [("member", linear)]} if hasattr(meta, "estimators") else {"estimator": linear}
    behind = clone(meta).set_params(**options)
    # 32 columns: a selector of features fits once or more for each.
    encoder = MiniLMEncoder(transformers_folder, max_length=64)
    if isinstance(behind, SequentialFeatureSelector):
        behind.set_params(n_features_to_select=3)
        assert make_pipeline(encoder, behind).fit_transform(texts, y).shape == (24, 3)
    else:
        assert make_pipeline(encoder, behind).fit(texts, y).predict(texts).shape == y.shape


@pytest.mark.parametrize(
    "meta",
    [
        BaggingClassifier(CLASSIFIER, n_estimators=2, random_state=0),
        BaggingRegressor(REGRESSOR, n_estimators=2, random_state=0),
        AdaBoostClassifier(CLASSIFIER, n_estimators=2, random_state=0),
        AdaBoostRegressor(REGRESSOR, n_estimators=2, random_state=0),
    ],
    ids=lambda meta: type(meta).__name__,
)
def test_what_wants_a_matrix_takes_a_frame_of_texts(meta, few):
    texts, frame, y = few
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array"):
        clone(meta).fit(texts, y)
    assert clone(meta).fit(frame, y).score(frame, y) > 0.7
    behind = clone(meta).set_params(
        estimator=Ridge(0.1) if "Regressor" in str(meta) else LogisticRegression(C=100)
    )
    assert make_pipeline(MiniLMEncoder(), behind).fit(texts, y).score(texts, y) > 0.7


def test_permutation_importance_takes_a_frame_of_texts(few):
    texts, frame, y = few
    model = MiniLMClassifier(**HEAD).fit(texts, y)
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array"):
        permutation_importance(model, texts, y, n_repeats=2)
    assert permutation_importance(model, frame, y, n_repeats=2, random_state=0).importances_mean[0] > 0.3


def test_partial_dependence_varies_other_columns_and_texts_as_categories(few):
    _, frame, y = few
    X = frame.assign(price=np.arange(24.0) % 8)
    columns = ColumnTransformer([("text", MiniLMEncoder(), "text"), ("rest", "passthrough", ["price"])])
    model = make_pipeline(columns, Ridge(0.1)).fit(X, X["price"] + 10 * y)
    options = dict(kind="average", grid_resolution=4)
    (average,) = partial_dependence(model, X, ["price"], **options)["average"]
    np.testing.assert_allclose(np.diff(average), 7 / 3, rtol=0.1)
    with pytest.raises(TypeError, match="can't multiply sequence"):
        partial_dependence(model, X, ["text"], **options)
    found = partial_dependence(model, X, ["text"], categorical_features=["text"], **options)
    order = np.argsort(X["text"])
    assert found["grid_values"][0].tolist() == X["text"][order].tolist()
    assert np.corrcoef(found["average"][0], y[order])[0, 1] > 0.8


def test_permutation_importance_over_columns(frame):
    X, y = frame
    columns = ColumnTransformer([("text", MiniLMEncoder(), "text"), ("rest", OneHotEncoder(), ["channel"])])
    model = make_pipeline(columns, LogisticRegression(C=10)).fit(X, y)
    text, channel = permutation_importance(model, X, y, n_repeats=2, random_state=0).importances_mean
    assert text > 0.5 > channel


def test_parameters_of_a_nested_estimator(pipeline):
    nested = clone(make_pipeline(pipeline)).set_params(pipeline__enc__model="m", pipeline__clf__C=3.0)
    assert nested.get_params()["pipeline__enc__model"] == "m"
    assert nested.get_params()["pipeline__enc"].prompt == "auto"


BACKENDS = ["loky", "threading"] + (["multiprocessing"] if sys.platform == "linux" else [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_parallel_workers_give_the_probabilities_of_one(english, backend, recwarn):
    X, y = english
    MiniLMEncoder(precision="fp32").transform(X[:4])  # the model is in use before any fork
    for trainable in ("head", 1):
        model = MiniLMClassifier(trainable=trainable, epochs=1, precision="fp32", random_state=0)
        expected = cross_val_predict(model, X, y, cv=2, method="predict_proba")
        with joblib.parallel_backend(backend, n_jobs=2):
            found = cross_val_predict(model, X, y, cv=2, method="predict_proba", n_jobs=2)
        np.testing.assert_allclose(found, expected, atol=1e-3)  # threads change the rounding
    assert not [w for w in recwarn if "tokenizer" in str(w.message).lower()]


def test_workers_keep_to_the_threads_that_joblib_gives_them():
    program = """
import joblib, torch
from skminilm import MiniLMEncoder
def threads():
    MiniLMEncoder(cache=None).transform(["a"])
    return torch.get_num_threads()
print([joblib.cpu_count(), *joblib.Parallel(n_jobs=2)(joblib.delayed(threads)() for _ in range(2))])
"""
    # joblib leaves these as they are where they are set, as they are under ``pytest -n``.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment["LOKY_MAX_CPU_COUNT"] = "8"  # it lowers the number of cores, and raises it nowhere
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr
    n_cores, *found = json.loads(done.stdout)
    assert found == 2 * [max(1, n_cores // 2)]


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def test_sample_weight_is_routed(english, routing):
    X, y = english
    weights = np.where(np.arange(len(X)) % 2, 1.0, 0.0)
    wrong = np.where(weights > 0, y, "delivery")
    head = MiniLMClassifier(**HEAD).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
    weighted = Pipeline([("clf", head)]).fit(X, wrong, sample_weight=weights)
    plain = Pipeline([("clf", MiniLMClassifier(**HEAD))]).fit(X, wrong)
    by_itself = MiniLMClassifier(**HEAD).fit(X, wrong, sample_weight=weights)
    np.testing.assert_array_equal(weighted.predict_proba(X), by_itself.predict_proba(X))
    assert weighted.score(X, y) > plain.score(X, y) + 0.1
    search = GridSearchCV(head, {"init_head": ["probe"]}, cv=2).fit(X, wrong, sample_weight=weights)
    np.testing.assert_array_equal(search.predict_proba(X), by_itself.predict_proba(X))
    regressor = MiniLMRegressor(**HEAD).set_fit_request(sample_weight=True)
    Pipeline([("reg", regressor)]).fit(X, np.arange(len(X)), sample_weight=weights)


def test_score_takes_weights(english, head):
    X, y = english
    head.fit(X, y)
    right = head.predict(X) == y
    wrong = np.where(right, y, "x")
    assert head.score(X, wrong, sample_weight=right.astype(float)) == 1


def test_regression_in_a_search(english):
    X, y = english
    numbers = np.searchsorted(sorted(set(y)), y).astype(float)
    assert make_pipeline(MiniLMEncoder(), Ridge(0.1)).fit(X, numbers).score(X, numbers) > 0.5
    search = GridSearchCV(
        MiniLMRegressor(**HEAD), {"head_learning_rate": [1e-3, 1e-2]}, cv=2, error_score="raise"
    ).fit(X, numbers)
    assert np.isfinite(search.best_score_)


OF_TEXTS = {"one_d_array": True, "string": True, "two_d_array": False}


@pytest.mark.parametrize(
    ("estimator", "mixin", "differences"),
    [
        (
            MiniLMEncoder(),
            TransformerMixin,
            {"requires_fit": False, "input_tags": OF_TEXTS, "transformer_tags": {"preserves_dtype": []}},
        ),
        (
            MiniLMEncoder(missing="empty"),
            TransformerMixin,
            {
                "requires_fit": False,
                "input_tags": {**OF_TEXTS, "allow_nan": True},
                "transformer_tags": {"preserves_dtype": []},
            },
        ),
        (
            MiniLMClassifier(),
            ClassifierMixin,
            {"input_tags": OF_TEXTS, "classifier_tags": {"multi_label": True}},
        ),
        (
            MiniLMRegressor(),
            RegressorMixin,
            {"input_tags": OF_TEXTS, "target_tags": {"multi_output": True}},
        ),
        (
            MiniLMQuestionAnswerer(),
            object,
            {"input_tags": {"string": True, "two_d_array": False}, "target_tags": {"required": True}},
        ),
    ],
    ids=["encoder", "encoder of missing texts", "classifier", "regressor", "question answerer"],
)
def test_tags(estimator, mixin, differences):
    """Those of any estimator of its kind, but for what is said here."""

    plain = type("Plain", (BaseEstimator,) if mixin is object else (mixin, BaseEstimator), {})()

    def changed(found, plain):
        both = {
            name: changed(value, plain[name]) if isinstance(value, dict) else value
            for name, value in found.items()
        }
        return {name: value for name, value in both.items() if value != plain[name] and value != {}}

    tags = get_tags(estimator)
    assert changed(asdict(tags), asdict(get_tags(plain))) == differences
    assert get_tags(Pipeline([("text", estimator)])).estimator_type == tags.estimator_type


@pytest.mark.parametrize("estimator", [MiniLMEncoder(), MiniLMClassifier(), MiniLMRegressor()])
def test_repr_and_diagram(estimator):
    assert repr(estimator) == f"{type(estimator).__name__}()"
    assert type(estimator).__name__ in estimator._repr_html_()


@pytest.mark.parametrize(
    ("urls", "address"),
    [
        (
            ["Source, https://a.example", "Documentation, https://docs.example/skminilm/"],
            "https://docs.example/skminilm",
        ),
        (["Source, https://a.example"], None),
        (None, None),
    ],
)
def test_the_diagram_links_to_the_documentation_that_the_package_names(urls, address, monkeypatch):
    package = Message()
    for url in urls or []:
        package["Project-URL"] = url

    def metadata(name):
        if urls is None:
            raise PackageNotFoundError(name)
        return package

    class Subclass(MiniLMEncoder):
        pass

    monkeypatch.setattr("importlib.metadata.metadata", metadata)
    documentation_address.cache_clear()
    try:
        diagram = make_pipeline(MiniLMEncoder(), MiniLMClassifier())._repr_html_()
        own = Subclass()._repr_html_()
    finally:
        documentation_address.cache_clear()
    for name in ("MiniLMEncoder", "MiniLMClassifier"):
        assert (f'href="{address}/api.html#skminilm.{name}"' in diagram) == (address is not None)
        assert (f"Documentation for {name}" in diagram) == (address is not None)
    assert "Documentation for Subclass" not in own


@pytest.mark.parametrize("model", ["multilingual-e5-small", "owner/name", "/no/folder", 3])
def test_looking_at_an_encoder_neither_downloads_nor_fails(model, english, monkeypatch):
    def download(*args, **kwargs):
        pytest.fail("a download began")

    monkeypatch.setattr("skminilm.checkpoints.hub.download", download)
    fitted = make_pipeline(MiniLMEncoder(), LogisticRegression()).fit(*english)
    fitted[0].model = model  # as in a pipeline that is opened where its checkpoint is missing
    for estimator in (MiniLMEncoder(model), MiniLMEncoder(model).set_output(transform="pandas"), fitted):
        assert "fit" in dir(estimator)
        assert "MiniLMEncoder" in estimator._repr_html_()
        assert "MiniLMEncoder" in estimator._repr_mimebundle_()["text/plain"]
    if model == "multilingual-e5-small":
        assert len(MiniLMEncoder(model).get_feature_names_out()) == 384
    else:
        with pytest.raises(NotFittedError):
            MiniLMEncoder(model).get_feature_names_out()
    assert len(fitted[0].get_feature_names_out()) == 384


@pytest.mark.parametrize("estimator", [MiniLMEncoder(verbose=0.0), MiniLMClassifier(verbose=0.0, **HEAD)])
def test_parameters_are_not_validated_where_scikit_learn_is_told_so(estimator, english):
    with pytest.raises(ValueError, match="verbose"):
        estimator.fit(*english)
    with config_context(skip_parameter_validation=True):
        estimator.fit(*english)
