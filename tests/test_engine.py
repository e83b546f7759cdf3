import gc
import os
import threading
import weakref
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import attention_by_definition, plain_hidden_states
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from skminilm import MiniLMClassifier, MiniLMEncoder, release_models
from skminilm._cache import VectorCache, state_cache
from skminilm.checkpoints import load_checkpoint, tokenize
from skminilm.checkpoints.digests import arrays_digest
from skminilm.checkpoints.token_batch import TokenBatch
from skminilm.engine import (
    Compute,
    SpanPlaces,
    TunedWeights,
    find_best_spans,
    get_model,
    get_tuned_model,
    layers,
    linear,
    packed_model,
    read_trainable_weights,
    registry,
    resolve_compute,
    streaming,
    varlen,
)
from skminilm.engine.attention import attention
from skminilm.engine.forward import gather_word_embeddings
from skminilm.engine.hardware import cpu_has_bf16, resolve_device
from skminilm.engine.kernels import layers as compiled_layers
from skminilm.engine.layer_states import LayerStates
from skminilm.engine.packed_model import PackedModel
from skminilm.engine.packing import group_by_length, make_pack, plan_packs, round_up
from skminilm.engine.pooling import pool
from skminilm.engine.sentence_transformers_model import SentenceTransformersModel
from skminilm.engine.spans import best_spans
from skminilm.engine.streaming import plan_chunks

CPU = torch.device("cpu")


def encode(texts, precision="fp32", **options):
    return MiniLMEncoder(precision=precision, device="cpu", cache=None, **options).transform(texts)


def some_in(precision, n_texts):
    """All texts, or the last fifth: without the instructions bfloat16 takes ten times as long as float32."""
    return slice(n_texts * 4 // 5 if precision == "bf16" and not cpu_has_bf16() else 0, None)


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def many_texts(requests):
    """160 real texts in 16 languages, three of them long."""
    long = [" ".join(requests.data[start : start + 12]) for start in (0, 200, 500)]
    return requests.data[: 157 * 6 : 6] + long


@pytest.fixture(scope="module")
def expected(reference, many_texts):
    return reference(many_texts)


def test_fp32_agrees_with_transformers(many_texts, expected):
    found = encode(many_texts, normalize=False, prompt=None)
    assert found.shape == (len(many_texts), 384)
    assert np.abs(found - expected).max() <= 2e-5


def test_bf16_agrees_with_transformers(many_texts, expected):
    some = some_in("bf16", len(many_texts))
    found = encode(many_texts[some], "bf16", normalize=False, prompt=None)
    assert cosines(found, expected[some]).min() >= 0.9999


@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_other_poolings_agree_with_transformers(many_texts, reference, pooling):
    some = many_texts[::8]
    found = encode(some, pooling=pooling, normalize=False, prompt=None)
    assert np.abs(found - reference(some, pooling)).max() <= 2e-5


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 2e-5), ("bf16", 2e-2)])
def test_vectors_do_not_depend_on_batch_or_order(many_texts, precision, bound):
    many_texts = many_texts[some_in(precision, len(many_texts))][::2]
    together = encode(many_texts, precision)
    order = np.random.default_rng(0).permutation(len(many_texts))
    shuffled = encode([many_texts[i] for i in order], precision, batch_tokens=700)
    assert np.abs(shuffled - together[order]).max() <= bound
    alone = np.vstack([encode([text], precision) for text in many_texts[::8]])
    assert np.abs(alone - together[::8]).max() <= bound


def test_one_text_longer_than_the_token_budget(many_texts):
    found = encode(many_texts[-3:], batch_tokens=16)
    assert np.abs(found - encode(many_texts[-3:])).max() <= 2e-5


def test_padding_inside_attention_changes_nothing(texts):
    checkpoint = load_checkpoint("bundled")
    weights = dict(read_trainable_weights(checkpoint, 0, None))
    batch = tokenize(checkpoint.tokenizer, texts[:16], None, checkpoint.defaults)
    rows = np.argsort(-batch.lengths, kind="stable")
    found = []
    for max_padding in (0.0, 10.0):
        with torch.no_grad():
            pack = make_pack(batch, rows, CPU, max_padding)
            found.append(pool(plain_hidden_states(weights, pack, checkpoint.config), pack, "mean").numpy())
    assert np.abs(found[1] - found[0]).max() <= 2e-5


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    max_padding=st.sampled_from([0.0, 0.25, 10.0]),
    length_step=st.sampled_from([1, 16]),
    max_plain_length=st.sampled_from([0, 8, 256]),
)
@settings(deadline=None, max_examples=50)
def test_attention_and_its_gradients_are_those_of_the_definition(
    lengths, max_padding, length_step, max_plain_length
):
    n_heads, hidden_size = 2, 8
    lengths = sorted(lengths, reverse=True)
    n_tokens = sum(lengths)
    batch = TokenBatch(np.zeros(n_tokens, np.int32), np.array(lengths), np.array(lengths))
    pack = make_pack(batch, np.arange(len(lengths)), CPU, max_padding, length_step)
    generator = torch.Generator().manual_seed(n_tokens)
    values = torch.randn(len(pack.input_ids), 3 * hidden_size, generator=generator)
    weights = torch.randn(n_tokens, hidden_size, generator=generator)

    qkv, exact = values.clone().requires_grad_(), values.double().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skminilm.engine.attention._MAX_PLAIN_LENGTH", max_plain_length)
        found, expected = attention(qkv, pack, n_heads), attention_by_definition(exact, lengths, n_heads)
    (found[:n_tokens] * weights).sum().backward()
    (expected * weights).sum().backward()

    with torch.no_grad():
        torch.testing.assert_close(attention(values, pack, n_heads)[:n_tokens], expected.float())
    torch.testing.assert_close(found[:n_tokens], expected.float())
    torch.testing.assert_close(qkv.grad, exact.grad.float())


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), budget=st.integers(1, 200))
@settings(deadline=None)
def test_packs_cover_each_text_once_within_the_budget(lengths, budget):
    lengths = np.array(lengths)
    packs = list(plan_packs(lengths, budget))
    assert sorted(np.concatenate(packs).tolist()) == list(range(len(lengths)))
    for rows in packs:
        assert len(rows) == 1 or lengths[rows].sum() <= budget
        assert (np.diff(lengths[rows]) <= 0).all()


@given(lengths=st.lists(st.integers(1, 64), min_size=20, max_size=300))
@settings(deadline=None)
def test_packs_are_of_like_size(lengths):
    lengths = np.array(lengths)
    sizes = [lengths[rows].sum() for rows in plan_packs(lengths, 512)]
    assert len(sizes) == 1 or min(sizes) >= 512 / 2 - 64


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    max_padding=st.floats(0, 3, allow_nan=False),
)
@settings(deadline=None)
def test_groups_cover_the_pack_and_bound_the_padding(lengths, max_padding):
    lengths = np.array(sorted(lengths, reverse=True))
    groups = list(group_by_length(lengths, max_padding, CPU))
    assert [group.start for group in groups] == [0, *(group.stop for group in groups[:-1])]
    assert groups[-1].stop == lengths.sum()
    for group in groups:
        tokens = group.stop - group.start
        assert group.n_sequences * group.max_length <= (1 + max_padding) * tokens + 1e-9
        if group.slots is not None:
            assert len(set(group.slots.tolist())) == tokens


def test_rows_of_a_4_bit_table_are_gathered_off_the_cpu_without_a_look_at_the_ids():
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(0, 256, (1000, 12, 18), dtype=torch.uint8, generator=generator)
    table[..., :2] = torch.tensor([0, 0x3C], dtype=torch.uint8)  # all scales are 1
    ids = torch.randint(0, 50, (500,), generator=generator)
    found = gather_word_embeddings(table, ids)
    torch.testing.assert_close(found, torch.cat([gather_word_embeddings(table, i[None]) for i in ids]))
    # A tensor on this device has no values: what reads them raises.
    assert gather_word_embeddings(table.to("meta"), ids.to("meta")).shape == found.shape


def test_one_model_a_process_however_many_estimators(texts):
    release_models()
    checkpoint = load_checkpoint("bundled")
    model = get_model(checkpoint, Compute(CPU, "fp32"))
    for _ in range(3):
        encode(texts[:2])
    assert get_model(checkpoint, Compute(CPU, "fp32")) is model


def word_table(model):
    return model.weights["embeddings.word"]


def tuned_weights(checkpoint, *names):
    """What fine-tuning might have changed: everything twice as large."""
    arrays = {n: 2 * t.numpy() for n, t in read_trainable_weights(checkpoint, 0, None) if n in names}
    if "embeddings.word" in arrays:
        arrays["embeddings.word"] = arrays["embeddings.word"][:3]
        arrays["embeddings.word.rows"] = np.arange(3)
    return TunedWeights(arrays, arrays_digest(arrays))


def test_models_of_one_checkpoint_share_the_frozen_embedding_table(transformers_folder):
    release_models()
    checkpoint = load_checkpoint(transformers_folder)
    base = get_model(checkpoint, Compute(CPU, "fp32"))
    before = word_table(base).clone()
    layers = tuned_weights(checkpoint, "layers.0.output.bias", "layers.1.output.bias")
    everything = tuned_weights(checkpoint, "layers.0.output.bias", "embeddings.word", "embeddings.position")
    for model in (
        get_model(checkpoint, Compute(CPU, "bf16")),
        get_tuned_model(checkpoint, Compute(CPU, "fp32"), layers, state_cache),
    ):
        assert word_table(model).data_ptr() == word_table(base).data_ptr()
    own = get_tuned_model(checkpoint, Compute(CPU, "fp32"), everything, state_cache)
    torch.testing.assert_close(word_table(own)[:3], 2 * before[:3])
    torch.testing.assert_close(word_table(own)[3:], before[3:])
    torch.testing.assert_close(word_table(base), before, rtol=0, atol=0)


def test_training_all_leaves_the_shared_embedding_table_as_it_is(transformers_folder, english):
    X, y = english
    release_models()
    base = get_model(load_checkpoint(transformers_folder), Compute(CPU, "fp32"))
    before = word_table(base).clone()
    options = dict(epochs=1, max_length=64, precision="fp32", device="cpu", random_state=0)
    for trainable in ("encoder", "all"):
        MiniLMClassifier(transformers_folder, trainable=trainable, **options).fit(X, y).predict(X)
        torch.testing.assert_close(word_table(base), before, rtol=0, atol=0)


def test_an_embedding_table_that_no_model_holds_is_freed(transformers_folder):
    release_models()
    gc.collect()  # earlier tests may have left cycles that hold the same table
    checkpoint = load_checkpoint(transformers_folder)
    table = weakref.ref(word_table(get_model(checkpoint, Compute(CPU, "fp32"))))
    assert table() is not None
    release_models()
    assert table() is None


def test_threads_share_one_model_and_give_the_same(texts, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from skminilm.engine import registry

    expected = encode(texts)
    release_models()
    build, built = registry._packed_model, []
    monkeypatch.setattr(registry, "_packed_model", lambda *a: built.append(1) or build(*a))
    with ThreadPoolExecutor(4) as pool_of_threads:
        for found in pool_of_threads.map(lambda _: encode(texts), range(8)):
            assert np.abs(found - expected).max() <= 2e-5
    assert len(built) == 1


def test_the_model_that_was_not_used_for_longest_makes_room(monkeypatch):
    class Model:
        pass

    monkeypatch.setattr(registry, "_models", OrderedDict())
    held = [registry.get_or_build((number,), Model) for number in range(6)]
    assert registry.get_or_build((0,), Model) is held[0]  # used again: the second is the oldest now
    oldest = weakref.ref(held[1])
    held[1] = None
    assert oldest() is not None
    registry.get_or_build((6,), Model)
    assert oldest() is None  # nothing else holds on to it
    assert list(registry._models) == [(2,), (3,), (4,), (5,), (0,), (6,)]
    assert registry.get_or_build((0,), Model) is held[0]
    built = []
    registry.get_or_build((1,), lambda: built.append(1) or Model())
    assert built == [1]


def test_a_fork_after_use_works(texts):
    import multiprocessing

    expected = encode(texts[:8])
    with multiprocessing.get_context("fork").Pool(2) as processes:
        for found in processes.map_async(encode, [texts[:8]] * 4).get(timeout=600):
            assert np.abs(found - expected).max() <= 2e-5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_a_thread_computes_with_another_architecture(distilbert_folder, monkeypatch):
    """The locks of the library's tokenizer are held in the child, by a thread that is not there."""
    encode(["a"], model=distilbert_folder)
    (model,) = (model for model in registry._models.values() if isinstance(model, SentenceTransformersModel))
    with model._lock:  # as another thread would
        child = os.fork()
        if child == 0:
            os._exit(0 if model not in registry._models.values() and model in registry._lost_in_fork else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    child = os.fork()
    if child == 0:
        os._exit(0 if model in registry._models.values() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_precision_follows_the_hardware(monkeypatch):
    config = load_checkpoint("bundled").config

    def precision(device, backend="torch", config=config):
        return resolve_compute(backend, device, "auto", config=config).precision

    monkeypatch.setattr("skminilm.engine.hardware.cpu_has_bf16", lambda: True)
    assert precision("cpu") == "bf16"
    monkeypatch.setattr("skminilm.engine.hardware.cpu_has_bf16", lambda: False)
    monkeypatch.setattr(compiled_layers, "is_available", lambda dtype: dtype == torch.int16)
    assert precision("cpu") == "int16"
    assert precision("cpu", config=replace(config, hidden_size=312)) == "fp32"
    assert precision("cpu", config=None) == precision("cpu", "openvino") == "fp32"
    monkeypatch.setattr(compiled_layers, "is_available", lambda _: False)
    assert precision("cpu") == "fp32"
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for native, best in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda native=native, **_: native)
        assert precision("cuda:0") == best


def test_bf16_without_its_instructions_is_done_and_said(monkeypatch, recwarn):
    monkeypatch.setattr("skminilm.engine.hardware.cpu_has_bf16", lambda: False)
    with pytest.warns(UserWarning, match=r"precision='bf16' is slow on this processor.*'auto'") as caught:
        assert resolve_compute("torch", "cpu", "bf16").precision == "bf16"
    assert caught[0].filename == __file__
    recwarn.clear()
    for precision in ("auto", "fp32"):
        resolve_compute("torch", "cpu", precision)
    monkeypatch.setattr("skminilm.engine.hardware.cpu_has_bf16", lambda: True)
    resolve_compute("torch", "cpu", "bf16")
    assert not recwarn.list


@pytest.mark.parametrize("estimator", ["encoder", "classifier", "of other sizes", "foreign"])
def test_auto_without_bf16_works_for_all(
    estimator, texts, transformers_folder, distilbert_folder, monkeypatch
):
    monkeypatch.setattr("skminilm.engine.hardware.cpu_has_bf16", lambda: False)
    if estimator == "classifier":
        labels = ["a", "b"] * 4
        classifier = MiniLMClassifier(trainable=1, epochs=1, device="cpu", random_state=0)
        found = classifier.fit(texts[:8], labels).predict_proba(texts[:8])
        if compiled_layers.is_available(torch.int16):
            asked_for = clone(classifier).set_params(precision="int16").fit(texts[:8], labels)
            np.testing.assert_array_equal(asked_for.predict_proba(texts[:8]), found)
        expected = classifier.set_params(precision="fp32").predict_proba(texts[:8])
    else:
        folders = {"of other sizes": transformers_folder, "foreign": distilbert_folder}
        options = dict(model=folders.get(estimator, "bundled"), device="cpu", cache=None)
        found = MiniLMEncoder(**options).fit_transform(texts[:8])
        expected = MiniLMEncoder(precision="fp32", **options).transform(texts[:8])
    in_integers = estimator in ("encoder", "classifier") and compiled_layers.is_available(torch.int16)
    assert 1e-6 * in_integers <= np.abs(found - expected).max() <= 1e-3


@pytest.fixture
def after_a_fork(monkeypatch):
    """What torch says of a GPU in a process that was forked from one that used it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_a_fork_lost_says_what_to_do(after_a_fork, device):
    expected = (
        rf"device='{device}' cannot be used in this process: it was forked .* 'loky'.*'spawn'.*'threading'"
    )
    with pytest.raises(ValueError, match=expected):
        MiniLMEncoder(device=device).transform(["a"])
    with pytest.raises(ValueError, match=expected):
        MiniLMClassifier(trainable="head", device=device).fit(["a", "b"], [0, 1])


def test_auto_is_the_cpu_where_a_fork_lost_the_gpu(after_a_fork, monkeypatch, recwarn):
    with pytest.warns(UserWarning, match="device='auto' is the CPU in this process, although there is a GPU"):
        assert resolve_compute("torch", "auto", "fp32").device == torch.device("cpu")
    recwarn.clear()
    resolve_compute("torch", "cpu", "fp32")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # a CUDA build of torch, and no GPU
    resolve_compute("torch", "auto", "fp32")
    assert not recwarn.list
    with pytest.raises(ValueError, match="device='cuda' is not present"):
        resolve_compute("torch", "cuda", "fp32")


def test_several_gpus_share_a_call(pretend_gpus, monkeypatch):
    pretend_gpus(["A", "B", "A"])
    assert resolve_compute("torch", "auto", "fp32").helpers == (torch.device("cuda", 2),)
    assert resolve_compute("torch", "cuda", "fp32").helpers == ()
    assert resolve_compute("torch", "cpu", "fp32").helpers == ()
    monkeypatch.setenv("WORLD_SIZE", "3")  # each of three processes has its own
    assert resolve_compute("torch", "auto", "fp32").helpers == ()


@pytest.mark.parametrize(
    ("local_rank", "n_gpus", "current", "index"),
    [(1, 2, 0, 1), (3, 2, 0, 1), (1, 1, 0, 0), (1, 4, 2, 2)],
    ids=["own", "in turn", "the only one", "chosen before"],
)
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_of_several_processes_has_its_own_gpu(
    device, local_rank, n_gpus, current, index, pretend_gpus, monkeypatch
):
    pretend_gpus(["A"] * n_gpus, current)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    assert resolve_device(device) == torch.device("cuda", current)  # as a notebook may have it set
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert resolve_device(device) == torch.device("cuda", index)
    assert resolve_device("cuda:0") == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("architectures", "capability", "device"),
    [
        (["sm_75", "sm_80", "sm_90", "compute_90"], (6, 1), "cpu"),
        (["sm_75", "sm_80", "sm_90", "compute_90"], (7, 5), "cuda:0"),
        (["sm_75", "sm_80", "sm_90", "compute_90"], (8, 9), "cuda:0"),
        (["sm_75", "sm_80", "sm_90", "compute_90"], (12, 0), "cuda:0"),
        (["sm_75", "sm_86", "sm_90a"], (8, 0), "cpu"),
        (["sm_75", "sm_86", "sm_90a"], (12, 0), "cpu"),
        (["gfx90a", "gfx942"], (9, 4), "cuda:0"),
        ([], (6, 1), "cuda:0"),
    ],
    ids=str,
)
def test_auto_is_the_cpu_where_torch_was_not_built_for_the_gpu(
    architectures, capability, device, pretend_gpus, monkeypatch, recwarn
):
    pretend_gpus(["A"])
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_device("auto") == torch.device(device)
    warnings = [str(warning.message) for warning in recwarn.list]
    assert len(warnings) == (device == "cpu")
    assert all("has no kernels for the GPU A" in warning for warning in warnings)
    assert resolve_device("cuda") == torch.device("cuda", 0)


def test_a_gpu_that_cannot_be_asked_for_its_name_is_left_out(pretend_gpus, monkeypatch):
    def name(device):
        if device.index == 1:  # counted by the driver, and none of CUDA's: MIG is on
            raise AssertionError("Invalid device id")
        if device.index == 2:
            raise RuntimeError("CUDA error: GPU is lost")
        return "A"

    pretend_gpus(["A"] * 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    assert resolve_compute("torch", "auto", "fp32").helpers == (torch.device("cuda", 3),)


def test_replicas_take_turns_and_give_the_same_vectors(many_texts, monkeypatch):
    checkpoint = load_checkpoint("bundled")
    short = replace(checkpoint.defaults, max_length=64)
    expected, _ = get_model(checkpoint, Compute(CPU, "fp32")).encode(many_texts, None, short)
    shared = get_model(checkpoint, Compute(CPU, "fp32", helpers=(CPU,)))
    computed = []
    original = PackedModel.start

    def counting(self, batch, rows, *args):
        computed.extend((id(self), row) for row in rows)
        return original(self, batch, rows, *args)

    monkeypatch.setattr(PackedModel, "start", counting)
    found, _ = shared.encode(many_texts, None, short, batch_tokens=256)
    assert np.abs(found - expected).max() <= 2e-5
    by_replica = list(Counter(replica for replica, _ in computed).values())
    assert len(by_replica) == 2
    assert sum(by_replica) == len(many_texts)
    assert min(by_replica) > len(many_texts) / 4


@pytest.mark.parametrize("full", ["at the start", "later"])
def test_a_gpu_that_others_fill_is_left_out(many_texts, monkeypatch, full):
    checkpoint = load_checkpoint("bundled")
    short = replace(checkpoint.defaults, max_length=64)
    expected, _ = get_model(checkpoint, Compute(CPU, "fp32")).encode(many_texts, None, short)
    release_models()
    built, start, initialise = [], PackedModel.start, PackedModel.__init__

    def counting(self, *args):
        built.append(self)
        if len(built) == 2 and full == "at the start":
            raise torch.OutOfMemoryError("of somebody else")
        initialise(self, *args)

    def running(self, *args):
        if len(built) > 1 and self is built[1]:
            raise MemoryError("One text does not fit")
        return start(self, *args)

    monkeypatch.setattr(PackedModel, "__init__", counting)
    monkeypatch.setattr(PackedModel, "start", running)
    shared = get_model(checkpoint, Compute(CPU, "fp32", helpers=(CPU, CPU)))
    assert len(built) == 3
    found, _ = shared.encode(many_texts, None, short, batch_tokens=256)
    assert np.abs(found - expected).max() <= 2e-5
    release_models()


@pytest.mark.parametrize(
    ("backend", "device", "precision", "message"),
    [
        ("torch", "tpu9", "auto", "device='tpu9' is not known"),
        ("torch", "meta", "auto", "device='meta' is not supported"),
        ("torch", "cuda:99", "auto", "device='cuda:99' is not present"),
        ("torch", "cpu:1", "auto", "device='cpu:1' is not known: use 'cpu'"),
        ("torch", "cpu", "fp16", "precision='fp16' needs a GPU"),
        ("torch", "cpu", "fp8", "precision='fp8' is not known"),
        ("openvino", "cpu", "fp16", "precision='fp16' needs a GPU"),
        ("openvino", "cpu", "int16", "precision='int16' needs backend='torch'"),
        ("openvino", "cuda", "auto", "device='cuda' needs backend='torch'"),
        ("onnx", "cpu", "auto", "backend='onnx' is not known"),
    ],
)
def test_what_cannot_be_computed_with(backend, device, precision, message):
    with pytest.raises(ValueError, match=message):
        resolve_compute(backend, device, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("broken", ["missing", "raising", "wrong"])
def test_without_prepacked_products_the_vectors_are_the_same(texts, precision, broken, monkeypatch):
    texts = texts[some_in(precision, len(texts))]
    expected = encode(texts, precision)

    class Operators:
        def __getattr__(self, name):
            if broken == "missing":
                raise AttributeError(name)
            if broken == "raising":
                return lambda *args: (_ for _ in ()).throw(RuntimeError("not for this processor"))
            return lambda x, *args: x  # returns something, but not the product

    monkeypatch.setattr(linear, "_ops", Operators)
    monkeypatch.setattr(linear, "_can_prepack", {})
    monkeypatch.setattr(layers.compiled, "is_available", lambda dtype: False)
    release_models()
    try:
        assert not linear.can_prepack(torch.float32)
        assert cosines(encode(texts, precision), expected).min() >= 0.9999
    finally:
        release_models()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prepacked_and_plain_products_agree(dtype):
    if not linear.can_prepack(dtype):
        pytest.skip(f"oneDNN has none in {dtype} here")
    generator = torch.Generator().manual_seed(0)
    weights = {
        "layers.0.x.weight": torch.randn(48, 32, generator=generator).to(dtype),
        "layers.0.x.bias": torch.randn(48, generator=generator).to(dtype),
    }
    x, residual = (torch.randn(5, n, generator=generator).to(dtype) for n in (32, 48))
    with torch.inference_mode():
        prepacked = linear.PrepackedLinear(weights)
        prepacked.add("layers.0.x.weight", weights["layers.0.x.weight"])
        for options in ({}, {"gelu": True}, {"residual": residual}):
            found = prepacked(x, "layers.0.x", **options)
            expected = linear.PlainLinear(weights)(x, "layers.0.x", **options)
            torch.testing.assert_close(found, expected, rtol=2e-2, atol=5e-2)


@given(n_tokens=st.integers(1, 100_000))
def test_packs_have_few_different_sizes(n_tokens):
    slots = round_up(n_tokens)
    assert n_tokens <= slots <= n_tokens * 9 / 8
    assert len({round_up(n) for n in range(2048, 4097)}) <= 9


@given(lengths=st.lists(st.integers(0, 5000), min_size=1, max_size=200), batch_tokens=st.integers(1, 4000))
def test_chunks_cover_each_text_once_longest_first(lengths, batch_tokens):
    chunks = list(plan_chunks(["x" * n for n in lengths], None, batch_tokens))
    rows = np.concatenate(chunks)
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    assert (np.diff(np.array(lengths)[rows]) <= 0).all()


@pytest.mark.parametrize(("batch_tokens", "n_packs"), [(2048, 128), (65_536, 4), (1_000_000, 1)])
def test_chunks_grow_up_to_a_bound_of_tokens(batch_tokens, n_packs):
    n_characters = [len(chunk) * 400 for chunk in plan_chunks(["x" * 400] * 60_000, None, batch_tokens)]
    packs = [round(n / (4 * batch_tokens)) for n in n_characters]
    assert packs[0] == 1
    assert packs[:-1] == [min(2**i, n_packs) for i in range(len(packs) - 1)]  # the rest joins the last


def test_many_chunks_give_what_one_gives(many_texts, monkeypatch):
    expected = encode(many_texts)
    monkeypatch.setattr(streaming, "_CHARACTERS_PER_TOKEN", 0.01)
    assert np.abs(encode(many_texts) - expected).max() <= 2e-5


def test_an_error_while_tokenising_ahead_arrives(many_texts, monkeypatch):
    monkeypatch.setattr(streaming, "_CHARACTERS_PER_TOKEN", 0.01)
    model = get_model(load_checkpoint("bundled"), Compute(CPU, "fp32"))
    original, calls = type(model.tokenizer).encode, []

    def failing(self, *args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("third chunk")
        return original(self, *args, **options)

    monkeypatch.setattr(type(model.tokenizer), "encode", failing)
    with pytest.raises(RuntimeError, match="third chunk"):
        encode(many_texts)


def _count_under_way(start, counts):
    """Let `start` note in `counts` how many of its results nobody has waited for yet."""
    waiting = set()

    def counting(*args):
        result, number = start(*args), len(counts)
        waiting.add(number)
        counts.append(len(waiting))

        def wait():
            waiting.remove(number)
            return result()

        return wait

    return counting


def test_results_come_in_order_with_few_under_way():
    model = get_model(load_checkpoint("bundled"), Compute(CPU, "fp32"))
    counts = []
    start = _count_under_way(lambda number: lambda: np.array([number]), counts)
    found = [(place, int(result[0])) for place, result in model.in_order((i, start(i)) for i in range(7))]
    assert found == [(i, i) for i in range(7)]
    assert max(counts) == model.max_results_under_way + 1
    assert list(model.in_order(iter(()))) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_of_the_caller_changes_nothing(texts, dtype, transformers_folder):
    def compute():
        varlen._works.clear()
        linear._can_prepack.clear()
        release_models()
        plain = MiniLMEncoder(transformers_folder, precision="fp32", cache=None).transform(texts[:4])
        model = MiniLMClassifier(trainable=1, precision="fp32", random_state=0, epochs=1)
        trained = model.fit(texts[:8], [0, 1] * 4).predict_proba(texts[:8])
        return plain.tobytes(), trained.tobytes(), dict(varlen._works), dict(linear._can_prepack)

    expected = compute()
    with torch.autocast("cpu", dtype=dtype):
        assert compute() == expected


def test_a_model_that_is_being_built_holds_up_no_other():
    began, may_end = threading.Event(), threading.Event()

    def slowly():
        began.set()
        assert may_end.wait(120)
        return "slow"

    registry.get_or_build(("here",), lambda: "here")
    try:
        with ThreadPoolExecutor(2) as threads:
            slow = threads.submit(registry.get_or_build, ("slow",), slowly)
            assert began.wait(120)
            here = threads.submit(registry.get_or_build, ("here",), lambda: "built again")
            try:
                assert here.result(timeout=120) == "here"
                assert not slow.done()
            finally:
                may_end.set()
            assert slow.result(timeout=120) == "slow"
    finally:
        release_models()


def test_spans_longer_than_a_sequence_change_nothing():
    start, end = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(best_spans(start, end, 1000, 4), best_spans(start, end, 6, 4))


@pytest.fixture
def spans_of(texts):
    """Find the best spans of texts by some head."""
    generator = np.random.default_rng(0)
    coef, intercept = generator.standard_normal((2, 384)).astype(np.float32), np.zeros(2, np.float32)

    def find(model):
        checkpoint = model.checkpoint
        batch = tokenize(checkpoint.tokenizer, texts, None, checkpoint.defaults)
        places = SpanPlaces(np.ones_like(batch.lengths), batch.lengths - 2, batch.lengths - 1)
        return find_best_spans(model, batch, places, coef, intercept, max_tokens=5, n_best=3)

    return find


def test_spans_are_found_with_few_packs_under_way(spans_of, monkeypatch):
    model = get_model(load_checkpoint("bundled"), Compute(CPU, "fp32"))
    expected, counts = spans_of(model), []
    monkeypatch.setattr(model, "default_batch_tokens", 64)
    monkeypatch.setattr(model, "start_reduced", _count_under_way(model.start_reduced, counts))
    np.testing.assert_allclose(spans_of(model), expected, atol=1e-3)
    assert len(counts) > max(counts) == model.max_results_under_way + 1


class _SmallMemory(PackedModel):
    """Fails as a GPU does where a pack has more tokens than fit."""

    fits = 300
    error = torch.OutOfMemoryError("CUDA out of memory")

    def hidden_states(self, pack, *args, **options):
        if pack.n_tokens > self.fits:
            raise self.error
        return super().hidden_states(pack, *args, **options)


@pytest.fixture
def small_memory(monkeypatch):
    checkpoint = load_checkpoint("bundled")
    weights = read_trainable_weights(checkpoint, 0, None)
    return _SmallMemory(checkpoint, weights, CPU, torch.float32), checkpoint.defaults


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["torch", "the driver", "a library"],
)
def test_packs_that_do_not_fit_are_halved_and_remembered(small_memory, texts, error):
    model, defaults = small_memory
    model.error = error
    vectors, _ = model.encode(texts, None, defaults)
    assert np.abs(vectors - encode(texts)).max() <= 2e-5
    assert 150 <= model._max_pack_tokens <= 300


def test_more_sequences_than_a_call_of_a_gpu_takes_are_halved(texts, monkeypatch):
    checkpoint = load_checkpoint("bundled")
    model = get_model(checkpoint, Compute(CPU, "fp32"))
    expected = encode(texts)
    monkeypatch.setattr(packed_model, "_MAX_SEQUENCES", 3)
    batch = tokenize(model.tokenizer, texts, None, checkpoint.defaults)
    n_sequences = [len(rows) for rows in model.in_parts_that_fit(batch, np.arange(7), lambda rows: rows)]
    assert n_sequences == [2, 2, 3]
    vectors, _ = model.encode(texts, None, checkpoint.defaults)
    assert np.abs(vectors - expected).max() <= 2e-5
    assert model._max_pack_tokens is None  # the memory was not too small


def test_what_is_no_lack_of_memory_is_raised_as_it_is(small_memory, texts):
    model, defaults = small_memory
    model.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        model.encode(texts, None, defaults)


def test_one_text_that_does_not_fit_says_what_to_do(small_memory):
    model, defaults = small_memory
    with pytest.raises(MemoryError, match=r"One text of 401 tokens.*precision='bf16'"):
        model.encode(["a " * 397], None, defaults)


def test_frozen_layers_of_packs_that_do_not_fit_are_computed_in_halves(small_memory, texts):
    model, defaults = small_memory
    batch = tokenize(model.tokenizer, texts, None, defaults)
    rows = np.argsort(-batch.lengths, kind="stable")
    n_texts = []
    found = LayerStates(model, Compute(CPU, "fp32"), 2, VectorCache())
    found.prepare(batch, n_texts.append)
    assert sum(n_texts) == len(texts)
    assert 150 <= model._max_pack_tokens <= 300

    enough = get_model(model.checkpoint, Compute(CPU, "fp32"))
    pack = make_pack(batch, rows, CPU, 0.0)
    expected = LayerStates(enough, Compute(CPU, "fp32"), 2, VectorCache()).of_pack(pack)
    model.fits = 0  # all of them are kept
    torch.testing.assert_close(found.of_pack(pack), expected, rtol=0, atol=2e-5)
    with pytest.raises(MemoryError, match=r"One text of .* tokens does not fit"):
        LayerStates(model, Compute(CPU, "fp32"), 2, VectorCache()).prepare(batch)


def _attend_one_by_one(query, key, value, cu_seqlens, _, max_length, __):
    """What a GPU's kernel computes, sequence by sequence."""
    outputs = []
    for start, stop in pairwise(cu_seqlens.tolist()):
        assert stop - start <= max_length
        heads = (x[start:stop].transpose(0, 1).float() for x in (query, key, value))
        outputs.append(torch.nn.functional.scaled_dot_product_attention(*heads).transpose(0, 1))
    outputs.append(torch.zeros_like(query[cu_seqlens[-1] :]))  # slots that fill up, which a GPU has not
    return torch.cat(outputs).to(query.dtype)


@pytest.fixture
def use_kernel(monkeypatch):
    """Let the CPU attend from then on as a GPU would, by the kernel that is given."""

    def attend(qkv, cu_seqlens, n_heads):
        return varlen._flash_attention(qkv, cu_seqlens, int(cu_seqlens.diff().max()), n_heads)

    def use(kernel):
        monkeypatch.setattr(varlen, "_may_have_kernel", lambda *_: True)
        monkeypatch.setattr(varlen, "_works", {})
        monkeypatch.setattr(varlen.kernels, "attention", attend)
        monkeypatch.setattr(varlen, "_torch_kernel", lambda: kernel)

    return use


@pytest.mark.parametrize("kernel", ["right", "wrong", "missing"])
def test_attention_of_any_lengths_in_one_call(texts, kernel, use_kernel):
    def wrong(query, *_):
        return query

    texts = texts[::8]
    expected = encode(texts)
    kernels = {"right": _attend_one_by_one, "wrong": wrong, "missing": None}
    use_kernel(kernels[kernel])
    checkpoint = load_checkpoint("bundled")
    weights = read_trainable_weights(checkpoint, 0, None)
    model = PackedModel(checkpoint, weights, CPU, torch.bfloat16)
    assert (model._max_padding is None) == (kernel == "right")
    vectors, _ = model.encode(texts, None, checkpoint.defaults)
    assert cosines(vectors, expected).min() >= 0.9999


def test_a_kernel_without_its_gradients_is_for_inference_alone(use_kernel):
    attend = {"right": _attend_one_by_one, "no gradients": lambda *args: _attend_one_by_one(*args).detach()}
    found = {}
    for name, kernel in attend.items():
        use_kernel(kernel)
        with torch.inference_mode():  # whatever the caller has set
            found[name] = [
                varlen.can_use_varlen(CPU, torch.bfloat16, 32, gradients=gradients)
                for gradients in (False, True)
            ]
    assert found == {"right": [True, True], "no gradients": [True, False]}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradients", [False, True])
def test_cuda_attends_in_one_call(dtype, gradients):
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("FlashAttention is for Ampere and later")
    assert varlen.can_use_varlen(torch.device("cuda", 0), dtype, 32, gradients=gradients)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 0.99999), ("bf16", 0.9999), ("fp16", 0.9999)])
def test_cuda_agrees_with_transformers(many_texts, expected, precision, bound):
    encoder = MiniLMEncoder(precision=precision, device="cuda", normalize=False, prompt=None, cache=None)
    assert cosines(encoder.transform(many_texts), expected).min() >= bound


def compared(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Compare two texts as ``pooling="pair"`` is documented to do."""
    normalize = torch.nn.functional.normalize
    found = [normalize(states.mean(dim=0), dim=0) for states in (first, second)]
    first, second = normalize(first, dim=1), normalize(second, dim=1)
    for mine, other in ((first, second), (second, first)):
        counterparts = (20 * mine @ other.T).softmax(dim=1) @ other
        found.append((mine - counterparts).abs().amax(dim=0))
    return torch.cat(found)


def test_pairs_are_compared_by_means_and_by_what_is_unmatched(texts):
    checkpoint = load_checkpoint("bundled")
    batch = tokenize(checkpoint.tokenizer, [*texts[:6], ""], [*texts[6:12], ""], checkpoint.defaults)
    rows = np.argsort(-batch.lengths, kind="stable")
    pack = make_pack(batch, rows, torch.device("cpu"), 0.0)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(pack.input_ids), 32, generator=generator, requires_grad=True)
    expected = []
    for row, states in zip(rows, hidden[: pack.n_tokens].split(pack.lengths.tolist()), strict=True):
        ids = batch.input_ids[batch.offsets[row] :][: len(states)].tolist()
        behind_first = ids.index(2) + 1  # <s> A </s> and </s> B </s>
        assert ids[behind_first] == 2
        expected.append(compared(states[:behind_first], states[behind_first:]))
    expected, found = torch.stack(expected), pool(hidden, pack, "pair")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    loss_weights = torch.randn(found.shape, generator=generator)
    gradients = [
        torch.autograd.grad((vectors * loss_weights).sum(), hidden)[0] for vectors in (found, expected)
    ]
    assert gradients[1].abs().max() > 0.1
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.fixture
def without_waiting():
    """Let what waits for a GPU raise, within the context that is returned."""

    @contextmanager
    def watching():
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return watching


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "pair"])
def test_a_gpu_computes_while_the_next_pack_is_prepared(texts, precision, pooling, without_waiting):
    checkpoint = load_checkpoint("bundled")
    model = get_model(checkpoint, resolve_compute("torch", "cuda", precision))
    batch = tokenize(checkpoint.tokenizer, texts, texts[::-1], checkpoint.defaults)
    rows = np.argsort(-batch.lengths, kind="stable")
    expected = model.start(batch, rows, pooling, True)()  # prepares what is prepared once
    with without_waiting():
        result = model.start(batch, rows, pooling, True)
    np.testing.assert_allclose(result(), expected, atol=1e-3)


@pytest.mark.gpu
def test_a_gpu_finds_spans_while_the_next_pack_is_prepared(spans_of, without_waiting, monkeypatch):
    model = get_model(load_checkpoint("bundled"), resolve_compute("torch", "cuda", "fp32"))
    monkeypatch.setattr(model, "default_batch_tokens", 64)
    expected = spans_of(model)
    with without_waiting():  # but for the results, by an event, which that mode lets pass
        found = spans_of(model)
    np.testing.assert_allclose(found, expected, atol=1e-3)
