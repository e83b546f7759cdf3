"""Data files that a user has: where they are, and their rows with the place of each."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .._validation import shorten


def find_file(data_dir: Any, names: Sequence[str]) -> Path:
    """Return the first of some files that exists in a folder.

    Raises
    ------
    FileNotFoundError
        None does; the message lists them.
    """
    for name in names:
        if (Path(data_dir) / name).is_file():
            return Path(data_dir) / name
    raise missing_files(data_dir, names)


def missing_files(data_dir: Any, names: Sequence[str]) -> FileNotFoundError:
    """Return the error that lists what was looked for in a folder."""
    what = "is no folder" if not Path(data_dir).is_dir() else "has none of the files looked for"
    listed = "".join(f"\n  {Path(data_dir) / name}" for name in names)
    return FileNotFoundError(f"{data_dir} {what}:{listed}\nGive the folder that holds one of them.")


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, unpacked where its name ends in ``.gz``."""
    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Download it again.") from error


def read_tsv(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[int, list]]:
    """Yield the number of each line and some of its fields: a header, no quoting; empty lines are passed over.

    Raises
    ------
    ValueError
        A column is missing (unless it is optional: None stands for its fields), or
        a line has another number of fields than the header; the line is named.
    """
    # Only a line feed ends a line: real texts hold carriage returns and U+2028.
    lines = io.StringIO(read_text(path), newline="\n")
    header = lines.readline().rstrip("\r\n").split("\t")
    for column in columns:
        if column not in header:
            raise ValueError(f"{path}, line 1: the column {column!r} is missing; there are {header}.")
    places = [header.index(column) if column in header else None for column in (*columns, *optional)]
    for number, line in enumerate(lines, start=2):
        if not line.strip("\r\n"):
            continue
        fields = line.rstrip("\r\n").split("\t")
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, line {number}: {len(fields)} fields, expected {len(header)} ({', '.join(header)}): "
                f"{shorten(line)}. Fields are separated by one tab and not quoted."
            )
        yield number, [None if place is None else fields[place] for place in places]


def read_jsonl(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield the number of each line and its JSON object; empty lines are passed over."""
    for number, line in enumerate(io.StringIO(read_text(path), newline="\n"), start=1):
        if line.strip():
            yield number, parse_object(line, f"{path}, line {number}")


def parse_object(text: str, where: str) -> dict:
    """Return a JSON object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no valid JSON ({error}). Download the file again.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, found {shorten(value)}.")
    return value


def field(record: Any, name: str, kind: type, where: str) -> Any:
    """Return a field of a JSON object, which must have a type."""
    if not isinstance(record, dict) or name not in record:
        known = sorted(record) if isinstance(record, dict) else shorten(record)
        raise ValueError(f"{where}: the field {name!r} is missing; there is {known}.")
    value = record[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where}: the field {name!r} is {shorten(value)}, expected {kind.__name__}.")
    return value


def names_by_language(names: Iterable[str], name_of: Callable[[str], str]) -> dict[str, str]:
    """Return those of some names that `name_of` makes of a language, by that language."""
    # Where it names the language twice, both must be the same.
    pattern = re.escape(name_of("LANGUAGE")).replace("LANGUAGE", "([a-z]{2,3})", 1).replace("LANGUAGE", r"\1")
    matches = [re.fullmatch(pattern, name) for name in names]
    return {match[1]: match[0] for match in matches if match}


def requested_languages(languages: Any) -> list[str] | None:
    """Return each language that was asked for once; None for None.

    Raises
    ------
    ValueError
        None was.
    """
    if languages is None:
        return None
    languages = [languages] if isinstance(languages, str) else list(dict.fromkeys(languages))
    if not languages:
        raise ValueError("languages is empty: name at least one, or leave it out.")
    return languages


def select_languages(present: Sequence[str], languages: Any, source: Any) -> list[str]:
    """Return the languages to read: those asked for, or all.

    Raises
    ------
    ValueError
        One that was asked for is not there.
    """
    languages = requested_languages(languages)
    if languages is None:
        return list(present)
    for language in languages:
        if language not in present:
            raise ValueError(f"{source} has no rows in {language!r}: its languages are {', '.join(present)}.")
    return languages
