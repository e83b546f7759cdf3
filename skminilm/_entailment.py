"""What a classifier of premises and hypotheses says of labels in words: entailment, as zero-shot classification asks for it."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from ._classifier import MiniLMClassifier
from ._encoding import encoding_bar, unique_texts, warn_of_truncation
from ._folders import own_path
from ._progress import tqdm
from ._validation import Texts, shorten_list
from .checkpoints import EncodingSettings
from .checkpoints.loading import file_states

_SLICE_PAIRS = 8192
_ENTAILMENT, _CONTRADICTION = "entailment", "contradiction"


def open_nli(nli: Any, multi_label: bool) -> MiniLMClassifier:
    """Return the classifier of pairs that `nli` is, is frozen in, or was saved to.

    Raises
    ------
    TypeError, ValueError
        It is none, not fitted, or fitted on something else than premises and hypotheses; `multi_label` needs a
        class more.
    """
    if isinstance(nli, FrozenEstimator):
        nli = nli.estimator
    if isinstance(nli, str | os.PathLike):
        nli = _open_saved(nli)
    if not isinstance(nli, MiniLMClassifier):
        raise TypeError(
            f"nli is {type(nli).__name__}: give a MiniLMClassifier fitted on premises and hypotheses."
        )
    try:
        check_is_fitted(nli)
    except NotFittedError as error:
        raise ValueError(
            "nli is not fitted: fit it on pairs of premise and hypothesis first. In a grid of values, which are "
            "cloned, give FrozenEstimator(nli)."
        ) from error
    needed = [_ENTAILMENT, _CONTRADICTION] if multi_label else [_ENTAILMENT]
    for name in needed:
        if nli.multilabel_ or _lower_names(nli).count(name) != 1:
            raise ValueError(
                f"nli needs the class {name!r}{' for multi_label=True' if len(needed) > 1 else ''}, and has "
                f"{shorten_list(nli.classes_.tolist())}: fit it on labels of that name, or give its outputs their names in "
                "id2label of its config.json, where transformers trained it."
            )
    if getattr(nli, "n_features_in_", 2) != 2:
        raise ValueError("nli was fitted on single texts: fit it on pairs of premise and hypothesis.")
    if [name.lower() for name in getattr(nli, "feature_names_in_", ())] == ["hypothesis", "premise"]:
        raise ValueError(
            "nli was fitted on the columns hypothesis, premise: fit it on X[['premise', 'hypothesis']], the text first."
        )
    return nli


def nli_digest(nli: MiniLMClassifier) -> str:
    """Return the sha256 of what `nli` has learned, and from which checkpoint."""
    digest = hashlib.sha256(f"{nli.fingerprint_} {nli.weights_digest_} {nli.classes_.tolist()}".encode())
    digest.update(np.ascontiguousarray(nli.coef_).data)
    digest.update(np.ascontiguousarray(nli.intercept_).data)
    for array in (getattr(nli, "pooler_", None) or {}).values():
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def entailment_scores(
    nli: MiniLMClassifier, texts: Texts, hypotheses: list[str], multi_label: bool
) -> np.ndarray:
    """Return how sure `nli` is that each text entails each hypothesis, float32, shape (n_texts, n_hypotheses).

    The logarithm of that probability, or with `multi_label` the log-odds of it against contradiction. Each different
    text is computed once.
    """
    nli._validate_params()  # its device or precision may have been set since its fit
    unique, _, index = unique_texts(texts)
    n_together = max(1, _SLICE_PAIRS // len(hypotheses))
    with encoding_bar(len(unique) * len(hypotheses), nli._fitted_checkpoint(), nli.verbose) as bar:
        parts = [
            _scores_of_some(nli, unique.first[start : start + n_together], hypotheses, multi_label, bar)
            for start in range(0, len(unique), n_together)
        ]
    scores, lengths = (np.concatenate(part) for part in zip(*parts, strict=True))
    warn_of_truncation(lengths[index], EncodingSettings(**nli.settings_))
    return scores[index]


def _scores_of_some(
    nli: MiniLMClassifier, texts: list[str], hypotheses: list[str], multi_label: bool, bar: tqdm
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of some texts, and the tokens of each with its longest hypothesis."""
    premises = [text for text in texts for _ in hypotheses]
    outputs, lengths = nli._outputs_of(Texts(premises, hypotheses * len(texts)), bar=bar)
    logarithms = log_softmax(outputs, axis=1)
    classes = _lower_names(nli)
    scores = logarithms[:, classes.index(_ENTAILMENT)]
    if multi_label:
        scores = scores - logarithms[:, classes.index(_CONTRADICTION)]
    shape = (len(texts), len(hypotheses))
    return scores.reshape(shape), lengths.reshape(shape).max(axis=1)


def _open_saved(path: str | os.PathLike[str]) -> MiniLMClassifier:
    """Open a saved classifier, and again only where its files have changed."""
    folder = own_path(path)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    folder = folder.resolve() if files else folder  # a message names what was given
    stamps = tuple(file_states(files))
    return _load(folder, stamps)


@lru_cache(maxsize=1)
def _load(folder: Path, stamps: tuple[tuple, ...]) -> MiniLMClassifier:
    return MiniLMClassifier.load(folder)


def _lower_names(nli: MiniLMClassifier) -> list[str]:
    return [str(name).lower() for name in nli.classes_.tolist()]
