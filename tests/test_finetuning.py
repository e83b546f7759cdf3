import copy
import functools
import gc
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
from conftest import resident_mib
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from skminilm import MiniLMClassifier, MiniLMEncoder, clear_cache, set_config
from skminilm._cache import DEFAULT_STATE_CACHE_BYTES, state_cache
from skminilm._encoding import warn_of_truncation
from skminilm._targets import ClassTargets, MultilabelTargets
from skminilm.checkpoints import EncodingSettings, load_checkpoint, tokenize
from skminilm.checkpoints.digests import arrays_digest
from skminilm.engine import read_trainable_weights
from skminilm.engine.hardware import cpu_has_bf16
from skminilm.engine.kernels import layers as kernel_layers
from skminilm.engine.layer_states import LayerStates
from skminilm.engine.linear import IntegerProduct
from skminilm.finetuning import (
    FixedVectors,
    SoftmaxObjective,
    Split,
    TrainableEncoder,
    TrainingDivergedError,
    TrainingHooks,
    TrainingOptions,
    loop,
    networks,
    train,
)
from skminilm.finetuning.loop import learning_rate_factor, should_stop
from skminilm.finetuning.lora import AdaptedLayers
from skminilm.finetuning.parameters import FlatParameters, LossScale
from skminilm.finetuning.workers import find_workers

CPU = torch.device("cpu")
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="the extra lora is missing")


def changed(first, second):
    return max(np.abs(array - second.weights_[name]).max() for name, array in first.weights_.items())


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
    assert changed(kept, recomputed) < 1e-4
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


@pytest.mark.parametrize("trainable", ["encoder", 2], ids=str)
def test_gradient_checkpointing_changes_nothing(split, trainable):
    X, y, _, _ = split
    options = dict(trainable=trainable, epochs=1, precision="fp32", random_state=0)
    plain = MiniLMClassifier(**options).fit(X, y)
    assert changed(plain, MiniLMClassifier(gradient_checkpointing=True, **options).fit(X, y)) < 1e-5


def test_gradient_checkpointing_leaves_random_states_alone(split, monkeypatch):
    X, y, _, _ = split

    def fail(*_):
        raise AssertionError("nothing is drawn")

    for name in ("get_rng_state", "set_rng_state"):  # of the process: other threads may draw meanwhile
        monkeypatch.setattr(torch, name, fail)
    options = dict(trainable=1, epochs=1, random_state=0)
    MiniLMClassifier(gradient_checkpointing=True, **options).fit(X[:8], y[:8])


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


def limit_memory(monkeypatch, fits, error=OUT_OF_MEMORY):
    """Let packs of more than so many tokens run out of memory: {with gradients: tokens}; return the sizes that ran."""
    original, tokens = TrainableEncoder._last_hidden_state, {True: [], False: []}

    def small_memory(self, pack):
        if pack.n_tokens > fits.get(torch.is_grad_enabled(), pack.n_tokens):
            raise error
        tokens[torch.is_grad_enabled()].append(pack.n_tokens)
        return original(self, pack)

    monkeypatch.setattr(TrainableEncoder, "_last_hidden_state", small_memory)
    return tokens


def test_steps_that_do_not_fit_are_cut_into_parts(split, monkeypatch):
    X, y, _, _ = split
    options = dict(trainable=3, epochs=1, precision="fp32", random_state=0)
    whole = MiniLMClassifier(**options).fit(X, y)
    fits = {True: 128}
    tokens = limit_memory(monkeypatch, fits)
    in_parts = MiniLMClassifier(**options).fit(X, y)
    assert max(tokens[True]) > 64  # halved until it fits, and no further
    assert changed(whole, in_parts) < 1e-5
    with monkeypatch.context() as patch:  # of the thread of the first backward pass
        no_handle = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
        limit_memory(patch, fits, RuntimeError(no_handle))
        assert changed(whole, MiniLMClassifier(**options).fit(X, y)) < 1e-5
    fits[True] = 8
    with pytest.raises(MemoryError, match=r"One text of a step does not fit .* gradient_checkpointing=True"):
        MiniLMClassifier(**options).fit(X, y)


def test_validation_and_the_last_fit_of_the_head_are_cut_into_parts_too(split, monkeypatch):
    X, y, X_new, y_new = split
    options = dict(trainable=1, epochs=1, precision="fp32", random_state=0)
    whole = MiniLMClassifier(**options).fit(X, y, X_val=X_new, y_val=y_new)
    tokens = limit_memory(monkeypatch, {False: 128})
    in_parts = MiniLMClassifier(**options).fit(X, y, X_val=X_new, y_val=y_new)
    assert 64 < max(tokens[False]) <= 128 < max(tokens[True])
    assert in_parts.history_[0]["validation_loss"] == pytest.approx(whole.history_[0]["validation_loss"])
    np.testing.assert_allclose(in_parts.coef_, whole.coef_, atol=1e-3)


def test_float16_with_a_scaled_loss_learns_what_float32_learns(split, monkeypatch):
    """On a CPU, where it is slow; GPUs without bfloat16 train like this."""
    import torch

    from skminilm.engine import Compute

    X, y, _, _ = split
    options = dict(trainable=1, epochs=2, random_state=0)
    expected = MiniLMClassifier(precision="fp32", **options).fit(X, y)
    compute = Compute(torch.device("cpu"), "fp16")
    monkeypatch.setattr("skminilm.engine.resolve_compute", lambda *_, **__: compute)
    monkeypatch.setattr("skminilm.engine.packed_model.CPU_BATCH_TOKENS", {torch.float16: 2048})
    found = MiniLMClassifier(**options).fit(X, y)
    assert abs(found.history_[-1]["loss"] - expected.history_[-1]["loss"]) < 0.05
    start = dict(read_trainable_weights(load_checkpoint("bundled"), 0, None))
    for name in ("layers.11.qkv.weight", "layers.11.output.weight"):
        moved, should = (np.ravel(c.weights_[name] - start[name].numpy()) for c in (found, expected))
        assert moved @ should > 0.9 * np.linalg.norm(moved) * np.linalg.norm(should)


needs_int16 = pytest.mark.skipif(
    not kernel_layers.is_available(torch.int16), reason="no kernels were compiled here"
)


@needs_int16
@pytest.mark.parametrize("trainable", [2, pytest.param("lora", marks=needs_peft)])
def test_integers_learn_what_float32_learns(split, trainable, monkeypatch):
    X, y, X_new = split[0][::2], split[1][::2], split[2][::4]
    n_products = [0]

    def counting(*factors):
        n_products[-1] += 1
        return kernel_layers.integer_product(*factors)

    monkeypatch.setattr("skminilm.engine.linear.integer_product", counting)
    fits = []
    for precision in ("fp32", "int16", "int16"):
        fits.append(
            MiniLMClassifier(trainable=trainable, precision=precision, epochs=2, random_state=0).fit(X, y)
        )
        n_products.append(0)
    expected, found, again = fits
    # Four matrices in each layer, and in the backward pass a product for each factor that is trained or below.
    assert n_products[0] == 0
    assert n_products[1] == n_products[2] > 2 * 4 * (2 if trainable == 2 else 12)
    assert changed(found, again) == 0
    assert changed(found, expected) > 0
    for ours, theirs in zip(found.history_, expected.history_, strict=True):
        assert abs(ours["loss"] - theirs["loss"]) < 1e-3
    np.testing.assert_allclose(found.predict_proba(X_new), expected.predict_proba(X_new), atol=0.02)
    start = {} if trainable == "lora" else dict(read_trainable_weights(load_checkpoint("bundled"), 0, None))
    for name, array in found.weights_.items():
        if array.ndim == 2 and not name.endswith("lora_A"):
            before = start[name].numpy() if start else 0
            moved, should = (
                np.ravel(weights[name] - before) for weights in (found.weights_, expected.weights_)
            )
            assert moved @ should > 0.95 * np.linalg.norm(moved) * np.linalg.norm(should), name


@needs_int16
def test_gradients_by_integers_are_those_of_the_products():
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, of_y = (
        torch.randn(shape, generator=generator) for shape in ((77, 128), (192, 128), (192,), (77, 192))
    )
    found, expected = [], []
    for product, gradients in ((IntegerProduct.apply, found), (torch.nn.functional.linear, expected)):
        factors = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        y = product(*factors)
        y.backward(of_y)
        gradients += [y.detach(), *(factor.grad for factor in factors)]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 2e-4 * theirs.norm()
    frozen = weight.clone()
    IntegerProduct.apply(
        x.clone().requires_grad_(), frozen, bias
    ).sum().backward()  # a gradient of one number
    assert frozen.grad is None


@pytest.mark.parametrize(
    ("trainable", "precision", "is_scaled"), [(1, "fp16", True), (1, "fp32", False), ("head", "fp16", False)]
)
def test_the_loss_is_scaled_in_float16_alone(trainable, precision, is_scaled):
    model = MiniLMClassifier(trainable=trainable)
    options = model._training_options(1, SimpleNamespace(precision=precision), np.random.RandomState(0))
    assert options.loss_scaling is is_scaled


@needs_peft
def test_lora_trains_adapters_only(split):
    X, y, X_new, y_new = split
    import torch

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
    assert changed(first, again) == 0


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


def test_early_stopping_goes_back_to_the_best_epoch(split):
    X, y, X_new, _ = split
    options = dict(trainable=1, epochs=6, n_iter_no_change=2, early_stopping=True, random_state=0)
    ruined = MiniLMClassifier(learning_rate=0.05, head_learning_rate=1.0, **options)
    ruined.fit(X, y, X_val=X, y_val=y)
    scores = [epoch["validation_score"] for epoch in ruined.history_]
    assert ruined.score(X, y) >= max(scores)
    assert ruined.best_epoch_ == 0
    assert ruined.n_iter_ == 2
    start = LogisticRegression(C=10, max_iter=2000).fit(ruined.encode(X), y)
    np.testing.assert_allclose(
        ruined.predict_proba(X_new), start.predict_proba(ruined.encode(X_new)), atol=5e-3
    )


def test_early_stopping_sets_texts_aside_by_class(split, monkeypatch):
    X, y, _, _ = split
    seen = []
    original = loop._Training.__init__

    def watching(self, network, coef, intercept, objective, targets, row_weights, rows, *others):
        seen.append((targets[rows.training], targets[rows.validation]))
        original(self, network, coef, intercept, objective, targets, row_weights, rows, *others)

    monkeypatch.setattr(loop._Training, "__init__", watching)
    options = dict(trainable="head", early_stopping=True, validation_fraction=0.2, random_state=0)
    MiniLMClassifier(**options).fit(X, y)
    training, validation = seen[0]
    assert (len(training), len(validation)) == (32, 8)
    assert sorted(validation) == list(range(8))
    with pytest.raises(
        ValueError, match=r"early_stopping=True cannot set validation_fraction=0\.01 of 40 texts"
    ):
        MiniLMClassifier(**{**options, "validation_fraction": 0.01}).fit(X, y)


def test_the_only_text_of_a_class_is_trained_on(split):
    X, y, _, _ = split
    X, y = [*X, "Is there a fraud department?"], [*y, "fraud"]
    options = dict(trainable="head", early_stopping=True, validation_fraction=0.3, random_state=0)
    classifier = MiniLMClassifier(**options).fit(X, y)
    assert classifier.predict(["Is there a fraud department?"]) == ["fraud"]
    several = len(X) - 1
    with pytest.raises(
        ValueError, match=rf"of {several + 1} texts aside: 8 classes .* between 0\.2 and 0\.8, or"
    ):
        MiniLMClassifier(**{**options, "validation_fraction": 0.01}).fit(X, y)
    with pytest.raises(ValueError, match=r"2 classes have two texts .* Set it to 0\.5, or give"):
        MiniLMClassifier(early_stopping=True).fit(["a", "b", "c", "d"], [1, 1, 2, 2])
    with pytest.raises(ValueError, match=r"0 classes have two texts.* Give more texts, or X_val and y_val"):
        MiniLMClassifier(**options).fit(["a", "b", "c"], [1, 2, 3])


def test_texts_set_aside_by_the_user_are_reported(split):
    X, y, X_new, y_new = split
    classifier = MiniLMClassifier(trainable="head", epochs=3, random_state=0)
    classifier.fit(X, y, X_val=X_new, y_val=y_new)
    assert classifier.n_iter_ == classifier.best_epoch_ == 3
    assert classifier.history_[-1]["validation_score"] == pytest.approx(classifier.score(X_new, y_new))
    with pytest.raises(ValueError, match="X_val and y_val belong together"):
        classifier.fit(X, y, X_val=X_new)
    with pytest.raises(ValueError, match="label that the training y lacks: row 1 is 'other'"):
        classifier.fit(X, y, X_val=X_new[:2], y_val=[y_new[0], "other"])


def test_warm_start_goes_on(split):
    X, y, X_new, _ = split
    options = dict(trainable=1, epochs=1, random_state=0)
    classifier = MiniLMClassifier(warm_start=True, **options).fit(X, y)
    first = classifier.weights_
    loss = classifier.history_[0]["loss"]
    classifier.fit(X, y)
    assert classifier.n_iter_ == len(classifier.history_) == 2
    assert classifier.history_[1]["loss"] < loss
    assert any(np.abs(first[name] - classifier.weights_[name]).max() > 0 for name in first)
    with pytest.raises(
        ValueError, match=r"of the earlier fit, .*: y lacks \['delivery'\] and has \['other'\]"
    ):
        classifier.fit(X, np.where(y == "delivery", "other", y))
    with pytest.raises(ValueError, match="had another model or revision, pooling, prompt or max_length"):
        clone(classifier).set_params(trainable="head").fit(X, y).set_params(prompt="x: ").fit(X, y)
    with pytest.raises(ValueError, match="trained other weights than trainable=2"):
        classifier.set_params(trainable=2).fit(X, y)
    assert np.isfinite(classifier.set_params(trainable=1).predict_proba(X_new)).all()


@pytest.mark.parametrize("start", ["probe", "random", "warm"])
@pytest.mark.parametrize("trainable", ["head", 1], ids=str)
def test_one_warning_a_fit_counts_all_texts_that_were_cut(split, transformers_folder, trainable, start):
    X, y, _, _ = split
    short = ["a b c d"] * 6
    X_val = ["a b", X[0] * 4]
    X, y = [*short, X[0] * 3, X[1] * 2], y[[0, 5, 0, 5, 0, 5, 0, 5]]
    options = dict(trainable=trainable, max_length=24, epochs=1, random_state=0)
    init_head = "random" if start == "random" else "probe"
    classifier = MiniLMClassifier(transformers_folder, init_head=init_head, warm_start=True, **options)
    if start == "warm":
        classifier.fit(short, y[:6])
    with pytest.warns(UserWarning, match="2 of 8 texts .* max_length=24 .* longest, row 6, has") as caught:
        classifier.fit(X, y)
    assert (len(caught), caught[0].filename) == (1, __file__)
    with pytest.warns(UserWarning, match="3 of 10 texts .* the longest, row 1 of X_val, has") as caught:
        classifier.fit(X, y, X_val=X_val, y_val=y[:2])
    assert len(caught) == 1


def test_the_first_text_set_aside_is_told_from_those_trained_on():
    settings = EncodingSettings("mean", True, "", 8)
    with pytest.warns(UserWarning, match=r"1 of 3 texts .* the longest, row 0 of X_val, has 9\."):
        warn_of_truncation(np.array([3, 4, 9]), settings, n_rows=2)


def test_warm_start_keeps_rows_of_the_table_that_do_not_occur_again(split):
    X, y, _, _ = split
    options = dict(trainable="all", epochs=1, learning_rate=1e-3, random_state=0)
    first = MiniLMClassifier(warm_start=True, **options).fit(X[::2], y[::2])
    rows, values = first.weights_["embeddings.word.rows"], first.weights_["embeddings.word"]
    first.fit(X[1::2], y[1::2])
    later_rows, later = first.weights_["embeddings.word.rows"], first.weights_["embeddings.word"]
    assert set(rows) < set(later_rows)
    checkpoint = load_checkpoint("bundled")
    second_ids = set(tokenize(checkpoint.tokenizer, X[1::2], None, checkpoint.defaults).input_ids.tolist())
    untouched = [row for row in rows.tolist() if row not in second_ids]
    assert untouched
    np.testing.assert_array_equal(
        later[np.searchsorted(later_rows, untouched)], values[np.searchsorted(rows, untouched)]
    )


def after_steps(monkeypatch, n_steps, action):
    """Let `action` happen when some steps are done."""
    original, done = loop._Training._run_step, []

    def run_step(self, batch):
        if len(done) == n_steps:
            action()
        done.append(1)
        return original(self, batch)

    monkeypatch.setattr(loop._Training, "_run_step", run_step)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("early_stopping", [False, True])
def test_an_interrupted_fit_is_usable(split, monkeypatch, early_stopping):
    X, y, X_new, y_new = split
    after_steps(monkeypatch, 5, interrupt)
    classifier = MiniLMClassifier(trainable=1, epochs=5, early_stopping=early_stopping, random_state=0)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        classifier.fit(X, y, X_val=X_new, y_val=y_new)
    assert classifier.n_iter_ == 2
    assert classifier.score(X, y) > 0.8


@pytest.mark.parametrize("refit_head", [False, True])
def test_an_interrupt_at_the_very_end_loses_nothing(split, monkeypatch, refit_head):
    X, y, _, _ = split
    options = dict(trainable=1, epochs=1, random_state=0, refit_head=refit_head)
    expected = MiniLMClassifier(**options).fit(X, y)
    original, calls = TrainableEncoder.arrays, []

    def arrays(self):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(TrainableEncoder, "arrays", arrays)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        found = MiniLMClassifier(**options).fit(X, y)
    assert found.weights_digest_ == expected.weights_digest_
    np.testing.assert_array_equal(found.coef_, expected.coef_)


INTERRUPTED = """
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from skminilm.engine.interrupts import deferred_interrupts

done = []

def work():
    with deferred_interrupts():
        signal.raise_signal(signal.SIGINT)
        done.append(1)

def raises(function):
    try:
        function()
    except KeyboardInterrupt:
        return True

signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
assert raises(work) and done == [1]
assert raises(lambda: signal.raise_signal(signal.SIGINT))
with ThreadPoolExecutor(1) as threads:  # which Ctrl-C does not reach
    assert threads.submit(lambda: deferred_interrupts().__enter__()).result() is None
"""


def test_an_interrupt_waits_for_the_end_of_what_it_would_spoil():
    """In a process of its own, for it may end one."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_a_fit_that_diverges_later_leaves_the_last_good_weights(split, monkeypatch):
    import torch

    X, y, X_new, _ = split
    two_epochs = MiniLMClassifier(trainable=1, epochs=4, random_state=0)
    original, calls = SoftmaxObjective.losses, []

    def failing(self, outputs, targets):
        calls.append(1)
        losses = original(self, outputs, targets)
        return losses * torch.nan if len(calls) == 6 else losses

    monkeypatch.setattr(SoftmaxObjective, "losses", failing)
    with pytest.raises(FloatingPointError, match="The loss became nan in step 6 of 8"):
        two_epochs.fit(X, y)
    assert two_epochs.n_iter_ == two_epochs.best_epoch_ == 2
    assert np.isfinite(two_epochs.predict_proba(X_new)).all()
    assert two_epochs.score(X, y) > 0.8


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_many_fits_leave_memory_flat(split, monkeypatch):
    X, y = split[0][::2], split[1][::2]
    options = dict(trainable=6, epochs=1, batch_size=10, random_state=0)
    sizes = []
    for turn in range(9):
        with monkeypatch.context() as patch:
            classifier = MiniLMClassifier(**options)
            if turn % 3 == 1:
                after_steps(patch, 1, interrupt)
                with pytest.warns(UserWarning, match="interrupted"):
                    classifier.fit(X, y)
            elif turn % 3 == 2:
                with pytest.raises(FloatingPointError):
                    classifier.set_params(learning_rate=1e38, warmup_ratio=0).fit(X, y)
            else:
                classifier.fit(X, y)
        del classifier
        gc.collect()
        sizes.append(resident_mib())
    # One copy of what is trained is 42 MB, and AdamW has two more.
    assert max(sizes[6:]) - max(sizes[3:6]) < 10


def test_indicator_matrices_give_any_number_of_labels(requests, split):
    X, y, X_new, y_new = split
    names = sorted(set(y))

    def labels(y):  # the intent, and whether it is one of two
        one_hot = y[:, None] == np.array(names)
        return np.column_stack([one_hot, np.isin(y, names[:2]), np.ones(len(y))]).astype(int)

    classifier = MiniLMClassifier(trainable=2, random_state=0).fit(X, labels(y))
    probabilities = classifier.predict_proba(X_new)
    assert probabilities.shape == (len(X_new), 10)
    predicted = classifier.predict(X_new)
    np.testing.assert_array_equal(predicted, probabilities > 0.5)
    np.testing.assert_array_equal(classifier.classes_, np.arange(10))
    assert (predicted[:, 9] == 1).all()
    assert (np.array(names)[probabilities[:, :8].argmax(axis=1)] == y_new).mean() > 0.5
    assert classifier.score(X, labels(y)) > 0.9
    from scipy import sparse

    again = clone(classifier).fit(X, sparse.csr_matrix(labels(y)))
    np.testing.assert_array_equal(again.predict_proba(X_new), probabilities)
    again.coef_ = np.zeros_like(again.coef_)
    again.intercept_ = np.resize(
        np.float32([1e-9, -1e-9]), len(again.intercept_)
    )  # both probabilities are 0.5
    np.testing.assert_array_equal(again.predict(X_new), again.decision_function(X_new) > 0)
    bad = labels(y)
    bad[3, 1] = 2
    with pytest.raises(ValueError, match="row 3, column 1 is 2"):
        clone(classifier).fit(X, bad)


def labels_f1(y_true, y_pred):
    from sklearn.metrics import f1_score

    return f1_score(y_true, y_pred, average="macro", zero_division=0)


@pytest.mark.parametrize(
    "options", [{"trainable": "head"}, {"trainable": 1}, {"trainable": 1, "refit_head": False}]
)
def test_rare_labels_are_predicted_too(split, options):
    """Each of eight labels is on an eighth of the texts: rows as they are say no to nearly all of them."""
    X, y, X_new, y_new = split
    Y, Y_new = (column[:, None] == np.unique(y) for column in (y, y_new))
    classifier = MiniLMClassifier(epochs=3, random_state=0, **options)
    found = labels_f1(Y_new, clone(classifier).fit(X, Y).predict(X_new))
    as_they_are = clone(classifier).set_params(class_weight={0: 1, 1: 1}).fit(X, Y)
    assert found > labels_f1(Y_new, as_they_are.predict(X_new)) + 0.1
    balanced = clone(classifier).set_params(class_weight="balanced").fit(X, Y)
    assert labels_f1(Y_new, balanced.predict(X_new)) == found


def test_the_loss_of_validation_texts_has_no_weights_of_labels(split):
    X, y, X_new, y_new = split
    Y, Y_new = (column[:, None] == np.unique(y) for column in (y, y_new))
    options = dict(trainable="head", epochs=1, random_state=0, precision="fp32")
    classifier = MiniLMClassifier(refit_head=False, **options).fit(X, Y, X_val=X_new, y_val=Y_new)
    found = np.where(Y_new, *(sign * classifier.predict_log_proba(X_new) for sign in (-1, 0)))
    found = found - np.where(Y_new, 0, np.log1p(-classifier.predict_proba(X_new)))
    assert classifier.history_[0]["validation_loss"] == pytest.approx(found.mean(), rel=1e-4)


def test_weights_of_labels():
    y = np.zeros((100, 3), int)
    y[:25, 0] = y[0, 1] = 1  # a quarter, one of a hundred, none
    weights = MultilabelTargets(y, np.ones(100))._label_weights
    np.testing.assert_allclose(weights, [[2 / 3, 50 / 99, 0.5], [2, 20, 1]])
    doubled = np.ones(100)
    doubled[:25] = 3
    weights = MultilabelTargets(y, doubled)._label_weights
    np.testing.assert_allclose(weights[:, 0], [1, 1])
    weights = MultilabelTargets(y, np.ones(100), {1: 3})._label_weights
    np.testing.assert_allclose(weights[:, 0] / weights[0, 0], [1, 3])
    np.testing.assert_allclose(weights[:, 0] @ [0.75, 0.25], 1)


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ({0: 0, 1: 0}, "leaves no row with a weight in column 0 of y"),
        ({0: 0}, "leaves no row with a weight in column 2 of y"),
        ({2: 1}, "class_weight names 2: where y has several columns"),
        ({0: 1, 1: 2, 2: 3}, "class_weight names 2: where y has several columns"),  # one for each column
        ({0: -1}, "must be finite and >= 0"),
    ],
)
def test_weights_of_labels_that_cannot_be(class_weight, message):
    y = [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    with pytest.raises(ValueError, match=message):
        MiniLMClassifier(class_weight=class_weight).fit(["a", "b", "c"], y)


def test_scikit_learn_callbacks_hear_of_epochs_and_can_stop(split):
    pytest.importorskip("sklearn.callback")
    X, y, X_new, _ = split
    heard = []

    class Callback:
        def setup(self, estimator, context):
            heard.append("setup")

        def teardown(self, estimator, context):
            heard.append("teardown")

        def on_fit_task_begin(self, estimator, context):
            heard.append(f"begin {context.task_name}")

        def on_fit_task_end(self, estimator, context, *, fitted_estimator):
            heard.append(f"end {context.task_name}")
            if context.task_name == "epoch":
                assert fitted_estimator.predict(X_new[:2]).shape == (2,)
            return context.task_name == "epoch" and context.task_id == 1

    classifier = MiniLMClassifier(trainable=1, epochs=4, random_state=0).set_callbacks(Callback())
    classifier.fit(X, y)
    assert classifier.n_iter_ == 2
    epoch = ["begin epoch", "end epoch"]
    assert heard == ["setup", "begin fit", *epoch, *epoch, "end fit", "teardown"]


def test_callbacks_get_weights_and_see_what_a_fit_has_learned(split):
    pytest.importorskip("sklearn.callback")
    X, y, X_new, _ = split
    weights = np.linspace(1, 2, len(X))
    seen = []

    class Callback:
        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context, *, metadata):
            np.testing.assert_array_equal(metadata["sample_weight"], weights)

        def on_fit_task_end(self, estimator, context, *, metadata, fitted_estimator):
            np.testing.assert_array_equal(metadata["sample_weight"], weights)
            if context.task_name == "fit":
                seen.append((estimator.classes_.tolist(), fitted_estimator.predict_proba(X_new)))

    classifier = MiniLMClassifier(trainable="head", epochs=1, random_state=0).set_callbacks(Callback())
    for labels in (y, np.char.add(y, "!")):  # the second fit is not seen as the first
        classifier.fit(X, labels, sample_weight=weights)
        classes, probabilities = seen.pop()
        assert classes == sorted(set(labels.tolist()))
        np.testing.assert_array_equal(probabilities, classifier.predict_proba(X_new))


def test_callbacks_get_texts_that_came_once(split):
    callbacks = pytest.importorskip("sklearn.callback")
    X, y, _, _ = split
    classifier = MiniLMClassifier(trainable=1, epochs=1, random_state=0)
    monitor = callbacks.ScoringMonitor(scoring="accuracy")
    classifier.set_callbacks(monitor).fit((text for text in X), iter(y))
    assert classifier.score(X, y) in [row["accuracy"] for row in monitor.get_logs().data]


@pytest.mark.parametrize(
    "y", [[0, 1, 1, 0], [[0, 1, 0], [1, 0, 1], [1, 1, 0], [0, 0, 1]]], ids=["classes", "labels"]
)
def test_verbose_shows_that_the_head_is_fitted(y, capsys):
    MiniLMClassifier(trainable="head", epochs=1, verbose=1, random_state=0).fit(["a", "b", "c", "d"], y)
    n_models = np.asarray(y).reshape(4, -1).shape[1]
    assert f"head: 100%|{'█' * 10}| {n_models}/{n_models}" in capsys.readouterr().err


def test_verbose_shows_progress_and_quiet_is_quiet(split, capsys):
    X, y, _, _ = split
    MiniLMClassifier(trainable=1, epochs=1, random_state=0).fit(X, y)
    assert capsys.readouterr() == ("", "")
    MiniLMClassifier(trainable=1, epochs=1, random_state=0, verbose=1).fit(X, y)
    shown = capsys.readouterr().err
    assert "fine-tune: 100%" in shown
    assert "loss=" in shown


@pytest.mark.parametrize(
    ("ranks", "patience", "stop"),
    [
        ([1, 2, 3], 1, False),
        ([3, 2], 1, True),
        ([3, 2], 2, False),
        ([1, 3, 3, 2], 2, True),
        ([2, 1, 3], 2, False),
    ],
)
def test_should_stop(ranks, patience, stop):
    assert should_stop(ranks, patience) is stop


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert rates[0] > 0
    assert max(rates) == rates[10] == 1
    assert rates[-1] == 0
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()


@pytest.mark.parametrize("trainable", [1, "head"])
def test_the_history_tells_rate_and_speed_of_each_epoch(split, transformers_folder, trainable):
    X, y, _, _ = split
    rates = dict(learning_rate=1e-3, head_learning_rate=4e-3)
    options = dict(
        trainable=trainable, epochs=2, batch_size=4, warmup_ratio=0.0, max_length=64, random_state=0
    )
    model = MiniLMClassifier(transformers_folder, **rates, **options).fit(X[:8], y[[0, 5] * 4])
    peak = 4e-3 if trainable == "head" else 1e-3
    assert [record["learning_rate"] for record in model.history_] == pytest.approx([peak / 2, 0.0])
    for record in model.history_:
        assert record["texts_per_s"] * record["seconds"] == pytest.approx(8)


def train_head(vectors, objective=None, *, row_weights=None, n_training=None, **options):
    """Train a head alone on two classes that take turns; rows from `n_training` on are set aside."""
    n_rows = len(vectors)
    row_numbers, start = (
        np.arange(n_rows),
        (np.zeros((2, vectors.shape[1]), np.float32), np.zeros(2, np.float32)),
    )
    defaults = dict(
        epochs=1, batch_size=10, head_learning_rate=1e-3, warmup_ratio=0.1, n_iter_no_change=None, seed=0
    )
    return train(
        FixedVectors(vectors),
        *start,
        objective or SoftmaxObjective(),
        row_numbers % 2,
        np.ones(n_rows) if row_weights is None else row_weights,
        Split(row_numbers[:n_training], row_numbers[n_rows if n_training is None else n_training :]),
        TrainingOptions(**defaults | options),
    )


def test_gradients_in_float16_that_never_become_finite_are_an_error():
    class Endless(SoftmaxObjective):
        def losses(self, outputs, targets):
            return (outputs - outputs.detach()).abs().sqrt().sum(dim=1)  # 0, of infinite slope

    with pytest.raises(TrainingDivergedError, match="The gradient became infinite or NaN in step 31"):
        train_head(np.ones((4, 3), np.float32), Endless(), epochs=100, loss_scaling=True)


TOGETHER = """
import json, os, sys
import numpy as np
from skminilm import MiniLMClassifier
from skminilm._targets import ClassTargets
from skminilm.finetuning import SoftmaxObjective
X, y = json.load(open(sys.argv[1]))
if os.environ.get("RANK") == "1":  # another kind of GPU would give other vectors and scores
    start = ClassTargets.fit_head
    ClassTargets.fit_head = lambda *a: tuple(part + np.float32(0.1) for part in start(*a))
    SoftmaxObjective.score = lambda *_: 0.0
classifier = MiniLMClassifier(trainable=2, epochs=2, early_stopping=True, validation_fraction=0.25, n_iter_no_change=1,
                              precision="fp32", device="cpu", random_state=0).fit(X, y)
weights = {**classifier.weights_, "coef": classifier.coef_}
np.savez(sys.argv[2] + os.environ.get("RANK", ""), **weights)
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does(split, tmp_path):
    pytest.importorskip("accelerate")
    X, y, _, _ = split
    script, data = tmp_path / "script.py", tmp_path / "data.json"
    script.write_text(TOGETHER)
    data.write_text(json.dumps([X, y.tolist()]))
    # What `accelerate launch` runs on several GPUs; on CPUs it starts one process only.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command, out in (([sys.executable], "one"), (launch, "two")):
        subprocess.run([*command, script, data, tmp_path / out], check=True, timeout=600, capture_output=True)
    alone = np.load(tmp_path / "one.npz")
    first, second = (np.load(tmp_path / f"two{rank}.npz") for rank in (0, 1))
    for name in alone.files:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], alone[name], atol=1e-5)


def test_the_head_is_fitted_anew_to_the_trained_network(split):
    from sklearn.linear_model import LogisticRegression

    X, y, X_new, _ = split
    options = dict(trainable=2, epochs=2, head_learning_rate=0.1, precision="fp32", random_state=0)
    refitted = MiniLMClassifier(**options).fit(X, y)
    trained = MiniLMClassifier(refit_head=False, **options).fit(X, y)
    assert changed(refitted, trained) == 0
    expected = LogisticRegression(C=30, max_iter=2000).fit(trained.encode(X), y)
    np.testing.assert_allclose(
        refitted.predict_proba(X_new), expected.predict_proba(trained.encode(X_new)), atol=5e-3
    )
    assert np.abs(trained.predict_proba(X_new) - refitted.predict_proba(X_new)).max() > 0.05


def test_early_stopping_keeps_a_new_head_only_if_it_is_as_good(split, monkeypatch):
    X, y, X_new, y_new = split
    original, starts = ClassTargets.fit_head, []

    def useless_when_refitted(self, *args):
        starts.append(1)
        coef, intercept = original(self, *args)
        return (coef, intercept) if len(starts) == 1 else (-coef, intercept)

    monkeypatch.setattr(ClassTargets, "fit_head", useless_when_refitted)
    classifier = MiniLMClassifier(trainable=2, epochs=2, early_stopping=True, random_state=0)
    classifier.fit(X, y, X_val=X_new, y_val=y_new)
    assert classifier.score(X_new, y_new) > 0.5


def test_a_head_does_not_go_on_from_a_trained_network(split):
    X, y, _, _ = split
    classifier = MiniLMClassifier(trainable=1, epochs=1, warm_start=True, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="trained more than the head"):
        classifier.set_params(trainable="head").fit(X, y)


def test_processes_that_train_together_need_an_int(split, monkeypatch):
    X, y, _, _ = split
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"random_state=None: several processes .* Give an int"):
        MiniLMClassifier().fit(X, y)


class _State:
    """What accelerate tells of a launched process."""

    num_processes, process_index = 2, 0

    def __init__(self, device):
        self.device = torch.device(device)


@pytest.fixture
def launched(monkeypatch):
    """Return a function that sets the device on which the processes were started."""
    accelerate = pytest.importorskip("accelerate")
    monkeypatch.setenv("WORLD_SIZE", "2")
    return lambda device: monkeypatch.setattr(accelerate, "PartialState", lambda cpu: _State(device))


@pytest.mark.parametrize(("started", "asked"), [("cuda:1", "cpu"), ("cpu", "cuda:0")])
def test_processes_compute_where_they_were_started(launched, started, asked):
    launched(started)
    with pytest.raises(ValueError, match=f"were started on {started}, .* device='{started.split(':')[0]}'"):
        find_workers(torch.device(asked), "fp32", 0)


@pytest.mark.parametrize(
    ("mine", "other", "fits"), [("fp16", "bf16", False), ("bf16", "fp16", False), ("fp16", "fp16", True)]
)
def test_gpus_that_differ_agree_on_whether_the_loss_is_scaled(launched, monkeypatch, mine, other, fits):
    launched(CPU)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(float(other == "fp16")))
    if fits:
        assert find_workers(CPU, mine, 0)[0].world_size == 2
        return
    with pytest.raises(ValueError, match=r"is precision='fp16' in some .* Give precision='fp16' or 'fp32'"):
        find_workers(CPU, mine, 0)


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_workers_of_joblib_do_not_train_together_with_other_processes(split, backend, monkeypatch):
    X, y, _, _ = split
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="n_jobs=1"):
        joblib.Parallel(2, backend=backend)(joblib.delayed(_fit_launched)(X[:8], y[:8]) for _ in range(2))


def _fit_launched(X, y):
    with pytest.MonkeyPatch.context() as patch:
        if "WORLD_SIZE" not in os.environ:  # a process of loky that was there before
            patch.setenv("WORLD_SIZE", "2")
        MiniLMClassifier(device="cpu", random_state=0).fit(X, y)


def test_an_interruption_while_the_head_is_fitted_anew_keeps_what_was_trained(split, monkeypatch):
    X, y, _, _ = split
    original, calls = ClassTargets.fit_head, []

    def second_is_interrupted(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *args)

    options = dict(trainable=1, epochs=2, random_state=0)
    expected = MiniLMClassifier(refit_head=False, **options).fit(X, y)
    monkeypatch.setattr(ClassTargets, "fit_head", second_is_interrupted)
    with pytest.warns(UserWarning, match="interrupted"):
        classifier = MiniLMClassifier(**options).fit(X, y)
    np.testing.assert_array_equal(classifier.coef_, expected.coef_)
    assert changed(classifier, expected) == 0


@pytest.mark.parametrize(
    "options", [{"trainable": "head", "epochs": 3}, {"trainable": 1, "epochs": 1}], ids=str
)
def test_the_scale_of_the_weights_does_not_matter_but_their_ratios_do(split, options):
    X, y, X_new, _ = split
    weights = np.where(y == "delivery", 5.0, 1.0)
    options = dict(batch_size=1, precision="fp32", random_state=0, **options)
    first = MiniLMClassifier(**options).fit(X, y, sample_weight=weights)
    tiny = MiniLMClassifier(**options).fit(X, y, sample_weight=1e-3 * weights)
    np.testing.assert_allclose(first.predict_proba(X_new), tiny.predict_proba(X_new), atol=2e-3)
    alone = MiniLMClassifier(init_head="random", refit_head=False, **options)
    plain = clone(alone).fit(X, y).predict_proba(X_new)
    weighted = clone(alone).fit(X, y, sample_weight=weights).predict_proba(X_new)
    assert np.abs(plain - weighted).max() > 1e-3  # also where a batch is one text


def test_a_split_without_weight_is_refused(split):
    X, y, _, _ = split
    weights = np.zeros(len(X))
    weights[0] = 1
    with pytest.raises(
        ValueError, match=r"early_stopping=True cannot set validation_fraction=0.25 of 1 texts"
    ):
        MiniLMClassifier(trainable="head", early_stopping=True, validation_fraction=0.25, random_state=0).fit(
            X, y, sample_weight=weights
        )


@pytest.fixture(scope="module")
def trained_on_a_cpu(split):
    """Return a classifier that was trained on a CPU, and its probabilities there."""

    @functools.cache
    def fit(trainable):
        options = dict(trainable=trainable, epochs=1, random_state=0)
        classifier = MiniLMClassifier(device="cpu", precision="fp32", **options).fit(*split[:2])
        return classifier, classifier.predict_proba(split[2][::4])

    return fit


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("trainable", "precision"),
    [
        ("encoder", "bf16"),
        (2, "fp16"),
        (2, "fp32"),
        (2, "bf16"),
        ("all", "bf16"),
        pytest.param("lora", "bf16", marks=needs_peft),
    ],
)
def test_trained_on_a_gpu_opens_on_a_cpu_and_the_other_way(split, trained_on_a_cpu, precision, trainable):
    X, y, X_new = split[0], split[1], split[2][::4]
    options = dict(trainable=trainable, epochs=1, random_state=0)
    on_gpu = MiniLMClassifier(device="cuda", precision=precision, **options).fit(X, y)
    assert on_gpu.score(X, y) > 0.9
    expected = on_gpu.predict_proba(X_new)
    on_gpu.set_params(device="cpu", precision="fp32")
    np.testing.assert_allclose(on_gpu.predict_proba(X_new), expected, atol=0.05)
    on_cpu, expected = trained_on_a_cpu(trainable)
    moved = copy.deepcopy(on_cpu).set_params(device="cuda", precision=precision)
    np.testing.assert_allclose(moved.predict_proba(X_new), expected, atol=0.05)


@pytest.mark.gpu
def test_fits_leave_the_memory_of_a_gpu_flat(split, monkeypatch):
    import torch

    X, y, _, _ = split
    sizes = []
    for turn in range(6):
        with monkeypatch.context() as patch:
            if turn % 3 == 1:
                after_steps(patch, 1, interrupt)
            classifier = MiniLMClassifier(trainable=2, epochs=1, device="cuda", random_state=0)
            if turn % 3 == 2:
                with pytest.raises(FloatingPointError):
                    classifier.set_params(learning_rate=1e38, warmup_ratio=0).fit(X, y)
            elif turn % 3 == 1:
                with pytest.warns(UserWarning, match="interrupted"):
                    classifier.fit(X, y)
            else:
                classifier.fit(X, y)
        del classifier
        gc.collect()
        sizes.append(torch.cuda.memory_allocated())
    assert max(sizes[3:]) <= max(sizes[:3]) + 2**20


@pytest.mark.parametrize("trainable", [1, "all"], ids=str)
def test_weight_decay_is_for_the_matrices_of_the_layers_alone(split, trainable):
    X, y, _, _ = split
    start = dict(read_trainable_weights(load_checkpoint("bundled"), 0, None))
    options = dict(trainable=trainable, epochs=1, precision="fp32", random_state=0)
    fitted = MiniLMClassifier(weight_decay=1e3, refit_head=False, **options).fit(X, y)
    for name, array in fitted.weights_.items():
        if name.startswith("embeddings.word"):  # in 4 bits, and only some of its rows
            continue
        before = start[name].numpy()
        if name.startswith("layers.") and array.ndim == 2:
            assert np.linalg.norm(array) < 0.97 * np.linalg.norm(before), name
        else:
            assert np.abs(array - before).max() < 1e-3, name


def test_of_equal_scores_the_lower_loss_is_better(split):
    X, y, _, _ = split
    options = dict(trainable="head", epochs=4, early_stopping=True, random_state=0)
    classifier = MiniLMClassifier(**options).fit(X, y, X_val=X, y_val=y)
    losses, scores = ([e[f"validation_{k}"] for e in classifier.history_] for k in ("loss", "score"))
    assert set(scores) == {1.0}
    assert classifier.best_epoch_ == 1 + int(np.argmin(losses))


def test_adapters_go_on(split, transformers_folder):
    pytest.importorskip("peft")
    X, y = split[0][:8], np.arange(8) % 2
    options = dict(trainable="lora", max_length=64, epochs=2, learning_rate=1e-2, random_state=0)
    classifier = MiniLMClassifier(transformers_folder, warm_start=True, **options).fit(X, y)
    first = classifier.weights_
    classifier.set_params(learning_rate=1e-12, head_learning_rate=1e-12).fit(X, y)
    for name, array in first.items():
        np.testing.assert_allclose(classifier.weights_[name], array, atol=1e-6)


def test_gradient_checkpointing_is_done_where_it_is_asked_for(split, monkeypatch):
    X, y, _, _ = split
    calls = []
    original = networks.recompute_in_backward
    monkeypatch.setattr(
        networks, "recompute_in_backward", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    options = dict(trainable=1, epochs=1, random_state=0)
    MiniLMClassifier(**options).fit(X[:8], y[[0, 5] * 4])
    assert not calls
    MiniLMClassifier(gradient_checkpointing=True, **options).fit(X[:8], y[[0, 5] * 4])
    assert calls


def test_a_second_fit_that_brings_nothing_leaves_the_best_epoch(split):
    X, y, X_new, y_new = split
    options = dict(trainable=1, early_stopping=True, random_state=0, warm_start=True)
    model = MiniLMClassifier(epochs=3, **options).fit(X, y, X_val=X_new, y_val=y_new)
    best, digest = model.best_epoch_, model.weights_digest_
    model.set_params(learning_rate=10.0, head_learning_rate=10.0, epochs=1)
    model.fit(X, y, X_val=X_new, y_val=y_new)
    assert model.n_iter_ == 4
    assert model.weights_digest_ == digest
    assert model.best_epoch_ == best


def test_the_best_epoch_counts_from_the_first_fit(split):
    X, y, _, _ = split
    classifier = MiniLMClassifier(trainable="head", epochs=2, warm_start=True, random_state=0)
    assert classifier.fit(X, y).best_epoch_ == 2
    assert classifier.fit(X, y).best_epoch_ == classifier.n_iter_ == 4


def test_kept_states_of_other_layers_are_apart(split):
    X, y, _, _ = split
    options = dict(epochs=1, precision="fp32", refit_head=False, random_state=0)
    expected = MiniLMClassifier(trainable=2, **options).fit(X, y).weights_
    clear_cache()
    MiniLMClassifier(trainable=4, **options).fit(X, y)
    found = MiniLMClassifier(trainable=2, **options).fit(X, y).weights_
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5)


def test_smoothing_moves_each_label_towards_one_half():
    targets = MultilabelTargets([[1, 0], [0, 1]], np.ones(2), label_smoothing=0.2)
    objective = targets.objective()
    at = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).logit().requires_grad_()
    objective.losses(at, torch.from_numpy(targets.values)).sum().backward()
    np.testing.assert_allclose(at.grad.numpy(), 0, atol=1e-6)


def test_smoothing_counts_with_several_labels(split):
    X, y, _, _ = split
    Y = np.column_stack([y == "delivery", y == "billing"]).astype(int)
    options = dict(trainable="head", epochs=2, random_state=0)
    plain = MiniLMClassifier(**options).fit(X, Y)
    smooth = MiniLMClassifier(label_smoothing=0.4, **options).fit(X, Y)
    assert np.abs(plain.coef_ - smooth.coef_).max() > 1e-4


def test_a_label_that_only_rows_of_weight_zero_have(split):
    X, y, _, _ = split
    Y = np.column_stack([y == "delivery", y == "billing"]).astype(int)
    weights = np.where(y == "billing", 0.0, 1.0)
    classifier = MiniLMClassifier(trainable="head", epochs=1, random_state=0).fit(X, Y, sample_weight=weights)
    assert (classifier.predict(X)[:, 1] == 0).all()


@pytest.mark.parametrize("n_absent", [1, 2, 3])
def test_classes_of_weight_zero_are_together_as_likely_as_one(n_absent):
    y = np.arange(3 + n_absent)
    weights = (y < 3).astype(float)
    vectors = np.eye(len(y), dtype=np.float32)
    _, intercept = ClassTargets(y, len(y)).fit_head(vectors, y, weights)
    assert np.exp(intercept[3:]).sum() == pytest.approx(np.exp(-8))


def test_figures_of_texts_set_aside_are_weighted():
    random = np.random.default_rng(0)
    vectors, targets = random.standard_normal((20, 4)).astype(np.float32), np.arange(20) % 2
    weights = random.uniform(0.1, 9, 20)
    result = train_head(vectors, row_weights=weights, n_training=10, epochs=2, head_learning_rate=1e-2)
    logits = vectors[10:] @ result.coef.T + result.intercept
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(10), targets[10:]]
    last = result.history[-1]
    assert last["validation_loss"] == pytest.approx(np.average(losses, weights=weights[10:]), rel=1e-5)
    right = logits.argmax(axis=1) == targets[10:]
    assert last["validation_score"] == pytest.approx(np.average(right, weights=weights[10:]))


def test_the_score_of_several_labels_is_that_of_the_estimator(split):
    X, y, X_new, y_new = split
    Y, Y_new = (np.column_stack([v == "delivery", v == "billing"]).astype(int) for v in (y, y_new))
    classifier = MiniLMClassifier(trainable="head", epochs=2, random_state=0)
    classifier.fit(X, Y, X_val=X_new, y_val=Y_new)
    assert 0 < classifier.score(X_new, Y_new) < 1
    assert classifier.history_[-1]["validation_score"] == pytest.approx(classifier.score(X_new, Y_new))


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


def test_texts_set_aside_do_not_change_what_is_learned(split):
    X, y, X_new, y_new = split
    classifier = MiniLMClassifier(trainable="head", epochs=2, random_state=0)
    weights = np.full(len(X), 1e-3)
    alone = clone(classifier).fit(X, y, sample_weight=weights)
    watched = clone(classifier).fit(X, y, sample_weight=weights, X_val=X_new, y_val=y_new)
    np.testing.assert_array_equal(watched.coef_, alone.coef_)


def test_gradients_are_clipped_to_norm_1(monkeypatch):
    norms = []
    original = FlatParameters.step

    def watching(self, gradients, rate, scale):
        length = float(torch.stack([g.norm() for g in gradients]).norm())
        norms.append((length, length * scale))
        return original(self, gradients, rate, scale)

    monkeypatch.setattr(FlatParameters, "step", watching)
    random = np.random.default_rng(0)
    for size in (100, 0.01):
        train_head((size * random.standard_normal((20, 4))).astype(np.float32))
    assert [clipped == pytest.approx(min(1, length), rel=1e-4) for length, clipped in norms] == [True] * 4
    assert norms[0][0] > 1 > norms[-1][0]


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


# Without the instructions bfloat16 takes ten times as long as float32.
bf16 = pytest.param("bf16", marks=pytest.mark.skipif(not cpu_has_bf16(), reason="no bfloat16 here"))


@pytest.mark.parametrize("precision", ["fp32", bf16])
def test_the_head_is_fitted_anew_to_the_network_of_the_best_epoch(split, monkeypatch, precision):
    X, y, X_new, y_new = split
    fits = {}
    for refit_head in (False, True):
        # The first epoch is the best.
        figures = iter([(1.0, 0.0), (0.1, 1.0), (0.9, 0.5), (0.9, 0.5), (0.1, 1.0)])
        monkeypatch.setattr(loop._Training, "_validate", lambda self, figures=figures: next(figures))
        options = dict(trainable=1, epochs=3, early_stopping=True, learning_rate=1e-3, precision=precision)
        model = MiniLMClassifier(refit_head=refit_head, random_state=0, **options)
        fits[refit_head] = model.fit(X, y, X_val=X_new, y_val=y_new)
    trained, refitted = fits[False], fits[True]
    assert trained.best_epoch_ == refitted.best_epoch_ == 1
    assert refitted.weights_digest_ == trained.weights_digest_
    expected = LogisticRegression(C=30, max_iter=2000).fit(trained.encode(X), y)
    np.testing.assert_allclose(
        refitted.predict_proba(X_new), expected.predict_proba(trained.encode(X_new)), atol=1e-2
    )


def test_the_head_of_an_untrained_start_is_not_fitted_anew(split, transformers_folder, monkeypatch):
    X, y, X_new, y_new = split
    options = dict(
        trainable=1, init_head="random", epochs=1, early_stopping=True, max_length=64, random_state=0
    )
    heads = []
    for refit_head in (False, True):
        figures = iter([(0.1, 1.0), (0.9, 0.5), (0.1, 1.0)])
        monkeypatch.setattr(loop._Training, "_validate", lambda self, figures=figures: next(figures))
        model = MiniLMClassifier(transformers_folder, refit_head=refit_head, **options)
        heads.append(model.fit(X, y, X_val=X_new[:8], y_val=y_new[:8]).coef_)
        assert model.best_epoch_ == 0
    np.testing.assert_array_equal(*heads)


def test_kept_states_of_other_checkpoints_are_apart(split, two_folders):
    X, y, _, _ = split
    first, second = two_folders
    options = dict(trainable=1, epochs=1, precision="fp32", max_length=64, random_state=0)
    expected = MiniLMClassifier(second, **options).fit(X, y).history_[0]["loss"]
    clear_cache()
    MiniLMClassifier(first, **options).fit(X, y)
    found = MiniLMClassifier(second, **options).fit(X, y).history_[0]["loss"]
    assert found == pytest.approx(expected)


def test_a_look_at_the_best_epoch_changes_nothing_in_training():
    class Looks(TrainingHooks):
        def end_epoch(self, result):
            result()
            return False

    vectors = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    targets = (vectors[:, 0] > 0).astype(np.int64)
    targets[20:] = 1 - targets[20:]  # each epoch is worse than the start
    start = np.zeros((2, 4), np.float32), np.zeros(2, np.float32)
    options = TrainingOptions(
        epochs=6, batch_size=4, head_learning_rate=1.0, warmup_ratio=0.0, n_iter_no_change=6, seed=0
    )
    split = Split(np.arange(20), np.arange(20, 40))
    given = (*start, SoftmaxObjective(), targets, np.ones(40), split, options)
    plain, looked = (train(FixedVectors(vectors), *given, hooks=hooks) for hooks in (None, Looks()))
    assert plain.best_epoch == 0
    losses = [[e["validation_loss"] for e in result.history] for result in (plain, looked)]
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(plain.coef, looked.coef)


def test_the_loss_of_an_epoch_is_weighted():
    random = np.random.default_rng(0)
    vectors, weights = random.standard_normal((25, 4)).astype(np.float32), random.uniform(0.1, 9, 25)
    loss = np.where(np.arange(25) % 2 == 0, 0.1, 3.0)

    class Given(SoftmaxObjective):
        def losses(self, outputs, targets):
            return 0 * outputs.sum(dim=1) + torch.where(targets == 0, 0.1, 3.0)

    result = train_head(vectors, Given(), row_weights=weights, batch_size=10)
    assert result.history[0]["loss"] == pytest.approx(np.average(loss, weights=weights), rel=1e-5)


def test_steps_of_parts_of_a_batch_count_in_the_schedule():
    vectors = np.random.default_rng(0).standard_normal((15, 4)).astype(np.float32)
    result = train_head(vectors, batch_size=10, epochs=2, warmup_ratio=0.0, head_learning_rate=1e-3)
    rates = [record["learning_rate"] / 1e-3 for record in result.history]
    assert rates == pytest.approx([learning_rate_factor(2, 4, 0.0), 0])  # 2 steps an epoch


def test_steps_are_those_of_torchs_adamw():
    random = torch.Generator().manual_seed(0)
    start = torch.randn(5, 3, generator=random)
    parameters = FlatParameters({"w": start}, torch.float32, 1e-2, 0.1)
    expected = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([expected], lr=1e-2, weight_decay=0.1)  # betas and eps are its defaults
    for step in range(20):
        gradient = torch.randn(5, 3, generator=random) * 10.0 ** -(step % 3)
        expected.grad = gradient.clone()
        optimizer.step()
        parameters.step([gradient.clone()], 1.0, 1.0)
    np.testing.assert_allclose(parameters.arrays()["w"], expected.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_the_scale_of_the_loss_is_halved_at_once_and_doubled_after_2000_steps():
    scale = LossScale(True)
    start = scale.value
    for _ in range(1500):  # which are forgotten when it is halved
        scale.update(False)
    scale.update(True)
    assert scale.value == start / 2
    for _ in range(1999):
        scale.update(False)
    assert scale.value == start / 2
    scale.update(False)
    assert scale.value == start


def test_shares_of_labels_are_those_of_the_texts_that_are_trained_on(transformers_folder):
    X = [f"text {number}" for number in range(40)]
    Y = np.zeros((40, 2), int)
    Y[::4, 0] = Y[::2, 1] = 1
    aside = train_test_split(np.arange(40), test_size=0.5, random_state=np.random.RandomState(0))[1]
    other = Y.copy()
    other[aside] = 1
    options = dict(
        trainable="head",
        epochs=1,
        early_stopping=True,
        validation_fraction=0.5,
        random_state=0,
        max_length=24,
    )
    losses = [
        MiniLMClassifier(transformers_folder, **options).fit(X, y).history_[0]["loss"] for y in (Y, other)
    ]
    assert losses[0] == losses[1]


def test_other_labels_in_y_val(transformers_folder):
    classifier = MiniLMClassifier(transformers_folder, trainable="head", epochs=1, max_length=24)
    for y_val in ([[1, 0, 1]], [[1]]):
        with pytest.raises(ValueError, match="y_val"):
            classifier.fit(["a", "b"], [[1, 0], [0, 1]], X_val=["c"], y_val=y_val)
