"""The score of an estimator in each language."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from scipy.stats import norm
from sklearn.base import is_classifier

from .._answers import answer_rows
from .._rows import as_rows, check_languages, check_same_length
from .._target_validation import kind_of_label, label_array
from ._answer_scores import answer_scores


def score_by_language(estimator: Any, X: Any, y: Any, languages: Any, *, confidence: float = 0.95) -> Any:
    """Score a classifier or question answerer in each language.

    Parameters
    ----------
    estimator : fitted estimator
        A classifier (also a pipeline or a search), or an estimator with
        ``predict_spans``, such as :class:`MiniLMQuestionAnswerer`. `predict` is
        called once, with all of X.
    X : array-like of length n_rows
        Input of `predict`, in any language.
    y : array-like of length n_rows
        Labels; or answers, as in :func:`mlqa_f1`.
    languages : array-like of str, length n_rows
        Language of each row. Answers are scored by its rules.
    confidence : float, default=0.95
        Of the interval from low to high.

    Returns
    -------
    DataFrame
        One row a language, in the order of first appearance (pandas where it
        is installed, otherwise polars). Columns of a classifier: language, n
        (rows), accuracy, low, high. Of a question answerer: language, n, f1,
        exact_match, low, high; the interval is that of f1. All from 0 to 1.

    Raises
    ------
    TypeError
        The estimator is neither a classifier nor a question answerer.
    ValueError
        Lengths differ, or a language or label is missing (the row is named), or
        y has several columns.
    ImportError
        Neither pandas nor polars is installed.

    Notes
    -----
    The interval of an accuracy is Wilson's [1]_. That of a mean F1 is Wilson's
    for as many rows of 0 and 1 as would say as much: their number is n times
    the variance that 0 and 1 of this mean have, over the variance of the rows.
    With thousands of rows it is mean ± z · s / √n; with few it stays inside
    [0, 1], and holds the true mean about as often as it says, less often
    where a few rows differ much from all others. Both take rows as
    independent: rows that share a context or a premise are less than that, so
    that the true interval is wider. Intervals of two languages over
    translations of the same rows may overlap although the difference is
    certain: compare the rows in pairs.

    References
    ----------
    .. [1] E. B. Wilson, "Probable Inference, the Law of Succession, and
       Statistical Inference", J. Am. Stat. Assoc. 22 (1927), 209-212.

    Examples
    --------
    >>> from sklearn.dummy import DummyClassifier
    >>> from skminilm.metrics import score_by_language
    >>> X, y = ["yes", "no", "ndiyo", "hapana"], [1, 0, 1, 1]
    >>> classifier = DummyClassifier(strategy="constant", constant=1).fit(X, y)
    >>> frame = score_by_language(classifier, X, y, ["en", "en", "sw", "sw"])
    >>> frame["accuracy"].to_list()
    [0.5, 1.0]
    """
    frame_library = _frame_library()
    rows = rows_by_language(estimator, X, y, languages, confidence=confidence)
    return frame_library.DataFrame({name: [row[name] for row in rows] for name in rows[0]})


def rows_by_language(
    estimator: Any, X: Any, y: Any, languages: Any, *, confidence: float = 0.95
) -> list[dict[str, Any]]:
    """Return the rows of :func:`score_by_language`, for those who need no frame."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: expected a number between 0 and 1, such as 0.95.")
    answers_questions = hasattr(estimator, "predict_spans")
    if not answers_questions and not is_classifier(estimator):
        raise TypeError(
            f"{type(estimator).__name__} is neither a classifier nor a question answerer (predict_spans): its "
            "score in a language is not defined here. Of a search or a pipeline around a question answerer give "
            "that itself, such as search.best_estimator_."
        )
    y = answer_rows(y, "y") if answers_questions else label_array(y).tolist()
    languages = check_languages(as_rows(languages, "languages"), len(y))
    if not y:
        raise ValueError("y is empty: there is nothing to score.")
    y_pred = as_rows(estimator.predict(X), "the prediction")
    check_same_length(y, len(y_pred), "y", "answer" if answers_questions else "label")
    if answers_questions:
        f1, exact = answer_scores(y, y_pred, languages)
    else:
        y_pred = label_array(y_pred).tolist()
        if (kind_of_label(y[0]) == "str") != (kind_of_label(y_pred[0]) == "str"):
            raise ValueError(
                f"y holds {y[0]!r} and the like, and the estimator predicts {y_pred[0]!r} and the like: none is equal. "
                "Convert y to the type that it was trained on."
            )
        correct = np.array([label == predicted for label, predicted in zip(y, y_pred, strict=True)])
    table = []
    languages = np.array(languages, dtype=object)
    for language in dict.fromkeys(languages):
        rows = languages == language
        n = int(rows.sum())
        figures: dict[str, Any] = {"language": language, "n": n}
        if answers_questions:
            figures |= {"f1": float(f1[rows].mean()), "exact_match": float(exact[rows].mean())}
        else:
            figures["accuracy"] = float(correct[rows].mean())
        low, high = _interval_of_mean(f1[rows] if answers_questions else correct[rows], confidence)
        table.append({**figures, "low": low, "high": high})
    return table


def _interval_of_mean(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return Wilson's interval, for numbers from 0 to 1 with as many rows as 0 and 1 would need to say as much."""
    n, mean, z = len(values), values.mean(), norm.ppf((1 + confidence) / 2)
    of_proportion = mean * (1 - mean)
    # z² rows more, as a proportion has them: rows that happen to be equal are not certain.
    variance = (n * values.var() + z**2 * of_proportion) / (n + z**2)
    if variance > 0:
        n = n * of_proportion / variance
    centre = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(of_proportion / n + z**2 / (4 * n**2))
    low, high = min(centre - half, mean), max(centre + half, mean)  # whatever rounding does
    return max(0.0, float(low)), min(1.0, float(high))


def _frame_library() -> Any:
    for name in ("pandas", "polars"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError("score_by_language returns a frame: pip install pandas (or polars).")
