"""Scores of answers and of languages, and splitters that keep languages and translations apart."""

from ._answer_scores import mlqa_exact_match, mlqa_f1
from ._by_language import score_by_language
from ._splitters import LeaveOneLanguageOut, TrainOneLanguageTestOthers

__all__ = [
    "LeaveOneLanguageOut",
    "TrainOneLanguageTestOthers",
    "mlqa_exact_match",
    "mlqa_f1",
    "score_by_language",
]
