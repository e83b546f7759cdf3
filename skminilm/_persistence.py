"""Fitted estimators as folders of safetensors and JSON. Nothing in them is ever executed.

``estimator.json`` holds parameters, fitted attributes, versions and digests; ``arrays.safetensors`` the
arrays, of which the JSON names the place.
"""

from __future__ import annotations

import errno
import importlib.metadata
import inspect
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator

from ._folders import (
    copy_rights,
    errors_of_the_system,
    own_path,
    replace_folder,
    temporary_folder,
)
from .checkpoints.digests import arrays_digest, combine_digests, file_sha256
from .checkpoints.embedded import content_digest
from .checkpoints.layout import ESTIMATOR_FILE

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT_VERSION = 1
_ARRAYS_FILE = "arrays.safetensors"
_TEMPORARY_FILES = {
    f".{name}" for name in (ESTIMATOR_FILE, _ARRAYS_FILE)
}  # left where a process ended in between
# Callbacks, and what metadata routing was told: objects of scikit-learn's.
_NOT_KEPT = (
    "_skl_callbacks",
    "_skl_callbacks_to_teardown",
    "_callback_fit_ctx",
    "_parent_callback_ctx",
    "_metadata_request",
)
# A mount point, or a folder in one that may not be written.
_CANNOT_BE_EXCHANGED = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)
_VERSIONS_OF = ("skminilm", "scikit-learn", "torch", "transformers", "sentencepiece", "numpy")


def _save(estimator: Any, path: str | os.PathLike[str]) -> None:
    """Write an estimator to a folder; nothing but a folder that holds an estimator alone is ever replaced."""
    path = own_path(path).resolve()  # through links, so that they stay links
    is_empty = _check_place(path)
    arrays: dict[str, np.ndarray] = {}
    content = {
        "format_version": FORMAT_VERSION,
        "versions": package_versions(),
        **_encode_estimator(estimator, "", arrays),
    }
    # The folder itself stays: a process, or a disk, may be in it.
    if is_empty or os.path.ismount(path) or _is_inside(path):
        _write_files(path, content, arrays)
        return
    try:
        with temporary_folder(path.parent) as new:
            copy_rights(path, new)
            _write_files(new, content, arrays, earlier=path)
            _check_place(path)  # where something else may have come meanwhile
            replace_folder(path, new)
    except OSError as error:
        if not path.exists() or error.errno not in _CANNOT_BE_EXCHANGED:
            raise
        _write_files(path, content, arrays)


def _check_place(path: Path) -> bool:
    """Refuse a path where something else than an estimator is; tell whether an empty folder is there."""
    while True:
        folder = _identity(path)
        names = {file.name for file in path.iterdir()} if path.is_dir() else set()
        is_empty = path.is_dir() and names <= _TEMPORARY_FILES
        is_other = path.exists() and not is_empty and not is_saved_estimator(path)
        # Else another process has replaced the folder, and was deleting the earlier one while it was listed here.
        if _identity(path) == folder:
            break
    if is_other:
        others = sorted(names - {ESTIMATOR_FILE, _ARRAYS_FILE, *_TEMPORARY_FILES})
        found = f" ({others[0]!r})" if others else ""
        raise FileExistsError(
            f"{path} is there already and holds something else{found}: choose another path."
        )
    return is_empty


def _is_inside(path: Path) -> bool:
    """Tell whether this process works in a folder or below it."""
    try:
        return Path.cwd().is_relative_to(path)
    except FileNotFoundError:  # it works in one that was deleted
        return False


def _write_files(
    folder: Path, content: dict[str, Any], arrays: dict[str, np.ndarray], earlier: Path | None = None
) -> None:
    """Write the two files of an estimator; an end between the two renames is noticed by their digests.

    They get the rights of those that are in the folder `earlier`, by default in `folder`.
    """
    temporary = {name: folder / f".{name}" for name in (_ARRAYS_FILE, ESTIMATOR_FILE)}
    for file in temporary.values():
        file.unlink(missing_ok=True)  # of an ended process, or a link to elsewhere
    try:
        _write_arrays(temporary[_ARRAYS_FILE], arrays)
        content["arrays_sha256"] = file_sha256(temporary[_ARRAYS_FILE])
        content.pop("digest", None)
        content["digest"] = combine_digests(content)
        # In ASCII: a path need not be valid Unicode.
        _write_text(temporary[ESTIMATOR_FILE], json.dumps(content, indent=1))
        # safetensors may write for the owner alone.
        copy_rights(temporary[ESTIMATOR_FILE], temporary[_ARRAYS_FILE])
        _check_place(folder)  # where something else may have come meanwhile
        for name, file in temporary.items():
            copy_rights((earlier or folder) / name, file)
            os.replace(file, folder / name)
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)


def is_saved_estimator(path: Path) -> bool:
    """Tell whether a folder holds what :meth:`PersistenceMixin.save` writes, and nothing else."""
    names = {ESTIMATOR_FILE, _ARRAYS_FILE, *_TEMPORARY_FILES}
    if not path.is_dir() or not {file.name for file in path.iterdir()} <= names:
        return False
    try:
        content = json.loads((path / ESTIMATOR_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"format_version", "class", "parameters", "digest"} <= content.keys()


def _load(path: str | os.PathLike[str], kind: type[PersistenceMixin]) -> Any:
    """Read an estimator of the class `kind`, again where another process replaces it meanwhile."""
    path = own_path(path)
    while True:
        folder = _identity(path)
        try:
            return _read_estimator(path, kind)
        except (OSError, ValueError):
            if _identity(path) == folder:
                raise


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


def _read_estimator(path: Path, kind: type[PersistenceMixin]) -> Any:
    if not (path / ESTIMATOR_FILE).is_file():
        remedy = f"Give a folder that {kind.__name__}.save wrote."
        if hasattr(kind, "from_transformers"):
            remedy += (
                f" What transformers wrote, there or on the hub, opens by {kind.__name__}.from_transformers; a saved one on "
                f"the hub by {kind.__name__}.load(huggingface_hub.snapshot_download(name))."
            )
        raise FileNotFoundError(f"{path} holds no saved estimator: there is no {ESTIMATOR_FILE}. {remedy}")
    try:
        content = json.loads((path / ESTIMATOR_FILE).read_text(encoding="utf-8"))
        version, versions = content["format_version"], content["versions"]
        if not isinstance(version, int) or not isinstance(versions, dict):
            raise TypeError(f"it has the format {version!r} and the versions {versions!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, f"{ESTIMATOR_FILE} cannot be read ({error})") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} was saved in format {version} by skminilm {versions.get('skminilm')}; "
            f"this version reads up to {FORMAT_VERSION}: upgrade skminilm."
        )
    if content.pop("digest", None) != combine_digests(content):
        raise _damaged(path, f"{ESTIMATOR_FILE} is not as it was written")
    if not (path / _ARRAYS_FILE).is_file() or content["arrays_sha256"] != file_sha256(path / _ARRAYS_FILE):
        raise _damaged(path, f"{_ARRAYS_FILE} is missing or not as it was written")
    if content["class"] != kind.__name__:
        raise ValueError(f"{path} holds a {content['class']}, expected {kind.__name__}.")
    from safetensors.numpy import load_file

    try:
        return _decode_estimator(content, kind, load_file(path / _ARRAYS_FILE))
    except (KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, f"it holds what no save writes ({type(error).__name__}: {error})") from error


class PersistenceMixin(BaseEstimator):
    """`save` and `load` for an estimator, and pickles that know their version."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write this estimator to a folder of safetensors and JSON, without pickle.

        An estimator that was saved there before stays whole until this one is
        written. Callbacks and metadata requests (``set_fit_request``) are not
        kept.

        Parameters
        ----------
        path : path
            A new folder, or one of an earlier `save`.

        Raises
        ------
        TypeError
            A parameter cannot be written; it is named.
        FileExistsError
            Something else is there.
        OSError
            It cannot be written.
        """
        _save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote; nothing in the folder is executed.

        Parameters
        ----------
        path : path
            The folder.

        Returns
        -------
        estimator of this class

        Raises
        ------
        FileNotFoundError
            Nothing is there.
        ValueError
            It was changed or cut off, comes from a newer version, or holds
            another class.
        """
        return _load(path, cls)

    def __getstate__(self):
        # A copy: what BaseEstimator returns may be the live attributes.
        return {**super().__getstate__(), "_format_version": FORMAT_VERSION}

    def __setstate__(self, state):
        state = dict(state)
        version = state.pop("_format_version", FORMAT_VERSION)
        if version > FORMAT_VERSION:
            raise ValueError(
                f"This {type(self).__name__} was pickled in format {version}; this version of skminilm reads "
                f"up to {FORMAT_VERSION}: upgrade skminilm."
            )
        parameters = inspect.signature(type(self)).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        super().__setstate__({**defaults, **state})  # a parameter may be newer than the pickle


def _is_fitted(name: str, parameters: dict[str, Any]) -> bool:
    return name not in parameters and name not in _NOT_KEPT


def _encode_estimator(estimator: Any, prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    parameters = estimator.get_params(deep=False)
    fitted = {name: value for name, value in vars(estimator).items() if _is_fitted(name, parameters)}
    return {
        "class": type(estimator).__name__,
        "parameters": {name: _encode(value, prefix + name, arrays) for name, value in parameters.items()},
        "fitted": {name: _encode(value, prefix + name, arrays) for name, value in fitted.items()},
    }


def _decode_estimator(
    content: dict[str, Any], kind: type[PersistenceMixin], arrays: dict[str, np.ndarray]
) -> Any:
    unknown = set(content["parameters"]) - set(kind._get_param_names())
    if unknown:
        raise ValueError(
            f"The file holds a {kind.__name__} with {', '.join(sorted(unknown))}, which this version of skminilm "
            "does not know: upgrade skminilm."
        )
    estimator = kind(**{name: _decode(value, arrays) for name, value in content["parameters"].items()})
    for name, value in content["fitted"].items():
        if name.startswith("__") or hasattr(kind, name):
            raise ValueError(
                f"The file holds the attribute {name}, which is none that a fit of {kind.__name__} makes."
            )
        setattr(estimator, name, _decode(value, arrays))
    _renew_digests(estimator)
    return estimator


def _renew_digests(estimator: Any) -> None:
    """Compute what models and vectors go by: a file that was changed on purpose could name another's."""
    if getattr(estimator, "weights_", None):
        estimator.weights_digest_ = arrays_digest(estimator.weights_)
    if getattr(estimator, "checkpoint_", None):
        estimator.checkpoint_["digest"] = content_digest(estimator.checkpoint_)


def _public_estimator(name: str) -> type[PersistenceMixin]:
    """Return the estimator of this package of that name; a file cannot make anything else."""
    import skminilm

    kind = getattr(skminilm, name) if name in skminilm.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, PersistenceMixin)):
        raise ValueError(f"The file holds a {name}, which is no estimator of skminilm.")
    return kind


def _encode(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Return JSON for a value; numeric arrays go to `arrays`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _encode(value.item(), name, arrays)
    if isinstance(value, os.PathLike):  # a folder, where a str may be the name of a preset
        return {"path": os.fspath(value)}
    if isinstance(value, PersistenceMixin):
        return {"estimator": _encode_estimator(value, f"{name}.", arrays)}
    if isinstance(value, FrozenEstimator):
        return {"frozen": _encode(value.estimator, name, arrays)}
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf":
            key = f"{name}#{len(arrays)}"
            arrays[key] = np.ascontiguousarray(value)
            return {"array": key}
        if value.dtype.kind in "UO" and all(isinstance(item, str) for item in value.ravel()):
            return {"strings": value.tolist(), "dtype": value.dtype.str}
    if isinstance(value, dict):
        return {
            "items": [[_encode(k, name, arrays), _encode(v, f"{name}.{k}", arrays)] for k, v in value.items()]
        }
    if isinstance(value, list):
        return [_encode(item, name, arrays) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, name, arrays) for item in value]}
    raise TypeError(
        f"{name}={value!r} cannot be saved: only None, bool, numbers, str, paths, lists, dicts and arrays can. "
        "Use set_params to replace it first."
    )


def _decode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "estimator" in value:
        return _decode_estimator(value["estimator"], _public_estimator(value["estimator"]["class"]), arrays)
    if "frozen" in value:
        return FrozenEstimator(_decode(value["frozen"], arrays))
    if "path" in value:
        return Path(value["path"])
    if "strings" in value:
        return np.array(value["strings"], dtype=object if value["dtype"] == "|O" else str)
    if "tuple" in value:
        return tuple(_decode(item, arrays) for item in value["tuple"])
    return {_decode(k, arrays): _decode(v, arrays) for k, v in value["items"]}


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    with errors_of_the_system(path):
        save_file(arrays, path)
    with open(path, "r+b") as file:  # Windows flushes only what may be written
        os.fsync(file.fileno())


def _write_text(path: Path, text: str) -> None:
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def package_versions() -> dict[str, str]:
    """Return the versions of what a fitted estimator depends on."""
    return {name: _version(name) for name in _VERSIONS_OF}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} was changed or cut off: {what}. Save the estimator again.")
