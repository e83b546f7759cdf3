import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import largest_change

from skminilm import MiniLMClassifier, MiniLMEncoder
from skminilm.finetuning.lora import AdaptedLayers

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="the extra lora is missing")


@needs_peft
def test_lora_trains_adapters_only(split):
    X, y, X_new, y_new = split

    state = torch.random.get_rng_state()
    classifier = MiniLMClassifier(trainable="lora", epochs=5, random_state=0).fit(X, y)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(name.endswith((".lora_A", ".lora_B")) for name in classifier.weights_)
    assert sum(array.nbytes for array in classifier.weights_.values()) < 3_000_000
    losses = [epoch["loss"] for epoch in classifier.history_]
    assert losses[-1] < 0.8 * losses[0]
    assert classifier.score(X_new, y_new) > 0.5
    assert np.abs(classifier.encode(X) - MiniLMEncoder(max_length=128).transform(X)).max() > 1e-2
    first, again = (
        MiniLMClassifier(trainable="lora", epochs=1, random_state=0).fit(X[::2], y[::2]) for _ in "ab"
    )
    assert largest_change(first, again) == 0


@needs_peft
def test_adapters_are_built_once_a_fit(split, transformers_folder, monkeypatch):
    import peft

    built = []
    original = peft.inject_adapter_in_model

    def counted(*arguments, **options):
        built.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(peft, "inject_adapter_in_model", counted)
    options = dict(trainable="lora", init_head="random", max_length=64, epochs=1, random_state=0)
    classifier = MiniLMClassifier(transformers_folder, warm_start=True, **options)
    for n_fits in (1, 2):
        assert len(built) == n_fits - 1
        classifier.fit(split[0][:8], np.arange(8) % 2)
        assert len(built) == n_fits


@needs_peft
def test_merged_adapters_give_the_outputs_of_training(split):
    X, y, _, _ = split
    options = dict(trainable="lora", refit_head=False, epochs=2, precision="fp32", random_state=0)
    classifier = MiniLMClassifier(**options).fit(X, y, X_val=X, y_val=y)
    logits = classifier.decision_function(X).astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    codes = np.searchsorted(classifier.classes_, y)
    loss = -log_probabilities[np.arange(len(y)), codes].mean()
    assert abs(loss - classifier.history_[-1]["validation_loss"]) < 1e-4


@needs_peft
def test_adapters_in_several_threads(split, transformers_folder):
    X, y, _, _ = split
    register = torch.nn.Module.register_parameter

    def fit(seed):
        options = dict(trainable="lora", epochs=1, precision="fp32", max_length=64)
        return MiniLMClassifier(transformers_folder, random_state=seed, **options).fit(X[:16], y[:16]).coef_

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(fit, [0, 1, 2] * 3))
    assert torch.nn.Module.register_parameter is register
    for seed in range(3):
        np.testing.assert_allclose(found[seed], fit(seed), atol=1e-4)


@needs_peft
def test_adapters_start_at_what_their_seed_draws():
    weights = {"layers.0.qkv.weight": torch.zeros(6, 4), "layers.0.qkv.bias": torch.zeros(6)}
    first, again, other = (AdaptedLayers(weights, seed).adapters() for seed in (1, 1, 2))
    name = "layers.0.qkv.weight.lora_A"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, r"needs peft: pip install 'skminilm\[lora\]'"),
        ("from transformers import NoSuchCache", "cannot be imported .*NoSuchCache.*: pip install -U peft"),
    ],
    ids=["missing", "broken"],
)
def test_lora_without_a_peft_that_works_says_what_to_do(split, code, message, tmp_path, monkeypatch):
    X, y, _, _ = split
    monkeypatch.setitem(sys.modules, "peft", None)
    if code:
        monkeypatch.delitem(sys.modules, "peft")
        (tmp_path / "peft.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=message):
        MiniLMClassifier(trainable="lora").fit(X, y)


def test_adapters_go_on(split, transformers_folder):
    pytest.importorskip("peft")
    X, y = split[0][:8], np.arange(8) % 2
    options = dict(trainable="lora", max_length=64, epochs=2, learning_rate=1e-2, random_state=0)
    classifier = MiniLMClassifier(transformers_folder, warm_start=True, **options).fit(X, y)
    first = classifier.weights_
    classifier.set_params(learning_rate=1e-12, head_learning_rate=1e-12).fit(X, y)
    for name, array in first.items():
        np.testing.assert_allclose(classifier.weights_[name], array, atol=1e-6)


def test_auto_is_the_learning_rate_of_adapters(split, transformers_folder):
    pytest.importorskip("peft")
    X, y = split[0][:8], np.arange(8) % 2
    options = dict(trainable="lora", max_length=64, epochs=1, random_state=0)
    auto, given = (
        MiniLMClassifier(transformers_folder, learning_rate=rate, **options).fit(X, y)
        for rate in ("auto", 1e-3)
    )
    assert auto.weights_digest_ == given.weights_digest_
    assert auto.history_[0]["learning_rate"] == given.history_[0]["learning_rate"]


@needs_peft
def test_lora_draws_nothing_from_the_state_of_the_process(split, monkeypatch, reset_torch_defaults):
    import peft

    states = []
    inject = peft.inject_adapter_in_model

    def watched(*arguments, **options):
        states.append(torch.get_rng_state())  # what another thread would draw from
        adapted = inject(*arguments, **options)
        states.append(torch.get_rng_state())
        return adapted

    monkeypatch.setattr(peft, "inject_adapter_in_model", watched)
    X, y, X_new, _ = split
    options = dict(trainable="lora", max_length=64, epochs=1, precision="fp32", random_state=0)
    outside = torch.get_rng_state()
    expected = MiniLMClassifier(**options).fit(X[:16], y[:16]).predict_proba(X_new[:4])
    assert len(states) == 2
    assert all(torch.equal(state, outside) for state in [*states, torch.get_rng_state()])
    torch.set_default_dtype(torch.float64)
    found = MiniLMClassifier(**options).fit(X[:16], y[:16]).predict_proba(X_new[:4])
    np.testing.assert_array_equal(found, expected)
