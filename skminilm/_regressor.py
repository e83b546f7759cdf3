"""MiniLMRegressor: the network and a linear head, fine-tuned on texts with numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score

from ._callbacks import with_callbacks
from ._fine_tuned import FineTunedEstimator
from ._target_validation import check_numbers, check_row_weights
from ._targets import MAX_DEVIATIONS, RealTargets
from ._validation import shorten_list
from .checkpoints.heads import SequenceHead

if TYPE_CHECKING:
    from typing_extensions import Self

_TEXTS_FOR_FULL_RATE = 128


class MiniLMRegressor(RegressorMixin, FineTunedEstimator):
    """Predict numbers from texts in about 100 languages with a fine-tuned MiniLM.

    A linear head over the pooled vectors starts at a ridge regression on the
    vectors of the untrained network; then head and encoder are trained
    together on the squared error ("LP-FT" [1]_). Targets are scaled for training and scaled
    back in `coef_` and `intercept_`.

    Parameters
    ----------
    model : str or path, default="bundled"
        As in :class:`MiniLMEncoder`. The checkpoint must be BERT-shaped,
        unless ``trainable="head"``.
    revision : str, default=None
        Commit, tag or branch of a hub repository.
    trainable : {"head", "encoder", "all", "lora"} or int, default="encoder"
        What is trained besides the head: nothing (``"head"``), the top k
        layers (an int k; the output of the frozen layers below is computed
        once per text and cached, see :func:`set_config`), all layers
        (``"encoder"``), the layers and the embeddings (``"all"``; of the
        embedding table only the rows of tokens that occur in the texts), or
        low-rank adapters of all layers (``"lora"`` [2]_, rank 8, with the
        extra ``lora``).
    init_head : {"probe", "random"}, default="probe"
        Where the head starts: at a ridge regression on the frozen vectors
        whose penalty is chosen by leaving out one text after the other, or at
        small random numbers.
    refit_head : bool, default=True
        After training fit the head anew to the vectors of the trained
        network, as a ridge regression with the penalty that is chosen on the
        frozen vectors (with ``init_head="random"`` or a second fit with
        ``warm_start=True`` they are computed for that alone). With ``early_stopping=True`` it is kept
        only if it scores at least as well on the validation texts.
        ``trainable="head"``, which changes no vectors, and a fit that was
        interrupted have no refit.
    epochs : int or "auto", default="auto"
        Passes over the texts. ``"auto"``: as few as make 60 steps, but at
        least 3 and at most 10.
    batch_size : int, default=32
        Texts per step.
    learning_rate : float or "auto", default="auto"
        Peak learning rate of the encoder: it rises linearly over the warm-up,
        then falls linearly to 0. ``"auto"``: 1e-4, and 1e-3 for ``"lora"``;
        with ``trainable="encoder"`` or ``"all"`` and fewer than 128 texts to
        train on, in proportion less.
    head_learning_rate : float, default=1e-2
        Peak learning rate of the head, on the same schedule.
    weight_decay : float, default=0.01
        Decoupled weight decay (AdamW) of the weight matrices of the layers.
    warmup_ratio : float, default=0.1
        Share of the steps in which the learning rates rise.
    max_length : int, default=128
        Tokens per text at the most; what is beyond is cut off with a warning.
    pooling : {"auto", "mean", "cls", "max", "pair", "pair+texts"}, default="auto"
        From token states to one vector, which is scaled to norm 1. Sentence
        pairs run through the network together, and ``"pair"`` gives four
        vectors side by side, not scaled as a whole. Two are the means of both
        texts' token states, scaled to norm 1; two are for each text the maxima
        of abs(x - c) over its token states x, scaled to norm 1, where c is the
        mean of those of the other text, weighted by their similarity to x
        [3]_. Special tokens belong to the text they are at. ``"pair+texts"``
        puts beside these what the untrained network makes of each text by
        itself (both vectors, and 10 times their cosine), which helps with few
        pairs and takes 1.6 times as long in predictions. ``"auto"`` is that for
        fewer than 1,000 pairs to train on (of a weight above 0, and not set
        aside) and for ``trainable="head"``, and ``"pair"`` for more; with
        ``warm_start=True`` it stays what it was. For a search over 1,000 to
        1,300 pairs, whose folds have fewer, give one of the two.
    prompt : str or None, default="auto"
        Text put before every text (of a pair, before the first, and before
        both by themselves); see :class:`MiniLMEncoder`.
    early_stopping : bool, default=False
        Set texts aside, stop when the score on them does not rise any more,
        and go back to the best epoch. The untrained start is a candidate too.
    scoring : str, callable or None, default=None
        The score of the texts that are set aside, where larger is better: one
        of scikit-learn's names (such as ``"neg_mean_absolute_error"``), or a
        callable that takes the estimator, all these texts as a list of str (of
        pairs of str) and their y. If `fit` gets weights that differ, it gets
        `sample_weight` too, unless it has no such parameter: then all these
        texts count alike. None: R².
    validation_fraction : float, default=0.1
        Share of the texts that ``early_stopping=True`` sets aside, at random,
        unless `fit` gets `X_val`. Translations of these texts, the same texts in
        other rows, and after a warm start these texts themselves, may have been
        trained on, and the score says little then: give `X_val`.
    n_iter_no_change : int, default=3
        Epochs without a better score after which ``early_stopping=True``
        stops. Between equal scores the lower loss wins.
    warm_start : bool, default=False
        Go on from the earlier fit with all its weights. The texts may be
        others; the number of targets, model, revision, `trainable`, pooling,
        prompt and `max_length` must be the same (a fit with
        ``trainable="head"`` may go on with more).
    gradient_checkpointing : bool, default=False
        Recompute the activations of each layer in the backward pass instead
        of keeping them: takes a third more time and several times less memory
        per text.
    precision : {"auto", "fp32", "bf16", "fp16", "int16"}, default="auto"
        Of the computation, see :class:`MiniLMEncoder`. With ``"int16"`` training
        multiplies integers too: activations, matrices and gradients of the layers.
        Parameters and optimizer are float32 always; with ``"fp16"`` the loss is
        scaled so that gradients do not vanish.
    device : str, default="auto"
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. ``"auto"``: a GPU where one is
        present. Training uses one GPU, prediction all GPUs of the same kind
        (one if `trainable` is an int). A model trained on one device predicts
        on any other.
    save_weights : {"delta", "fp16", "full"}, default="delta"
        What a fitted estimator holds, and what is saved with it. ``"delta"``:
        what training changed, in float32 (7 MB per layer, 85 MB for
        ``"encoder"``; ``"all"`` adds 1.5 kB for each word piece that occurs).
        ``"fp16"``: the same rounded to float16 after training, in half the
        size. ``"full"``: as ``"delta"``, plus the whole checkpoint with its
        tokenizer, so that the estimator works where the checkpoint is missing
        (145 MB more for ``"bundled"``); the checkpoint must be BERT-shaped.
    random_state : int, RandomState instance or None, default=None
        Drives the random head, the start of adapters, the order of the texts,
        and which of them early stopping sets aside. Two fits with the same int
        on the same CPU give the same bytes.
    verbose : int, default=0
        1 shows progress bars.

    Attributes
    ----------
    coef_ : ndarray of float64, shape (n_targets, 384)
        The head; of pairs of shape (n_targets, 1536) with ``pooling="pair"``
        and (n_targets, 2305) with ``"pair+texts"``.
    intercept_ : ndarray of float64, shape (n_targets,)
        Intercepts of the head.
    pooler_ : dict of str to ndarray, or None
        After :meth:`from_transformers` the layer below the head: `coef` and
        `intercept` of what a tanh is put over. Else None.
    n_iter_ : int
        Epochs run, those of earlier fits of a warm start included.
    history_ : list of dict
        One per epoch: loss, learning_rate (of the encoder at its end; with
        ``trainable="head"`` of the head), seconds, texts_per_s; with texts set
        aside validation_loss and validation_score (R², or `scoring`). Losses
        are squared errors of the scaled targets.
    best_epoch_ : int
        The epoch whose weights were kept, counted from 1; 0 is the start.
        After an interruption without early stopping: the last completed
        epoch, although the weights also include the steps after it.
    weights_ : dict of str to ndarray
        What training changed in the encoder, float32 (float16 with
        ``save_weights="fp16"``); with ``trainable="all"`` also which word
        pieces occur, int64. Empty with ``trainable="head"``.
    checkpoint_ : dict or None
        The checkpoint, with ``save_weights="full"``; else None.
    weights_digest_ : str
        sha256 of `weights_`.
    fingerprint_ : str
        sha256 of the checkpoint that it started from.
    settings_ : dict
        Pooling, normalisation, prompt and length that it was trained with;
        predictions use them.
    n_features_in_ : int
        Columns seen by `fit`: 1, or 2 for sentence pairs. Another number is
        refused by predictions.
    feature_names_in_ : ndarray of str, shape (n_columns,)
        Their names, where `fit` saw a data frame whose column names are str.
        Predictions refuse a data frame with other names; one column may come
        without a name.

    See Also
    --------
    MiniLMClassifier : The same for classes.
    MiniLMEncoder : The vectors alone, for any scikit-learn regressor.

    References
    ----------
    .. [1] A. Kumar et al., "Fine-Tuning can Distort Pretrained Features and
       Underperform Out-of-Distribution", ICLR 2022, arXiv:2202.10054.
    .. [2] E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
       ICLR 2022, arXiv:2106.09685.
    .. [3] After A. Parikh et al., "A Decomposable Attention Model for Natural
       Language Inference", EMNLP 2016, arXiv:1606.01933.

    Examples
    --------
    >>> from skminilm import MiniLMRegressor
    >>> texts = ["Great, thank you!", "Works.", "It broke on the first day.", "Bien, gracias."]
    >>> regressor = MiniLMRegressor(trainable="head", random_state=0).fit(texts, [5, 3, 1, 4])
    >>> regressor.predict(["Vielen Dank, wunderbar!"]).shape
    (1,)
    """

    _one_dimensional: bool

    def __init__(
        self,
        model: str | os.PathLike[str] = "bundled",
        *,
        revision: str | None = None,
        trainable: str | int = "encoder",
        init_head: str = "probe",
        refit_head: bool = True,
        epochs: int | str = "auto",
        batch_size: int = 32,
        learning_rate: float | str = "auto",
        head_learning_rate: float = 1e-2,
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.1,
        max_length: int = 128,
        pooling: str = "auto",
        prompt: str | None = "auto",
        early_stopping: bool = False,
        scoring: str | Callable[..., float] | None = None,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 3,
        warm_start: bool = False,
        gradient_checkpointing: bool = False,
        precision: str = "auto",
        device: str = "auto",
        save_weights: str = "delta",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.revision = revision
        self.trainable = trainable
        self.init_head = init_head
        self.refit_head = refit_head
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.weight_decay = weight_decay
        self.warmup_ratio = warmup_ratio
        self.max_length = max_length
        self.pooling = pooling
        self.prompt = prompt
        self.early_stopping = early_stopping
        self.scoring = scoring
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.gradient_checkpointing = gradient_checkpointing
        self.precision = precision
        self.device = device
        self.save_weights = save_weights
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, X_val: Any = None, y_val: Any = None) -> Self:
        """Train on texts with numbers.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
            One column: texts. Two columns: sentence pairs.
        y : array-like of float, shape (n_texts,) or (n_texts, n_targets)
            Numbers, finite; several columns: several numbers per text.
        sample_weight : array-like of float, shape (n_texts,), default=None
            Weight of each text in the loss, in the head's start, and in the
            scale of the targets. Only their ratios count: they are scaled to
            mean 1.
        X_val, y_val : like X and y, default=None
            Texts set aside: their loss and score stand in `history_`, and
            ``early_stopping=True`` goes by them. Inside
            :class:`sklearn.compose.TransformedTargetRegressor` give `y_val`
            transformed: scikit-learn transforms y alone.

        Returns
        -------
        self : MiniLMRegressor
            The fitted estimator.

        Raises
        ------
        TypeError, ValueError, OSError, FloatingPointError
            As in :meth:`MiniLMClassifier.fit`.

        Warns
        -----
        UserWarning
            As in :meth:`MiniLMClassifier.fit`.
        """
        return self._fit(X, y, sample_weight, X_val, y_val)

    def predict(self, X: Any) -> np.ndarray:
        """Return the predicted numbers.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
            Texts or sentence pairs, as in `fit`.

        Returns
        -------
        ndarray of float64, shape (n_texts,) or (n_texts, n_targets)
            One- or two-dimensional as the y of `fit` was.
        """
        outputs = self._outputs(X)
        return outputs[:, 0] if self._one_dimensional else outputs

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R², the mean over targets.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
            Texts or sentence pairs, as in `fit`.
        y : array-like of float, shape (n_texts,) or (n_texts, n_targets)
            As in `fit`.
        sample_weight : array-like of float, shape (n_texts,), default=None
            Weight of each text in the sums of squares.

        Returns
        -------
        float
            At most 1.
        """
        predicted = self.predict(X)
        n_targets = 1 if predicted.ndim == 1 else predicted.shape[1]
        y = check_numbers(y, len(predicted), n_targets).reshape(predicted.shape)
        weights = check_row_weights(sample_weight, len(predicted))
        return float(r2_score(y, predicted, sample_weight=weights))

    def _learning_rate(self, n_texts: int) -> float:
        rate = super()._learning_rate(n_texts)
        if self.learning_rate != "auto" or self.trainable not in ("encoder", "all"):
            return rate
        # The ridge regression that it starts at nearly interpolates few texts: larger steps throw it far off.
        return rate * min(1.0, n_texts / _TEXTS_FOR_FULL_RATE)

    def _read_targets(self, y: Any, row_weights: np.ndarray) -> RealTargets:
        return RealTargets(y, row_weights)

    def _target_attributes(
        self, targets: RealTargets, coef: np.ndarray, intercept: np.ndarray
    ) -> dict[str, Any]:
        return {
            "coef_": coef * targets.scale[:, None],
            "intercept_": intercept * targets.scale + targets.mean,
            "_one_dimensional": targets.one_dimensional,
        }

    def _attributes_of_head(self, head: SequenceHead) -> dict[str, Any]:
        is_multilabel = head.problem_type == "multi_label_classification"
        if head.problem_type != "regression" and (len(head.names) > 1 or is_multilabel):
            raise ValueError(
                f"The head of {self.model!r} gives classes ({shorten_list(head.names)}), not numbers: use "
                "MiniLMClassifier.from_transformers."
            )
        return {
            "coef_": head.last.coef.astype(np.float64),
            "intercept_": head.last.intercept.astype(np.float64),
            "_one_dimensional": len(head.names) == 1,
        }

    def _head_of_fit(self, targets: RealTargets) -> tuple[np.ndarray, np.ndarray]:
        if len(self.coef_) != targets.n_outputs:
            raise ValueError(
                f"warm_start=True goes on from a fit with {len(self.coef_)} target(s), and y has "
                f"{targets.n_outputs}: set warm_start=False."
            )
        coef = self.coef_ / targets.scale[:, None]
        intercept = (self.intercept_ - targets.mean) / targets.scale
        if max(np.abs(coef).max(), np.abs(intercept).max()) > MAX_DEVIATIONS:
            raise ValueError(
                f"warm_start=True goes on from a fit to numbers about {np.abs(self.intercept_).max():.3g}, too far "
                f"from those of y, whose standard deviation is {targets.scale.min():.3g}: set warm_start=False."
            )
        return coef.astype(np.float32), intercept.astype(np.float32)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
