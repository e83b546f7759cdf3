import copy
import functools
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import largest_change
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from skminilm import MiniLMClassifier
from skminilm._targets import ClassTargets
from skminilm.checkpoints import load_checkpoint, tokenize
from skminilm.engine import read_trainable_weights
from skminilm.engine.kernels import layers as kernel_layers
from skminilm.engine.linear import IntegerProduct
from skminilm.finetuning import (
    FixedVectors,
    SoftmaxObjective,
    Split,
    TrainableEncoder,
    TrainingDivergedError,
    TrainingOptions,
    networks,
    train,
)
from skminilm.finetuning.loop import learning_rate_factor
from skminilm.finetuning.parameters import FlatParameters, LossScale

CPU = torch.device("cpu")
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="the extra lora is missing")
needs_int16 = pytest.mark.skipif(
    not kernel_layers.is_available(torch.int16), reason="no kernels were compiled here"
)


@pytest.mark.parametrize("trainable", ["encoder", 2], ids=str)
def test_gradient_checkpointing_changes_nothing(split, trainable):
    X, y, _, _ = split
    options = dict(trainable=trainable, epochs=1, precision="fp32", random_state=0)
    plain = MiniLMClassifier(**options).fit(X, y)
    assert largest_change(plain, MiniLMClassifier(gradient_checkpointing=True, **options).fit(X, y)) < 1e-5


def test_gradient_checkpointing_leaves_random_states_alone(split, monkeypatch):
    X, y, _, _ = split

    def fail(*_):
        raise AssertionError("nothing is drawn")

    for name in ("get_rng_state", "set_rng_state"):  # of the process: other threads may draw meanwhile
        monkeypatch.setattr(torch, name, fail)
    options = dict(trainable=1, epochs=1, random_state=0)
    MiniLMClassifier(gradient_checkpointing=True, **options).fit(X[:8], y[:8])


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
    assert largest_change(whole, in_parts) < 1e-5
    with monkeypatch.context() as patch:  # of the thread of the first backward pass
        no_handle = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
        limit_memory(patch, fits, RuntimeError(no_handle))
        assert largest_change(whole, MiniLMClassifier(**options).fit(X, y)) < 1e-5
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
    assert largest_change(found, again) == 0
    assert largest_change(found, expected) > 0
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


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert rates[0] > 0
    assert max(rates) == rates[10] == 1
    assert rates[-1] == 0
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()


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


def test_the_head_is_fitted_anew_to_the_trained_network(split):

    X, y, X_new, _ = split
    options = dict(trainable=2, epochs=2, head_learning_rate=0.1, precision="fp32", random_state=0)
    refitted = MiniLMClassifier(**options).fit(X, y)
    trained = MiniLMClassifier(refit_head=False, **options).fit(X, y)
    assert largest_change(refitted, trained) == 0
    expected = LogisticRegression(C=30, max_iter=2000).fit(trained.encode(X), y)
    np.testing.assert_allclose(
        refitted.predict_proba(X_new), expected.predict_proba(trained.encode(X_new)), atol=5e-3
    )
    assert np.abs(trained.predict_proba(X_new) - refitted.predict_proba(X_new)).max() > 0.05


def test_a_head_does_not_go_on_from_a_trained_network(split):
    X, y, _, _ = split
    classifier = MiniLMClassifier(trainable=1, epochs=1, warm_start=True, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="trained more than the head"):
        classifier.set_params(trainable="head").fit(X, y)


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
