from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skminilm import MiniLMEncoder
from skminilm.checkpoints import load_checkpoint
from skminilm.engine import forward as forward_module
from skminilm.engine import get_model, release_models, resolve_device, resolve_precision
from skminilm.engine.packing import group_by_length, make_pack, plan_packs
from skminilm.engine.pooling import pool

CPU = torch.device("cpu")


def encode(texts, precision="fp32", **options):
    return MiniLMEncoder(precision=precision, device="cpu", cache=None, **options).transform(texts)


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def many_texts(requests):
    """500 real texts in 16 languages, three of them long."""
    long = [" ".join(requests.data[start : start + 12]) for start in (0, 200, 500)]
    return requests.data[: 497 * 2 : 2] + long


@pytest.fixture(scope="module")
def expected(reference, many_texts):
    return reference(many_texts)


def test_fp32_agrees_with_transformers(many_texts, expected):
    found = encode(many_texts, normalize=False, prompt=None)
    assert found.shape == (500, 384)
    assert np.abs(found - expected).max() <= 2e-5


def test_bf16_agrees_with_transformers(many_texts, expected):
    found = encode(many_texts, "bf16", normalize=False, prompt=None)
    assert cosines(found, expected).min() >= 0.9999


@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_other_poolings_agree_with_transformers(many_texts, reference, pooling):
    some = many_texts[::25]
    found = encode(some, pooling=pooling, normalize=False, prompt=None)
    assert np.abs(found - reference(some, pooling)).max() <= 2e-5


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 2e-5), ("bf16", 2e-2)])
def test_vectors_do_not_depend_on_batch_or_order(many_texts, precision, bound):
    together = encode(many_texts, precision)
    order = np.random.default_rng(0).permutation(len(many_texts))
    shuffled = encode([many_texts[i] for i in order], precision, batch_tokens=700)
    assert np.abs(shuffled - together[order]).max() <= bound
    alone = np.vstack([encode([text], precision) for text in many_texts[::50]])
    assert np.abs(alone - together[::50]).max() <= bound


def test_one_text_longer_than_the_token_budget(many_texts):
    found = encode(many_texts[-3:], batch_tokens=16)
    assert np.abs(found - encode(many_texts[-3:])).max() <= 2e-5


@pytest.mark.parametrize("max_waste", [0.0, 0.25, 10.0])
@pytest.mark.parametrize("grad", [False, True])
def test_padding_inside_attention_changes_nothing(texts, max_waste, grad, monkeypatch):
    model = get_model(load_checkpoint("bundled"), CPU, torch.float32)
    batch = model.tokenize(texts, None, "", 512)
    rows = np.argsort(-batch.lengths, kind="stable")
    found = []
    for waste in (0.0, max_waste):
        with torch.set_grad_enabled(grad):
            pack = make_pack(batch.input_ids, batch.offsets, rows, CPU, waste)
            found.append(pool(model.hidden_states(pack, model.weights), pack, "mean").detach().numpy())
    assert np.abs(found[1] - found[0]).max() <= 2e-5


def test_plain_and_fused_attention_agree():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 9, 8)
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[1, ..., 5:] = False
    with torch.no_grad():
        fused = forward_module._attend(query, key, value, mask)
    with torch.enable_grad():
        plain = forward_module._attend(query, key, value, mask)
    torch.testing.assert_close(plain, fused)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), budget=st.integers(1, 200))
@settings(deadline=None)
def test_packs_cover_each_text_once_within_the_budget(lengths, budget):
    lengths = np.array(lengths)
    packs = list(plan_packs(lengths, budget))
    assert sorted(np.concatenate(packs).tolist()) == list(range(len(lengths)))
    for rows in packs:
        assert len(rows) == 1 or lengths[rows].sum() <= budget
        assert (np.diff(lengths[rows]) <= 0).all()


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), max_waste=st.floats(0, 3, allow_nan=False)
)
@settings(deadline=None)
def test_groups_cover_the_pack_and_bound_the_padding(lengths, max_waste):
    lengths = np.array(sorted(lengths, reverse=True))
    groups = list(group_by_length(lengths, max_waste, CPU))
    assert [group.start for group in groups] == [0, *(group.stop for group in groups[:-1])]
    assert groups[-1].stop == lengths.sum()
    for group in groups:
        tokens = group.stop - group.start
        assert group.n_sequences * group.max_length <= (1 + max_waste) * tokens + 1e-9
        if group.slots is not None:
            assert len(set(group.slots.tolist())) == tokens


def test_one_model_a_process_however_many_estimators(texts):
    release_models()
    checkpoint = load_checkpoint("bundled")
    model = get_model(checkpoint, CPU, torch.float32)
    for _ in range(3):
        encode(texts[:2])
    assert get_model(checkpoint, CPU, torch.float32) is model


def test_threads_share_one_model_and_give_the_same(texts):
    from concurrent.futures import ThreadPoolExecutor

    release_models()
    expected = encode(texts)
    with ThreadPoolExecutor(4) as pool_of_threads:
        for found in pool_of_threads.map(lambda _: encode(texts), range(8)):
            assert np.abs(found - expected).max() <= 2e-5


def test_a_fork_after_use_works(texts):
    import multiprocessing

    expected = encode(texts[:8])
    with multiprocessing.get_context("fork").Pool(2) as processes:
        for found in processes.map_async(encode, [texts[:8]] * 4).get(timeout=60):
            assert np.abs(found - expected).max() <= 2e-5


def test_precision_follows_the_hardware(monkeypatch):
    monkeypatch.setattr("skminilm.engine.hardware.cpu_has_bf16", lambda: True)
    assert resolve_precision("auto", CPU) == torch.bfloat16
    monkeypatch.setattr("skminilm.engine.hardware.cpu_has_bf16", lambda: False)
    assert resolve_precision("auto", CPU) == torch.float32
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    for native, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda native=native, **_: native)
        assert resolve_precision("auto", cuda) == dtype


def test_unknown_devices_and_precisions():
    with pytest.raises(ValueError, match="device='tpu9' is not known"):
        resolve_device("tpu9")
    with pytest.raises(ValueError, match="device='meta' is not supported"):
        resolve_device("meta")
    with pytest.raises(ValueError, match="device='cuda:99' is not present"):
        resolve_device("cuda:99")
    with pytest.raises(ValueError, match="precision='fp16' needs a GPU"):
        resolve_precision("fp16", CPU)
    with pytest.raises(ValueError, match="precision='fp8' is not known"):
        resolve_precision("fp8", CPU)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 0.99999), ("bf16", 0.9999), ("fp16", 0.9999)])
def test_cuda_agrees_with_transformers(many_texts, expected, precision, bound):
    encoder = MiniLMEncoder(precision=precision, device="cuda", normalize=False, prompt=None, cache=None)
    assert cosines(encoder.transform(many_texts), expected).min() >= bound
