"""The compiled kernels, and what happens where there are none."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import attention_by_definition
from hypothesis import given, settings
from hypothesis import strategies as st

from skminilm import MiniLMClassifier, MiniLMEncoder, release_models
from skminilm.checkpoints.q4 import dequantize_q4
from skminilm.engine import kernels, varlen
from skminilm.finetuning.parameters import FlatParameters

HAVE_KERNELS = kernels.has_attention(torch.float32, 32)
needs_kernels = pytest.mark.skipif(not HAVE_KERNELS, reason="no kernels were compiled here")


def attend(qkv, lengths, n_heads):
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    return kernels.attention(qkv, cu_seqlens, n_heads)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="no compiler")
def test_an_installation_with_a_compiler_has_the_kernels():
    assert HAVE_KERNELS


@needs_kernels
@given(
    lengths=st.lists(st.integers(1, 40) | st.integers(60, 150), min_size=1, max_size=6),
    n_heads=st.integers(1, 3),
    head_size=st.sampled_from([16, 32, 64]),
    n_fill=st.integers(0, 5),
    scale=st.sampled_from([0.1, 1.0, 3.0]),
    bf16=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_attention_and_its_gradient_are_those_of_the_definition(
    lengths, n_heads, head_size, n_fill, scale, bf16
):
    n_tokens, hidden_size = sum(lengths), n_heads * head_size
    generator = torch.Generator().manual_seed(n_tokens)
    values = scale * torch.randn(n_tokens + n_fill, 3 * hidden_size, generator=generator)
    weights = torch.randn(n_tokens + n_fill, hidden_size, generator=generator)
    dtype = torch.bfloat16 if bf16 else torch.float32
    qkv = values.to(dtype).requires_grad_()
    exact = qkv.detach().double().requires_grad_()

    found, expected = attend(qkv, lengths, n_heads), attention_by_definition(exact, lengths, n_heads)
    weights = weights.to(dtype)
    found.backward(weights)
    expected.backward(weights[:n_tokens].double())
    found, expected = found.detach(), expected.detach()

    assert not found[n_tokens:].any()
    assert not qkv.grad[n_tokens:].any()
    bound = 1e-2 if bf16 else 2e-5
    for ours, theirs in ((found[:n_tokens], expected), (qkv.grad, exact.grad)):
        assert (ours.double() - theirs).abs().max() <= bound * max(1.0, float(theirs.abs().max()))


@needs_kernels
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("head_size", [32, 96])
def test_attention_over_each_length_is_that_of_the_definition(dtype, bound, head_size):
    lengths = [*range(1, 131), 257]
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(lengths), 3 * head_size, generator=generator).to(dtype).requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    weights = torch.randn(sum(lengths), head_size, generator=generator).to(dtype)
    found, expected = attend(qkv, lengths, 1), attention_by_definition(exact, lengths, 1)
    found.backward(weights)
    expected.backward(weights.double())
    for ours, theirs in ((found.detach(), expected.detach()), (qkv.grad, exact.grad)):
        assert (ours.double() - theirs).abs().max() <= bound * theirs.abs().max()


def test_attention_in_another_precision_is_refused():
    with pytest.raises(TypeError, match=r"no such kernel for torch\.float16"):
        attend(torch.zeros(2, 96, dtype=torch.float16), [2], 1)


@needs_kernels
@pytest.mark.parametrize("scale", [1e3, 1e5, 1e8])
def test_large_scores_are_no_harm_to_attention(scale):
    qkv = torch.randn(70, 3 * 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    qkv[:, :128] *= scale
    expected = attention_by_definition(qkv.double(), [70], 2)
    assert (attend(qkv, [70], 2).double() - expected).abs().max() <= 0.02


@needs_kernels
def test_rows_in_4_bits_are_those_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    every_scale = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.uint8).view(-1, 2, 2)
    numbers = torch.randint(0, 256, (len(every_scale), 2, 16), dtype=torch.uint8, generator=generator)
    table = torch.cat([every_scale, numbers], dim=-1)
    ids = torch.randperm(len(table), generator=generator)
    torch.testing.assert_close(
        kernels.gather_q4(table, ids), dequantize_q4(table[ids]), rtol=0, atol=0, equal_nan=True
    )


@needs_kernels
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
def test_gelu_and_its_gradient_are_those_of_the_definition(dtype, bound):
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.linspace(-30, 30, 4001), 3 * torch.randn(95, generator=generator)])
    weights = torch.randn(len(x), generator=generator).to(dtype)
    found = x.to(dtype).requires_grad_()
    exact = found.detach().double().requires_grad_()
    result, expected = kernels.gelu(found), torch.nn.functional.gelu(exact)
    result.backward(weights)
    expected.backward(weights.double())
    for ours, theirs in ((result, expected), (found.grad, exact.grad)):
        assert ours.dtype == dtype
        difference = (ours.detach().double() - theirs.detach()).abs()
        assert (difference <= bound * theirs.detach().abs().clamp(min=1.0)).all()


@needs_kernels
def test_gelu_passes_on_what_is_no_number_and_takes_any_size():
    x = torch.tensor([float("nan"), *range(16)])
    assert kernels.gelu(x)[0].isnan()  # 17 numbers: torch's own
    assert kernels.gelu(x[:16])[0].isnan()
    assert kernels.gelu(x[:16].double()).dtype == torch.float64


@needs_kernels
@pytest.mark.parametrize(
    ("dtype", "gradient_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),  # gradients that several processes added up
    ],
)
def test_a_step_of_adamw_is_that_of_torch(dtype, gradient_dtype, request):
    generator = torch.Generator().manual_seed(0)
    start = {"a": torch.randn(40, 33, generator=generator), "b": torch.randn(7, generator=generator)}
    steps = [
        [torch.randn(tensor.shape, generator=generator).to(gradient_dtype) for tensor in start.values()]
        for _ in range(5)
    ]

    def train():
        part = FlatParameters(start, dtype, learning_rate=1e-2, weight_decay=0.1)
        for number, gradients in enumerate(steps):
            part.step([gradient.clone() for gradient in gradients], rate=1 - number / 5, scale=0.7)
        return part

    found = train()
    request.getfixturevalue("no_kernels")
    expected = train()
    assert (found.master != torch.cat([tensor.flatten() for tensor in start.values()])).all()
    torch.testing.assert_close(found.master, expected.master, rtol=1e-5, atol=1e-6)
    for name, view in found.views.items():
        assert view.dtype == dtype
        assert torch.equal(view.flatten(), found._split(found.master)[name].to(dtype).flatten())


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_does_not_depend_on_the_number_of_threads(dtype):
    lengths = [90, 33, 17, 4, 1]
    qkv = torch.randn(sum(lengths), 3 * 128, generator=torch.Generator().manual_seed(0))
    qkv = qkv.to(dtype).requires_grad_()
    results = []
    threads = torch.get_num_threads()
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        try:
            attended = attend(qkv, lengths, 4)
            (gradient,) = torch.autograd.grad(attended.square().sum(), qkv)
        finally:
            torch.set_num_threads(threads)
        results.append((attended.detach().float().numpy().tobytes(), gradient.float().numpy().tobytes()))
    assert results[0] == results[1] == results[2]


@needs_kernels
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_is_not_hidden(value, dtype):
    qkv = torch.randn(9, 3 * 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    qkv[6, 72] = value  # a key of the first head in the second sequence
    attended, expected = attend(qkv, [5, 4], 2), attention_by_definition(qkv, [5, 4], 2)
    assert expected[5:, :32].isnan().any()
    assert torch.equal(attended.isnan(), expected.isnan())
    assert attended[:5].isfinite().all()


@needs_kernels
@pytest.mark.parametrize("length", [3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_infinite_key_harms_no_other_gradient(dtype, length):
    qkv = torch.randn(length, 3 * 32, generator=torch.Generator().manual_seed(0)).abs().to(dtype)
    qkv[1, 32] = -float("inf")
    qkv.requires_grad_()
    attend(qkv, [length], 1).backward(torch.ones(length, 32, dtype=dtype))
    assert qkv.grad[:, 32:].isfinite().all()


@needs_kernels
def test_a_narrower_processor_computes_the_same():
    script = """if True:
        import torch
        from skminilm.checkpoints.q4 import dequantize_q4
        from skminilm.engine import kernels
        assert torch.backends.cpu.get_cpu_capability() == "AVX2"
        assert kernels.has_attention(torch.float32, 32)
        table = torch.randint(0, 256, (9, 12, 18), dtype=torch.uint8)
        rows, expected = kernels.gather_q4(table, torch.arange(9)), dequantize_q4(table)
        torch.testing.assert_close(rows, expected, rtol=0, atol=0, equal_nan=True)
        qkv = torch.randn(100, 192, generator=torch.Generator().manual_seed(0), requires_grad=True)
        attended = kernels.attention(qkv, torch.tensor([0, 70, 100], dtype=torch.int32), 2)
        (found,) = torch.autograd.grad(attended.square().sum(), qkv)
        parts = [part.view(-1, 3, 2, 32).permute(1, 2, 0, 3) for part in qkv.split([70, 30])]
        expected = torch.cat([
            torch.nn.functional.scaled_dot_product_attention(*heads).transpose(0, 1).flatten(1)
            for heads in parts
        ])
        (gradient,) = torch.autograd.grad(expected.square().sum(), qkv)
        assert gradient.abs().mean() > 1e-3
        print(float((attended - expected).abs().max()), float((found - gradient).abs().max()))
    """
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("neither AVX2 nor AVX-512")
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert all(float(difference) <= 1e-5 for difference in run.stdout.split())


@pytest.fixture
def no_kernels(monkeypatch):
    release_models()
    monkeypatch.setattr(varlen, "_works", {})
    monkeypatch.setattr(kernels._library, "load", lambda: None)
    yield
    release_models()


@needs_kernels
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_vectors_are_the_same_without_kernels(texts, precision, request):
    texts = texts[::4]
    encoder = MiniLMEncoder(precision=precision, device="cpu", cache=None)
    expected = encoder.transform(texts)
    request.getfixturevalue("no_kernels")
    found = encoder.transform(texts)
    assert (found * expected).sum(axis=1).min() >= 0.9999
    assert precision == "bf16" or np.abs(found - expected).max() <= 1e-5


@pytest.mark.slow
@needs_kernels
def test_fine_tuning_is_the_same_without_kernels(requests, request):
    X, y = requests.data[:64], requests.target[:64]
    options = dict(epochs=1, batch_size=16, precision="fp32", random_state=0)
    expected = MiniLMClassifier(**options).fit(X, y)
    request.getfixturevalue("no_kernels")
    found = MiniLMClassifier(**options).fit(X, y)
    assert found.history_[0]["loss"] == pytest.approx(expected.history_[0]["loss"], rel=1e-3)
    np.testing.assert_allclose(found.predict_proba(X), expected.predict_proba(X), atol=5e-3)


@needs_kernels
def test_a_library_of_another_version_is_not_used(monkeypatch):
    kernels._library.load.cache_clear()
    monkeypatch.setattr(kernels._library, "_VERSION", -1)
    try:
        with pytest.warns(UserWarning, match="another version of this package and are not used") as caught:
            found = [kernels.has_attention(torch.float32, 32) for _ in range(2)]
        assert found == [False, False]
        assert len(caught) == 1
    finally:
        monkeypatch.undo()
        kernels._library.load.cache_clear()
    assert kernels.has_attention(torch.float32, 32)


@needs_kernels
def test_a_torch_that_keeps_its_openmp_to_itself():
    script = """if True:
        import ctypes
        shared = ctypes.CDLL
        ctypes.CDLL = lambda path, mode=0, *arguments: shared(path, ctypes.RTLD_LOCAL, *arguments)  # as on ARM
        import torch
        ctypes.CDLL = shared
        from skminilm.engine.kernels import _library
        print(_library.load() is not None)
    """
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "True\n"), run.stderr


def test_the_slope_of_gelu_at_any_size():
    x = torch.tensor([1e3, 1e24, 1e28, 1e38, -1e3, -1e24, -1e28, -1e38] * 2, requires_grad=True)
    kernels.gelu(x).sum().backward()
    torch.testing.assert_close(x.grad, (x > 0).float())


@needs_kernels
def test_ids_outside_of_a_table_in_4_bits_are_an_error():
    table = torch.zeros(10, 12, 18, dtype=torch.uint8)
    for bad in (10, 2**31 - 1, -1):
        with pytest.raises(IndexError, match="outside of the 10 rows"):
            kernels.gather_q4(table, torch.tensor([0, bad]))


@needs_kernels
@pytest.mark.parametrize("width", [64, 704, 3008, 0])
def test_widths_that_are_no_heads_are_an_error(width):
    with pytest.raises(ValueError, match="no queries, keys and values of 12 heads"):
        kernels.attention(torch.zeros(4, width), torch.tensor([0, 4], dtype=torch.int32), 12)
