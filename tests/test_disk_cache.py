import functools
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from skminilm import MiniLMEncoder, _disk_cache, clear_cache, set_config
from skminilm._cache import DEFAULT_DISK_CACHE_BYTES

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
DiskVectorCache = functools.partial(_disk_cache.DiskVectorCache, max_bytes=DEFAULT_DISK_CACHE_BYTES)
KEYS = [b"a" * 16, b"b" * 16, b"c" * 16]


@pytest.fixture
def cache(tmp_path):
    return DiskVectorCache(tmp_path / "vectors")


def file_of(cache):
    return cache._path


def test_what_was_put_comes_back(cache):
    cache.put(KEYS[:2], ROWS[:2])
    found = cache.get([KEYS[1], KEYS[2], KEYS[0]])
    np.testing.assert_array_equal(found[0], ROWS[1])
    assert found[1] is None
    np.testing.assert_array_equal(found[2], ROWS[0])
    assert len(cache) == 2
    cache.put(KEYS[:1], ROWS[2:])  # the first one stays
    np.testing.assert_array_equal(cache.get(KEYS[:1])[0], ROWS[0])


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=1200, unique=True))
@settings(max_examples=10, deadline=None)
def test_any_number_of_keys(tmp_path_factory, keys):
    cache = DiskVectorCache(tmp_path_factory.mktemp("vectors"))
    vectors = np.random.default_rng(0).standard_normal((len(keys), 3)).astype(np.float32)
    cache.put(keys, vectors)
    np.testing.assert_array_equal(np.stack(cache.get(keys)), vectors)


def test_the_file_is_bounded_and_the_oldest_go_first(tmp_path):
    bound = 1_000_000
    cache = DiskVectorCache(tmp_path, max_bytes=bound)
    vectors = np.ones((100, 385), np.float32)
    for batch in range(20):
        cache.put([b"%08d%08d" % (batch, i) for i in range(100)], batch * vectors)
    assert file_of(cache).stat().st_size < 1.3 * bound
    assert cache.get([b"%08d%08d" % (0, 0)]) == [None]
    np.testing.assert_array_equal(cache.get([b"%08d%08d" % (19, 99)])[0], 19 * vectors[0])
    cache.put([b"%016d" % i for i in range(20_000)], np.ones((20_000, 385), np.float32))  # 31 MB
    assert file_of(cache).stat().st_size < 1.3 * bound
    np.testing.assert_array_equal(cache.get([b"%016d" % 19_999]), vectors[:1])
    DiskVectorCache(tmp_path, max_bytes=bound // 4).put(KEYS, ROWS)
    assert file_of(cache).stat().st_size < 0.4 * bound
    DiskVectorCache(tmp_path, max_bytes=0).put(KEYS, ROWS)
    assert len(cache) == 0


def test_a_second_process_finds_the_vectors(tmp_path, encoded, texts):
    program = (
        "import sys, numpy as np; from skminilm import MiniLMEncoder; from skminilm.datasets import *;"
        f"np.save(sys.argv[1], MiniLMEncoder(cache={str(tmp_path / 'c')!r})"
        ".transform(load_support_requests().data[::16][:8]))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "first.npy")], check=True)
    found = MiniLMEncoder(cache=tmp_path / "c").transform(texts[:8])
    assert encoded == []
    np.testing.assert_array_equal(found, np.load(tmp_path / "first.npy"))


def test_models_precisions_and_prompts_never_share_an_entry(tmp_path, encoded, texts):
    plain = {"precision": "fp32"}
    for changes in ({}, {"precision": "bf16"}, {"prompt": "x "}, {"pooling": "cls"}, {}):
        MiniLMEncoder(cache=tmp_path, **{**plain, **changes}).transform(texts[:2])
    assert len(encoded) == 2 * 4  # what comes again is there


def _write(folder, number):
    cache = DiskVectorCache(folder)
    for batch in range(20):
        keys = [b"%04d%04d%08d" % (number, batch, i) for i in range(50)]
        cache.put(keys, np.full((50, 385), number, np.float32))
        assert all((row == number).all() for row in cache.get(keys))


def test_many_processes_write_at_once(tmp_path):
    processes = [
        multiprocessing.get_context("spawn").Process(target=_write, args=(tmp_path, n)) for n in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        assert process.exitcode == 0
    assert len(DiskVectorCache(tmp_path)) == 4 * 20 * 50


def _make(folder, number, all_are_here):
    for name in range(30):
        cache = DiskVectorCache(folder / str(name))
        all_are_here.wait()
        cache.put([b"%016d" % number], ROWS[:1])


def test_many_processes_make_the_file_at_once(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    all_are_here = spawn.Barrier(4)
    processes = [spawn.Process(target=_make, args=(tmp_path, n, all_are_here)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        assert process.exitcode == 0
    assert [len(DiskVectorCache(tmp_path / str(name))) for name in range(30)] == [4] * 30


def test_a_process_killed_while_writing_leaves_the_rest_intact(tmp_path):
    program = (
        "import numpy as np, os, signal; from pathlib import Path;"
        "from skminilm import _disk_cache as d;"
        f"c = d.DiskVectorCache(Path({str(tmp_path)!r}), 2**30);"
        "c.put([b'a' * 16], np.ones((1, 4), np.float32));"
        "c._drop_oldest = lambda connection: os.kill(os.getpid(), signal.SIGKILL);"
        "c.put([b'b' * 16], np.ones((1, 4), np.float32))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    cache = DiskVectorCache(tmp_path)
    assert cache.get(KEYS[1:2]) == [None]
    np.testing.assert_array_equal(cache.get(KEYS[:1])[0], np.ones(4))


@pytest.mark.parametrize("damage", ["garbage", "flipped", "truncated", "newer"])
def test_a_damaged_file_is_set_aside_and_encoded_again(tmp_path, damage, encoded, texts):
    encoder = MiniLMEncoder(cache=tmp_path)
    expected = encoder.transform(texts[:20])
    path = tmp_path / "vectors.sqlite3"
    content = bytearray(path.read_bytes())
    if damage == "garbage":
        path.write_bytes(b"not a database" * 1000)
    elif damage == "flipped":
        vector = expected[7].tobytes()
        position = content.index(vector[:100]) + 50
        content[position] ^= 1
        path.write_bytes(content)
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version=99")
        connection.close()
    with pytest.warns(UserWarning, match=r"is damaged \(.*It was renamed to damaged-") as caught:
        found = encoder.transform(texts[:20])
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(found, expected)
    assert len(list(tmp_path.glob("damaged-*.sqlite3"))) == 1
    before = len(encoded)
    np.testing.assert_array_equal(encoder.transform(texts[:20]), expected)
    assert len(encoded) == before


def test_a_damaged_file_that_cannot_be_renamed_is_no_error(tmp_path, texts, monkeypatch):
    encoder = MiniLMEncoder(cache=tmp_path)
    expected = encoder.transform(texts[:2])
    (tmp_path / "vectors.sqlite3").write_bytes(b"not a database" * 1000)

    def open_elsewhere(*_):
        raise PermissionError("another process has it open")

    monkeypatch.setattr("skminilm._disk_cache.os.replace", open_elsewhere)
    with pytest.warns(UserWarning, match=r"is damaged \(.*cannot be renamed \(another process.*Delete it"):
        np.testing.assert_array_equal(encoder.transform(texts[:2]), expected)


def test_a_cache_that_cannot_be_used_warns_and_computes(tmp_path, texts, monkeypatch):
    encoder = MiniLMEncoder(cache=tmp_path)
    encoder.transform(texts[:2])
    monkeypatch.setattr("skminilm._disk_cache._BUSY_TIMEOUT_S", 0.1)
    blocker = sqlite3.connect(tmp_path / "vectors.sqlite3", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    message = r"cannot be used now .*locked.*: vectors are computed. It is tried again in 60 s"
    with pytest.warns(UserWarning, match=message) as caught:
        found = encoder.transform(texts[2:4])
    assert len(caught) == 1  # neither waited nor warned for a second time, when the vectors are put there
    encoder.transform(texts[2:4])
    blocker.execute("ROLLBACK")
    blocker.close()
    np.testing.assert_array_equal(found, MiniLMEncoder(cache=None).transform(texts[2:4]))
    cache = DiskVectorCache(tmp_path)
    assert len(cache) == 0
    later = time.monotonic() + 61
    monkeypatch.setattr("skminilm._disk_cache.time.monotonic", lambda: later)
    assert len(cache) == 2


@pytest.mark.parametrize("is_written_to", [False, True])
def test_a_file_of_another_user_is_read_without_files_beside_it(tmp_path, monkeypatch, is_written_to):
    """The owner could not write to those."""
    DiskVectorCache(tmp_path).put(KEYS, ROWS)
    if is_written_to:  # a log without its index, as it is for a moment where the owner opens or closes it
        (tmp_path / "vectors.sqlite3-wal").touch()
    there = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == tmp_path)
    made, connect = set(), sqlite3.connect

    def connecting(*args, **options):
        connection = connect(*args, **options)
        connection.set_trace_callback(lambda _: made.update(path.name for path in tmp_path.iterdir()))
        return connection

    monkeypatch.setattr(sqlite3, "connect", connecting)
    np.testing.assert_array_equal(DiskVectorCache(tmp_path).get(KEYS), ROWS)
    assert made == there == {path.name for path in tmp_path.iterdir()}


def test_a_file_that_another_user_is_about_to_make_is_not_made_nor_locked(tmp_path, monkeypatch):
    sqlite3.connect(tmp_path / "vectors.sqlite3").close()
    (tmp_path / "vectors.sqlite3").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == tmp_path)
    with pytest.warns(
        UserWarning, match="its owner has not finished making it, or it is no cache.: vectors are computed"
    ):
        assert DiskVectorCache(tmp_path).get(KEYS) == [None] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.sqlite3"]
    assert (tmp_path / "vectors.sqlite3").stat().st_size == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_waits_for_those_who_use_a_file(cache):
    cache.put(KEYS, ROWS)
    inside, is_over = threading.Event(), []

    def slow(connection):
        inside.set()
        time.sleep(0.5)  # the fork is asked for meanwhile
        is_over.append(True)

    user = threading.Thread(target=cache._use, args=(slow,))
    user.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        found = []
        other = threading.Thread(target=lambda: found.append(len(cache)), daemon=True)
        other.start()  # which has not forked: the lock has to be free
        other.join(600)
        os._exit(0 if is_over and found == [len(KEYS)] else 1)
    user.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_fitted_estimator_computes_where_its_folder_cannot_be_made(tmp_path, texts):
    encoder = MiniLMEncoder(cache=tmp_path / "here").fit(texts[:1])
    (tmp_path / "here").rmdir()
    (tmp_path / "here").write_text("")
    with pytest.warns(UserWarning, match="cannot be used as a folder .*vectors are computed"):
        found = encoder.transform(texts[:2])
    np.testing.assert_array_equal(found, MiniLMEncoder(cache=None).transform(texts[:2]))
    for unfitted in ("fit", "fit_transform"):
        with pytest.raises(OSError, match="cannot be used as a folder"):
            getattr(encoder, unfitted)(texts[:2])


def test_a_fitted_estimator_computes_where_no_folder_has_that_name(tmp_path, texts, monkeypatch):
    (tmp_path / "vectors").mkdir()
    monkeypatch.chdir(tmp_path)
    encoder = MiniLMEncoder(cache="vectors").fit(texts[:1])
    (tmp_path / "vectors").rmdir()
    with pytest.warns(UserWarning, match="cache='vectors' is not known.*vectors are computed"):
        assert encoder.transform(texts[:2]).shape == (2, 384)
    with pytest.raises(ValueError, match="cache='vectors' is not known"):
        encoder.fit(texts[:1])


@pytest.mark.parametrize("name", ["file:x", "a?b=c", "d#e %20", "ключи и векторы"])
def test_names_of_folders_are_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    cache = DiskVectorCache(Path(name))
    cache.put(KEYS, ROWS)
    assert file_of(cache).is_file()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    np.testing.assert_array_equal(cache.get(KEYS), ROWS)


def test_a_folder_that_may_only_be_read_is_read(tmp_path, texts, encoded, monkeypatch):
    expected = MiniLMEncoder(cache=tmp_path).transform(texts[:3])
    encoded.clear()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    np.testing.assert_array_equal(MiniLMEncoder(cache=tmp_path).transform(texts[:3]), expected)
    assert encoded == []
    with pytest.warns(UserWarning, match="cannot be used now .*readonly"):
        MiniLMEncoder(cache=tmp_path).transform(texts[:4])
    assert encoded == [texts[3]]
    MiniLMEncoder(cache=tmp_path).transform(texts[:3])  # not left alone, as what is locked is
    assert encoded == [texts[3]]


def test_a_folder_that_may_only_be_read_and_is_written_to(tmp_path, monkeypatch):
    cache = DiskVectorCache(tmp_path)
    cache.put(KEYS[:1], ROWS[:1])
    writer = sqlite3.connect(file_of(cache), isolation_level=None)
    writer.execute("SELECT COUNT(*) FROM vectors").fetchone()
    cache.put(KEYS[1:], ROWS[1:])  # in the log, as long as the other is there
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    found = cache.get(KEYS)
    np.testing.assert_array_equal(found, ROWS)
    writer.close()
    file_of(cache).write_bytes(b"no data base")
    with pytest.warns(UserWarning, match="cannot be used now"):  # nor set aside
        assert cache.get(KEYS) == [None] * len(KEYS)
    assert file_of(cache).exists()


def test_what_is_damaged_while_its_owner_writes_is_read_again(tmp_path, monkeypatch):
    cache = DiskVectorCache(tmp_path)
    cache.put(KEYS, ROWS)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    connect, tries = cache._connect, []

    def connecting():
        tries.append(1)
        if len(tries) == 1:
            raise sqlite3.DatabaseError("database disk image is malformed")
        return connect()

    monkeypatch.setattr(cache, "_connect", connecting)
    np.testing.assert_array_equal(cache.get(KEYS), ROWS)


def test_a_folder_that_cannot_be_locked_does_not_stop_the_work(cache):
    file_of(cache).with_suffix(".lock").mkdir()
    with pytest.warns(UserWarning, match="cannot be used now .*: vectors are computed"):
        cache.put(KEYS, ROWS)


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_lock_that_somebody_keeps_is_waited_for_once(cache, monkeypatch):
    monkeypatch.setattr("skminilm._disk_cache._BUSY_TIMEOUT_S", 0.1)
    with FileLock(file_of(cache).with_suffix(".lock")):
        with pytest.warns(UserWarning, match="cannot be used now .*It is tried again in 60 s"):
            cache.put(KEYS, ROWS)
        assert cache.get(KEYS) == [None] * len(KEYS)  # without a second warning


@pytest.mark.skipif(os.name == "nt", reason="a folder that is worked in cannot be deleted")
def test_a_relative_path_in_a_folder_that_is_gone_is_refused(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(OSError, match=r"cannot be used as a folder .*give another path"):
        MiniLMEncoder(cache="./vectors").transform(["a"])


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot be used as a folder"):
        MiniLMEncoder(cache=tmp_path / "file").transform(["a"])


def test_workers_of_a_grid_search_share_the_folder(tmp_path, english):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    X, y = english
    scores = []
    for options in (dict(cache=tmp_path), dict(cache=None)):
        pipeline = make_pipeline(MiniLMEncoder(precision="fp32", **options), LogisticRegression())
        search = GridSearchCV(pipeline, {"logisticregression__C": [1, 10]}, cv=2, n_jobs=2)
        scores.append(search.fit(X, y).cv_results_["mean_test_score"])
    np.testing.assert_array_equal(*scores)
    assert len(DiskVectorCache(tmp_path)) == len(set(X))


def test_the_bound_is_a_setting(tmp_path, texts):
    try:
        set_config(disk_cache_bytes=0)
        MiniLMEncoder(cache=tmp_path).transform(texts[:2])
        assert len(DiskVectorCache(tmp_path)) == 0
    finally:
        set_config(disk_cache_bytes=DEFAULT_DISK_CACHE_BYTES)
    with pytest.raises(ValueError, match="disk_cache_bytes must be an int >= 0"):
        set_config(disk_cache_bytes=-1)


def test_clear_cache_leaves_folders_alone(tmp_path, texts):
    MiniLMEncoder(cache=tmp_path).transform(texts[:2])
    clear_cache()
    assert len(DiskVectorCache(tmp_path)) == 2


def test_a_file_that_another_process_has_renewed_stays(tmp_path):
    cache = DiskVectorCache(tmp_path)
    cache.put(KEYS, ROWS)
    cache._set_aside((0, 0), ValueError("the file before this one"))
    assert len(cache) == 3
    assert not list(tmp_path.glob("damaged-*"))


@pytest.mark.parametrize("damage", ["UPDATE vectors SET vector = 5", "DROP TABLE vectors"])
def test_a_file_with_something_else_in_it_is_renewed(cache, damage):
    cache.put(KEYS, ROWS)
    with sqlite3.connect(file_of(cache)) as connection:
        connection.execute(damage)
    connection.close()
    with pytest.warns(UserWarning, match="damaged"):
        assert cache.get(KEYS) == [None] * 3
    cache.put(KEYS, ROWS)
    np.testing.assert_array_equal(np.stack(cache.get(KEYS)), ROWS)


def test_vectors_of_an_earlier_way_to_compute_are_not_found(tmp_path, encoded, texts, monkeypatch):
    MiniLMEncoder(cache=tmp_path).transform(texts[:2])
    monkeypatch.setattr("skminilm._encoding._RESULTS_VERSION", -1)
    MiniLMEncoder(cache=tmp_path).transform(texts[:2])
    assert len(encoded) == 4


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TRIGGER t AFTER INSERT ON vectors BEGIN SELECT 1; END",
        "CREATE TABLE other (a)",
        "ALTER TABLE vectors RENAME TO old; CREATE VIEW vectors AS SELECT * FROM old",
    ],
)
def test_a_file_with_other_tables_is_set_aside(tmp_path, texts, change):
    encoder = MiniLMEncoder(cache=tmp_path)
    expected = encoder.transform(texts[:2])
    with sqlite3.connect(tmp_path / "vectors.sqlite3") as connection:
        connection.executescript(change)
    connection.close()
    with pytest.warns(UserWarning, match="holds other tables than this package makes"):
        np.testing.assert_array_equal(encoder.transform(texts[:2]), expected)


@pytest.mark.parametrize(
    "entry", [np.full(385, np.nan, np.float32), np.ones(1, np.float32), np.ones(7, np.float32)]
)
def test_entries_that_are_no_vectors_are_computed_again(tmp_path, texts, entry, monkeypatch):
    expected = MiniLMEncoder(cache=None).transform(texts[:2])
    monkeypatch.setattr(_disk_cache.DiskVectorCache, "get", lambda self, keys: [entry.copy() for _ in keys])
    np.testing.assert_array_equal(MiniLMEncoder(cache=tmp_path).transform(texts[:2]), expected)
