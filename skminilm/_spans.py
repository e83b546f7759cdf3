"""From the best spans of windows to the answers of questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp

from ._answers import AnswerSpan
from ._windows import Windows


def choose_answers(
    windows: Windows,
    found: np.ndarray,
    contexts: Sequence[str],
    n_best: int,
    no_answer_threshold: float | None,
) -> tuple[list[list[AnswerSpan]], list[float]]:
    """Return the best answers of each row, best first, at least one; and by how much no answer is the better one.

    Parameters
    ----------
    windows : Windows
    found : ndarray of float32, shape (n_windows, 2 + 3 * n)
        Of ``engine.spans.best_spans``.
    contexts : sequence of str
        Of the rows.
    n_best : int
    no_answer_threshold : float or None
        No answer is first where its score is more than this above the best
        span's; None: it never is, unless there is nothing else.

    Returns
    -------
    answers : list of list of AnswerSpan
    no_answer_margins : list of float
        The score of no answer less that of the best span; infinite where there is no span.
    """
    unusable = np.flatnonzero(~(np.isfinite(found[:, 0]) & (found[:, 1] < np.inf)))
    if len(unusable):
        row = int(windows.batch.text_of_sequence[unusable[0]])
        raise FloatingPointError(
            f"The scores of the context {contexts[row][:60]!r} are not finite: the weights are damaged or the "
            "precision is too low for them. Try precision='fp32'."
        )
    bounds = np.searchsorted(windows.batch.text_of_sequence, np.arange(len(contexts) + 1))
    answers, margins = [], []
    for row, context in enumerate(contexts):
        of_row = slice(bounds[row], bounds[row + 1])
        # The window that holds the answer is the one that doubts it least.
        no_answer = float(found[of_row, 0].min())
        total = logsumexp([no_answer, *found[of_row, 1]])
        scores, first, last = np.split(found[of_row, 2:], 3, axis=1)
        spans: dict[tuple[int, int], float] = {}
        for index in np.argsort(-scores, axis=None, kind="stable"):
            window, rank = np.unravel_index(index, scores.shape)
            if len(spans) == n_best or scores[window, rank] == -np.inf:
                break
            tokens = int(first[window, rank]), int(last[window, rank])
            start, end = windows.span(int(bounds[row] + window), *tokens, context)
            if start < end:
                spans.setdefault((start, end), float(scores[window, rank]))
        ranked = [
            AnswerSpan(start, end, float(np.exp(score - total)), context[start:end])
            for (start, end), score in spans.items()
        ]
        best = next(iter(spans.values()), -np.inf)
        margins.append(no_answer - best)
        is_unanswered = no_answer_threshold is not None and margins[-1] > no_answer_threshold
        if is_unanswered or not ranked:
            ranked.insert(0, AnswerSpan(0, 0, float(np.exp(no_answer - total)), ""))
        answers.append(ranked[:n_best])
    return answers, margins
