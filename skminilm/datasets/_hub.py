"""Data sets as the Hugging Face hub has them, read through the library ``datasets``.

A source is a name on the hub, such as ``facebook/xnli``, or a folder with a copy of such a repository.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ._files import names_by_language, select_languages

# The copy of a data set that the hub makes by itself: <config>/<split>/*.parquet. The library reads nothing else
# of a repository with a loading script, such as facebook/mlqa.
_PARQUET_COPY = "hf://datasets/{name}@refs/convert/parquet"
_SCRIPT = "scripts are no longer supported"


def is_hub_dataset(source: Any) -> bool:
    """Return whether a source is a name on the hub, or a folder whose README.md declares configurations as there."""
    path = Path(source)
    if path.is_dir():
        return _declares_configs(path / "README.md")
    # Where the first part is a folder here, or the name is one of a file, a path was mistyped.
    is_path = path.exists() or path.parent.exists() or path.suffix in (".json", ".jsonl", ".gz", ".tsv")
    return not is_path and re.fullmatch(r"[\w.-]+/[\w.-]+", path.as_posix()) is not None


def read_languages(
    source: Any, name_of: Callable[[str], str], split: str, languages: Any
) -> Iterator[tuple[str, list[dict[str, Any]], list[Any]]]:
    """Yield each language with its rows and what was read: one configuration a language.

    Parameters
    ----------
    source : str or path
    name_of : callable
        Returns the name of the configuration of a language.
    split : str
        As the data set calls it.
    languages : str, list of str or None
        None: all that are there.

    Raises
    ------
    FileNotFoundError, ConnectionError, ImportError
        As from :func:`read_split`; or no configuration has such a name.
    ValueError
        A language is missing.
    """
    names = config_names(source)
    found = names_by_language(names, name_of)
    if not found:
        raise FileNotFoundError(
            f"{source} has no configuration {name_of('<language>')!r}; there are {', '.join(names[:20])}. Give "
            "another data set."
        )
    for language in select_languages(list(found), languages, source):
        yield language, *read_split(source, found[language], split)


def config_names(source: Any) -> list[str]:
    """Return the names of the configurations of a data set."""
    datasets = _library()
    name = Path(source).as_posix()
    with _readable_errors(name):
        try:
            return datasets.get_dataset_config_names(name)
        except RuntimeError as error:
            if _SCRIPT not in str(error):
                raise
        from fsspec.core import url_to_fs

        filesystem, folder = url_to_fs(_PARQUET_COPY.format(name=name))
        entries = filesystem.ls(folder, detail=True)
        return sorted(entry["name"].split("/")[-1] for entry in entries if entry["type"] == "directory")


def read_split(source: Any, config: str, split: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """Read a split of a configuration: its rows, classes by their names, and the files that they are from.

    The library keeps what it downloads in its cache: all splits of the configuration.

    Returns
    -------
    rows : list of dict
    files : list of Path or str
        Of the hub as ``hf://datasets/<name>@<commit>/<file>``; the name alone where the library does not tell.

    Raises
    ------
    FileNotFoundError
        There is no such data set.
    ConnectionError
        The hub cannot be reached.
    ImportError
        The library is not installed.
    ValueError
        There is no such configuration or split.
    """
    datasets = _library()
    name = Path(source).as_posix()
    with _readable_errors(name):
        try:
            builder = datasets.load_dataset_builder(name, config)
        except RuntimeError as error:
            if _SCRIPT not in str(error):
                raise
            files = f"{_PARQUET_COPY.format(name=name)}/{config}/{split}/*.parquet"
            builder = datasets.load_dataset_builder("parquet", data_files={split: files})
        builder.download_and_prepare()
        dataset = builder.as_dataset(split=split)
    rows = []
    for batch in dataset.iter(1000):  # much faster than row by row
        for column, feature in dataset.features.items():
            if isinstance(feature, datasets.ClassLabel):
                batch[column] = [_class_name(feature, number) for number in batch[column]]
        rows += [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    files = (builder.config.data_files or {}).get(split, [])
    return rows, [file if "://" in file else Path(file) for file in files] or [name]


def _class_name(feature: Any, number: int | None) -> str | int | None:
    # -1 stands for no class.
    return feature.names[number] if number is not None and 0 <= number < len(feature.names) else number


def _declares_configs(readme: Path) -> bool:
    if not readme.is_file():
        return False
    import yaml
    from huggingface_hub import metadata_load

    try:
        return "configs" in (metadata_load(readme) or {})
    except (ValueError, yaml.YAMLError):  # notes of somebody, not a card of the hub
        return False


def _library() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise ImportError(
            'Reading data sets of the Hugging Face hub needs the library datasets: pip install "skminilm[datasets]"'
        ) from error
    return datasets


@contextmanager
def _readable_errors(name: str) -> Iterator[None]:
    try:
        yield
    except ConnectionError as error:
        raise ConnectionError(
            f"{name} is no folder here, and the Hugging Face hub, which may have a data set of that name, cannot be "
            f"reached: {error}. Give a folder with the files, or connect (and unset HF_HUB_OFFLINE)."
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{name} is neither a folder with files of this data set nor one that the Hugging Face hub has: {error}"
        ) from error
