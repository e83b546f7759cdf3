"""Layers by compiled kernels, and vectors in 8-bit integers."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from skminilm import MiniLMClassifier, MiniLMEncoder, release_models
from skminilm.checkpoints import load_checkpoint
from skminilm.engine import get_model, kernels
from skminilm.engine import layers as engine_layers
from skminilm.engine.hardware import resolve_compute
from skminilm.engine.kernels import layers

needs_int8 = pytest.mark.skipif(not layers.is_available(torch.int8), reason="no kernels were compiled here")
needs_int16 = pytest.mark.skipif(not layers.is_available(torch.int16), reason="no kernels were compiled here")
of_each_type = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(
            dtype,
            marks=pytest.mark.skipif(
                not layers.is_available(dtype), reason=f"no instructions for {dtype}, or no kernels"
            ),
        )
        for dtype in (torch.float32, torch.bfloat16, torch.int16, torch.int8)
    ],
    ids=str,
)
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int16: "int16", torch.int8: "int8"}
of_each_integer = pytest.mark.parametrize(
    "precision",
    [
        pytest.param("int16", marks=needs_int16),
        pytest.param("int8", marks=needs_int8),
    ],
)


IN_PARTS = layers.is_available(torch.float32) and layers._layout(torch.float32)[0] == 2
"""Whether each factor in float32 is the sum of two in bfloat16."""


def random_matrix(n_outputs, n_inputs, generator):
    weight = torch.randn(n_outputs, n_inputs, generator=generator) / n_inputs**0.5
    return weight, torch.randn(n_outputs, generator=generator)


def random_tokens(n_tokens, size, generator, dtype):
    return torch.randn(n_tokens, size, generator=generator).to(layers.state_dtype(dtype))


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="no compiler")
def test_what_the_processor_can_do_is_compiled():
    """A source that fails with the flags for some processors is compiled without them: nothing else would tell."""
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True).stdout
    if int(version.split(".")[0]) < 11:
        pytest.skip("a compiler that does not know all of it")
    present = set(Path("/proc/cpuinfo").read_text().split())
    flags = {
        "AVX512": {
            torch.float32: "avx512f",
            torch.bfloat16: "avx512_bf16",
            torch.int16: "avx512bw",
            torch.int8: "avx512bw",
        },
        "AVX2": {torch.float32: "avx2", torch.int16: "avx2", torch.int8: "avx2"},
    }
    for dtype, flag in flags.get(torch.backends.cpu.get_cpu_capability(), {}).items():
        assert layers.is_available(dtype) == (flag in present)


def steps(rows, dtype, *, is_weight):
    """Return what the integers of each row stand for."""
    if dtype == torch.int8:
        if not is_weight:
            return (rows.amax(1) - rows.amin(1)) / 255
        largest, n_summed = rows.abs().topk(2 * layers._layout(dtype)[4]).values, 2 * layers._layout(dtype)[4]
        in_16_bits = largest.sum(1) / (128 - n_summed / 2) if layers.sums_in_16_bits() else torch.zeros(())
        return torch.maximum(largest[:, 0] / 127, in_16_bits)
    return torch.maximum(rows.norm(dim=1) / 46_300, rows.abs().amax(1) / 32_767)


@of_each_type
@given(
    n_tokens=st.integers(1, 80),
    n_outputs=st.integers(1, 5).map(lambda n: 64 * n),
    n_inputs=st.integers(1, 9).map(lambda n: 64 * n),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    shift=st.sampled_from([-7.0, 0.0, 7.0]),
)
@settings(deadline=None, max_examples=40)
def test_products_are_off_by_the_rounding_of_their_factors_alone(
    dtype, n_tokens, n_outputs, n_inputs, scale, shift
):
    generator = torch.Generator().manual_seed(n_tokens)
    weight, bias = random_matrix(n_outputs, n_inputs, generator)
    weight[0], weight[1, :-1] = 0, 0
    x = ((torch.randn(n_tokens, n_inputs, generator=generator) + shift) * scale).to(layers.state_dtype(dtype))
    x[0] = scale
    found = layers.product(x, layers.Matrix(weight, bias, dtype))
    assert found.dtype == x.dtype

    x, weight, bias = x.double(), weight.double(), bias.double()
    expected = x @ weight.T + bias
    sizes = x.abs() @ weight.abs().T
    of_result = 2**-8 if found.dtype == torch.bfloat16 else 0
    bound = of_result * expected.abs() + (2**-15 if IN_PARTS else 3e-6) * sizes + 1e-6
    if dtype == torch.bfloat16:
        bound += 2**-8 * sizes
    if not dtype.is_floating_point:
        step_of_x, step_of_weight = steps(x, dtype, is_weight=False), steps(weight, dtype, is_weight=True)
        bound += step_of_x[:, None] / 2 * (weight.abs().sum(1) + n_inputs * step_of_weight / 2)
        bound += x.abs().sum(1)[:, None] * step_of_weight / 2
    assert ((found.double() - expected).abs() <= 1.01 * bound).all()


@needs_int16
@pytest.mark.parametrize("n_inputs", [64, 384, 1536, 4096])
@pytest.mark.parametrize("kind", ["equal", "one", "two", "random", "half zero"])
def test_the_largest_sums_of_16_bit_integers_fit(n_inputs, kind):
    generator = torch.Generator().manual_seed(0)
    row = torch.zeros(n_inputs)
    if kind == "equal":
        row[:] = 0.3
    elif kind in ("one", "two"):
        row[: 1 + (kind == "two")] = 5
    else:
        row = torch.randn(n_inputs, generator=generator)
        row[: n_inputs // 2 if kind == "half zero" else 0] = 0
    weight = row.repeat(64, 1) * torch.logspace(-3, 3, 64)[:, None]
    x = torch.stack([row, -row, 1000 * row])
    found = layers.product(x, layers.Matrix(weight, torch.zeros(64), torch.int16))
    expected = x.double() @ weight.double().T
    assert ((found - expected).abs() <= 2e-3 * expected.abs()).all()


@needs_int8
@pytest.mark.parametrize("n_inputs", [64, 384, 1536])
@pytest.mark.parametrize("kind", ["equal", "negative", "alternating", "one", "a pair", "random"])
def test_the_largest_sums_of_8_bit_integers_fit(n_inputs, kind):
    """Where a number of weights and of tokens is the largest that there is, a sum of 16 bits has no room for it."""
    generator = torch.Generator().manual_seed(0)
    row = {
        "equal": torch.full((n_inputs,), 0.3),
        "negative": torch.full((n_inputs,), -0.3),
        "alternating": 0.3 * (-1.0) ** torch.arange(n_inputs),
        "one": 5.0 * (torch.arange(n_inputs) == 7),
        "a pair": 5.0 * (torch.arange(n_inputs) // 2 == 7),
        "random": torch.randn(n_inputs, generator=generator),
    }[kind]
    weight = row.repeat(64, 1) * torch.logspace(-3, 3, 64)[:, None]
    all_but_one, where_positive, where_negative = torch.ones(n_inputs), (row > 0).float(), (row < 0).float()
    all_but_one[-1] = 0
    x = torch.stack([all_but_one, where_positive, where_negative]).to(torch.bfloat16)
    found = layers.product(x, layers.Matrix(weight, torch.zeros(64), torch.int8)).double()
    expected = x.double() @ weight.double().T
    step_of_weight = steps(weight, torch.int8, is_weight=True)
    bound = (x.double().sum(1)[:, None] + 1) * step_of_weight / 2 + 2**-8 * expected.abs()
    assert ((found - expected).abs() <= 1.01 * bound).all()


@needs_int8
def test_very_small_weights_in_8_bits():
    weight = torch.full((64, 64), 1e-37)
    weight[0] = 0
    found = layers.product(
        torch.ones(2, 64, dtype=torch.bfloat16) * 1e30, layers.Matrix(weight, torch.zeros(64), torch.int8)
    )
    expected = torch.full((2, 64), 64e-7)
    expected[:, 0] = 0
    torch.testing.assert_close(found.float(), expected, rtol=0.15, atol=0)


def laid_out(matrix, how):
    """The same numbers, at other places."""
    if how == "columns":
        return matrix.t().contiguous().t()
    if how == "apart":
        return torch.full((2 * len(matrix), 3 * matrix.shape[1]), 7.0).index_put_(
            (2 * torch.arange(len(matrix))[:, None], 3 * torch.arange(matrix.shape[1])), matrix
        )[::2, ::3]
    return matrix


PLACES = ["rows", "columns", "apart"]


@needs_int16
@given(
    n_rows=st.integers(1, 130),
    n_outputs=st.integers(1, 3).map(lambda n: 64 * n),
    n_inputs=st.integers(1, 300),
    how_x=st.sampled_from(PLACES),
    how_weight=st.sampled_from(PLACES),
    has_bias=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_products_of_two_new_factors_are_off_by_their_rounding_alone(
    n_rows, n_outputs, n_inputs, how_x, how_weight, has_bias
):
    generator = torch.Generator().manual_seed(n_inputs)
    weight, bias = random_matrix(n_outputs, n_inputs, generator)
    x = torch.randn(n_rows, n_inputs, generator=generator) * torch.logspace(-6, 6, n_rows)[:, None]
    weight[1] = 0
    bias = bias if has_bias else None
    found = layers.integer_product(laid_out(x, how_x), laid_out(weight, how_weight), bias)
    assert torch.equal(found, layers.integer_product(x, weight, bias))
    x, weight, bias = x.double(), weight.double(), bias.double() if has_bias else torch.zeros(1)
    step_of_x, step_of_weight = (steps(rows, torch.int16, is_weight=False) for rows in (x, weight))
    bound = step_of_x[:, None] / 2 * (weight.abs().sum(1) + n_inputs * step_of_weight / 2)
    bound += x.abs().sum(1)[:, None] * step_of_weight / 2 + 3e-6 * (x.abs() @ weight.abs().T) + 1e-6
    assert ((found.double() - (x @ weight.T + bias)).abs() <= 1.01 * bound).all()


@needs_int16
@pytest.mark.parametrize("n_inputs", [1, 31, 33, 100, 2000])
def test_the_largest_sums_of_two_new_factors_in_int16_fit(n_inputs):
    weight = torch.full((64, n_inputs), 0.3) * torch.logspace(-3, 3, 64)[:, None]
    x = torch.stack([weight[0], -1000 * weight[0], torch.zeros(n_inputs)])
    found = layers.integer_product(x, weight.t().contiguous().t())
    expected = x.double() @ weight.double().T
    assert ((found - expected).abs() <= 2e-3 * expected.abs()).all()


@needs_int16
def test_rows_of_a_product_of_two_new_factors_do_not_depend_on_others_or_on_threads():
    generator = torch.Generator().manual_seed(0)
    weight, bias = random_matrix(192, 100, generator)
    x = torch.randn(101, 100, generator=generator)
    x[40, 3], weight[5, 60] = float("nan"), float("inf")
    expected = layers.integer_product(x, weight, bias)
    is_bad = torch.zeros(101, 192, dtype=torch.bool)
    is_bad[40], is_bad[:, 5] = True, True
    assert torch.equal(expected.isfinite(), ~is_bad)
    for n_threads in (1, 2, 3, 5):
        with kernels._library.on_threads(n_threads):
            for start, stop in ((0, 101), (60, 101), (3, 20), (7, 8), (50, 98), (0, 0)):
                for how in PLACES:
                    rows = laid_out(x[start:stop], how)
                    found = layers.integer_product(rows, laid_out(weight, how), bias)
                    assert torch.equal(found.nan_to_num(7), expected[start:stop].nan_to_num(7))


@needs_int16
@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        ((3, 64), (64, 65), None, r"No product of \(3, 64\) with \(64, 65\)"),
        ((3, 64), (63, 64), None, "a multiple of 64 rows"),
        ((3, 64), (64, 64), (63,), "each with a number of the bias"),
    ],
)
def test_new_factors_that_do_not_fit_are_refused(x, weight, bias, message):
    with pytest.raises(ValueError, match=message):
        layers.integer_product(torch.ones(x), torch.ones(weight), bias and torch.ones(bias))
    with pytest.raises(ValueError, match=r"takes float32 on the CPU, not torch\.float64 on cpu and torch"):
        layers.integer_product(torch.ones(3, 64).double(), torch.ones(64, 64))
    with pytest.raises(ValueError, match=r"takes float32 on the CPU, not torch\.float32 on meta"):
        layers.integer_product(torch.empty(3, 64, device="meta"), torch.ones(64, 64))


@needs_int16
@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e-21, 1e-19, 1e-15, 1e15])
def test_very_small_and_large_numbers_in_16_bits(size):
    rest = 1536 * 1e-20  # of numbers that count as 0
    for of_x, of_weight in ((size, 1.0), (1.0, size)):
        x, weight = torch.full((3, 1536), of_x), torch.full((64, 1536), of_weight)
        found = layers.product(x, layers.Matrix(weight, torch.zeros(64), torch.int16))
        assert ((found - 1536 * size).abs() <= 2e-3 * 1536 * size + rest).all()
        assert (found >= 0).all()


def random_layer(dtype, size, wide, generator):
    """Return what follows attention in a layer, and the same by torch's operations."""
    shapes = {"attention_output": (size, size), "intermediate": (wide, size), "output": (size, wide)}
    matrices = {name: random_matrix(*shape, generator) for name, shape in shapes.items()}
    norms = {
        name: (1 + torch.rand(size, generator=generator), torch.randn(size, generator=generator))
        for name in ("attention_norm", "output_norm")
    }

    def norm(x, name):
        return F.layer_norm(x, (size,), *norms[name], 1e-12)

    def by_operations(attended, hidden):
        states = norm(F.linear(attended.float(), *matrices["attention_output"]) + hidden, "attention_norm")
        inner = F.gelu(F.linear(states, *matrices["intermediate"]))
        return norm(F.linear(inner, *matrices["output"]) + states, "output_norm")

    laid_out = {name: layers.Matrix(*pair, dtype) for name, pair in matrices.items()}
    return layers.AfterAttention(**laid_out, **norms, epsilon=1e-12), by_operations


@of_each_type
@pytest.mark.parametrize("n_tokens", [1, 5, 24, 25, 200])
def test_what_follows_attention_is_that_of_the_definition(dtype, n_tokens):
    generator = torch.Generator().manual_seed(n_tokens)
    layer, by_operations = random_layer(dtype, 128, 320, generator)
    attended, hidden = (random_tokens(n_tokens, 128, generator, dtype) for _ in range(2))
    found = layers.after_attention(attended, hidden, layer)
    expected = by_operations(attended, hidden)
    largest, usual = {
        torch.float32: (1e-4, 1e-5) if IN_PARTS else (1e-5, 1e-6),
        torch.bfloat16: (0.05, 0.005),
        torch.int16: (5e-3, 5e-4),
        torch.int8: (0.3, 0.03) if layers.sums_in_16_bits() else (0.1, 0.015),
    }[dtype]
    assert found.dtype == hidden.dtype
    assert (found - expected).abs().max() <= largest
    assert (found - expected).square().mean().sqrt() <= usual


@of_each_type
def test_a_token_does_not_depend_on_others_or_on_threads(dtype):
    generator = torch.Generator().manual_seed(0)
    matrix = layers.Matrix(*random_matrix(192, 128, generator), dtype)
    layer, _ = random_layer(dtype, 128, 192, generator)
    x, hidden = (random_tokens(101, 128, generator, dtype) for _ in range(2))
    x[40] = float("nan")
    product, states = layers.product(x, matrix), layers.after_attention(x, hidden, layer)
    assert states[40].isnan().all()
    assert states[torch.arange(101) != 40].isfinite().all()
    threads = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3, 5):
            torch.set_num_threads(n_threads)
            for start, stop in ((0, 101), (60, 101), (3, 20), (7, 8), (9, 33), (50, 98), (40, 46), (0, 0)):
                rows = slice(start, stop)
                for _ in range(5):
                    of_product = layers.product(x[rows], matrix)
                    of_layer = layers.after_attention(x[rows], hidden[rows], layer)
                    attended, before = x[rows].clone(), hidden[rows].clone()
                    over_attended = layers.after_attention(attended, hidden[rows], layer, out=attended)
                    over_hidden = layers.after_attention(x[rows], before, layer, out=before)
                    of_layers = ((found, states) for found in (of_layer, over_attended, over_hidden))
                    for found, expected in ((of_product, product), *of_layers):
                        assert torch.equal(found.nan_to_num(7), expected[rows].nan_to_num(7))
    finally:
        torch.set_num_threads(threads)


@of_each_type
def test_what_does_not_fit_is_refused(dtype):
    generator = torch.Generator().manual_seed(0)
    matrix = layers.Matrix(*random_matrix(64, 128, generator), dtype)
    other = torch.bfloat16 if layers.state_dtype(dtype) == torch.float32 else torch.float32
    for x in (torch.zeros(3, 64, dtype=layers.state_dtype(dtype)), torch.zeros(3, 128, dtype=other)):
        with pytest.raises(ValueError, match=r"layer_product takes torch.* of 128 columns, not"):
            layers.product(x, matrix)
    layer, _ = random_layer(dtype, 128, 192, generator)
    tokens = [random_tokens(n, 128, generator, dtype) for n in (3, 2)]
    with pytest.raises(ValueError, match=r"as many tokens of each, not \[3, 2\]"):
        layers.after_attention(*tokens, layer)
    x = random_tokens(3, 128, generator, dtype)
    for out in (x.new_empty(4, 64), x.new_empty(3, 63), x.new_empty(64, 3).t(), x.new_empty(3, 64).to(other)):
        with pytest.raises(ValueError, match=r"layer_product writes contiguous .* of shape \(3, 64\), not"):
            layers.product(x, matrix, out=out)
    with pytest.raises(ValueError, match=r"layer_after_attention writes contiguous .* of shape \(3, 128\)"):
        layers.after_attention(x, x, layer, out=x.new_empty(3, 64))


@of_each_type
def test_what_lay_in_the_memory_before_costs_no_time(dtype):
    """Numbers so small that they lose digits take a processor a hundred times as long."""
    generator = torch.Generator().manual_seed(0)
    layer, _ = random_layer(dtype, 384, 1536, generator)
    x = random_tokens(1, 384, generator, dtype)

    def seconds():
        start = time.thread_time()  # of the work itself, whatever else the processor does meanwhile
        with kernels._library.on_threads(1):
            layers.after_attention(x, x, layer)
        return time.thread_time() - start

    first = min(seconds() for _ in range(20))
    times = []
    for _ in range(20):
        small = [torch.ones(n, dtype=torch.int64) for n in (10_000, 50_000, 100_000) for _ in range(3)]
        del small
        times.append(seconds())
    assert min(times) <= 5 * first


@of_each_type
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_hidden(dtype, value):
    generator = torch.Generator().manual_seed(0)
    weight, bias = random_matrix(64, 64, generator)
    x = random_tokens(30, 64, generator, dtype)
    x[8, 33] = value
    found = layers.product(x, layers.Matrix(weight, bias, dtype))
    assert not found[8].isfinite().any()
    assert found[torch.arange(30) != 8].isfinite().all()
    weight[5, 60] = value
    found = layers.product(x[:8], layers.Matrix(weight, bias, dtype))
    assert not found[:, 5].isfinite().any()
    assert found[:, torch.arange(64) != 5].isfinite().all()


@of_each_type
@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, -0x7FFFFF, -1])
def test_no_nan_is_hidden_whatever_its_bits(dtype, bits):
    weight, bias = random_matrix(64, 64, torch.Generator().manual_seed(0))
    bias.view(torch.int32)[5] = bits
    found = layers.product(
        torch.ones(30, 64, dtype=layers.state_dtype(dtype)), layers.Matrix(weight, bias, dtype)
    )
    assert found[:, 5].isnan().all()


@of_each_type
def test_all_layers_are_as_by_operations(dtype, texts, monkeypatch):
    precision = PRECISIONS[dtype]
    release_models()
    found = encoder(precision=precision).transform(texts)
    model = get_model(load_checkpoint("bundled"), resolve_compute("torch", "cpu", precision))
    assert isinstance(model._layers, engine_layers.CompiledLayers)
    release_models()
    monkeypatch.setattr(layers, "is_available", lambda dtype: False)
    expected = encoder(precision="fp32").transform(texts)
    release_models()
    largest = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.int16: 2e-4, torch.int8: 0.02}[dtype]
    assert 0 < np.abs(found - expected).max() <= largest


def encoder(**options):
    return MiniLMEncoder(**{"precision": "int8", "device": "cpu", "cache": None, **options})


@pytest.fixture(scope="module")
def mixed(requests):
    """Real texts in 16 languages from 3 to 300 tokens."""
    return [*requests.data[::9], *(" ".join(requests.data[i : i + 20]) for i in (0, 300, 700)), "a", ""]


@of_each_integer
def test_vectors_are_near_those_of_float32(mixed, precision):
    expected = encoder(precision="fp32").transform(mixed)
    found = encoder(precision=precision).transform(mixed)
    assert found.dtype == np.float32
    bound, least = {"int16": (0.999999, 1e-5), "int8": (0.997, 1e-4)}[precision]
    assert (found.astype(float) * expected).sum(axis=1).min() >= bound
    assert np.abs(found - expected).max() > least  # it really is another precision


@pytest.mark.parametrize(
    "precision",
    [
        "fp32",
        "bf16",
        pytest.param("int16", marks=needs_int16),
        pytest.param("int8", marks=needs_int8),
    ],
)
def test_vectors_do_not_depend_on_order_and_batches(mixed, precision):
    resolved = resolve_compute("torch", "cpu", precision)
    model = get_model(load_checkpoint("bundled"), resolved)
    if not isinstance(model._layers, engine_layers.CompiledLayers):
        pytest.skip("layers by operations depend on them within rounding")
    together = encoder(precision=precision).transform(mixed)
    order = np.random.default_rng(0).permutation(len(mixed))
    shuffled = encoder(precision=precision, batch_tokens=300).transform([mixed[i] for i in order])
    np.testing.assert_array_equal(shuffled, together[order])


@of_each_integer
def test_pairs_and_other_poolings(requests, precision):
    pairs = np.array(requests.data[:12], dtype=object).reshape(6, 2)
    for options in ({"pooling": "cls"}, {"pooling": "max"}, {"normalize": False}):
        expected = encoder(precision="fp32", **options).transform(pairs)
        found = encoder(precision=precision, **options).transform(pairs)
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((found * expected).sum(axis=1) / lengths).min() >= 0.99


@of_each_integer
def test_the_cache_and_files_keep_it_apart_from_other_precisions(texts, tmp_path, precision):
    options = dict(cache=str(tmp_path / "cache"))
    plain = encoder(**{**options, "precision": "fp32"}).fit_transform(texts)
    fitted = encoder(**{**options, "precision": precision}).fit(texts)
    found = fitted.transform(texts)
    assert np.abs(found - plain).max() > {"int16": 1e-5, "int8": 1e-4}[precision]
    joblib.dump(fitted, tmp_path / "encoder.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "encoder.joblib").transform(texts), found)


@needs_int8
def test_processors_that_round_weights_differently_share_no_vectors(encoded, tmp_path, monkeypatch):
    texts, here = ["Guten Morgen", "おはよう"], layers.sums_in_16_bits()
    for in_16_bits, n_encoded in ((here, 2), (here, 2), (not here, 4)):
        monkeypatch.setattr(layers, "sums_in_16_bits", lambda value=in_16_bits: value)
        encoder(cache=tmp_path).transform(texts)
        assert len(encoded) == n_encoded


@of_each_integer
def test_sizes_that_do_not_fit_are_refused(transformers_folder, precision):
    expected = rf"precision='{precision}' needs sizes that are multiples of 64.*32 and"
    with pytest.raises(ValueError, match=expected):
        encoder(model=transformers_folder, precision=precision).transform(["a"])


@needs_int16
def test_sizes_that_do_not_fit_are_refused_before_training(transformers_folder):
    options = dict(max_length=32, epochs=1, init_head="random", refit_head=False)
    with pytest.raises(ValueError, match=r"precision='int16' needs sizes that are multiples of 64.*32 and"):
        MiniLMClassifier(transformers_folder, precision="int16", **options).fit(["a", "b"], [0, 1])


@of_each_integer
def test_another_architecture_is_refused(distilbert_folder, precision):
    expected = rf"precision='{precision}' needs a BERT-shaped checkpoint.*'auto'"
    with pytest.raises(ValueError, match=expected):
        encoder(model=distilbert_folder, precision=precision).transform(["a"])


def test_without_the_instructions_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setattr(layers, "is_available", lambda dtype: False)
    with pytest.raises(ValueError, match=r"'int8'.* AVX2 and .*backend='openvino'.*precision='auto'"):
        encoder().fit(["a"])
    with pytest.raises(ValueError, match=r"'int16'.* AVX2 and .* is not here: use precision='auto'"):
        encoder(precision="int16").fit(["a"])


def test_without_the_products_no_layers_are_made(monkeypatch):
    monkeypatch.setattr(layers, "is_available", lambda dtype: False)
    for dtype in (torch.int16, torch.int8):
        with pytest.raises(ValueError, match=rf"no products in {PRECISIONS[dtype]} on cpu"):
            engine_layers.new_layers(load_checkpoint("bundled").config, torch.device("cpu"), dtype)


def check_again(environment, files, names, n_tests):
    """Run tests of some files in another process, as on another processor."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", names]
    files = [Path(__file__).with_name(name) for name in files]
    run = subprocess.run(
        [*command, *files], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) >= n_tests


@pytest.mark.slow
def test_a_processor_with_avx2_alone_computes_the_same():
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not layers.is_available(torch.float32):
        pytest.skip("no AVX-512, or no kernels")
    names = "definition or token or factors or sums"
    for more in ({}, {"SKMINILM_TESTS_WITHOUT": "vnni"}):
        check_again({"ATEN_CPU_CAPABILITY": "avx2", **more}, ["test_layers.py"], names, 30)
    names = "definition or gelu or adamw or threads or finite or gradient"
    check_again({"ATEN_CPU_CAPABILITY": "avx2"}, ["test_kernels.py"], names, 15)


@pytest.mark.slow
@needs_int8
def test_a_processor_without_vnni_computes_the_same():
    if layers.sums_in_16_bits():
        pytest.skip("no VNNI")
    check_again(
        {"SKMINILM_TESTS_WITHOUT": "vnni"}, ["test_layers.py"], "int16 or int8 or sums or factors", 60
    )


@pytest.mark.slow
def test_a_processor_without_tiles_computes_the_same():
    if not kernels._library.load() or not kernels._library.load().tiled_attention_step():
        pytest.skip("no AMX, or no kernels")
    files = ["test_layers.py", "test_kernels.py"]
    check_again({"SKMINILM_TESTS_WITHOUT": "tiles"}, files, "definition or token or factors or memory", 20)


@pytest.mark.parametrize("precision", ["int16", "int8"])
def test_a_gpu_is_refused(pretend_gpus, precision):
    pretend_gpus(["A"])
    with pytest.raises(ValueError, match=rf"precision='{precision}' is for the CPU, not device='cuda:0'"):
        encoder(device="auto", precision=precision).fit(["a"])


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_calibration_texts_are_for_openvino(precision, monkeypatch):
    monkeypatch.setattr(layers, "is_available", lambda dtype: True)
    with pytest.raises(ValueError, match=r"for precision='int8' with backend='openvino', not precision="):
        encoder(precision=precision, calibration_texts=["a"]).fit(["a"])
