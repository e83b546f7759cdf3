import multiprocessing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skminilm import MiniLMEncoder, _cache, _encoding, clear_cache, set_config
from skminilm._cache import DEFAULT_CACHE_BYTES, VectorCache, memory_cache, vector_keys
from skminilm._disk_cache import DiskVectorCache


def test_each_text_is_computed_once(encoded, texts):
    doubled = texts[:6] + texts[:6]
    first = MiniLMEncoder().transform(doubled)
    assert sorted(encoded) == sorted(texts[:6])
    np.testing.assert_array_equal(first[:6], first[6:])
    np.testing.assert_array_equal(MiniLMEncoder().fit(texts[:2]).transform(doubled), first)
    assert len(encoded) == 6


def test_cache_none_keeps_nothing(encoded, texts):
    encoder = MiniLMEncoder(cache=None)
    encoder.transform(texts[:3])
    encoder.transform(texts[:3])
    assert len(encoded) == 6
    assert len(memory_cache) == 0


def test_grid_search_encodes_each_text_once(encoded, english):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    X, y = english
    pipeline = make_pipeline(MiniLMEncoder(), LogisticRegression())
    GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1, 10]}, cv=2).fit(X, y)
    assert sorted(encoded) == sorted(X)


@pytest.mark.parametrize(
    "changes",
    [
        {"pooling": "cls"},
        {"normalize": False},
        {"prompt": "other: "},
        {"prompt": None},
        {"max_length": 6},
        {"precision": "bf16"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*max_length=6")
def test_no_two_settings_share_an_entry(changes, texts):
    plain = MiniLMEncoder(precision="fp32").transform(texts[:4])
    changed = MiniLMEncoder(**{"precision": "fp32", **changes})
    with_cache = changed.transform(texts[:4])
    clear_cache()
    np.testing.assert_array_equal(changed.transform(texts[:4]), with_cache)
    assert not np.array_equal(with_cache, plain)


def test_two_checkpoints_share_no_entry(transformers_folder, texts):
    assert MiniLMEncoder().transform(texts[:2]).shape == (2, 384)
    assert MiniLMEncoder(transformers_folder).transform(texts[:2]).shape == (2, 32)


def test_a_cached_vector_cannot_be_changed_from_outside(texts):
    first = MiniLMEncoder().transform(texts[:2])
    expected = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(MiniLMEncoder().transform(texts[:2]), expected)


def test_the_bound_holds_and_the_oldest_go_first():
    cache = VectorCache(max_bytes=3 * (40 + 300))
    keys = [bytes([i]) for i in range(5)]
    for i, key in enumerate(keys):
        cache.put([key], np.full((1, 10), i, np.float32))
        cache.get([keys[0]])
    found = cache.get(keys)
    assert [vector is not None for vector in found] == [True, False, False, True, True]
    cache.resize(0)
    assert len(cache) == 0


@pytest.fixture
def default_bound():
    yield
    set_config(cache_bytes=DEFAULT_CACHE_BYTES)


def test_set_config_bounds_the_process_wide_cache(texts, default_bound):
    set_config(cache_bytes=np.int64(2 * (385 * 4 + 300)))
    MiniLMEncoder().transform(texts[:5])
    assert len(memory_cache) == 2
    set_config()
    assert len(memory_cache) == 2
    with pytest.raises(ValueError, match="cache_bytes must be an int >= 0"):
        set_config(cache_bytes=-1)


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=2, max_size=6, unique=True))
def test_different_pairs_have_different_keys(pairs):
    pairs = [tuple(part.encode("utf-8", "replace").decode() for part in pair) for pair in pairs]
    first, second = zip(*pairs, strict=True)
    assert len(set(vector_keys("", first, second))) == len(set(pairs))
    assert not set(vector_keys("", first, None)) & set(vector_keys("", first, second))
    assert not set(vector_keys("a", first, second)) & set(vector_keys("b", first, second))


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_an_interrupted_call_leaves_what_it_computed(texts, encoded, monkeypatch, tmp_path, kind):
    cache = "memory" if kind == "memory" else tmp_path
    monkeypatch.setitem(_encoding._SLICE_CHARACTERS, "cpu", 500)
    store = {"memory": VectorCache, "disk": DiskVectorCache}[kind]
    original, kept = store.put, []

    def interrupted(self, keys, vectors):
        if kept:
            raise KeyboardInterrupt
        kept.extend(keys)
        original(self, keys, vectors)

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            MiniLMEncoder(device="cpu", cache=cache).transform(texts)
    assert 0 < len(kept) < len(texts) / 2
    encoded.clear()
    vectors = MiniLMEncoder(device="cpu", cache=cache).transform(texts)
    assert len(encoded) == len(set(texts)) - len(kept)
    np.testing.assert_array_equal(vectors, MiniLMEncoder(device="cpu", cache=None).transform(texts))


@pytest.mark.parametrize("name", ["memory_cache", "state_cache"])
def test_a_fork_while_another_thread_uses_a_cache(name):
    cache = getattr(_cache, name)
    with cache._lock:
        process = multiprocessing.get_context("fork").Process(target=cache.get, args=([b"key"],))
        process.start()
        process.join(120)
        process.kill()
    process.join()
    assert process.exitcode == 0


def test_texts_that_come_again_take_no_others_place(texts):
    a, b, c = texts[:3]
    expected = MiniLMEncoder(cache=None, precision="fp32").transform([a, b, c])
    for cache in ("memory", None):
        found = MiniLMEncoder(cache=cache, precision="fp32").transform([a, a, b, a, c, b])
        np.testing.assert_allclose(found, expected[[0, 0, 1, 0, 2, 1]], atol=1e-5)


def test_some_texts_from_the_cache_and_some_computed_stay_apart(texts, tmp_path):
    a, b, c, d = texts[:4]
    expected = MiniLMEncoder(cache=None, precision="fp32").transform([a, b, c, d])
    for cache in ("memory", tmp_path):
        encoder = MiniLMEncoder(cache=cache, precision="fp32")
        encoder.transform([b, d])
        np.testing.assert_allclose(encoder.transform([a, b, c, d]), expected, atol=1e-5)


def test_a_cache_holds_no_more_than_its_entries():
    cache, vectors = VectorCache(), np.ones((1000, 4), np.float32)
    cache.put([b"key"], vectors[:1])
    assert cache.get([b"key"])[0].base is None  # a view would keep all of what was computed
    vectors[0] = 0
    assert cache.get([b"key"])[0].tolist() == [1, 1, 1, 1]
