"""A small data set that ships with the package, and readers of public ones, from files or from the Hugging Face hub."""

from ._question_answering import load_mlqa, load_squad, load_tydiqa_goldp, load_xquad
from ._support_requests import load_support_requests
from ._xnli import load_xnli

__all__ = [
    "load_mlqa",
    "load_squad",
    "load_support_requests",
    "load_tydiqa_goldp",
    "load_xnli",
    "load_xquad",
]
