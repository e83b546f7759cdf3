"""Folders on disks, under users and in processes other than a developer's own."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from skminilm import MiniLMClassifier, MiniLMEncoder
from skminilm._folders import copy_rights, errors_of_the_system, new_folder, replace_folder, temporary_folder

needs_modes = pytest.mark.skipif(os.name == "nt", reason="it has other rights")


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_an_empty_folder_is_filled_from_within(tmp_path):
    """It may be a disk of its own, in a folder that may not be written."""
    (tmp_path / "volume").mkdir()
    with new_folder(tmp_path / "volume") as folder:
        assert folder.is_relative_to(tmp_path / "volume")
        (folder / "a").mkdir()
        (folder / "a" / "file").write_text("1")
        (folder / "b").write_text("2")
        assert [path.name for path in tmp_path.iterdir()] == ["volume"]
    assert sorted(path.name for path in (tmp_path / "volume").iterdir()) == ["a", "b"]
    assert (tmp_path / "volume" / "a" / "file").read_text() == "1"


def test_a_disk_is_written_to_and_not_what_it_is_mounted_in(tmp_path, monkeypatch):
    path = tmp_path / "volume"
    MiniLMEncoder(prompt="a").save(path)
    identity = path.stat().st_ino
    monkeypatch.setattr(os.path, "ismount", lambda folder: Path(folder) == path)
    monkeypatch.setattr("skminilm._persistence.temporary_folder", lambda parent: pytest.fail(f"in {parent}"))
    MiniLMEncoder(prompt="b").save(path)
    assert MiniLMEncoder.load(path).prompt == "b"
    assert path.stat().st_ino == identity


@needs_modes
@pytest.mark.parametrize("is_inside", [False, True])
def test_who_may_read_a_saved_estimator_may_read_the_next_one(tmp_path, umask, monkeypatch, is_inside):
    path = tmp_path / "model"
    MiniLMEncoder().save(path)
    (path / "estimator.json").chmod(0o640)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()}
    umask(0o077)
    if is_inside:
        monkeypatch.chdir(path)
    MiniLMEncoder(prompt="b").save(path)
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == modes
    assert MiniLMEncoder.load(path).prompt == "b"


@needs_modes
@pytest.mark.parametrize("may_be_given", [True, False])
def test_a_file_gets_the_group_of_another_where_it_may(tmp_path, monkeypatch, may_be_given):
    old, new, seen = tmp_path / "old", tmp_path / "new", []
    for file, mode in ((old, 0o640), (new, 0o600)):
        file.touch()
        file.chmod(mode)

    def chown(*args):
        seen.append(args)
        if not may_be_given:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", chown)
    copy_rights(old, new)
    assert seen == [(new, -1, old.stat().st_gid)]
    assert stat.S_IMODE(new.stat().st_mode) == 0o640


def test_what_ended_processes_left_is_deleted_after_a_day(tmp_path):
    day = 24 * 60 * 60
    folders = {
        ".skminilm-writing-ended": (["new/file"], 2 * day),
        ".skminilm-writing-today": (["new/file"], day / 24),
        ".skminilm-writing-for_days": (["new/file"], 2 * day),
        ".skminilm-writing-between_renames": (["new/file", "old/file"], 2 * day),
        ".skminilm-writing-of-a-user": (["novel.txt"], 2 * day),
        ".skminilm-writing-empty": ([], 2 * day),
        ".skminilm-cache": (["new/file"], 2 * day),
    }
    for name, (files, age) in folders.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).touch()
        for path in (*folder.rglob("*"), folder):
            os.utime(path, (time.time() - age,) * 2)
    os.utime(tmp_path / ".skminilm-writing-for_days" / "new" / "file")
    MiniLMEncoder().save(tmp_path / "model")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model", *folders} - {".skminilm-writing-ended"}


def test_a_new_folder_beside_what_an_ended_process_left(tmp_path):
    (tmp_path / "network" / ".skminilm-writing-x" / "new").mkdir(parents=True)
    with new_folder(tmp_path / "network") as folder:
        (folder / "file").touch()
    assert (tmp_path / "network" / "file").exists()


@pytest.mark.parametrize("is_there", [False, True])
def test_what_comes_to_a_new_folder_meanwhile_is_not_replaced(tmp_path, is_there):
    path = tmp_path / "network"
    if is_there:
        path.mkdir()

    def write():
        with new_folder(path) as folder:
            (folder / "config.json").write_text("new")
            (folder / "weights").write_text("new")
            path.mkdir(exist_ok=True)
            (path / "config.json").write_text("precious")

    with pytest.raises(FileExistsError, match="network is there already"):
        write()
    assert {file.name: file.read_text() for file in path.iterdir()} == {"config.json": "precious"}
    assert [file.name for file in tmp_path.iterdir()] == ["network"]


def test_a_folder_that_another_process_is_writing_to_is_not_replaced(tmp_path):
    path = tmp_path / "network"

    def write():
        with new_folder(path) as folder:
            (folder / "config.json").write_text("new")
            (path / ".skminilm-writing-x" / "new").mkdir(parents=True)

    with pytest.raises(FileExistsError, match="network is there already"):
        write()
    assert [file.name for file in path.iterdir()] == [".skminilm-writing-x"]


_SAVE_BEYOND_A_LIMIT = """
import resource, signal, sys
from skminilm import MiniLMClassifier
classifier = MiniLMClassifier.load(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for write in (classifier.save, classifier.export):
    try:
        write(sys.argv[2])
    except OSError as error:
        assert sys.argv[3] in str(error), error
        print(error.errno)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other limits")
def test_a_disk_that_is_full_is_an_error_of_the_system(tmp_path, transformers_folder):
    options = dict(trainable=1, epochs=1, max_length=64, random_state=0)
    MiniLMClassifier(transformers_folder, **options).fit(["a", "b"], [0, 1]).save(tmp_path / "model")
    code = [sys.executable, "-c", _SAVE_BEYOND_A_LIMIT, tmp_path / "model", tmp_path / "other", tmp_path]
    done = subprocess.run(code, capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == [str(errno.EFBIG)] * 2, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "message",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })',
    ],
)
def test_errors_that_carry_the_number_of_the_system(tmp_path, message):
    with pytest.raises(OSError, match="No space left on device") as caught, errors_of_the_system(tmp_path):
        raise RuntimeError(message)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))


def test_a_full_disk_is_named_where_python_names_none(tmp_path):
    with pytest.raises(OSError, match="No space left on device") as caught, errors_of_the_system(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as from a file that is open
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="names cannot be swapped")
def test_a_folder_that_another_process_makes_at_the_last_moment_is_replaced(tmp_path, monkeypatch):
    path, new, rename = tmp_path / "path", tmp_path / "new", Path.rename
    for folder in (new, tmp_path / "theirs"):
        folder.mkdir()
        (folder / "file").write_text(folder.name)

    def late(source, target):
        if not path.exists():
            rename(tmp_path / "theirs", path)
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", late)
    replace_folder(path, new)
    assert (path / "file").read_text() == "new"


def test_a_disk_that_knows_no_modes(tmp_path, monkeypatch, transformers_folder):
    def refuse(*args, **options):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    options = dict(trainable=1, epochs=1, max_length=64, random_state=0)
    classifier = MiniLMClassifier(transformers_folder, **options).fit(["a", "b"], [0, 1])
    classifier.save(tmp_path / "model")
    np.testing.assert_array_equal(
        MiniLMClassifier.load(tmp_path / "model").predict_proba(["c"]), classifier.predict_proba(["c"])
    )
    classifier.export(tmp_path / "network")
    assert MiniLMEncoder(tmp_path / "network").fit(["a"]).hidden_size_ == classifier.coef_.shape[1]


@pytest.mark.parametrize(
    "use",
    [
        lambda: MiniLMEncoder().save("~/model"),
        lambda: MiniLMEncoder.load("~/model"),
        lambda: MiniLMEncoder(cache="~/vectors").fit(["a"]),
    ],
)
def test_without_a_home_folder(monkeypatch, use):
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(OSError, match=r"begins with the home folder, and this process has none: .*HOME"):
        use()


@pytest.mark.skipif(os.name == "nt", reason="it takes any name for that of a user")
@pytest.mark.parametrize("path", ["~no-such-user/model", "~draft"])
def test_a_name_that_begins_as_the_home_folder_of_nobody(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="home folder of a user who is not known here: give the whole path"):
        MiniLMEncoder().save(path)
    MiniLMEncoder().save(tmp_path / path)
    assert (tmp_path / path).is_dir()


def test_a_temporary_folder_is_gone_in_the_end(tmp_path):
    with temporary_folder(tmp_path / "deep" / "er") as folder:
        (folder / "file").touch()
        assert folder.is_relative_to(tmp_path / "deep" / "er")
    assert list((tmp_path / "deep" / "er").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode elsewhere")
def test_a_checkpoint_in_a_folder_whose_name_is_no_text(tmp_path, transformers_folder):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/model-\xe9"))
    folder.symlink_to(transformers_folder)
    with pytest.raises(OSError, match=r"model-.* is not valid UTF-8"):
        MiniLMEncoder(folder).fit(["a"])
