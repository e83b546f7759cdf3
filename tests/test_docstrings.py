import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "skminilm._encoder",
        "skminilm._classifier",
        "skminilm._regressor",
        "skminilm._question_answerer",
        "skminilm._zero_shot",
        "skminilm.datasets._support_requests",
        "skminilm.metrics._answers",
        "skminilm.metrics._by_language",
        "skminilm.metrics._splitters",
    ],
)
def test_examples_in_docstrings(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted >= 2
    assert result.failed == 0
