"""Folders that appear as a whole or not at all, and what their files need: a place, rights, readable errors."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX = ".skminilm-writing-"
_NEW, _EARLIER = "new", "old"
_STALE_S = 24 * 60 * 60.0
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def own_path(path: str | os.PathLike[str]) -> Path:
    """Return a path whose ``~`` is the home folder.

    Raises
    ------
    OSError
        This process, or the user after the ``~``, has no home folder.
    """
    path = Path(path)
    try:
        return path.expanduser()
    except RuntimeError as error:
        problem = "the home folder, and this process has none: give the whole path, or set the environment variable HOME"
        if path.parts[0] != "~":
            problem = "the home folder of a user who is not known here: give the whole path, also of a folder whose name begins so"
        raise OSError(f"{str(path)!r} begins with {problem}.") from error


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty folder, which is at `path` when all has been written, and gone where that failed.

    An empty folder that is at `path` already stays, as it may be the place of a disk, or a process may be in it.

    Raises
    ------
    FileExistsError
        Something is at `path`.
    OSError
        It cannot be written.
    """
    path = own_path(path).resolve()
    _check_free(path)
    is_there = path.exists()
    with temporary_folder(path if is_there else path.parent) as new:
        with errors_of_the_system(path):
            yield new
        _check_free(path)  # where something may have come meanwhile
        if not is_there:
            try:
                new.rename(path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                raise _occupied(path) from error  # by a folder that another process is writing to
            return
        for file in sorted(new.iterdir()):
            file.rename(path / file.name)


def _check_free(path: Path) -> None:
    is_empty = path.is_dir() and all(file.name.startswith(_PREFIX) for file in path.iterdir())
    if path.exists() and not is_empty:
        raise _occupied(path)


def _occupied(path: Path) -> FileExistsError:
    return FileExistsError(f"{path} is there already: choose another path.")


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Give an empty folder, hidden in `parent`, which is made where it is missing; delete it in the end."""
    parent.mkdir(parents=True, exist_ok=True)
    _delete_stale(parent)
    with tempfile.TemporaryDirectory(dir=parent, prefix=_PREFIX) as temporary:
        new = Path(temporary) / _NEW
        new.mkdir()
        yield new


def _delete_stale(parent: Path) -> None:
    """Delete temporary folders of processes that ended without doing so, more than a day ago.

    Nothing but those: what holds more than an unfinished folder may be the only copy of something.
    """
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if [path.name for path in folder.iterdir()] != [_NEW]:
                continue
            newest = max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
            if newest < time.time() - _STALE_S:
                shutil.rmtree(folder, ignore_errors=True)


def replace_folder(path: Path, new: Path) -> None:
    """Rename `new` to `path`; what was at `path` is left in `new`, or in a folder beside it."""
    if _swap(path, new):
        return
    old = new.with_name(_EARLIER)
    try:
        if path.exists():
            path.rename(old)
        new.rename(path)
    except BaseException as error:
        if old.exists() and not path.exists():
            old.rename(path)
        if isinstance(error, OSError) and _swap(path, new):  # another process has made the folder meanwhile
            return
        raise


def _swap(first: Path, second: Path) -> bool:
    """Exchange the names of two folders at once, so that each is always there; tell whether that was possible."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or an old C library
        return False
    return rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0


def copy_rights(old: Path, new: Path) -> None:
    """Give a file or folder the mode and the group of another, where that is there and the system lets us."""
    with contextlib.suppress(OSError):
        status = old.stat()
        if hasattr(os, "chown"):
            with contextlib.suppress(OSError):
                os.chown(new, -1, status.st_gid)
        new.chmod(stat.S_IMODE(status.st_mode))


@contextlib.contextmanager
def errors_of_the_system(path: Path) -> Iterator[None]:
    """Turn what is raised where `path` cannot be written, also by safetensors and tokenizers, into an OSError that names it."""
    try:
        yield
    except Exception as error:  # tokenizers raises nothing narrower
        number = re.search(r"os error (\d+)|Os { code: (\d+)", str(error))
        if number is not None:
            code = int(number[1] or number[2])
        elif isinstance(error, OSError) and error.errno and error.filename is None:
            code = error.errno
        else:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error
