"""MiniLMZeroShotClassifier: labels in words instead of labelled texts."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import StrOptions

from ._accuracy import AccuracyMixin
from ._base import TextEstimator
from ._candidates import candidates_of, check_told_apart, fill, read_candidates
from ._classifier import MiniLMClassifier
from ._encoder import MiniLMEncoder
from ._entailment import entailment_scores, nli_digest, open_nli
from ._parameters import PRECISIONS, NumberInterval
from ._target_validation import check_labels, encode_classes, label_array
from ._validation import Texts, check_texts, shorten

if TYPE_CHECKING:
    from typing_extensions import Self

_SIMILARITY_TEMPERATURE = 0.0075
_SLICE_TEXTS = 1024
_SETTABLE_OF_NLI = ("device", "precision", "verbose")


class MiniLMZeroShotClassifier(AccuracyMixin, TextEstimator):
    """Classify texts in about 100 languages by labels in words, without training.

    Each label becomes a sentence, its hypothesis. The score of a label is the
    similarity between the vectors of text and hypothesis or, where `nli` is
    given, how sure that classifier is that the text entails the hypothesis
    (Yin et al., 2019 [1]_).

    Parameters
    ----------
    model : str or path, default="bundled"
        Gives the vectors, where `nli` is None; as in :class:`MiniLMEncoder`.
    revision : str, default=None
        Commit, tag or branch of a hub repository, where `nli` is None.
    labels : list of str, or dict of label to str, default=None
        The candidates. A dict says in words what each label means, for labels
        that say little themselves (``{0: "sports", 1: "politics"}``). None:
        the labels that `fit` finds in y.
    nli : MiniLMClassifier, FrozenEstimator or path, default=None
        A classifier fitted on pairs of premise and hypothesis, one of whose
        classes is "entailment" (upper or lower case); or the folder where it
        was saved. :meth:`MiniLMClassifier.from_transformers` loads published
        ones. It keeps its own model, revision, prompt, precision and device:
        leave those out here. It is never fitted again, and clones of this
        estimator keep it fitted; in a parameter grid, whose values
        scikit-learn clones, wrap it in
        :class:`sklearn.frozen.FrozenEstimator`.
    hypothesis_template : str, default="This text is about {}."
        A sentence with ``{}`` where the label goes.
    multi_label : bool, default=False
        Judge each label by itself: any number of them may hold. Needs `nli`.
    center : bool, default=False
        Subtract from the scores of each label their mean over the texts of
        `fit`, as some labels are nearer than others to any text; where `nli`
        is None. It helps where the texts of `fit` are of all classes about
        equally, and does harm where one class has most of them.
    temperature : float or "auto", default="auto"
        What scores are divided by before the softmax: the higher, the more
        even the probabilities. ``"auto"``: 1 with `nli`, else 0.0075, which has a
        low log loss with the bundled checkpoint on several data sets.
    prompt : str or None, default="auto"
        Put before texts and hypotheses, where `nli` is None; see
        :class:`MiniLMEncoder`.
    precision : {"auto", "fp32", "bf16", "fp16", "int16", "int8"}, default="auto"
        Of the computation, where `nli` is None; see :class:`MiniLMEncoder`.
    device : str, default="auto"
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``, where `nli` is None. ``"auto"``:
        a GPU where one is present; several GPUs of one kind share the texts of
        a call.
    verbose : int, default=0
        1 shows progress bars; with `nli`, that has its own.

    Attributes
    ----------
    classes_ : ndarray of shape (n_labels,)
        The labels, sorted; in their order with ``multi_label=True``.
    hypotheses_ : list of str
        One per label.
    vectors_ : ndarray of float32, shape (n_labels, 384), or None
        Of the hypotheses; None with `nli`.
    multilabel_ : bool
        `multi_label` in `fit`.
    encoder_state_ : dict or None
        Fingerprint and settings of the encoder; None with `nli`.
    prompt_ : str or None
        `prompt` in `fit`.
    nli_digest_ : str or None
        sha256 of what `nli` has learned; None without it.
    offsets_ : ndarray of float64, shape (n_labels,)
        What ``center=True`` takes off the scores; else 0.
    n_features_in_ : int
        Columns seen by `fit`: 1. There where `fit` saw texts.
    feature_names_in_ : ndarray of str, shape (1,)
        The name of the column, where `fit` saw a data frame whose column name
        is a str. Predictions refuse a data frame with another name; the column
        may come without a name.

    See Also
    --------
    MiniLMClassifier : Learns from labelled texts; `nli` is one.
    MiniLMEncoder : The vectors that are compared.

    References
    ----------
    .. [1] W. Yin et al., "Benchmarking Zero-shot Text Classification: Datasets,
       Evaluation and Entailment Approach", EMNLP 2019, arXiv:1909.00161.

    Examples
    --------
    >>> from skminilm import MiniLMZeroShotClassifier
    >>> classifier = MiniLMZeroShotClassifier(labels=["sports", "cooking", "politics"]).fit()
    >>> classifier.predict(["Das Parlament stimmte ab.", "El partido terminó con dos goles."]).tolist()
    ['politics', 'sports']
    """

    hypotheses_: list[str]
    vectors_: np.ndarray | None
    encoder_state_: dict[str, Any] | None
    prompt_: str | None
    nli_digest_: str | None
    offsets_: np.ndarray

    _parameter_constraints = {  # noqa: RUF012
        "model": "no_validation",
        "revision": [str, None],
        "labels": "no_validation",
        "nli": [MiniLMClassifier, FrozenEstimator, str, os.PathLike, None],
        "hypothesis_template": [str],
        "multi_label": ["boolean"],
        "center": ["boolean"],
        "temperature": [NumberInterval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "prompt": [str, None],
        "precision": [StrOptions(set(PRECISIONS))],
        "device": [str],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        model: str | os.PathLike[str] = "bundled",
        *,
        revision: str | None = None,
        labels: Any = None,
        nli: MiniLMClassifier | FrozenEstimator | str | os.PathLike[str] | None = None,
        hypothesis_template: str = "This text is about {}.",
        multi_label: bool = False,
        center: bool = False,
        temperature: float | str = "auto",
        prompt: str | None = "auto",
        precision: str = "auto",
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.revision = revision
        self.labels = labels
        self.nli = nli
        self.hypothesis_template = hypothesis_template
        self.multi_label = multi_label
        self.center = center
        self.temperature = temperature
        self.prompt = prompt
        self.precision = precision
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Turn the labels into hypotheses. Nothing is learned from y but which labels there are.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,), default=None
            Texts like those that will be classified; only checked, but for
            ``center=True``.
        y : array-like of shape (n_texts,) or (n_texts, n_labels), default=None
            Needed where `labels` is None; otherwise only checked. With
            ``multi_label=True`` a matrix of 0 and 1, one column per label.

        Returns
        -------
        self : MiniLMZeroShotClassifier
            The fitted estimator.

        Raises
        ------
        TypeError, ValueError
            Labels are empty, repeated, the same to the network, too few or
            unknown, the template has no place for them, `nli` is not what it should be, or ``center=True``
            has no texts.
        """
        self._validate_params()
        if not isinstance(self.model, str | os.PathLike):
            raise TypeError(
                f"model is {shorten(self.model)}: expected a str or a path. The candidates go by name: "
                "labels=['sports', ...]."
            )
        texts = None if X is None else _check_single(check_texts(X))
        classes, names = self._read_labels(y)
        if y is not None:
            self._check_targets(y, None if texts is None else len(texts), classes)
        hypotheses = [fill(self.hypothesis_template, name) for name in names]
        attributes = {
            "classes_": classes,
            "hypotheses_": hypotheses,
            "multilabel_": self.multi_label,
            "vectors_": None,
            "offsets_": np.zeros(len(names)),
            "encoder_state_": None,
            "prompt_": self.prompt,
            "nli_digest_": None,
        }
        if self.center and (self.nli is not None or texts is None):
            raise ValueError(
                "center=True takes means over the texts of fit: give X."
                if self.nli is None
                else "center=True is for similarities, and nli computes none: leave it out."
            )
        if self.nli is not None:
            self._check_options_of_nli()
            nli = open_nli(self.nli, self.multi_label)
            check_told_apart(names, nli._fitted_checkpoint().tokenizer)
            attributes["nli_digest_"] = nli_digest(nli)
        elif self.multi_label:
            raise ValueError(
                "multi_label=True needs nli: the similarity of vectors can tell which label is nearest, not "
                "whether one holds. Give a MiniLMClassifier fitted on premises and hypotheses."
            )
        else:
            encoder = self._encoder()
            check_told_apart(names, encoder._open(fitted=False).tokenizer)
            vectors = attributes["vectors_"] = encoder.fit_transform(hypotheses)
            if self.center:
                attributes["offsets_"] = _cosines(encoder.transform(texts.first), vectors).mean(axis=0)
            attributes["encoder_state_"] = {
                "fingerprint_": encoder.fingerprint_,
                "defaults_": encoder.defaults_,
            }
        if texts is not None:
            attributes |= self._column_attributes(texts)
        self._set_attributes(attributes)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the score of each label.

        Without `nli` the cosine of text and hypothesis less `offsets_`; with
        it the logarithm of the probability that the hypothesis is entailed;
        with ``multi_label=True`` the log-odds of that against contradiction.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,)
            Texts.

        Returns
        -------
        ndarray of float64 (with `nli` float32), shape (n_texts, n_labels)
            With two labels of shape (n_texts,), unless ``multi_label=True``:
            the score of ``classes_[1]`` less that of ``classes_[0]``.
        """
        scores = self._scores(X)
        if not self.multi_label and scores.shape[1] == 2:
            return scores[:, 1] - scores[:, 0]
        return scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each label.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,)
            Texts.

        Returns
        -------
        ndarray of float64 (with `nli` float32), shape (n_texts, n_labels)
            In the order of `classes_`. Rows add up to 1, unless
            ``multi_label=True``.
        """
        logits = self._logits(X)
        return expit(logits, out=logits) if self.multi_label else softmax(logits, axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithm of the probability of each label.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,)
            Texts.

        Returns
        -------
        ndarray of float64 (with `nli` float32), shape (n_texts, n_labels)
            In the order of `classes_`.
        """
        logits = self._logits(X)
        return log_expit(logits) if self.multi_label else log_softmax(logits, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Return the label of each text.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,)
            Texts.

        Returns
        -------
        ndarray of shape (n_texts,) or (n_texts, n_labels)
            Of `classes_`, that with the highest score. With
            ``multi_label=True`` int64: 1 where entailment is more probable
            than contradiction, else 0.
        """
        parts = [
            (scores > 0).astype(np.int64) if self.multi_label else scores.argmax(axis=1)
            for scores in self._score_parts(X)
        ]
        return np.concatenate(parts) if self.multi_label else self.classes_[np.concatenate(parts)]

    def _logits(self, X: Any) -> np.ndarray:
        """Return the scores divided by the temperature; for a softmax less the greatest of each row."""
        scores = self._scores(X)
        if not self.multi_label:
            scores -= scores.max(axis=1, keepdims=True)
        with np.errstate(over="ignore"):  # minus infinity: next to no probability
            scores /= self._temperature()
        return scores

    def _scores(self, X: Any) -> np.ndarray:
        return np.concatenate(list(self._score_parts(X)))

    def _score_parts(self, X: Any) -> Iterator[np.ndarray]:
        """Yield the scores of some rows at a time: what they are made of takes much more memory."""
        texts = self._checked_texts(X, lambda X: _check_single(check_texts(X)))
        if (self.nli is None) != (self.nli_digest_ is None) or self.multi_label != self.multilabel_:
            raise ValueError("nli or multi_label was changed since fit: fit again.")
        if not self._says_what_fit_read():
            raise ValueError("labels or hypothesis_template was changed since fit: fit again.")
        if self.nli is None:
            if self.prompt != self.prompt_:
                raise ValueError(
                    f"prompt is {self.prompt!r}, and fit put {self.prompt_!r} before the labels: fit again."
                )
            vectors = self._encoder(self.encoder_state_).transform(texts.first)
            for start in range(0, len(vectors), _SLICE_TEXTS):
                scores = _cosines(vectors[start : start + _SLICE_TEXTS], self.vectors_)
                scores -= self.offsets_
                yield scores
            return
        nli = open_nli(self.nli, self.multi_label)
        if nli_digest(nli) != self.nli_digest_:
            raise ValueError("nli is another classifier than in fit: fit again.")
        yield entailment_scores(nli, texts, self.hypotheses_, self.multi_label)

    def _temperature(self) -> float:
        if self.temperature != "auto":
            return float(self.temperature)
        return _SIMILARITY_TEMPERATURE if self.nli is None else 1.0

    def _encoder(self, state: dict[str, Any] | None = None) -> MiniLMEncoder:
        """Return the encoder of texts and hypotheses, as it was fitted where `state` is given."""
        encoder = MiniLMEncoder(
            self.model,
            revision=self.revision,
            normalize=True,
            prompt=self.prompt,
            precision=self.precision,
            device=self.device,
            verbose=self.verbose,
        )
        encoder.__dict__.update(state or {})
        return encoder.set_output(transform="default")  # whatever sklearn.set_config says

    def _check_options_of_nli(self) -> None:
        """Refuse what would do nothing."""
        defaults = type(self)().get_params(deep=False)
        for name in ("model", "revision", "prompt", "precision", "device"):
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is for similarities, and nli brings its own: leave it out, or set "
                    "it there."
                )

    def _read_labels(self, y: Any) -> tuple[np.ndarray, list[str]]:
        """Return the labels, and what each says."""
        if self.labels is not None:
            return read_candidates(self.labels, self.multi_label)
        if self.multi_label:
            raise ValueError("multi_label=True needs labels: y does not say what its columns mean.")
        return candidates_of(y)

    def _says_what_fit_read(self) -> bool:
        """Tell whether labels and template still make the classes and hypotheses of the last fit."""
        classes, names = self._read_labels(self.classes_)  # which were those of y where there are no labels
        hypotheses = [fill(self.hypothesis_template, name) for name in names]
        return classes.tolist() == self.classes_.tolist() and hypotheses == self.hypotheses_

    def _check_targets(self, y: Any, n_rows: int | None, classes: np.ndarray) -> None:
        if self.multi_label:
            check_labels(y, n_rows, len(classes))
        else:
            remedy = ""
            if classes.dtype.kind not in "iub" and label_array(y).dtype.kind in "iu":
                remedy = (
                    " Where scikit-learn has numbered the classes (VotingClassifier, StackingClassifier, "
                    "cross_val_predict(method='predict_proba')), give "
                    "labels={0: 'words', ...}, in the order of the sorted labels."
                )
            encode_classes(y, n_rows, classes, source="labels", remedy=remedy)

    def set_params(self, **params: Any) -> Self:
        """Set parameters, of `nli` (``nli__device``) those that matter after its fit.

        Parameters
        ----------
        **params : dict
            Names and values.

        Returns
        -------
        self : MiniLMZeroShotClassifier
            This estimator.

        Raises
        ------
        ValueError
            A parameter of `nli` that only its `fit` reads, or an unknown name.
        """
        for name in params:
            is_of_nli = name.startswith("nli__") and isinstance(self.nli, MiniLMClassifier)
            if is_of_nli and name.removeprefix("nli__") not in _SETTABLE_OF_NLI:
                raise ValueError(
                    f"{name} would change nothing: nli is fitted, and not fitted again. Of its parameters set "
                    f"{', '.join(_SETTABLE_OF_NLI)}, or give another nli."
                )
        return super().set_params(**params)

    def __sklearn_clone__(self) -> Self:
        # As BaseEstimator does it, but that `nli` stays fitted: it is given, not learned.
        parameters = self.get_params(deep=False)
        nli = parameters.pop("nli")
        if isinstance(nli, MiniLMClassifier):
            nli = copy.copy(nli)  # with the same arrays, but parameters of its own
        copied = type(self)(nli=nli, **{name: clone(value, safe=False) for name, value in parameters.items()})
        if hasattr(self, "_metadata_request"):
            copied._metadata_request = copy.deepcopy(self._metadata_request)
        return copied

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self.labels is None
        tags.classifier_tags.multi_label = self.multi_label
        return tags


def _cosines(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    # In float32 their differences, which are small, would depend on how many are computed together.
    return np.matmul(vectors, others.T, dtype=np.float64)


def _check_single(texts: Texts) -> Texts:
    if texts.second is not None:
        raise ValueError("X has two columns: give one, the texts; the labels are their counterpart.")
    return texts
