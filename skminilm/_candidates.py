"""Labels in words: what may be one, and what each says to the zero-shot classifier."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ._target_validation import find_classes, label_array
from ._validation import is_blank, lone_surrogate, shorten

if TYPE_CHECKING:
    from .checkpoints.token_batch import Tokenizer


_MAX_NAME_TOKENS = 100_000


def read_candidates(labels: Any, multi_label: bool) -> tuple[np.ndarray, list[str]]:
    """Return the labels of a list of str, or of a dict of label to str, and what each says.

    Sorted, or in their order with `multi_label`.

    Raises
    ------
    TypeError, ValueError
        It is something else; or one is empty, repeated or not valid Unicode (it is named), or they are too few.
    """
    if isinstance(labels, str | set | frozenset) or not isinstance(labels, Iterable):
        raise TypeError(f"labels is {shorten(labels)}: expected a list of str, or a dict of label to str.")
    names = list(labels.values()) if isinstance(labels, dict) else list(labels)
    places: dict[str, int] = {}
    for number, name in enumerate(names):
        if not isinstance(name, str):
            raise TypeError(
                f"labels must hold str: number {number} is {shorten(name)} ({type(name).__name__}). Say in "
                "words what it means: labels={label: 'words', ...}."
            )
        if not name.strip():
            raise ValueError(f"labels has an empty one: number {number} is {name!r}.")
        if lone_surrogate(name) is not None:
            raise ValueError(f"labels has one that is not valid Unicode: number {number} is {name!r}.")
        if places.setdefault(name, number) != number:
            raise ValueError(f"labels repeats {name!r}: number {places[name]} and {number}.")
    at_least = 1 if multi_label else 2
    if len(names) < at_least:
        raise ValueError(f"labels has {len(names)}: give at least {at_least}.")
    try:
        array = label_array(list(labels) if isinstance(labels, dict) else names)
        classes, codes = find_classes(array)
    except (TypeError, ValueError) as error:
        raise type(error)(f"labels={shorten(labels)}: with the labels as y, {error}") from error
    if multi_label:
        return array, names
    return classes, [names[position] for position in np.argsort(codes)]


def candidates_of(y: Any) -> tuple[np.ndarray, list[str]]:
    """Return the sorted labels of y, and what each says: itself.

    Raises
    ------
    ValueError
        There is no y; or its labels are no words, or fewer than two.
    """
    if y is None:
        raise ValueError(
            "labels=None requires y to be passed, but the target y is None: give the candidates, "
            "labels=['sports', ...]."
        )
    classes, _ = find_classes(label_array(y))
    if classes.dtype.kind not in "UT":
        raise ValueError(
            f"y has the labels {classes.tolist()[:5]}, which say nothing in words: give "
            "labels={label: 'words', ...}, in the order of the sorted words where scikit-learn has numbered them."
        )
    empty = [name for name in classes.tolist() if not name.strip()]
    if empty:
        raise ValueError(f"y has the empty label {empty[0]!r}, which says nothing in words.")
    if len(classes) < 2:
        raise ValueError(f"y has one class only, {str(classes[0])!r}: give labels, or texts of at least two.")
    return classes, [str(name) for name in classes]


def check_told_apart(names: list[str], tokenizer: Tokenizer | None) -> None:
    """Refuse labels that say nothing, and two that are the same to the network but for spaces.

    Raises
    ------
    ValueError
        There are such; they are named.
    """
    for name in names:
        if all(map(is_blank, name)):
            raise ValueError(f"The label {name!r} says nothing: it holds only signs that are not seen.")
    if tokenizer is None:
        return
    batch = tokenizer.encode(names, max_length=_MAX_NAME_TOKENS)
    known: dict[bytes, str] = {}
    for row, name in enumerate(names):
        other = known.setdefault(batch.ids_of([row]).tobytes(), name)
        if other != name:
            raise ValueError(
                f"The labels {other!r} and {name!r} are the same to the network, which reads them as the same tokens: "
                "leave one out, or say it in other words."
            )


def fill(template: str, name: str) -> str:
    """Return the hypothesis of a label.

    Raises
    ------
    ValueError
        The template has no place for it, or is not valid Unicode.
    """
    if "{}" not in template:
        raise ValueError(f"hypothesis_template={template!r} has no {{}} where the label goes.")
    if lone_surrogate(template) is not None:
        raise ValueError(f"hypothesis_template={template!r} is not valid Unicode.")
    return template.replace("{}", name)
