import ast
import doctest
import importlib
import inspect
import re

import pytest

from skminilm import (
    MiniLMClassifier,
    MiniLMEncoder,
    MiniLMQuestionAnswerer,
    MiniLMRegressor,
    MiniLMZeroShotClassifier,
)

ESTIMATORS = [
    MiniLMEncoder,
    MiniLMClassifier,
    MiniLMRegressor,
    MiniLMQuestionAnswerer,
    MiniLMZeroShotClassifier,
]
# Parameters of the same name that mean something else in each of these estimators; all others read alike.
DIFFERENT = {
    (MiniLMClassifier, MiniLMRegressor): {
        "init_head",
        "refit_head",
        "learning_rate",
        "scoring",
        "validation_fraction",
        "warm_start",
    },
    (MiniLMClassifier, MiniLMQuestionAnswerer): {
        "model",
        "trainable",
        "epochs",
        "batch_size",
        "learning_rate",
        "max_length",
        "early_stopping",
        "warm_start",
        "gradient_checkpointing",
        "device",
        "random_state",
    },
}

PUBLIC_METHODS = [
    pytest.param(method, id=f"{estimator.__name__}.{name}")
    for estimator in ESTIMATORS
    for name, method in inspect.getmembers(estimator, inspect.isroutine)
    if not name.startswith("_") and (method.__module__ or "").startswith("skminilm.")
]


def read_section(documented, title):
    """Return the entries of a numpydoc section as a list of (name, type, text)."""
    section = re.search(rf"^{title}\n-+\n(.+?)(?=\n\n\S|\Z)", inspect.getdoc(documented), re.M | re.S)
    entries = []
    for entry in re.split(r"\n(?=\S)", section[1]) if section else []:
        head, _, text = entry.partition("\n")
        name, _, kind = head.partition(" : ")
        entries.append((name, kind, " ".join(text.split())))
    return entries


def default_of(kind):
    return ast.literal_eval(kind.rpartition("default=")[2])


@pytest.mark.parametrize(
    "module",
    [
        "skminilm._encoder",
        "skminilm._classifier",
        "skminilm._regressor",
        "skminilm._question_answerer",
        "skminilm._zero_shot",
        "skminilm.datasets._support_requests",
        "skminilm.metrics._answer_scores",
        "skminilm.metrics._by_language",
        "skminilm.metrics._splitters",
    ],
)
def test_examples_in_docstrings(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted >= 2
    assert result.failed == 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_each_parameter_has_one_entry_in_order_with_its_default(estimator):
    documented = [(name, repr(default_of(kind))) for name, kind, _ in read_section(estimator, "Parameters")]
    signature = inspect.signature(estimator).parameters.values()
    assert documented == [(parameter.name, repr(parameter.default)) for parameter in signature]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("title", ["Parameters", "Attributes"])
def test_each_entry_has_one_name_a_type_and_a_text(estimator, title):
    entries = read_section(estimator, title)
    names = [name for name, _, _ in entries]
    assert len(entries) >= 5
    assert len(names) == len(set(names))
    for name, kind, text in entries:
        assert name.isidentifier()
        assert kind, name
        assert text, name


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_type_checkers_know_each_parameter_and_attribute(estimator):
    assert inspect.Parameter.empty not in {
        p.annotation for p in inspect.signature(estimator).parameters.values()
    }
    known = {name for kind in estimator.__mro__ for name in (*inspect.get_annotations(kind), *vars(kind))}
    assert {name for name, _, _ in read_section(estimator, "Attributes")} <= known


@pytest.mark.parametrize("pair", DIFFERENT)
def test_what_means_the_same_reads_the_same(pair):
    first, second = (
        {name: (kind, text) for name, kind, text in read_section(estimator, "Parameters")}
        for estimator in pair
    )
    shared = first.keys() & second.keys()
    assert {name for name in shared if first[name] != second[name]} == DIFFERENT[pair]


@pytest.mark.parametrize("method", PUBLIC_METHODS)
def test_each_method_documents_its_arguments_and_what_it_returns(method):
    signature = inspect.signature(method)
    names = ", ".join(name for name, _, _ in read_section(method, "Parameters"))
    assert names.replace("*", "").split(", ") == [name for name in signature.parameters if name != "self"]
    assert read_section(method, "Returns") or signature.return_annotation == "None"
