"""Vectors kept in a folder, shared by processes and by runs."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock

from ._warnings import warn

_FILE_NAME = "vectors.sqlite3"
_FORMAT_VERSION = 1
_KEYS_A_QUERY = 500
_BUSY_TIMEOUT_S = 10.0  # of a writer; each writes for some milliseconds
_REST_S = 60.0  # a file that somebody keeps locked, or a disk without locks, is left alone for so long
_BYTES_A_TRANSACTION = 4 * 2**20  # which the log beside the file holds too
_DROPPED_SHARE = 0.1  # of the entries, oldest first, when the bound is reached
_SCHEMA = "CREATE TABLE vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)"
_Result = TypeVar("_Result")
_left_alone: dict[Path, float] = {}  # until then, by time.monotonic()
# SQLite and its locks do not survive a fork in the middle of a call of another thread.
_use_lock = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_use_lock.acquire, after_in_parent=_use_lock.release, after_in_child=_use_lock.release
    )


class _DamagedError(Exception):
    """The file holds something that was not written to it."""


class DiskVectorCache:
    """A bounded store of vectors in a folder; those written first are dropped first.

    SQLite with a write-ahead log: many processes read and write at once, and
    a process that dies in the middle of a write leaves the rest intact. Each
    entry carries a checksum. A damaged file is set aside with a warning. A
    folder that may only be read is read; where a folder cannot be used, a
    warning says so and nothing is cached.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    max_bytes : int
        Bound on the file. The log beside it takes more while processes
        write: some MB, and a tenth of the bound where old entries go.

    Raises
    ------
    OSError
        The folder cannot be made.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        try:
            self._path = folder.absolute() / _FILE_NAME
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"cache={str(folder)!r} cannot be used as a folder ({error.strerror}): give another path, or "
                "cache='memory'."
            ) from error

    def get(self, keys: Sequence[bytes]) -> list[np.ndarray | None]:
        """Return the vector of each key, None where there is none."""

        def read(connection: sqlite3.Connection) -> list[np.ndarray | None]:
            found = {}
            for start in range(0, len(keys), _KEYS_A_QUERY):
                some = keys[start : start + _KEYS_A_QUERY]
                query = f"SELECT key, vector FROM vectors WHERE key IN ({','.join('?' * len(some))})"
                for key, stored in connection.execute(query, some):
                    found[key] = _unpack(key, stored)
            return [found.get(key) for key in keys]

        return self._use(read) or [None] * len(keys)

    def put(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        """Store one vector per key."""
        entries = [(key, _pack(key, vector)) for key, vector in zip(keys, vectors, strict=True)]
        bound = min(_BYTES_A_TRANSACTION, self._max_bytes // 4)
        n_together = max(1, bound // max((len(key) + len(stored) for key, stored in entries), default=1))

        def write(connection: sqlite3.Connection) -> None:
            for start in range(0, len(entries), n_together):
                with _transaction(connection):
                    some = entries[start : start + n_together]
                    connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", some)
                    dropped = self._drop_oldest(connection)
                if dropped:  # not by execute, which gives back one page
                    connection.executescript("PRAGMA incremental_vacuum")

        self._use(write)

    def __len__(self) -> int:
        count = self._use(lambda connection: connection.execute("SELECT COUNT(*) FROM vectors").fetchone()[0])
        return count or 0

    def _drop_oldest(self, connection: sqlite3.Connection) -> bool:
        """Delete what is beyond the bound; tell whether anything was."""

        def value(pragma: str) -> int:
            return connection.execute(f"PRAGMA {pragma}").fetchone()[0]

        dropped = False
        while (value("page_count") - value("freelist_count")) * value("page_size") > self._max_bytes:
            (rows,) = connection.execute("SELECT COUNT(*) FROM vectors").fetchone()
            if not rows:
                break
            connection.execute(
                "DELETE FROM vectors WHERE rowid IN (SELECT rowid FROM vectors ORDER BY rowid LIMIT ?)",
                (1 + int(rows * _DROPPED_SHARE),),
            )
            dropped = True
        return dropped

    def _use(self, action: Callable[[sqlite3.Connection], _Result]) -> _Result | None:
        """Run an action on the file, setting a damaged one aside first."""
        with _use_lock:
            if time.monotonic() < _left_alone.get(self._path, 0):
                return None
            return self._use_now(action)

    def _use_now(self, action: Callable[[sqlite3.Connection], _Result]) -> _Result | None:
        for is_last in (False, True):
            identity = self._identity()
            try:
                with closing(self._connect()) as connection:
                    return action(connection)
            except OSError as error:  # no lock in this folder
                self._warn_of_no_use(error, is_locked=isinstance(error, TimeoutError))
                return None
            except (_DamagedError, sqlite3.DatabaseError) as error:
                is_passing = isinstance(error, sqlite3.OperationalError)  # locked, disk full, read-only
                is_passing &= not str(error).startswith(("no such table", "no such column"))
                may_write = self._may_write()
                if not (is_passing or may_write or is_last):
                    continue  # its owner may have been writing
                if is_passing or not may_write:
                    self._warn_of_no_use(error, is_locked=is_passing and "locked" in str(error))
                    return None
                try:
                    self._set_aside(identity, error)
                except OSError as failure:  # open elsewhere on Windows, or in a folder that is read-only
                    warn(
                        f"The cache {self._path} is damaged ({error}) and cannot be renamed ({failure}): vectors "
                        "are computed. Delete it when no process uses it."
                    )
                    return None
        return None

    def _connect(self) -> sqlite3.Connection:
        may_write = self._may_write()
        connection = sqlite3.connect(
            self._path if may_write else self._address_for_reading(),
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,
            uri=not may_write,
        )
        try:
            version = _user_version(connection)
            if version == 0 and may_write:
                # Two connections that turn one file to a write-ahead log wait for each other: SQLite
                # refuses one of them at once, whatever the timeout.
                with self._locked():
                    if _user_version(connection) == 0:
                        self._create(connection)
            elif version == 0:
                raise _DamagedError("its owner has not finished making it, or it is no cache")
            elif version != _FORMAT_VERSION:
                raise _DamagedError(f"it has the unknown format {version}")
            schema = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
            if version and schema != [(_SCHEMA,)]:  # a view or a trigger would compute
                raise _DamagedError("it holds other tables than this package makes")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(f"PRAGMA journal_size_limit={_BYTES_A_TRANSACTION}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _may_write(self) -> bool:
        # Beside a file that may only be read SQLite would still make files, which its owner could not write to then.
        is_ours = not self._path.exists() or os.access(self._path, os.W_OK)
        return is_ours and os.access(self._path.parent, os.W_OK)

    def _address_for_reading(self) -> str:
        """Return a URI for a file that may only be read."""
        # A log is read only in a folder where SQLite can make no files: elsewhere it would make a missing part of the
        # log, even of a log that is gone a moment later, and the owner of the file could not write to that. Otherwise
        # SQLite has to be told that nobody is writing (immutable=1); if somebody is, checksums tell.
        reads_log = Path(f"{self._path}-wal").exists() and not os.access(self._path.parent, os.W_OK)
        options = "mode=ro" if reads_log else "mode=ro&immutable=1"
        uri = self._path.as_uri()
        if not uri.startswith("file:///"):  # a server on Windows
            uri = uri.replace("file://", "file:////", 1)
        return f"{uri}?{options}"

    def _create(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA page_size=8192")  # holds four vectors of 384 numbers
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # so that the file can become smaller
        connection.execute("PRAGMA journal_mode=WAL")
        with _transaction(connection):
            connection.execute(_SCHEMA.replace("TABLE", "TABLE IF NOT EXISTS"))
            connection.execute(f"PRAGMA user_version={_FORMAT_VERSION}")

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _locked(self) -> AbstractContextManager:
        """Lock the file against other processes until the returned context is left."""
        lock = FileLock(self._path.with_suffix(".lock"), timeout=_BUSY_TIMEOUT_S)
        return lock.acquire(poll_interval=0.01)

    def _set_aside(self, identity: tuple[int, int] | None, error: Exception) -> None:
        aside = self._path.with_name(f"damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.sqlite3")
        with self._locked():
            if identity is None or self._identity() != identity:
                return  # another process has been here
            os.replace(self._path, aside)
            for suffix in ("-wal", "-shm"):  # belong to the damaged file alone
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        warn(
            f"The cache {self._path} is damaged ({error}). It was renamed to {aside.name}, and its vectors are "
            "computed again; delete it when you do not need it."
        )

    def _warn_of_no_use(self, error: Exception, *, is_locked: bool) -> None:
        again = ""
        if is_locked:
            _left_alone[self._path] = time.monotonic() + _REST_S
            again = f" It is tried again in {_REST_S:.0f} s."
        warn(f"The cache {self._path} cannot be used now ({error}): vectors are computed.{again}")


def _user_version(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA user_version").fetchone()[0]


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # SQLite has gone back itself where the disk is full
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _pack(key: bytes, vector: np.ndarray) -> bytes:
    values = np.ascontiguousarray(vector, "<f4").tobytes()
    return zlib.crc32(values, zlib.crc32(key)).to_bytes(4, "little") + values


def _unpack(key: bytes, stored: bytes) -> np.ndarray:
    if not isinstance(stored, bytes):
        raise _DamagedError(f"an entry holds {type(stored).__name__} instead of bytes")
    checksum, values = stored[:4], stored[4:]
    if zlib.crc32(values, zlib.crc32(key)) != int.from_bytes(checksum, "little"):
        raise _DamagedError("an entry has another checksum than when it was written")
    return np.frombuffer(values, "<f4")
