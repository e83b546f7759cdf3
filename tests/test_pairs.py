"""Sentence pairs: what the head sees of them, and what few of them teach."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV

from skminilm import MiniLMClassifier, MiniLMEncoder, MiniLMRegressor, _fine_tuned, clear_cache
from skminilm._pair_vectors import head_scales
from skminilm.checkpoints import EncodingSettings


@pytest.fixture(scope="module")
def translations(requests):
    """Requests in two languages, and whether the second is a translation of the first or another of the same intent."""

    def pairs(n, rows, seed):
        random, X, y = np.random.RandomState(seed), [], []
        for i in range(n):
            first = random.choice(rows)
            alike = requests.groups == requests.groups[first]
            if i % 2:
                alike = ~alike & (requests.target == requests.target[first])
            alike &= requests.languages != requests.languages[first]
            second = random.choice(np.intersect1d(rows, np.flatnonzero(alike)))
            X.append((requests.data[first], requests.data[second]))
            y.append("other" if i % 2 else "same")
        return X, np.array(y)

    is_test = np.isin(requests.groups, np.unique(requests.groups)[::2])
    return *pairs(100, np.flatnonzero(~is_test), 0), *pairs(200, np.flatnonzero(is_test), 1)


def test_the_head_sees_the_pair_and_both_texts(translations):
    X, y, *_ = translations
    options = dict(trainable="head", random_state=0)
    both = MiniLMClassifier(**options).fit(X, y).encode(X)
    joint = MiniLMClassifier(pooling="pair", **options).fit(X, y).encode(X)
    u, v = (MiniLMEncoder(prompt="text: ").transform([pair[i] for pair in X]) for i in (0, 1))
    assert both.shape == (100, 4 * 384 + 2 * 384 + 1)
    np.testing.assert_array_equal(both[:, : 4 * 384], joint)
    np.testing.assert_allclose(both[:, 4 * 384 : -1], np.hstack([u, v]), atol=2e-3)
    np.testing.assert_allclose(both[:, -1], 10 * (u * v).sum(axis=1), atol=2e-2)


def test_few_pairs_teach_a_head_whether_texts_mean_the_same(translations):
    X, y, X_new, y_new = translations
    found, without_texts = (
        MiniLMClassifier(trainable="head", pooling=pooling, random_state=0).fit(X, y).score(X_new, y_new)
        for pooling in ("auto", "pair")
    )
    assert found >= 0.7
    assert found >= without_texts + 0.05


def _assert_head(classifier, C, divisor, X, y, X_new):
    """The head is that of a regression on what the head sees, with the network's columns divided."""

    vectors, new_vectors = classifier.encode(X), classifier.encode(X_new)
    found = classifier.predict_proba(X_new)

    def difference(divisor):
        scales = np.ones(vectors.shape[1], dtype=np.float32)
        scales[: 4 * 384] /= divisor
        expected = LogisticRegression(C=C, max_iter=1000).fit(vectors * scales, y)
        return np.abs(expected.predict_proba(new_vectors * scales) - found).mean()

    divided, as_they_are = difference(divisor), difference(1)
    assert divided < 0.01  # the estimator stops earlier
    assert divided < 0.4 * as_they_are


def test_training_begins_at_a_head_and_keeps_the_texts(translations):
    X, y, X_new, _ = translations
    options = dict(epochs=1, precision="fp32", random_state=0)
    start = MiniLMClassifier(
        trainable=1, refit_head=False, learning_rate=1e-9, head_learning_rate=1e-9, **options
    )
    start.fit(X, y)
    _assert_head(start, 10, 2, X, y, X_new[:50])
    trained = MiniLMClassifier(trainable=1, **options).fit(X, y)
    vectors, untrained = trained.encode(X), start.encode(X)
    np.testing.assert_array_equal(vectors[:, 4 * 384 :], untrained[:, 4 * 384 :])
    # The network's own are others.
    assert np.abs(vectors[:, : 4 * 384] - untrained[:, : 4 * 384]).max() > 0.01


@pytest.mark.parametrize(("pooling", "divisor"), [("pair", 3), ("pair+texts", 8)])
def test_a_refit_counts_what_the_network_has_learned_less(translations, pooling, divisor):
    X, y, X_new, _ = translations
    options = dict(trainable=1, epochs=1, precision="fp32", random_state=0)
    _assert_head(MiniLMClassifier(pooling=pooling, **options).fit(X, y), 30, divisor, X, y, X_new[:50])


@pytest.mark.parametrize(("n_pairs", "divisor"), [(1, 8), (300, 8), (600, 4), (800, 3), (10_000, 3)])
def test_the_more_pairs_the_more_the_trained_network_counts(n_pairs, divisor):
    settings = EncodingSettings("pair+texts", True, "", 128)
    scales = head_scales(settings, 384, n_pairs, "trained")
    np.testing.assert_allclose(scales, [1 / divisor] * 4 * 384 + [1] * (2 * 384 + 1), rtol=1e-6)


@pytest.mark.parametrize("trainable", ["head", 1])
def test_pairs_survive_saving(translations, tmp_path, trainable):
    X, y, X_new = *translations[:2], translations[2][:60]
    classifier = MiniLMClassifier(trainable=trainable, epochs=1, random_state=0).fit(X, y)
    expected = classifier.predict_proba(X_new)
    classifier.save(tmp_path / "saved")
    clear_cache()
    loaded = MiniLMClassifier.load(tmp_path / "saved")
    assert loaded.settings_["pooling"] == "pair+texts"
    np.testing.assert_array_equal(loaded.predict_proba(X_new), expected)
    parts = [loaded.predict_proba(X_new[i : i + 20]) for i in range(0, len(X_new), 20)]
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-6)
    swapped = loaded.predict_proba([(b, a) for a, b in X_new])
    assert np.abs(swapped - expected).max() > 1e-3  # the first text is the first


def test_many_pairs_are_compared_alone(translations, monkeypatch):
    X, y, *_ = translations
    monkeypatch.setattr(_fine_tuned, "_FEW_PAIRS", 50)
    options = dict(trainable=1, epochs=1, random_state=0)
    many = MiniLMClassifier(**options).fit(X, y)
    few = MiniLMClassifier(warm_start=True, **options).fit(X[:40], y[:40])
    assert (many.coef_.shape[1], few.coef_.shape[1]) == (1536, 2305)
    assert few.fit(X, y).coef_.shape[1] == 2305  # it goes on as it began
    assert clone(few).fit(X, y).coef_.shape[1] == 1536
    assert MiniLMClassifier(trainable="head", epochs=1).fit(X, y).coef_.shape[1] == 2305


def test_numbers_of_pairs_with_validation(translations):
    X, y, X_new, y_new = translations
    frame = pd.DataFrame(X, columns=["question", "other"])
    regressor = MiniLMRegressor(trainable=1, epochs=2, early_stopping=True, random_state=0)
    regressor.fit(frame, y == "same")
    assert len(regressor.history_) in (1, 2)
    assert regressor.score(pd.DataFrame(X_new, columns=["question", "other"]), y_new == "same") > 0.1
    random = MiniLMRegressor(trainable=1, epochs=1, init_head="random", refit_head=False, random_state=0)
    assert np.isfinite(random.fit(X, y == "same").predict(X_new)).all()


@pytest.mark.parametrize("pooling", ["pair", "pair+texts"])
def test_single_texts_are_no_pairs(pooling):
    with pytest.raises(ValueError, match="compares two texts, and X has one column"):
        MiniLMClassifier(pooling=pooling).fit(["a", "b"], [0, 1])


def test_numbers_of_pairs_are_refitted_on_the_scale_that_their_penalty_was_chosen_on(translations):
    X, y, X_new = *translations[:2], translations[2][:50]
    numbers = (y == "same").astype(float)
    options = dict(precision="fp32", random_state=0)
    regressor = MiniLMRegressor(trainable=1, epochs=1, **options).fit(X, numbers)
    untrained = MiniLMRegressor(trainable="head", epochs=1, **options).fit(X, numbers).encode(X)
    vectors, new_vectors = regressor.encode(X), regressor.encode(X_new)
    for columns in (untrained, vectors, new_vectors):
        columns[:, : 4 * 384] /= 2
    scaled = (numbers - numbers.mean()) / numbers.std()
    ridge = Ridge(RidgeCV(np.logspace(-3, 2, 11)).fit(untrained, scaled).alpha_).fit(vectors, scaled)
    expected = ridge.predict(new_vectors) * numbers.std() + numbers.mean()
    np.testing.assert_allclose(regressor.predict(X_new), expected, atol=5e-3)
