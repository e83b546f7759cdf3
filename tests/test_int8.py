"""Products in 8-bit integers, and vectors computed with them."""

import joblib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from skminilm import MiniLMEncoder, release_models
from skminilm.checkpoints import load_checkpoint
from skminilm.engine import get_model
from skminilm.engine.hardware import resolve_compute
from skminilm.engine.kernels import int8

needs_int8 = pytest.mark.skipif(not int8.is_available(), reason="no AVX-512 VNNI, or no kernels")


def random_matrix(n_outputs, n_inputs, generator):
    weight = torch.randn(n_outputs, n_inputs, generator=generator) / n_inputs**0.5
    return weight, torch.randn(n_outputs, generator=generator)


def random_tokens(n_tokens, size, generator, scale=1.0):
    return (scale * torch.randn(n_tokens, size, generator=generator)).bfloat16()


@needs_int8
@given(
    n_tokens=st.integers(1, 80),
    n_outputs=st.integers(1, 5).map(lambda n: 64 * n),
    n_inputs=st.integers(1, 9).map(lambda n: 64 * n),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    shift=st.sampled_from([-7.0, 0.0, 7.0]),
)
@settings(deadline=None, max_examples=60)
def test_products_are_off_by_the_rounding_of_their_factors_alone(n_tokens, n_outputs, n_inputs, scale, shift):
    generator = torch.Generator().manual_seed(n_tokens)
    weight, bias = random_matrix(n_outputs, n_inputs, generator)
    weight[0], weight[1, :-1] = 0, 0
    x = (random_tokens(n_tokens, n_inputs, generator).float() + shift).mul(scale).bfloat16()
    x[0] = scale
    found = int8.product(x, int8.Int8Matrix(weight, bias)).double()

    x, weight, bias = x.double(), weight.double(), bias.double()
    expected = x @ weight.T + bias
    step_of_x = (x.amax(1) - x.amin(1)) / 255
    step_of_weight = weight.abs().amax(1) / 127
    bound = step_of_x[:, None] / 2 * (weight.abs().sum(1) + n_inputs * step_of_weight / 2)
    bound += x.abs().sum(1)[:, None] * step_of_weight / 2
    assert ((found - expected).abs() <= 1.01 * bound + 2**-8 * expected.abs() + 1e-6).all()


@needs_int8
@pytest.mark.parametrize("n_tokens", [1, 5, 24, 25, 200])
def test_what_follows_attention_is_that_of_the_definition(n_tokens):
    size, wide = 128, 320
    generator = torch.Generator().manual_seed(n_tokens)
    shapes = {"attention_output": (size, size), "intermediate": (wide, size), "output": (size, wide)}
    matrices = {name: random_matrix(*shape, generator) for name, shape in shapes.items()}
    norms = {
        name: (1 + torch.rand(size, generator=generator), torch.randn(size, generator=generator))
        for name in ("attention_norm", "output_norm")
    }
    layer = int8.Int8Layer(
        **{name: int8.Int8Matrix(*pair) for name, pair in matrices.items()}, **norms, epsilon=1e-12
    )
    attended, hidden = (random_tokens(n_tokens, size, generator) for _ in range(2))
    found = int8.after_attention(attended, hidden, layer).float()

    def norm(x, name):
        return F.layer_norm(x, (size,), *norms[name], 1e-12)

    states = norm(F.linear(attended.float(), *matrices["attention_output"]) + hidden, "attention_norm")
    inner = F.gelu(F.linear(states, *matrices["intermediate"]))
    expected = norm(F.linear(inner, *matrices["output"]) + states, "output_norm")
    assert (found - expected).abs().max() <= 0.1
    assert (found - expected).square().mean().sqrt() <= 0.015


@needs_int8
def test_a_token_does_not_depend_on_others_or_on_threads():
    generator = torch.Generator().manual_seed(0)
    matrix = int8.Int8Matrix(*random_matrix(192, 128, generator))
    x = random_tokens(101, 128, generator)
    expected = int8.product(x, matrix)
    threads = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            for rows in (slice(None), slice(60, 101), slice(3, 20), slice(7, 8)):
                assert torch.equal(int8.product(x[rows], matrix), expected[rows])
    finally:
        torch.set_num_threads(threads)


@needs_int8
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_hidden(value):
    generator = torch.Generator().manual_seed(0)
    weight, bias = random_matrix(64, 64, generator)
    x = random_tokens(30, 64, generator)
    x[8, 33] = value
    found = int8.product(x, int8.Int8Matrix(weight, bias))
    assert found[8].isnan().all()
    assert found[torch.arange(30) != 8].isfinite().all()
    weight[5, 60] = value
    found = int8.product(x[:8], int8.Int8Matrix(weight, bias))
    assert found[:, 5].isnan().all()
    assert found[:, torch.arange(64) != 5].isfinite().all()


def encoder(**options):
    return MiniLMEncoder(**{"precision": "int8", "device": "cpu", "cache": None, **options})


@pytest.fixture(scope="module")
def mixed(requests):
    """Real texts in 16 languages from 3 to 300 tokens."""
    return [*requests.data[::9], *(" ".join(requests.data[i : i + 20]) for i in (0, 300, 700)), "a", ""]


@needs_int8
def test_vectors_are_near_those_of_float32(mixed):
    expected = encoder(precision="fp32").transform(mixed)
    found = encoder().transform(mixed)
    assert found.dtype == np.float32
    assert (found * expected).sum(axis=1).min() >= 0.997
    assert np.abs(found - expected).max() > 1e-4  # it really is another precision


@needs_int8
def test_vectors_do_not_depend_on_order_and_batches(mixed):
    together = encoder().transform(mixed)
    order = np.random.default_rng(0).permutation(len(mixed))
    shuffled = encoder(batch_tokens=300).transform([mixed[i] for i in order])
    np.testing.assert_array_equal(shuffled, together[order])


@needs_int8
def test_pairs_and_other_poolings(requests):
    pairs = np.array(requests.data[:12], dtype=object).reshape(6, 2)
    for options in ({"pooling": "cls"}, {"pooling": "max"}, {"normalize": False}):
        expected = encoder(precision="fp32", **options).transform(pairs)
        found = encoder(**options).transform(pairs)
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((found * expected).sum(axis=1) / lengths).min() >= 0.99


@needs_int8
def test_the_cache_and_files_keep_it_apart_from_other_precisions(texts, tmp_path):
    options = dict(cache=str(tmp_path / "cache"))
    plain = encoder(precision="fp32", **options).fit_transform(texts)
    fitted = encoder(**options).fit(texts)
    found = fitted.transform(texts)
    assert np.abs(found - plain).max() > 1e-4
    joblib.dump(fitted, tmp_path / "encoder.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "encoder.joblib").transform(texts), found)


@needs_int8
def test_sizes_that_do_not_fit_are_refused(transformers_folder):
    with pytest.raises(ValueError, match=r"precision='int8' needs sizes that are multiples of 64.*32 and"):
        encoder(model=transformers_folder).transform(["a"])


@needs_int8
def test_another_architecture_is_refused(distilbert_folder):
    with pytest.raises(ValueError, match=r"precision='int8' needs a BERT-shaped checkpoint.*'auto'"):
        encoder(model=distilbert_folder).transform(["a"])


@needs_int8
def test_the_model_takes_a_byte_a_weight(texts):
    release_models()
    model = get_model(load_checkpoint("bundled"), resolve_compute("torch", "cpu", "int8"))
    assert not any(name.startswith("layers.") for name in model.weights)
    assert not model._parts


def test_without_the_instructions_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setattr(int8, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"AVX-512 VNNI.*backend='openvino'.*precision='auto'"):
        encoder().fit(["a"])


def test_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(ValueError, match=r"precision='int8' is for the CPU, not device='cuda:0'"):
        encoder(device="auto").fit(["a"])


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_calibration_texts_are_for_openvino(precision, monkeypatch):
    monkeypatch.setattr(int8, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"for precision='int8' with backend='openvino', not precision="):
        encoder(precision=precision, calibration_texts=["a"]).fit(["a"])
