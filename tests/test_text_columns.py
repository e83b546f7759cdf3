"""What scikit-learn's checks of set_output, feature names and n_features ask, for texts: those checks see no text."""

import functools
import pickle

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sklearn
from conftest import typed_columns
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline

from skminilm import MiniLMClassifier, MiniLMEncoder, MiniLMRegressor
from skminilm._text_columns import check_same_columns
from skminilm._validation import check_texts

N = 8
PAIRED = ["question", "answer"]
FRAMES = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table}
NAMES = [f"minilmencoder{i}" for i in range(8)]


@pytest.fixture
def make_encoder(xlmr_folder):
    return functools.partial(MiniLMEncoder, xlmr_folder, max_length=64)


@pytest.fixture(params=["encoder", "classifier", "regressor"])
def estimator(request, make_encoder, xlmr_folder):
    if request.param == "encoder":
        return make_encoder()
    kind = {"classifier": MiniLMClassifier, "regressor": MiniLMRegressor}[request.param]
    return kind(xlmr_folder, trainable="head", epochs=1, max_length=64, random_state=0)


@pytest.fixture
def single(texts):
    return texts[:N]


@pytest.fixture
def paired(texts):
    return list(zip(texts[:N], texts[N : 2 * N], strict=True))


def fit(estimator, X):
    return estimator.fit(X, np.arange(N) % 2)


def use(estimator, X):
    return estimator.transform(X) if hasattr(estimator, "transform") else estimator.predict(X)


def columns_of(frame):
    return list(frame.column_names if isinstance(frame, pa.Table) else frame.columns)


class Lengths(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A transformer that leaves all to scikit-learn; old versions of it lose the index of a Series."""

    _n_features_out = 1

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return np.array([[len(text)] for text in X])

    def __sklearn_is_fitted__(self):
        return True


@pytest.mark.parametrize("fitted_by", ["fit", "fit_transform", "nothing"])
@pytest.mark.parametrize("given", ["list", "series", "frame", "polars"])
def test_set_output(make_encoder, single, given, fitted_by):
    index = [f"row{i}" for i in range(N)]
    X = {
        "list": single,
        "series": pd.Series(single, index=index),
        "frame": pd.DataFrame({"text": single}, index=index),
        "polars": pl.DataFrame({"text": single}),
    }[given]
    expected = make_encoder().transform(single)

    def output(container):
        encoder = make_encoder().set_output(transform=container)
        if fitted_by == "fit_transform":
            return encoder.fit_transform(X)
        return (encoder.fit(X) if fitted_by == "fit" else encoder).transform(X)

    plain = output("default")
    assert type(plain) is np.ndarray
    np.testing.assert_array_equal(plain, expected)
    for container, kind in (("pandas", pd.DataFrame), ("polars", pl.DataFrame)):
        out = output(container)
        assert type(out) is kind
        assert list(out.columns) == NAMES
        np.testing.assert_array_equal(out.to_numpy(), expected)
        assert expected.dtype == np.float32 == out.to_numpy().dtype
    found = output("pandas").index.tolist()
    if given == "series":
        assert found == Lengths().set_output(transform="pandas").transform(X).index.tolist()
    else:
        assert found == (index if given == "frame" else list(range(N)))


def test_set_output_is_what_the_configuration_says_and_is_cloned(make_encoder, single):
    with sklearn.config_context(transform_output="polars"):
        assert isinstance(make_encoder().transform(single), pl.DataFrame)
        assert isinstance(make_encoder().set_output(transform="pandas").transform(single), pd.DataFrame)
    encoder = clone(make_encoder().set_output(transform="pandas"))
    assert isinstance(encoder.transform(single), pd.DataFrame)
    with pytest.raises(ValueError, match=r"abacus|Valid options"):
        make_encoder().set_output(transform="abacus").transform(single)


def test_set_output_leaves_what_follows_in_a_pipeline_the_same(make_encoder, single):
    frame = pd.DataFrame({"text": single}, index=np.arange(N) + 5)
    plain, framed = (
        make_pipeline(make_encoder(), LogisticRegression()).set_output(transform=container)
        for container in ("default", "pandas")
    )
    y = np.arange(N) % 2
    np.testing.assert_array_equal(
        plain.fit(frame, y).predict_proba(frame), framed.fit(frame, y).predict_proba(frame)
    )
    assert framed[-1].feature_names_in_.tolist() == NAMES


@pytest.mark.parametrize("make_frame", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
@pytest.mark.parametrize("column", ["text", ["text"]], ids=str)
def test_names_in_a_column_transformer(make_encoder, single, column, make_frame):
    frame = make_frame({"size": list(range(N)), "text": single})
    try:
        ColumnTransformer([("size", "passthrough", ["size"])]).fit(frame)
    except AttributeError:
        pytest.skip("this scikit-learn cannot read this polars")
    columns = ColumnTransformer([("enc", make_encoder(), column)], remainder="passthrough")
    columns.set_output(transform="pandas")
    out = columns.fit_transform(frame)
    expected = [f"enc__{name}" for name in NAMES] + ["remainder__size"]
    assert out.columns.tolist() == columns.get_feature_names_out().tolist() == expected
    np.testing.assert_array_equal(out.to_numpy()[:, :8], make_encoder().transform(single))


def test_names_in_a_feature_union(make_encoder, single):
    frame = pd.DataFrame({"text": single}, index=np.arange(N) + 5)
    union = FeatureUnion([("a", make_encoder()), ("b", make_encoder(pooling="cls"))])
    out = union.set_output(transform="pandas").fit_transform(frame)
    assert out.columns.tolist() == [f"{part}__{name}" for part in "ab" for name in NAMES]
    assert out.columns.tolist() == union.get_feature_names_out(["text"]).tolist()
    assert out.index.tolist() == frame.index.tolist()


def test_input_features_of_names_are_checked(make_encoder, single, paired):
    assert make_encoder().get_feature_names_out().tolist() == NAMES
    assert make_encoder().fit(single).get_feature_names_out(["any"]).tolist() == NAMES
    with pytest.raises(
        ValueError, match=r"input_features should have length equal to number of features \(1\)"
    ):
        make_encoder().fit(single).get_feature_names_out(["a", "b"])
    with pytest.raises(ValueError, match=r"length equal to number of features \(2\)"):
        make_encoder().fit(paired).get_feature_names_out(["a"])
    named = make_encoder().fit(pd.DataFrame({"text": single}))
    assert named.get_feature_names_out(["text"]).tolist() == NAMES
    with pytest.raises(ValueError, match="input_features is not equal to feature_names_in_"):
        named.get_feature_names_out(["body"])


@pytest.mark.parametrize("make_frame", FRAMES.values(), ids=FRAMES)
def test_names_of_columns_are_remembered(estimator, single, paired, make_frame):
    first, second = zip(*paired, strict=True)
    for frame in (make_frame({"text": single}), make_frame({"question": first, "answer": second})):
        fit(estimator, frame)
        assert estimator.feature_names_in_.tolist() == columns_of(frame)
        assert (estimator.feature_names_in_.dtype, estimator.n_features_in_) == (
            object,
            len(columns_of(frame)),
        )
    fit(estimator, single)
    assert not hasattr(estimator, "feature_names_in_")
    assert estimator.n_features_in_ == 1


@pytest.mark.parametrize("kind", ["series", "numbered", "array"])
def test_what_has_no_names(estimator, single, kind):
    X = {
        "series": pd.Series(single, name="text"),
        "numbered": pd.DataFrame({0: single}),
        "array": np.array(single, dtype=object)[:, None],
    }[kind]
    fit(estimator, X)
    assert not hasattr(estimator, "feature_names_in_")
    assert estimator.n_features_in_ == 1


def test_another_number_of_columns_than_at_fit_is_refused(estimator, single, paired):
    fit(estimator, paired)
    with pytest.raises(
        ValueError, match=r"X has 1 features, but \w+ is expecting 2 features as input: .*sentence pairs"
    ):
        use(estimator, single)
    fit(estimator, single)
    with pytest.raises(
        ValueError, match=r"X has 2 features, but \w+ is expecting 1 features as input: .*one column"
    ):
        use(estimator, paired)


@pytest.mark.parametrize("make_frame", FRAMES.values(), ids=FRAMES)
def test_other_names_than_at_fit_are_refused(estimator, paired, make_frame):
    columns = dict(zip(PAIRED, zip(*paired, strict=True), strict=True))
    fit(estimator, make_frame(columns))
    expected = use(estimator, make_frame(columns))
    swapped = {name: columns[name] for name in reversed(PAIRED)}
    renamed = {"question": columns["question"], "body": columns["answer"]}
    for other in (swapped, renamed):
        with pytest.raises(
            ValueError, match="The feature names should match those that were passed"
        ) as error:
            use(estimator, make_frame(other))
        assert f"Names in fit: question, answer. Names in X: {', '.join(other)}" in str(error.value)
    remedy = pd.DataFrame(swapped)[estimator.feature_names_in_]
    np.testing.assert_array_equal(use(estimator, remedy), expected)


@pytest.mark.filterwarnings("error")
def test_one_column_needs_no_name(estimator, single):
    frame = pd.DataFrame({"text": single})
    fit(estimator, frame)
    expected = use(estimator, frame)
    for unnamed in (single, pd.Series(single, name="body"), frame.to_numpy()):
        np.testing.assert_array_equal(use(estimator, unnamed), expected)
    fit(estimator, single)
    np.testing.assert_array_equal(use(estimator, frame), expected)


def test_two_columns_without_names_warn(estimator, paired):
    frame = pd.DataFrame(paired, columns=PAIRED)
    fit(estimator, frame)
    with pytest.warns(UserWarning, match="X does not have valid feature names, but .* same order") as caught:
        use(estimator, paired)
    assert (len(caught), caught[0].filename) == (1, __file__)
    fit(estimator, paired)
    with pytest.warns(UserWarning, match=r"X has feature names, but \w+ was fitted without"):
        use(estimator, frame)


@pytest.mark.filterwarnings("error")
def test_an_encoder_that_is_not_fitted_takes_any_columns(make_encoder, single, paired):
    encoder = make_encoder()
    for X in (single, paired, pd.DataFrame(paired, columns=PAIRED), pd.DataFrame({"text": single})):
        assert encoder.transform(X).shape == (N, 8)
    assert not hasattr(encoder, "n_features_in_")


def test_texts_set_aside_have_the_same_columns(xlmr_folder, paired):
    classifier = MiniLMClassifier(xlmr_folder, trainable="head", epochs=1, max_length=64)
    frame, y = pd.DataFrame(paired, columns=PAIRED), np.arange(N) % 2
    with pytest.raises(ValueError, match="same columns: X has question, answer, X_val answer, question"):
        classifier.fit(frame, y, X_val=frame[PAIRED[::-1]], y_val=y)
    assert classifier.fit(frame, y, X_val=paired, y_val=y).n_iter_ == 1


def test_the_numbers_of_columns_are_told_apart():
    with pytest.raises(ValueError, match="same number of columns: X has 1, X_val 2"):
        check_same_columns(check_texts(["a"]), check_texts([["a", "b"]]))


def test_names_are_kept_by_every_way_to_save(estimator, single, tmp_path):
    frame = pd.DataFrame({"text": single})
    fit(estimator, frame).save(tmp_path / "saved")
    joblib.dump(estimator, tmp_path / "saved.joblib")
    ways = [
        type(estimator).load(tmp_path / "saved"),
        joblib.load(tmp_path / "saved.joblib"),
        pickle.loads(pickle.dumps(estimator)),
    ]
    for loaded in ways:
        assert loaded.feature_names_in_.tolist() == ["text"]
        assert loaded.feature_names_in_.dtype == object
        with pytest.raises(ValueError, match="The feature names should match"):
            use(loaded, frame.rename(columns={"text": "body"}))


def test_a_pipeline_and_a_search_hand_the_names_on(make_encoder, single):
    from sklearn.model_selection import GridSearchCV

    frame, y = pd.DataFrame({"text": single}), np.arange(N) % 2
    pipeline = make_pipeline(make_encoder(), LogisticRegression())
    for model in (pipeline, GridSearchCV(pipeline, {"logisticregression__C": [1.0, 2.0]}, cv=2)):
        model.fit(frame, y)
        assert model.n_features_in_ == 1
        with pytest.raises(ValueError, match="The feature names should match"):
            model.predict(frame.rename(columns={"text": "body"}))


@pytest.mark.filterwarnings("ignore:A column-vector y was passed")
def test_texts_and_labels_of_every_type(xlmr_folder, make_encoder, single):
    vectors = make_encoder().transform(single)
    classifier = MiniLMClassifier(xlmr_folder, trainable="head", epochs=1, max_length=64, random_state=0)
    labels = ["no", "yes"] * (N // 2)
    expected = classifier.fit(single, labels).predict_proba(single)
    for name, X in typed_columns(single).items():
        np.testing.assert_array_equal(make_encoder().fit_transform(X), vectors, name)
        np.testing.assert_array_equal(classifier.predict_proba(X), expected, name)
    for name, y in {**typed_columns(labels), "table": pa.table({"y": labels})}.items():
        fitted = clone(classifier).fit(single, y)
        np.testing.assert_array_equal(fitted.predict_proba(single), expected, name)
        assert fitted.score(single, y) == fitted.score(single, labels), name


def test_what_was_saved_before_the_columns_were_known_takes_any(make_encoder, single, paired):
    encoder = make_encoder().fit(pd.DataFrame({"text": single}))
    for name in ("n_features_in_", "feature_names_in_"):
        delattr(encoder, name)
    encoder = pickle.loads(pickle.dumps(encoder))
    assert encoder.transform(paired).shape == encoder.transform(single).shape
