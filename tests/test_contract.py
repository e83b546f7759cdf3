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
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import validate_data

from skminilm import MiniLMClassifier, MiniLMEncoder, MiniLMRegressor
from skminilm.engine import hardware, packed_model

N_FEATURES, N_BINS = 40, 64


def as_texts(X):
    """Write each value as one of 64 words a column."""
    bins = np.clip(np.round(np.asarray(X, dtype=np.float64) * 4) + N_BINS // 2, 0, N_BINS - 1).astype(int)
    return [" ".join(f"c{j}v{value}" for j, value in enumerate(row)) for row in bins]


class _OfNumbers:
    def fit(self, X, y=None, sample_weight=None):
        options = {"multi_output": True, "y_numeric": self._y_numeric} if self._needs_y else {}
        if self._needs_y:
            X, y = validate_data(self, X, y, reset=True, **options)
            return super().fit(as_texts(X), y, sample_weight)
        X = validate_data(self, X, reset=True)
        return super().fit(as_texts(X))

    def _texts(self, X):
        return as_texts(validate_data(self, X, reset=False))

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
    _needs_y = False

    def fit(self, X, y=None):
        return super().fit(X)

    def fit_transform(self, X, y=None):
        return self.fit(X, y).transform(X)

    def transform(self, X):
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, "fingerprint_")
        return super().transform(self._texts(X))

    def __sklearn_is_fitted__(self):
        return hasattr(self, "fingerprint_")


class ClassifierOfNumbers(_OfNumbers, MiniLMClassifier):
    _needs_y, _y_numeric = True, False

    def encode(self, X):
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        return super().encode(self._texts(X))


class RegressorOfNumbers(_OfNumbers, MiniLMRegressor):
    _needs_y, _y_numeric = True, True

    def encode(self, X):
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        return super().encode(self._texts(X))


@pytest.fixture(scope="session")
def folder_of_numbers(tmp_path_factory):
    """A tiny network whose words are numbers."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(f"c{j}v{value}" for j in range(N_FEATURES) for value in range(N_BINS))]
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


@pytest.fixture
def in_float64(monkeypatch):
    """The engine in float64, so that only real differences show."""
    monkeypatch.setitem(hardware._DTYPES, "fp64", torch.float64)
    monkeypatch.setattr(hardware, "PRECISIONS", (*hardware.PRECISIONS, "fp64"))
    monkeypatch.setattr(hardware, "_best_precision", lambda device: "fp64")
    monkeypatch.setitem(packed_model.CPU_BATCH_TOKENS, torch.float64, 2048)


TRAINED = dict(max_length=64, epochs=5, random_state=0)
ESTIMATORS = {
    "encoder": functools.partial(EncoderOfNumbers, max_length=64),
    "classifier": functools.partial(ClassifierOfNumbers, trainable="head", **TRAINED),
    "classifier that trains a layer": functools.partial(ClassifierOfNumbers, trainable=1, **TRAINED),
    "regressor": functools.partial(RegressorOfNumbers, trainable="head", **TRAINED),
}


def checks_of(make):
    """Return scikit-learn's checks by name and variant."""
    found = {}
    for _, check in estimator_checks_generator(make(), legacy=True):
        variant = "".join(f"-{value}" for value in check.keywords.values()) if check.keywords else ""
        found[check.func.__name__ + variant] = check
    return found


ALL = {name: checks_of(make) for name, make in ESTIMATORS.items()}
NOT_RUN = {
    "check_sample_weight_equivalence_on_dense_data": "steps are drawn by row: two rows are not one of weight 2",
    "check_sample_weights_invariance": "the same, in scikit-learn 1.6",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, checks in ALL.items() for name in checks])
def test_check(kind, name, folder_of_numbers, in_float64):
    if name in NOT_RUN:
        pytest.skip(NOT_RUN[name])
    ALL[kind][name](ESTIMATORS[kind](folder_of_numbers))
