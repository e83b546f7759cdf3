"""Token F1 and exact match of answers, by the rules of the MLQA evaluation."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from typing import Any

import numpy as np

from .._answers import answer_rows, read_references
from .._rows import as_rows, check_languages, check_same_length
from .._target_validation import check_row_weights
from .._validation import is_missing, shorten

# What the official script takes for articles; Hindi and Chinese have none.
_ARTICLES = {
    "ar": re.compile("ال"),
    "de": re.compile(r"\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b"),
    "en": re.compile(r"\b(?:a|an|the)\b"),
    "es": re.compile(r"\b(?:un|una|unos|unas|el|la|los|las)\b"),
    "vi": re.compile(r"\b(?:của|là|cái|chiếc|những)\b"),
}
_HAN = re.compile("([\u4e00-\u9fa5])")

# ISO 639-2 and 639-3 codes of the seven languages that have rules.
_SHORT_CODES = {
    "ara": "ar",
    "arb": "ar",
    "chi": "zh",
    "cmn": "zh",
    "deu": "de",
    "eng": "en",
    "ger": "de",
    "hin": "hi",
    "spa": "es",
    "vie": "vi",
    "zho": "zh",
}


class _PunctuationTable(dict):
    """For ``str.translate``: deletes punctuation, and learns the characters as they come."""

    def __missing__(self, code: int) -> int | None:
        char = chr(code)
        is_punctuation = unicodedata.category(char).startswith("P") or char in string.punctuation
        self[code] = None if is_punctuation else code
        return self[code]


_PUNCTUATION = _PunctuationTable()


def mlqa_f1(y_true: Any, y_pred: Any, languages: Any = "en", *, sample_weight: Any = None) -> float:
    """Return the mean token F1 of answers, by the official MLQA evaluation.

    Answers are put in lower case; punctuation, the articles of the language
    and surplus whitespace are removed; what is left is compared as bags of
    tokens. Of several references the best counts.

    Parameters
    ----------
    y_true : list or array-like of length n_rows
        References, a row: a str; ``(text, start)``, of which the text counts; a
        list of either; or None, ``""`` or ``[]`` where the question has no answer.
    y_pred : list or array-like of str, length n_rows
        Answers; None or ``""`` stands for no answer.
    languages : str or array-like of str, default="en"
        Language of the answers, one code for all rows or one per row. What
        follows ``-`` or ``_`` is left out, and three-letter codes are known, so
        that ``"zh-CN"`` and ``"zho_Hans"`` are ``"zh"``.
    sample_weight : array-like of float, shape (n_rows,), default=None
        Weight of each row in the mean.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    TypeError, ValueError
        Lengths differ, or a value is no answer; the row is named.

    See Also
    --------
    mlqa_exact_match : The share of answers that are the same.

    Notes
    -----
    The rules are those of ``mlqa_evaluation_v1.py`` [1]_. Punctuation is every
    character whose Unicode category begins with P, and the ASCII symbols.
    Articles are known for ar, de, en, es and vi (in Arabic each "ال" is
    removed, at the beginning of a word or not). In Chinese each Han character
    from U+4E00 to U+9FA5 is a token, elsewhere whitespace separates tokens.
    Nothing is normalised beyond that: an answer in composed characters and the
    same in combining marks differ.

    The official script knows seven languages. Others are treated without
    articles, with tokens between whitespace; in Thai, which puts no space
    between words, F1 is therefore close to exact match. XTREME [2]_ scores
    XQuAD and TyDi QA in all languages with the SQuAD script instead, which is
    English (its articles, ASCII punctuation): its figures are not these.

    Where an answer or a reference has no token, the row counts 1 if neither
    has and 0 otherwise, as in SQuAD 2.0 [3]_; the MLQA script, which has no
    unanswerable questions, gives 0.

    References
    ----------
    .. [1] P. Lewis et al., "MLQA: Evaluating Cross-lingual Extractive Question
       Answering", ACL 2020, arXiv:1910.07475;
       https://github.com/facebookresearch/MLQA.
    .. [2] J. Hu et al., "XTREME: A Massively Multilingual Multi-task Benchmark",
       ICML 2020, arXiv:2003.11080; https://github.com/google-research/xtreme, evaluate.py.
    .. [3] P. Rajpurkar et al., "Know What You Don't Know: Unanswerable Questions
       for SQuAD", ACL 2018, arXiv:1806.03822.

    Examples
    --------
    >>> from skminilm.metrics import mlqa_f1
    >>> mlqa_f1(["the Eiffel Tower", "在北京"], ["Eiffel Tower.", "北京"], ["en", "zh"])
    0.9
    """
    f1, _ = answer_scores(y_true, y_pred, languages)
    return float(np.average(f1, weights=check_row_weights(sample_weight, len(f1))))


def mlqa_exact_match(y_true: Any, y_pred: Any, languages: Any = "en", *, sample_weight: Any = None) -> float:
    """Return the share of answers that equal a reference, by the official MLQA evaluation.

    Compared is what is left of an answer in lower case without punctuation,
    articles and surplus whitespace; :func:`mlqa_f1` has the rules.

    Parameters
    ----------
    y_true, y_pred, languages, sample_weight
        As in :func:`mlqa_f1`.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    TypeError, ValueError
        Lengths differ, or a value is no answer; the row is named.

    See Also
    --------
    mlqa_f1 : Partial credit for answers that overlap.

    Examples
    --------
    >>> from skminilm.metrics import mlqa_exact_match
    >>> mlqa_exact_match(["the Eiffel Tower", "在北京"], ["Eiffel Tower.", "北京"], ["en", "zh"])
    0.5
    """
    _, exact = answer_scores(y_true, y_pred, languages)
    return float(np.average(exact, weights=check_row_weights(sample_weight, len(exact))))


def answer_scores(y_true: Any, y_pred: Any, languages: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the F1 and the exact match of each row, float64 (n_rows,) each."""
    answers = [_answer(value, row) for row, value in enumerate(as_rows(y_pred, "y_pred"))]
    y_true = answer_rows(y_true, "y_true")
    check_same_length(y_true, len(answers), "y_true", "reference (or list of references)")
    if not answers:
        raise ValueError("y_true and y_pred are empty: there is nothing to score.")
    languages = [_short_code(code, row) for row, code in enumerate(check_languages(languages, len(answers)))]
    f1, exact = np.zeros(len(answers)), np.zeros(len(answers))
    for row, (value, answer, language) in enumerate(zip(y_true, answers, languages, strict=True)):
        tokens = _tokens(answer, language)
        texts = [text for text, _ in read_references(value, row, "y_true")] or [""]
        references = [_tokens(text, language) for text in texts]
        f1[row] = max(_f1(tokens, reference) for reference in references)
        exact[row] = any(tokens == reference for reference in references)
    return f1, exact


def _short_code(language: str, row: int) -> str:
    code = re.split("[-_]", language.lower())[0]
    if not re.fullmatch("[a-z]{2,3}", code):  # a name would be scored by the rules of no language
        raise ValueError(
            f"languages must hold codes: row {row} is {language!r}. Give those of ISO 639, such as 'de' or 'deu_Latn'."
        )
    return _SHORT_CODES.get(code, code)


def _answer(value: object, row: int) -> str:
    if is_missing(value):
        return ""
    if not isinstance(value, str):
        raise TypeError(
            f"y_pred must hold str: row {row} is {shorten(value)} ({type(value).__name__}). Give the text of the "
            "answer, or '' for no answer."
        )
    return value


def _tokens(text: str, language: str) -> list[str]:
    text = text.lower().translate(_PUNCTUATION)
    if language in _ARTICLES:
        text = _ARTICLES[language].sub(" ", text)
    if language == "zh":
        text = _HAN.sub(r" \1 ", text)
    return text.split()


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    n_common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * n_common / (len(answer) + len(reference))
