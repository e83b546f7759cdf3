import copy
from collections import Counter

import numpy as np
import pytest
from conftest import largest_change
from sklearn.base import clone

from skminilm import MiniLMClassifier, clear_cache, set_config
from skminilm._cache import DEFAULT_STATE_CACHE_BYTES, state_cache
from skminilm.checkpoints import load_checkpoint
from skminilm.checkpoints.digests import arrays_digest
from skminilm.engine import read_trainable_weights
from skminilm.engine.layer_states import LayerStates


@pytest.fixture
def states_computed(monkeypatch):
    """Token ids of each text whose lower layers were really computed."""
    seen = []
    original = LayerStates._compute

    def counting(self, batch, rows):
        seen.extend(batch.ids_of([row]).tobytes() for row in rows)
        return original(self, batch, rows)

    monkeypatch.setattr(LayerStates, "_compute", counting)
    return seen


def test_frozen_layers_are_computed_once_a_fit(states_computed, split):
    X, y, _, _ = split
    MiniLMClassifier(trainable=2, epochs=3, random_state=0).fit(X, y)
    assert len(states_computed) == len(set(states_computed)) == len(set(X))


def test_a_grid_search_computes_frozen_layers_once_a_text(states_computed, split):
    from sklearn.model_selection import GridSearchCV

    X, y, _, _ = split
    grid = {"learning_rate": [5e-5, 1e-4], "weight_decay": [0.0, 0.1]}
    classifier = MiniLMClassifier(trainable=2, epochs=1, random_state=0)
    search = GridSearchCV(classifier, grid, cv=2, error_score="raise").fit(X, y)
    assert len(states_computed) == len(set(X))
    assert search.score(X, y) > 0.8


@pytest.fixture
def default_bound():
    yield
    set_config(state_cache_bytes=DEFAULT_STATE_CACHE_BYTES)


def test_kept_states_change_nothing_and_are_bounded(split, default_bound):
    X, y, X_new, _ = split
    classifier = MiniLMClassifier(trainable=2, epochs=1, precision="fp32", random_state=0)
    kept = clone(classifier).fit(X, y)
    assert len(state_cache) == len(set(X))
    set_config(state_cache_bytes=100_000)
    assert len(state_cache) < 5
    recomputed = clone(classifier).fit(X, y)
    assert len(state_cache) < 5
    assert largest_change(kept, recomputed) < 1e-4
    np.testing.assert_allclose(kept.predict_proba(X_new), recomputed.predict_proba(X_new), atol=1e-4)


def test_states_that_fit_stay_for_the_whole_fit(states_computed, split, default_bound):
    X, y, X_new, y_new = split
    classifier = MiniLMClassifier(trainable=1, epochs=2, refit_head=False, random_state=0)
    clone(classifier).fit(X_new[:40], y_new[:40])  # states of other texts, which may go
    size = sum(array.nbytes for array in state_cache._vectors.values()) / len(state_cache)
    set_config(state_cache_bytes=int(size * len(X) / 3))
    states_computed.clear()
    for _ in range(2):
        clone(classifier).fit(X, y)
    n_kept = len(state_cache)
    assert n_kept > len(set(X)) / 4
    times = sorted(Counter(states_computed).values())
    assert times[:n_kept] == [1] * n_kept  # none was dropped for another
    assert times[n_kept] >= 4
    set_config(state_cache_bytes=0)
    states_computed.clear()
    clone(classifier).fit(X, y)
    assert min(Counter(states_computed).values()) == 2  # once an epoch, and not before


def test_predictions_over_kept_states_are_those_of_the_whole_network(split):
    X, y, X_new, _ = split
    top = MiniLMClassifier(trainable=2, epochs=1, precision="fp32", random_state=0).fit(X, y)
    whole = copy.copy(top).set_params(trainable="encoder")
    whole.weights_ = {
        name: top.weights_.get(name, array.numpy())
        for name, array in read_trainable_weights(load_checkpoint("bundled"), 0, None)
        if name.startswith("layers.")
    }
    whole.weights_digest_ = arrays_digest(whole.weights_)
    np.testing.assert_allclose(top.encode(X_new), whole.encode(X_new), atol=2e-5)


def test_kept_states_of_other_layers_are_apart(split):
    X, y, _, _ = split
    options = dict(epochs=1, precision="fp32", refit_head=False, random_state=0)
    expected = MiniLMClassifier(trainable=2, **options).fit(X, y).weights_
    clear_cache()
    MiniLMClassifier(trainable=4, **options).fit(X, y)
    found = MiniLMClassifier(trainable=2, **options).fit(X, y).weights_
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5)


def test_kept_states_of_other_checkpoints_are_apart(split, two_folders):
    X, y, _, _ = split
    first, second = two_folders
    options = dict(trainable=1, epochs=1, precision="fp32", max_length=64, random_state=0)
    expected = MiniLMClassifier(second, **options).fit(X, y).history_[0]["loss"]
    clear_cache()
    MiniLMClassifier(first, **options).fit(X, y)
    found = MiniLMClassifier(second, **options).fit(X, y).history_[0]["loss"]
    assert found == pytest.approx(expected)
