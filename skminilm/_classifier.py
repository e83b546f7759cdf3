"""MiniLMClassifier: the network and a linear head, fine-tuned on labelled texts."""

from __future__ import annotations

import math
from dataclasses import asdict
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state, compute_class_weight
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from tqdm.auto import tqdm

from ._cache import memory_cache
from ._encoding import encode_texts, open_checkpoint, resolve_settings
from ._validation import Texts, check_classes, check_row_weights, check_texts, complete_class_weight
from .checkpoints import POOLINGS, Checkpoint, EncodingSettings

if TYPE_CHECKING:
    from .engine import Compute

PRECISIONS = ("auto", "fp32", "bf16", "fp16")

_PROBE_PENALTY = 10.0
_MIN_STEPS, _MIN_EPOCHS, _MAX_EPOCHS = 60, 3, 10


class MiniLMClassifier(ClassifierMixin, BaseEstimator):
    """Classify texts in about 100 languages with a fine-tuned MiniLM.

    A linear head over the pooled vectors starts at a logistic regression on
    the vectors of the untrained network; then head and encoder are trained
    together ("LP-FT" [1]_). What is learned in one language carries over to
    the others.

    Parameters
    ----------
    model : str or path, default="bundled"
        As in :class:`MiniLMEncoder`. The checkpoint must be BERT-shaped,
        unless ``trainable="head"``.
    revision : str, default=None
        Commit, tag or branch of a hub repository.
    trainable : {"head", "encoder", "all"} or int, default="encoder"
        What is trained besides the head: nothing (``"head"``), the top k
        layers (an int k), all layers (``"encoder"``), or the layers and the
        embeddings (``"all"``; of the embedding table the rows that occur).
    init_head : {"probe", "random"}, default="probe"
        Where the head starts: at a logistic regression on the frozen vectors,
        or at small random numbers.
    epochs : int or "auto", default="auto"
        Passes over the texts. ``"auto"``: from 3 to 10, as many as make 60
        steps.
    batch_size : int, default=32
        Texts a step.
    learning_rate : float, default=1e-4
        Of the encoder, at its peak: it rises linearly over the warm-up, then
        falls linearly to 0.
    head_learning_rate : float, default=1e-2
        Of the head, likewise.
    weight_decay : float, default=0.01
        Decoupled (AdamW), on the matrices of the layers.
    warmup_ratio : float, default=0.1
        Share of the steps in which the learning rates rise.
    label_smoothing : float, default=0.0
        Share of the target probability spread over all classes.
    max_length : int, default=128
        Tokens a text may have; what is beyond is cut off with a warning.
    pooling : {"auto", "mean", "cls", "max"}, default="auto"
        From token states to one vector, which is scaled to norm 1.
    prompt : str or None, default="auto"
        Put before every text; see :class:`MiniLMEncoder`.
    class_weight : dict, "balanced" or None, default=None
        Weight of each class in the loss; ``"balanced"``: inversely
        proportional to its frequency.
    precision : {"auto", "fp32", "bf16", "fp16"}, default="auto"
        Of the computation. Parameters and optimizer are float32 always;
        training with ``"fp16"`` computes in float32.
    device : str, default="auto"
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. ``"auto"``: a GPU where one is
        present. A model trained on one device predicts on any other.
    random_state : int, RandomState instance or None, default=None
        Drives the random head and the order of the texts. Two fits with the
        same int on the same CPU give the same bytes.
    verbose : int, default=0
        1 shows progress bars.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    coef_ : ndarray of float32, shape (n_classes, 384)
        The head.
    intercept_ : ndarray of float32, shape (n_classes,)
    n_iter_ : int
        Epochs run.
    history_ : list of dict
        One an epoch: loss, learning_rate (at its end), seconds, texts_per_s.
    weights_ : dict of str to ndarray
        What training changed in the encoder.
    weights_digest_ : str
        sha256 of `weights_`.
    fingerprint_ : str
        sha256 of the checkpoint that it started from.
    settings_ : dict
        Pooling, normalisation, prompt and length that it was trained with;
        predictions use them.

    See Also
    --------
    MiniLMEncoder : The vectors alone, for any scikit-learn classifier.

    References
    ----------
    .. [1] A. Kumar et al., "Fine-Tuning can Distort Pretrained Features and
       Underperform Out-of-Distribution", ICLR 2022, arXiv:2202.10054.

    Examples
    --------
    >>> from skminilm import MiniLMClassifier
    >>> texts = ["Where is my parcel?", "The card was charged twice.",
    ...          "When will it arrive?", "I never ordered this invoice."]
    >>> labels = ["delivery", "billing", "delivery", "billing"]
    >>> classifier = MiniLMClassifier(trainable="head", random_state=0).fit(texts, labels)
    >>> classifier.predict(["¿Cuándo llega mi paquete?"]).tolist()
    ['delivery']
    """

    _parameter_constraints = {  # noqa: RUF012
        "model": "no_validation",
        "revision": [str, None],
        "trainable": [StrOptions({"head", "encoder", "all"}), Interval(Integral, 1, None, closed="left")],
        "init_head": [StrOptions({"probe", "random"})],
        "epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "head_learning_rate": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "warmup_ratio": [Interval(Real, 0, 1, closed="both")],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "max_length": [Interval(Integral, 3, None, closed="left")],
        "pooling": [StrOptions({"auto", *POOLINGS})],
        "prompt": [str, None],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "precision": [StrOptions(set(PRECISIONS))],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        model="bundled",
        *,
        revision=None,
        trainable="encoder",
        init_head="probe",
        epochs="auto",
        batch_size=32,
        learning_rate=1e-4,
        head_learning_rate=1e-2,
        weight_decay=0.01,
        warmup_ratio=0.1,
        label_smoothing=0.0,
        max_length=128,
        pooling="auto",
        prompt="auto",
        class_weight=None,
        precision="auto",
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.model = model
        self.revision = revision
        self.trainable = trainable
        self.init_head = init_head
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.weight_decay = weight_decay
        self.warmup_ratio = warmup_ratio
        self.label_smoothing = label_smoothing
        self.max_length = max_length
        self.pooling = pooling
        self.prompt = prompt
        self.class_weight = class_weight
        self.precision = precision
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> MiniLMClassifier:
        """Train on labelled texts.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
            One column: texts. Two columns: sentence pairs.
        y : array-like of shape (n_texts,)
            Labels: str, int or bool, at least two different ones.
        sample_weight : array-like of float, shape (n_texts,), default=None
            Weight of each text in the loss, and in the head's start.

        Returns
        -------
        self : MiniLMClassifier

        Raises
        ------
        TypeError, ValueError
            X, y or a parameter is not usable; the message names row and value.
        OSError
            The checkpoint is missing or damaged.
        FloatingPointError
            The loss became infinite or NaN; the message names the step. An
            earlier fit of this estimator is kept.
        """
        from .engine import weights_digest

        self._validate_params()
        texts = check_texts(X)
        classes, codes = check_classes(y, len(texts))
        row_weights = self._row_weights(sample_weight, classes, codes)
        checkpoint = open_checkpoint(self.model, self.revision)
        settings, compute = self._resolve(checkpoint)
        random = check_random_state(self.random_state)

        vectors = encode_texts(
            texts, checkpoint, settings, compute=compute, cache=memory_cache, verbose=self.verbose
        )
        coef, intercept = self._start_head(vectors, codes, len(classes), row_weights, random)
        result = self._train(
            texts, vectors, codes, row_weights, coef, intercept, checkpoint, settings, compute, random
        )

        self.classes_ = classes
        self.coef_, self.intercept_ = result.coef, result.intercept
        self.weights_ = result.weights
        self.weights_digest_ = weights_digest(result.weights)
        self.history_ = result.history
        self.n_iter_ = len(result.history)
        self.fingerprint_ = checkpoint.fingerprint
        self.settings_ = asdict(settings)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)

        Returns
        -------
        ndarray of float32, shape (n_texts, n_classes)
            With two classes of shape (n_texts,): the logit of ``classes_[1]``
            minus that of ``classes_[0]``.
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class, float32 (n_texts, n_classes)."""
        return softmax(self._logits(X), axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each text, shape (n_texts,)."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def encode(self, X: Any) -> np.ndarray:
        """Return the vectors that the head sees, of norm 1: float32 (n_texts, 384)."""
        from .engine import TunedWeights

        check_is_fitted(self)
        self._validate_params()
        texts = check_texts(X)
        checkpoint = open_checkpoint(self.model, self.revision, fingerprint=self.fingerprint_)
        _, compute = self._resolve(checkpoint)
        settings = EncodingSettings(**self.settings_)
        return encode_texts(
            texts,
            checkpoint,
            settings,
            compute=compute,
            cache=memory_cache,
            tuned=TunedWeights(self.weights_, self.weights_digest_) if self.weights_ else None,
            verbose=self.verbose,
        )

    def _logits(self, X: Any) -> np.ndarray:
        vectors = self.encode(X)
        return vectors @ self.coef_.T + self.intercept_

    def _resolve(self, checkpoint: Checkpoint) -> tuple[EncodingSettings, Compute]:
        from .engine import resolve_compute

        if checkpoint.foreign_reason and self.trainable != "head":
            raise ValueError(
                f"model={self.model!r} cannot be fine-tuned here: {checkpoint.foreign_reason}. Use "
                "trainable='head', or a BERT-shaped checkpoint such as 'bundled'."
            )
        settings = resolve_settings(
            checkpoint,
            checkpoint.defaults,
            pooling=self.pooling,
            normalize=True,
            prompt=self.prompt,
            max_length=self.max_length,
        )
        return settings, resolve_compute("torch", self.device, self.precision)

    def _row_weights(self, sample_weight: Any, classes: np.ndarray, codes: np.ndarray) -> np.ndarray:
        row_weights = check_row_weights(sample_weight, len(codes))
        if self.class_weight is None:
            return row_weights
        class_weight = self.class_weight
        if isinstance(class_weight, dict):
            class_weight = complete_class_weight(class_weight, classes)
        weights = compute_class_weight(class_weight, classes=classes, y=classes[codes])
        return check_row_weights(row_weights * weights[codes], len(codes), "sample_weight times class_weight")

    def _start_head(
        self,
        vectors: np.ndarray,
        codes: np.ndarray,
        n_classes: int,
        row_weights: np.ndarray,
        random: np.random.RandomState,
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.init_head == "random":
            coef = random.standard_normal((n_classes, vectors.shape[1])) / math.sqrt(vectors.shape[1])
            return coef.astype(np.float32), np.zeros(n_classes, np.float32)
        from sklearn.linear_model import LogisticRegression  # not at import: it takes as long as all of ours

        probe = LogisticRegression(C=_PROBE_PENALTY, max_iter=2000)
        probe.fit(vectors, codes, sample_weight=row_weights)
        coef, intercept = probe.coef_, probe.intercept_
        if n_classes == 2:  # one row of logit differences: half of it to each class
            coef, intercept = np.vstack([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
        return coef.astype(np.float32), intercept.astype(np.float32)

    def _train(
        self,
        texts: Texts,
        vectors: np.ndarray,
        codes: np.ndarray,
        row_weights: np.ndarray,
        coef: np.ndarray,
        intercept: np.ndarray,
        checkpoint: Checkpoint,
        settings: EncodingSettings,
        compute: Compute,
        random: np.random.RandomState,
    ):
        import torch

        from ._finetune import TrainingOptions, fine_tune, train_head
        from .engine import new_trainable_model

        options = TrainingOptions(
            trainable=self.trainable,
            epochs=self._n_epochs(len(texts)),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            head_learning_rate=self.head_learning_rate,
            weight_decay=self.weight_decay,
            warmup_ratio=self.warmup_ratio,
            label_smoothing=self.label_smoothing,
            pooling=settings.pooling,
            seed=random.randint(np.iinfo(np.int32).max),
        )
        total = options.epochs * len(texts)
        with tqdm(total=total, desc="fine-tune", unit="text", disable=not self.verbose) as bar:

            def progress(n_texts: int, loss: float) -> None:
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update(n_texts)

            if self.trainable == "head":
                return train_head(
                    vectors, codes, row_weights, coef, intercept, options, torch.device("cpu"), progress
                )
            model = new_trainable_model(checkpoint, compute.device)
            batch = model.tokenize(texts.first, texts.second, settings)
            dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
            return fine_tune(model, batch, codes, row_weights, coef, intercept, options, dtype, progress)

    def _n_epochs(self, n_texts: int) -> int:
        if self.epochs != "auto":
            return int(self.epochs)
        steps = math.ceil(n_texts / self.batch_size)
        return min(_MAX_EPOCHS, max(_MIN_EPOCHS, math.ceil(_MIN_STEPS / steps)))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags
