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
    return *pairs(60, np.flatnonzero(~is_test), 0), *pairs(120, np.flatnonzero(is_test), 1)


@pytest.fixture(scope="module")
def trained(translations):
    """A classifier of few pairs whose top layer was trained for an epoch."""
    X, y, *_ = translations
    return MiniLMClassifier(trainable=1, epochs=1, precision="fp32", random_state=0).fit(X, y)


@pytest.fixture(scope="module")
def untrained_vectors(translations):
    """What a head of few pairs sees of the network as it is in the checkpoint."""
    X, y, *_ = translations
    return MiniLMClassifier(trainable="head", epochs=1, precision="fp32", random_state=0).fit(X, y).encode(X)


def test_the_head_sees_the_pair_and_both_texts(translations):
    X, y, *_ = translations
    options = dict(trainable="head", random_state=0)
    both = MiniLMClassifier(**options).fit(X, y).encode(X)
    joint = MiniLMClassifier(pooling="pair", **options).fit(X, y).encode(X)
    u, v = (MiniLMEncoder(prompt="text: ").transform([pair[i] for pair in X]) for i in (0, 1))
    assert both.shape == (60, 4 * 384 + 2 * 384 + 1)
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


def test_training_begins_at_a_head(translations):
    X, y, X_new, _ = translations
    start = MiniLMClassifier(
        trainable=1, epochs=1, precision="fp32", refit_head=False, learning_rate=1e-9, head_learning_rate=1e-9
    )
    _assert_head(start.set_params(random_state=0).fit(X, y), 10, 2, X, y, X_new[:50])


def test_training_keeps_the_vectors_of_the_texts(translations, trained, untrained_vectors):
    vectors = trained.encode(translations[0])
    np.testing.assert_array_equal(vectors[:, 4 * 384 :], untrained_vectors[:, 4 * 384 :])
    # The network's own are others.
    assert np.abs(vectors[:, : 4 * 384] - untrained_vectors[:, : 4 * 384]).max() > 1e-3


def test_a_refit_counts_what_the_network_has_learned_less(translations, trained):
    X, y, X_new, _ = translations
    _assert_head(trained, 30, 8, X, y, X_new[:50])
    alone = clone(trained).set_params(pooling="pair").fit(X, y)
    _assert_head(alone, 30, 3, X, y, X_new[:50])


@pytest.mark.parametrize(("n_pairs", "divisor"), [(1, 8), (300, 8), (600, 4), (800, 3), (10_000, 3)])
def test_the_more_pairs_the_more_the_trained_network_counts(n_pairs, divisor):
    settings = EncodingSettings("pair+texts", True, "", 128)
    scales = head_scales(settings, 384, n_pairs, "trained")
    np.testing.assert_allclose(scales, [1 / divisor] * 4 * 384 + [1] * (2 * 384 + 1), rtol=1e-6)


@pytest.mark.parametrize("trainable", ["head", 1])
def test_pairs_survive_saving(translations, tmp_path, trainable):
    X, y, X_new = translations[0][:32], translations[1][:32], translations[2][:24]
    classifier = MiniLMClassifier(trainable=trainable, epochs=1, random_state=0).fit(X, y)
    expected = classifier.predict_proba(X_new)
    classifier.save(tmp_path / "saved")
    clear_cache()
    loaded = MiniLMClassifier.load(tmp_path / "saved")
    assert loaded.settings_["pooling"] == "pair+texts"
    np.testing.assert_array_equal(loaded.predict_proba(X_new), expected)
    parts = [loaded.predict_proba(X_new[i : i + 8]) for i in range(0, len(X_new), 8)]
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-6)
    swapped = loaded.predict_proba([(b, a) for a, b in X_new])
    assert np.abs(swapped - expected).max() > 1e-3  # the first text is the first


def test_many_pairs_are_compared_alone(translations, monkeypatch, xlmr_folder):
    X, y, *_ = translations
    monkeypatch.setattr(_fine_tuned, "_FEW_PAIRS", 50)
    model = MiniLMClassifier(xlmr_folder, max_length=64, trainable=1, epochs=1, random_state=0)
    few = clone(model).set_params(warm_start=True).fit(X[:40], y[:40])
    of_pair, of_texts = 4 * 8, 2 * 8 + 1
    assert few.coef_.shape[1] == of_pair + of_texts
    assert clone(model).fit(X, y).coef_.shape[1] == of_pair
    assert few.fit(X, y).coef_.shape[1] == of_pair + of_texts  # it goes on as it began
    assert clone(few).fit(X, y).coef_.shape[1] == of_pair
    assert clone(model).set_params(trainable="head").fit(X, y).coef_.shape[1] == of_pair + of_texts


def test_numbers_of_pairs_with_validation(translations):
    X, y, X_new, y_new = translations
    frame = pd.DataFrame(X, columns=["question", "other"])
    regressor = MiniLMRegressor(trainable=1, epochs=2, early_stopping=True, random_state=0)
    regressor.fit(frame, y == "same")
    assert [epoch["validation_loss"] > 0 for epoch in regressor.history_] == [True, True]
    new = pd.DataFrame(X_new[:80], columns=["question", "other"])
    assert regressor.score(new, y_new[:80] == "same") > 0.1


def test_a_head_for_numbers_of_pairs_may_start_at_random(translations, xlmr_folder):
    X, y, X_new, _ = translations
    options = dict(max_length=64, trainable=1, epochs=1, init_head="random", refit_head=False)
    found = [
        MiniLMRegressor(xlmr_folder, random_state=seed, **options).fit(X, y == "same").predict(X_new)
        for seed in (0, 1)
    ]
    assert np.isfinite(found).all()
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize("pooling", ["pair", "pair+texts"])
def test_single_texts_are_no_pairs(pooling):
    with pytest.raises(ValueError, match="compares two texts, and X has one column"):
        MiniLMClassifier(pooling=pooling).fit(["a", "b"], [0, 1])


def test_numbers_of_pairs_are_refitted_on_the_scale_that_their_penalty_was_chosen_on(
    translations, untrained_vectors
):
    X, y, X_new = *translations[:2], translations[2][:50]
    numbers = (y == "same").astype(float)
    regressor = MiniLMRegressor(trainable=1, epochs=1, precision="fp32", random_state=0).fit(X, numbers)
    untrained = untrained_vectors.copy()
    vectors, new_vectors = regressor.encode(X), regressor.encode(X_new)
    for columns in (untrained, vectors, new_vectors):
        columns[:, : 4 * 384] /= 2
    scaled = (numbers - numbers.mean()) / numbers.std()
    ridge = Ridge(RidgeCV(np.logspace(-3, 2, 11)).fit(untrained, scaled).alpha_).fit(vectors, scaled)
    expected = ridge.predict(new_vectors) * numbers.std() + numbers.mean()
    np.testing.assert_allclose(regressor.predict(X_new), expected, atol=5e-3)
