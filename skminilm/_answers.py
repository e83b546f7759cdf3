"""Questions and answers as users give them, and answers as they are found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple
from unicodedata import category, normalize

import narwhals as nw
import numpy as np

from ._containers import columns_of, view
from ._rows import as_rows, check_given, check_same_length
from ._validation import Texts, check_texts, is_blank, is_missing, shorten
from ._warnings import warn

_NUMBER = re.compile(r"\s*-?\d{1,18}(\.0*)?\s*")
_NO_POSITION = {"", "nan", "NaN", "None", "null", "<NA>"}  # as arrays and files of str write what is missing
_KEYS_OF_SQUAD = {"text", "answer_start"}  # of the answers that the library `datasets` has
_IN_WORDS = {"Lu", "Ll", "Lt", "Nd"}  # letters of scripts that put spaces between words, and digits
_TYPOGRAPHY = str.maketrans(
    "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\xab\xbb\u2010\u2011\u2012\u2013\u2014\u2015\u2212",
    "'" * 4 + '"' * 6 + "-" * 7,
)


class Answer(NamedTuple):
    """A part of a context: ``context[start : start + len(text)] == text``."""

    text: str
    start: int


class AnswerSpan(NamedTuple):
    """An answer that was found in a context.

    Attributes
    ----------
    start, end : int
        ``context[start:end]``, in code points.
    score : float
        Its probability, from 0 to 1.
    text : str
        The answer.
    """

    start: int
    end: int
    score: float
    text: str


def check_answers(
    y: Any, contexts: Sequence[str], name: str = "y", questions: Sequence[str] | None = None
) -> tuple[list[Answer | None], list[str]]:
    """Return the answer of each context (None: it has none), and what is wrong with those that are not found.

    Parameters
    ----------
    y : sequence, or two columns
        One a context: a str, (str, int) with the position of its first code
        point, a list of several of these (the first counts), a dict of both
        as SQuAD has it in `datasets`, or None. Without a position the first
        occurrence that is no part of a longer word is meant, or, where there
        is none, the first. Of two columns the second holds the positions.
    contexts : sequence of str
    name : str, default="y"
        What errors call y.
    questions : sequence of str, default=None
        Of the contexts, to tell whether both were swapped.

    Returns
    -------
    answers : list of Answer or None
    problems : list of str
        One a row; "" where there is none.

    Raises
    ------
    TypeError
        An answer has another type; the row is named.
    ValueError
        y has another number of rows.
    """
    check_given(y, name, "one answer per question")
    values = answer_rows(y, name)
    check_same_length(values, len(contexts), name, "answer")
    answers, problems = [], []
    for row, (value, context) in enumerate(zip(values, contexts, strict=True)):
        answer, problem = None, ""
        references = read_references(value, row, name)
        if references:
            answer, problem = _find(*references[0], context)
            if problem and questions is not None and references[0][0] in questions[row]:
                problem += "; it is in the question: are the columns in the order question, context?"
        answers.append(answer)
        problems.append(f"row {row}: {problem}" if problem else "")
    return answers, problems


def answer_rows(y: Any, name: str) -> list:
    """Return y with one value per row, for :func:`read_references`: one column, or two of answers and positions.

    Raises
    ------
    TypeError
        It has more columns, the second holds positions and something else, or it is no collection.
    """
    values = view(y)
    if isinstance(values, nw.DataFrame):
        columns = columns_of(values)
    elif getattr(values, "ndim", 1) == 2:
        columns = np.asarray(values, object).T.tolist()
    else:
        return as_rows(y, name)
    if len(columns) not in (1, 2):
        raise TypeError(
            f"{name} has {len(columns)} columns: expected one of answers, or two, of answers and where they begin in "
            "their contexts."
        )
    if len(columns) == 1:
        return columns[0]
    texts, starts = columns
    others = [row for row, start in enumerate(starts) if not _is_position(start)]
    if not others:
        starts = [_position(start) for start in starts]
    elif any(_is_position(start) and _position(start) is not None for start in starts):
        raise TypeError(
            f"{name} has {shorten(starts[others[0]])} in row {others[0]} of its second column, which holds positions "
            f"elsewhere: mend it, leave the cell empty (the first occurrence is meant then), or, where the second column "
            f"holds second answers, give {name} as a list of lists."
        )
    # Otherwise the second column holds second answers.
    return [None if is_missing(text) else (text, start) for text, start in zip(texts, starts, strict=True)]


def _is_position(start: Any) -> bool:
    """Tell whether a value is a position or none, of which an array or a frame may have made a str or a float."""
    if isinstance(start, str):
        return start in _NO_POSITION or _NUMBER.fullmatch(start) is not None
    return is_missing(start) or (isinstance(start, Real) and not isinstance(start, bool | np.bool_))


def _position(start: Any) -> Any:
    if is_missing(start) or (isinstance(start, str) and start in _NO_POSITION):
        return None
    if isinstance(start, str):
        return int(start.partition(".")[0])
    return int(start) if isinstance(start, Integral) or float(start).is_integer() else start


def read_references(value: Any, row: int, name: str = "y") -> list[tuple[str, int | None]]:
    """Return what counts as the right answer of a row, with positions where they are given; [] for no answer.

    Raises
    ------
    TypeError
        `value` is nothing of that kind; the row is named.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict) and value.keys() == _KEYS_OF_SQUAD:
        located = _zipped(value["text"], value["answer_start"])
        value = value if located is None else located
    if is_missing(value) or (isinstance(value, str) and value == ""):
        return []
    if isinstance(value, str):
        return [(value, None)]
    located = _located(value)
    if located:
        return [located] if located[0] else []
    hint = ""
    if isinstance(value, list | tuple):
        # Of several annotators some may have found none.
        references = [_located(item) or (item, None) for item in value if not is_missing(item)]
        if all(isinstance(text, str) for text, _ in references) and not _has_str_for_start(value):
            return [(text, start) for text, start in references if text]
        hint = " A start has to be an int. Several answers are a list."
    elif isinstance(value, Real):
        hint = (
            " Answers that are numbers have to be str too, such as y.astype(str). cross_val_predict(method='predict_proba') "
            "numbers y, as for classes: it is not for answers."
        )
    raise TypeError(
        f"{name} has no answer in row {row}: it is {shorten(value)} ({type(value).__name__}). Expected a str, "
        f"(text, start), a list of either, or None for no answer.{hint}"
    )


def _zipped(texts: Any, starts: Any) -> Any:
    """Return answers with their positions, of lists of both or of one answer; None where they do not match."""
    if isinstance(texts, str):
        return [(texts, starts)]
    try:
        return list(zip(texts, starts, strict=True))
    except (TypeError, ValueError):
        return None


def _located(value: Any) -> tuple[str, int | None] | None:
    """Return an answer with its position; None for what is something else."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not isinstance(value[0], str):
        return None
    text, start = value
    if isinstance(start, str) or not _is_position(start):
        return None
    start = _position(start)
    return (text, start) if start is None or isinstance(start, int) else None


def _find(text: str, start: int | None, context: str) -> tuple[Answer | None, str]:
    """Return the answer, or what is wrong with it."""
    if all(map(is_blank, text)):
        return None, f"the answer {text!r} is only whitespace, or signs that are not seen"
    found = context.find(text)
    if found < 0:
        problem = f"the answer {shorten(text)} is not in its context {shorten(context)}"
        if normalize("NFC", text) in normalize("NFC", context):
            problem += ", where its characters are in another Unicode normal form (see unicodedata.normalize)"
        elif text.casefold() in context.casefold():
            problem += ", where its letters have another case"
        elif _plainly(text) in _plainly(context):
            problem += (
                ", where whitespace, dashes or quotation marks are others (copy the answer from the context)"
            )
        return None, problem
    if start is None:
        return Answer(text, _first_place(text, context)), ""
    if start < 0 or context[start : start + len(text)] != text:
        there = context[max(start, 0) : max(start, 0) + len(text)]
        return None, (
            f"the answer {shorten(text)} is not at {start}, where the context has {shorten(there)}; it is at "
            f"{found} (positions count code points)"
        )
    return Answer(text, start), ""


def _has_str_for_start(value: list | tuple) -> bool:
    """Tell whether a value is a tuple of a text and a number as str: a list holds several answers."""
    is_number = [_NUMBER.fullmatch(item) is not None for item in value if isinstance(item, str)]
    return isinstance(value, tuple) and len(value) == 2 and is_number == [False, True]


def _first_place(text: str, context: str) -> int:
    """Return where a text that the context holds occurs first, not as a part of a longer word if it can be."""
    first = found = context.find(text)
    while found >= 0:
        edges = (context[place - 1 : place + 1] for place in (found, found + len(text)))
        if not any(map(_is_in_a_word, edges)):
            return found
        found = context.find(text, found + 1)
    return first


def _is_in_a_word(neighbours: str) -> bool:
    """Tell whether two neighbours belong to one word; of one, at the edge of a context, there is none."""
    return len(neighbours) == 2 and all(category(character) in _IN_WORDS for character in neighbours)


def _plainly(text: str) -> str:
    """Return a text as it may be meant: one kind of blanks, dashes and quotation marks."""
    return " ".join(normalize("NFKC", text).translate(_TYPOGRAPHY).split())


def check_questions(X: Any, name: str = "X") -> Texts:
    """Return X as questions and contexts; errors call it `name`.

    Raises
    ------
    TypeError, ValueError
        X has not two columns, their names say the other order, or one of them is empty in some row.
    """
    texts = check_texts(X, name)
    if texts.second is None:
        raise ValueError(f"{name} has one column: give two, questions and contexts.")
    first, second = texts.names or ("", "")
    if (first.casefold(), second.casefold()) == ("context", "question"):  # as the files of SQuAD have them
        raise ValueError(
            f"{name} has the columns {first}, {second}: give the question first, {name}[[{second!r}, {first!r}]]."
        )
    for part, column in (("question", texts.first), ("context", texts.second)):
        for row, text in enumerate(column):
            if all(map(is_blank, text)):
                raise ValueError(f"{name} has an empty {part}: row {row} is {text!r}. Leave that row out.")
    return texts


def keep_found(problems: list[str], on_missing_answer: str, name: str) -> np.ndarray:
    """Return which rows have no problem, bool (n_rows,); raise, or warn, where some have."""
    bad = [problem for problem in problems if problem]
    kept = np.array([not problem for problem in problems])
    if not bad:
        return kept
    found = f"in {len(bad)} of {len(problems)} rows of {name}; the first: {bad[0]}."
    if on_missing_answer == "raise":
        raise ValueError(
            f"The answer is missing {found} Mend or leave out such rows; on_missing_answer='drop' leaves them out."
        )
    if not kept.any():
        raise ValueError(f"The answer is missing {found} So no row is left: mend some.")
    warn(f"The answer is missing {found} These rows were left out.")
    return kept
