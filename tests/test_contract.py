"""scikit-learn's own checks, run through subclasses that write rows of numbers as short texts.

scikit-learn runs hardly any check on an estimator whose X is text. The subclasses say that X is a matrix,
and turn each row into words of its rounded values, which a tiny network in float64 reads.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from conftest import tiny_bert
from sklearn.utils import estimator_checks, get_tags
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import check_is_fitted, validate_data

from skminilm import (
    MiniLMClassifier,
    MiniLMEncoder,
    MiniLMQuestionAnswerer,
    MiniLMRegressor,
    MiniLMZeroShotClassifier,
)
from skminilm._target_validation import label_array
from skminilm.engine import hardware, packed_model

N_FEATURES, N_BINS = 40, 64
TRAINED = dict(max_length=64, epochs=5, random_state=0)
SEVERAL = dict(labels=[f"c0v{number}" for number in range(5)], multi_label=True)


def as_bins(X):
    """Round each value to one of 64 steps."""
    return np.clip(np.round(np.asarray(X, dtype=np.float64) * 4) + N_BINS // 2, 0, N_BINS - 1).astype(int)


def as_texts(X):
    """Write each value as one of 64 words a column."""
    return [" ".join(f"c{j}v{value}" for j, value in enumerate(row)) for row in as_bins(X)]


class Pairs(list):
    """Questions and contexts."""


def as_pairs(X):
    """Write each row as a context, one number a column, and ask for one of them."""
    contexts = (" ".join(str(100 * (j + 1) + value) for j, value in enumerate(row)) for row in as_bins(X))
    return Pairs(("Which?", context) for context in contexts)


def as_answers(y, pairs):
    """Take as the answer the column of the context that y says."""
    columns = np.abs(np.asarray(y, dtype=np.float64).reshape(len(pairs), -1)[:, 0]).round().astype(int)
    words = [context.split() for _, context in pairs]
    return [row[column % len(row)] for row, column in zip(words, columns, strict=True)]


class _OfNumbers:
    """X is checked as scikit-learn's estimators do; y goes to the estimator as it is."""

    _write = staticmethod(as_texts)

    def _first(self, X):
        return self._write(validate_data(self, X, reset=True))

    def _later(self, X):
        check_is_fitted(self)
        return self._write(validate_data(self, X, reset=False))

    def _column_attributes(self, texts):  # those of the matrix stay
        return {name: value for name, value in vars(self).items() if name.endswith("s_in_")}

    def _check_columns(self, texts): ...

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = False
        tags.input_tags.two_d_array = True
        tags.requires_fit = True
        for of_kind in (tags.classifier_tags, tags.regressor_tags):
            if of_kind is not None:
                of_kind.poor_score = True  # of a network that was never trained, on words for numbers
        return tags


class EncoderOfNumbers(_OfNumbers, MiniLMEncoder):
    def fit(self, X, y=None):
        return super().fit(self._first(X))

    def fit_transform(self, X, y=None):
        return self.fit(X, y).transform(X)

    def transform(self, X):
        return super().transform(self._later(X))

    def __sklearn_is_fitted__(self):
        return hasattr(self, "fingerprint_")


class _WithHeadOfNumbers(_OfNumbers):
    def fit(self, X, y=None, sample_weight=None):
        return super().fit(self._first(X), y, sample_weight)

    def _checked_texts(self, X):
        return super()._checked_texts(self._later(X))


class ClassifierOfNumbers(_WithHeadOfNumbers, MiniLMClassifier): ...


class RegressorOfNumbers(_WithHeadOfNumbers, MiniLMRegressor): ...


class ZeroShotOfNumbers(_OfNumbers, MiniLMZeroShotClassifier):
    """A number that is a class gets a word, as `labels` would say it."""

    def fit(self, X, y=None):
        return super().fit(self._first(X), y)

    def _read_labels(self, y):
        if y is None or self.labels is not None:
            return super()._read_labels(y)
        classes, codes = np.unique(label_array(y), return_inverse=True)
        if classes.dtype.kind == "U" or (classes % 1).any():
            return super()._read_labels(y)
        words = np.array([f"c0v{number}" for number in range(len(classes))])
        return classes, super()._read_labels(words[codes])[1]

    def _score_parts(self, X):
        return super()._score_parts(self._later(X))


class AnswererOfNumbers(_OfNumbers, MiniLMQuestionAnswerer):
    """Answers are columns of a row: y says which one, and predictions are their digits."""

    _write = staticmethod(as_pairs)

    def fit(self, X, y=None):
        pairs = self._first(X)
        return super().fit(pairs, None if y is None else as_answers(y, pairs))

    def predict_spans(self, X, n_best=1):
        return super().predict_spans(X if isinstance(X, Pairs) else self._later(X), n_best)

    def predict(self, X):
        answers = super().predict(X)
        return (
            answers if isinstance(X, Pairs) else np.array([float(text.replace(" ", "")) for text in answers])
        )

    def score(self, X, y):
        pairs = self._later(X)
        return super().score(pairs, as_answers(y, pairs))


@pytest.fixture(scope="session")
def folder_of_numbers(tmp_path_factory):
    """A tiny network whose words are numbers."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    numbers = [f"c{j}v{value}" for j in range(N_FEATURES) for value in range(N_BINS)]
    words = [*special, *numbers, "one", "two", "three"]  # the latter are labels
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("numbers")
    tiny_bert(len(words), hidden_size=64).save_pretrained(folder)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def nli_of_numbers(xlmr_folder):
    """A classifier of pairs, half of which are called entailed."""
    pairs = [
        (text, f"c0v{row % 5}") for row, text in enumerate(as_texts(np.linspace(-2, 2, 60).reshape(20, 3)))
    ]
    nli = MiniLMClassifier(xlmr_folder, trainable="head", **TRAINED)
    return nli.fit(pairs, ["entailment", "contradiction"] * 10)


@pytest.fixture
def in_float64(monkeypatch):
    """The engine in float64, so that only real differences show."""
    monkeypatch.setitem(hardware._DTYPES, "fp64", torch.float64)
    monkeypatch.setattr(hardware, "PRECISIONS", (*hardware.PRECISIONS, "fp64"))
    monkeypatch.setattr(hardware, "_best_precision", lambda *_: "fp64")
    monkeypatch.setitem(packed_model.CPU_BATCH_TOKENS, torch.float64, 2048)


ESTIMATORS = {
    "encoder": functools.partial(EncoderOfNumbers, max_length=64),
    "classifier": functools.partial(ClassifierOfNumbers, trainable="head", **TRAINED),
    "classifier that trains a layer": functools.partial(ClassifierOfNumbers, trainable=1, **TRAINED),
    "regressor": functools.partial(RegressorOfNumbers, trainable="head", **TRAINED),
    "zero-shot by similarity": functools.partial(ZeroShotOfNumbers, hypothesis_template="{}"),
    "zero-shot by entailment": functools.partial(
        ZeroShotOfNumbers, hypothesis_template="{}", temperature=0.01
    ),
    "zero-shot of several labels": functools.partial(ZeroShotOfNumbers, hypothesis_template="{}", **SEVERAL),
    "answerer": functools.partial(
        AnswererOfNumbers, trainable=1, max_length=64, stride=8, epochs=1, random_state=0
    ),
}


def checks_of(make):
    """Return scikit-learn's checks by name and variant."""
    found = {}
    for _, check in estimator_checks_generator(make(), legacy=True):
        variant = "".join(f"-{value}" for value in check.keywords.values()) if check.keywords else ""
        found[check.func.__name__ + variant] = check
    return found


ALL = {name: checks_of(make) for name, make in ESTIMATORS.items()}
BY_ENTAILMENT = ("zero-shot by entailment", "zero-shot of several labels")
# It takes one column per label: the y of all other checks is one class per row.
ALL["zero-shot of several labels"] = {
    name: check
    for name, check in ALL["zero-shot of several labels"].items()
    if name.startswith("check_classifiers_multilabel")
}
NOT_RUN = {
    "check_sample_weight_equivalence_on_dense_data": "only ratios of weights count: two rows are not one of weight 2",
    "check_sample_weights_invariance": "the same, in scikit-learn 1.6",
}
# They need no X, or one that they never come to: run on the estimators themselves.
WITHOUT_X = [
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_estimator_tags_renamed,
    estimator_checks.check_valid_tag_types,
    estimator_checks.check_mixin_order,
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_parameters_default_constructible,
    estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_set_params,
    estimator_checks.check_param_validation,
    estimator_checks.check_estimators_unfitted,
]
OF_TEXTS = [
    MiniLMEncoder,
    MiniLMClassifier,
    MiniLMRegressor,
    MiniLMZeroShotClassifier,
    MiniLMQuestionAnswerer,
]


@pytest.fixture
def make(request, in_float64):
    """Return the estimator of a kind over its tiny network."""

    def make(kind):
        if kind in BY_ENTAILMENT:
            return ESTIMATORS[kind](nli=request.getfixturevalue("nli_of_numbers"))
        folder = request.getfixturevalue("xlmr_folder" if kind == "answerer" else "folder_of_numbers")
        return ESTIMATORS[kind](folder)

    return make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, checks in ALL.items() for name in checks])
def test_check(kind, name, make):
    if name in NOT_RUN:
        pytest.skip(NOT_RUN[name])
    ALL[kind][name](make(kind))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", WITHOUT_X, ids=lambda check: check.__name__)
@pytest.mark.parametrize("estimator", OF_TEXTS)
def test_check_without_x(estimator, check):
    if check is estimator_checks.check_estimators_unfitted and not get_tags(estimator()).requires_fit:
        pytest.skip("nothing has to be fitted")
    check(estimator.__name__, estimator())


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_what_the_checks_see_depends_on_the_row(kind, make):
    """Outputs that are the same for every row would satisfy most checks."""
    X = np.random.RandomState(0).normal(size=(12, 5))
    y = (X > 0).astype(int) if "several" in kind else np.arange(12) % 3
    model = make(kind).fit(X, y)
    outputs = next(name for name in ("transform", "predict_proba", "predict") if hasattr(model, name))
    assert np.ptp(getattr(model, outputs)(X), axis=0).max() > 1e-3
