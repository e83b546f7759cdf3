import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split

from skminilm import MiniLMEncoder, MiniLMRegressor
from skminilm._targets import RealTargets
from skminilm.finetuning import RegressionObjective


@pytest.fixture(scope="module")
def rated(split):
    """Requests, and how urgent each is: by intent, as a number."""
    X, y, X_new, y_new = split
    urgency = {name: i for i, name in enumerate(sorted(set(y)))}
    return X, np.array([urgency[v] for v in y]), X_new, np.array([urgency[v] for v in y_new])


def test_learns_numbers(rated):
    X, y, X_new, y_new = rated
    regressor = MiniLMRegressor(trainable=2, random_state=0).fit(X, 1000 + 50 * y)
    assert regressor.score(X, 1000 + 50 * y) > 0.8
    assert regressor.score(X_new, 1000 + 50 * y_new) > 0.1
    predicted = regressor.predict(X_new)
    assert predicted.shape == (len(X_new),)
    vectors = regressor.encode(X_new)
    np.testing.assert_allclose(vectors @ regressor.coef_[0] + regressor.intercept_[0], predicted, rtol=1e-5)
    losses = [epoch["loss"] for epoch in regressor.history_]
    assert losses[-1] < losses[0]
    again = pickle.loads(pickle.dumps(regressor))
    np.testing.assert_array_equal(again.predict(X_new), predicted)


def test_several_targets_each_on_its_scale(rated):
    X, y, _, _ = rated
    both = np.column_stack([y, 1e6 - 1e4 * y])
    regressor = MiniLMRegressor(trainable="head", random_state=0).fit(X, both)
    predicted = regressor.predict(X)
    assert predicted.shape == both.shape
    np.testing.assert_allclose(predicted[:, 1], 1e6 - 1e4 * predicted[:, 0], rtol=1e-3)
    assert clone(regressor).fit(X, y[:, None]).predict(X).shape == (len(X), 1)


def test_constant_targets_and_weights(rated):
    X, y, _, _ = rated
    np.testing.assert_allclose(MiniLMRegressor(trainable="head").fit(X, np.full(40, 7.5)).predict(X), 7.5)
    weights = np.where(y < 4, 1.0, 0.0)
    wrong = np.where(y < 4, y, -100)
    regressor = MiniLMRegressor(trainable="head", random_state=0).fit(X, wrong, sample_weight=weights)
    assert regressor.predict(X).min() > -20


@pytest.mark.parametrize(("found", "score"), [(2.0, 1.0), (2.5, 0.0)])
def test_a_constant_target_scores_1_where_it_is_predicted_exactly(found, score):
    targets = np.full((3, 1), 2.0, np.float32)
    assert RegressionObjective().score(np.full((3, 1), found, np.float32), targets, np.ones(3)) == score


def test_a_constant_validation_target_does_not_outvote_the_others():
    random = np.random.RandomState(0)
    varied = random.standard_normal(9).astype(np.float32)
    for _ in range(20):  # whether rounding matters depends on numbers and weights
        weights = random.uniform(0.1, 5, 9)
        targets = np.stack([varied, np.full(9, random.uniform(), np.float32)], axis=1)
        score = RegressionObjective().score(targets + np.float32([0, 0.1]), targets, weights)
        assert score == 0.5  # the mean of 1 and 0


def test_the_scale_of_the_weights_does_not_matter(rated):
    X, y, X_new, _ = rated
    weights = np.where(y < 4, 1.0, 3.0)
    regressor = MiniLMRegressor(trainable="head", epochs=1, random_state=0)
    first = regressor.fit(X, y, sample_weight=weights).predict(X_new)
    for factor in (1e-3, 1e300, 1e-300):
        scaled = regressor.fit(X, y, sample_weight=factor * weights).predict(X_new)
        np.testing.assert_allclose(scaled, first, atol=1e-3)


@pytest.mark.filterwarnings("error")
def test_one_row_that_counts():
    texts = ["It arrived.", "It broke.", "It is fine."]
    regressor = MiniLMRegressor(trainable="head")
    np.testing.assert_allclose(regressor.fit(texts[:1], [7.5]).predict(texts), 7.5)
    weighted = regressor.fit(texts, [1.0, 2.0, 4.0], sample_weight=[0, 1, 0])
    np.testing.assert_allclose(weighted.predict(texts), 2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([-1.7e308, 1.7e308, 1.7e308], r"y reaches from -1.7e\+308 to 1.7e\+308, too far: scale it down"),
        ([-1e308, 1e308, 0], "too far: scale it down"),
        ([1, 10**400, 3], "holds what is not a number"),
        ([1 + 1j, 2, 3], "it is complex"),
        (np.zeros((3, 0)), r"y has the shape \(3, 0\)"),
        (np.arange(3).astype("datetime64[D]"), "dates and times: give numbers"),
        ([np.datetime64("2026-01-01")] * 3, "dates and times: give numbers"),
        (pd.Series(pd.to_timedelta([1, 2, 3], unit="s")), "dates and times: give numbers"),
    ],
)
def test_numbers_that_cannot_be_learned_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        MiniLMRegressor(trainable="head").fit(["a", "b", "c"], y)
    with pytest.raises(TypeError, match="y is a single value"):
        MiniLMRegressor(trainable="head").fit(["a", "b", "c"], 3.0)


def test_warm_start_and_early_stopping(rated):
    X, y, X_new, y_new = rated
    options = dict(trainable=1, epochs=2, refit_head=False, random_state=0)
    regressor = MiniLMRegressor(warm_start=True, **options).fit(X, y)
    before = regressor.predict(X)
    regressor.set_params(learning_rate=1e-12, head_learning_rate=1e-12).fit(X, 2 * y)
    np.testing.assert_allclose(regressor.predict(X), before, rtol=1e-3, atol=1e-2)
    stopped = MiniLMRegressor(early_stopping=True, **options).fit(X, y, X_val=X_new, y_val=y_new)
    assert stopped.best_epoch_  # or this shows nothing
    best = stopped.history_[stopped.best_epoch_ - 1]["validation_score"]
    assert stopped.score(X_new, y_new) == pytest.approx(best, abs=1e-3)
    with pytest.raises(ValueError, match="a fit with 1 target"):
        regressor.fit(X, np.column_stack([y, y]))


def test_large_numbers_that_differ_little(rated):
    X, y, _, _ = rated
    times = 1.7e9 + 10 * y
    regressor = MiniLMRegressor(trainable="head", random_state=0).fit(X, times)
    small = MiniLMRegressor(trainable="head", random_state=0).fit(X, 10.0 * y)
    np.testing.assert_allclose(regressor.predict(X) - 1.7e9, small.predict(X), atol=0.05)
    assert MiniLMRegressor(trainable="head").fit(X, np.full(40, 0.1)).predict(X) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1.0, np.nan, 2.0], "row 1 is nan"),
        ([1.0, 2.0], "y has 2 rows, expected 3: y has none for row 2"),
        (["a", "b", "c"], "holds what is not a number"),
        (None, "y is None"),
        (np.zeros((3, 2, 2)), r"shape \(3, 2, 2\)"),
    ],
    ids=str,
)
def test_bad_targets(y, message):
    with pytest.raises(ValueError, match=message):
        MiniLMRegressor().fit(["a", "b", "c"], y)


@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1e155, 1e300])
def test_any_unit_gives_the_same_predictions(rated, unit):
    X, y, X_new, _ = rated
    regressor = MiniLMRegressor(trainable="head", random_state=0)
    expected = clone(regressor).fit(X, y + 1).predict(X_new)
    np.testing.assert_allclose(regressor.fit(X, (y + 1) * unit).predict(X_new) / unit, expected, rtol=1e-5)


def test_score_reads_y_and_weights_as_fit_does(rated):
    X, y, X_new, y_new = rated
    regressor = MiniLMRegressor(trainable="head", random_state=0).fit(X, y)
    expected = r2_score(y_new, regressor.predict(X_new))
    assert regressor.score(X_new, csr_array(np.asarray(y_new, float)[:, None])) == pytest.approx(expected)
    weights = np.arange(1.0, 1 + len(y_new))
    weighted = r2_score(y_new, regressor.predict(X_new), sample_weight=weights)
    assert regressor.score(X_new, y_new, weights) == pytest.approx(weighted)
    masked = np.ma.array(y_new, mask=[True] + [False] * (len(y_new) - 1))
    with pytest.raises(ValueError, match="not finite: row 0"):
        regressor.score(X_new, masked)


def test_numbers_of_rows_without_weight_change_nothing(rated):
    X, y, X_new, _ = rated
    weights = np.ones(len(X))
    weights[0] = 0
    regressor = MiniLMRegressor(trainable="head", random_state=0)
    expected = clone(regressor).fit(X, y, sample_weight=weights).predict(X_new)
    far = y.astype(float)
    far[0] = 1e200
    given = far.copy()
    np.testing.assert_allclose(
        regressor.fit(X, far, sample_weight=weights).predict(X_new), expected, atol=1e-3
    )
    np.testing.assert_array_equal(far, given)


def test_numbers_far_from_those_trained_on_are_refused(rated):
    X, y, _, _ = rated
    regressor = MiniLMRegressor(trainable="head", epochs=1, random_state=0, warm_start=True)
    with pytest.raises(ValueError, match=r"y_val has a number .*: row 1 is 1e\+60"):
        regressor.fit(X, y, X_val=X[:2], y_val=[1, 1e60])
    regressor.fit(X, y * 1e30)
    with pytest.raises(ValueError, match=r"numbers about .*set warm_start=False"):
        regressor.fit(X, y * 1e-30)


def test_numbers_too_far_from_the_others_warn_of_no_overflow():
    targets = RealTargets([1e-9, 2e-9], np.ones(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"y_val has a number that is too far .* row 0 is 1e\+308"):
            targets.encode([1e308], 1, "y_val")


def test_what_is_masked_is_missing(rated):
    X, y, _, _ = rated
    mask = np.arange(len(X)) == 3
    with pytest.raises(ValueError, match="row 3 is nan"):
        MiniLMRegressor(trainable="head").fit(X, np.ma.array(y, mask=mask))
    with pytest.raises(ValueError, match="missing value: row 3 is None"):
        MiniLMRegressor(trainable="head").fit(np.ma.array(X, mask=mask), y)
    regressor = MiniLMRegressor(trainable="head", random_state=0)
    expected = clone(regressor).fit(X, y).predict(X)
    np.testing.assert_array_equal(regressor.fit(np.ma.array(X), np.ma.array(y)).predict(X), expected)


def test_what_is_set_aside_counts_in_no_scale():
    """A number in a row that is set aside changes the validation loss alone."""
    texts = [f"{'good ' * (i % 4)}{'bad ' * (i % 3)}item {i}" for i in range(24)]
    y = np.array([i % 4 - i % 3 for i in range(24)], float)
    options = {
        "trainable": "head",
        "epochs": 2,
        "batch_size": 64,  # one step an epoch: the order of the rows does not count
        "n_iter_no_change": 9,
        "early_stopping": True,
        "random_state": 0,
    }
    rows = np.arange(24)
    training, validation = (
        np.sort(part) for part in train_test_split(rows, test_size=0.1, random_state=np.random.RandomState(0))
    )
    y[validation[0]] = 1e5
    weights = np.where(np.isin(rows, validation), 1e60, 1.0)
    found = MiniLMRegressor(validation_fraction=0.1, **options).fit(texts, y, sample_weight=weights)
    expected = MiniLMRegressor(**options).fit(
        [texts[i] for i in training],
        y[training],
        X_val=[texts[i] for i in validation],
        y_val=y[validation],
    )
    losses = [[row["loss"] for row in model.history_] for model in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    np.testing.assert_allclose(found.predict(texts), expected.predict(texts), atol=0.05)


def test_the_ridge_regression_of_the_start_counts_rows_by_their_weights(rated):
    X, y, _, _ = rated
    weights = np.random.default_rng(0).choice([0.01, 0.1, 1.0], len(y))
    options = dict(trainable="head", epochs=1, head_learning_rate=1e-12, precision="fp32", random_state=0)
    found = MiniLMRegressor(**options).fit(X, y, sample_weight=weights)
    mean = np.average(y, weights=weights)
    scale = np.sqrt(np.average((y - mean) ** 2, weights=weights))
    vectors = found.encode(X)
    ridge = RidgeCV(np.logspace(-3, 2, 11)).fit(
        vectors, (y - mean) / scale, sample_weight=weights / weights.mean()
    )
    np.testing.assert_allclose(found.predict(X), ridge.predict(vectors) * scale + mean, atol=1e-3)


def test_several_numbers_of_a_text_count_as_their_mean(rated):
    """Leave-one-out would otherwise see the number that is left out in the text's other rows."""
    X, y, X_new, _ = rated
    ratings = y[:, None] + np.random.default_rng(0).normal(scale=2, size=(len(y), 3))
    options = dict(trainable="head", epochs=1, head_learning_rate=1e-12, precision="fp32", random_state=0)
    several = MiniLMRegressor(**options).fit(np.repeat(X, 3), ratings.ravel())
    # Both are regularised on the scale of all numbers.
    scale = ratings.std()
    means = (ratings.mean(axis=1) - ratings.mean()) / scale
    vectors = several.encode(X)
    ridge = RidgeCV(np.logspace(-3, 2, 11)).fit(vectors, means, sample_weight=np.full(len(X), 3.0))
    expected = ridge.predict(several.encode(X_new)) * scale + ratings.mean()
    np.testing.assert_allclose(several.predict(X_new), expected, atol=2e-3)
    leaking = RidgeCV(ridge.alphas).fit(
        np.repeat(vectors, 3, axis=0), (ratings.ravel() - ratings.mean()) / scale
    )
    assert leaking.alpha_ != ridge.alpha_


def test_a_target_that_texts_do_not_explain_costs_the_others_nothing(rated):
    X, y, X_new, _ = rated
    noise = np.random.RandomState(0).randn(len(X), 4)
    alone = MiniLMRegressor(trainable="head", random_state=0).fit(X, y).predict(X_new)
    beside = MiniLMRegressor(trainable="head", random_state=0).fit(X, np.c_[y, noise]).predict(X_new)
    np.testing.assert_allclose(beside[:, 0], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("start", [{"init_head": "random"}, {"warm_start": True}])
def test_a_refit_chooses_its_penalty_on_the_untrained_network_wherever_training_starts(rated, start):
    X, _, X_new, _ = rated
    y = np.random.default_rng(0).normal(size=len(X))  # noise, which a network that has seen it explains
    options = dict(trainable=2, epochs=10, learning_rate=5e-4, precision="fp32", random_state=0)
    regressor = MiniLMRegressor(**options, **start).fit(X, y)
    if regressor.warm_start:
        regressor.fit(X, y)
    untrained = MiniLMEncoder(prompt="text: ", precision="fp32").transform(X)
    penalty = RidgeCV(np.logspace(-3, 2, 11)).fit(untrained, (y - y.mean()) / y.std()).alpha_
    vectors = regressor.encode(X)
    ridge = Ridge(penalty).fit(vectors, (y - y.mean()) / y.std())
    expected = ridge.predict(regressor.encode(X_new)) * y.std() + y.mean()
    np.testing.assert_allclose(regressor.predict(X_new), expected, atol=5e-3)
    leave_one_out = RidgeCV(np.logspace(-3, 2, 11)).fit(vectors, (y - y.mean()) / y.std())
    assert leave_one_out.alpha_ < penalty


def test_one_text_with_several_numbers():
    regressor = MiniLMRegressor(trainable=1, epochs=1, random_state=0).fit(["a text"] * 6, np.arange(6.0))
    np.testing.assert_allclose(regressor.predict(["a text", "Ein anderer."]), 2.5, atol=0.5)


@pytest.mark.parametrize("n_targets", [1, 2])
def test_the_head_is_refitted_to_the_trained_network(rated, n_targets):
    X, y, X_new, _ = rated
    y = y if n_targets == 1 else np.c_[y, np.sqrt(y)]
    options = dict(trainable=1, epochs=2, precision="fp32", random_state=0)
    refitted = MiniLMRegressor(**options).fit(X, y)
    as_trained = MiniLMRegressor(refit_head=False, **options).fit(X, y)
    vectors, new_vectors = as_trained.encode(X), as_trained.encode(X_new)
    np.testing.assert_array_equal(new_vectors, refitted.encode(X_new))
    # A network that has seen y would choose hardly any penalty: it is that of the start.
    untrained = MiniLMEncoder(prompt="text: ", precision="fp32").transform(X)
    penalties = RidgeCV(np.logspace(-3, 2, 11), alpha_per_target=True).fit(untrained, y).alpha_
    ridge = Ridge(penalties).fit(vectors, y)
    np.testing.assert_allclose(refitted.predict(X_new), ridge.predict(new_vectors), rtol=0.002, atol=0.002)
    assert np.abs(refitted.predict(X_new) - as_trained.predict(X_new)).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "n_texts", "rate"),
    [
        ({}, 32, 2.5e-5),
        ({"trainable": "all"}, 32, 2.5e-5),
        ({}, 500, 1e-4),
        ({"trainable": 2}, 32, 1e-4),
        ({"trainable": "lora"}, 32, 1e-3),
        ({"learning_rate": 2e-4}, 32, 2e-4),
    ],
    ids=str,
)
def test_few_texts_move_all_layers_less(options, n_texts, rate):
    assert MiniLMRegressor(**options)._learning_rate(n_texts) == pytest.approx(rate)


def test_the_rate_counts_the_texts_that_are_trained_on(rated, monkeypatch):
    seen, rate = [], MiniLMRegressor._learning_rate
    monkeypatch.setattr(
        MiniLMRegressor, "_learning_rate", lambda self, n_texts: seen.append(n_texts) or rate(self, n_texts)
    )
    X, y, X_new, y_new = rated
    options = dict(trainable=1, epochs=1, random_state=0)
    MiniLMRegressor(**options).fit(X, y, X_val=X_new, y_val=y_new)
    MiniLMRegressor(early_stopping=True, validation_fraction=0.25, **options).fit(X, y)
    assert seen == [len(X), len(X) * 3 // 4]
