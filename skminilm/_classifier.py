"""MiniLMClassifier: the network and a linear head, fine-tuned on labelled texts."""

from __future__ import annotations

import os
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.utils._param_validation import StrOptions

from ._accuracy import AccuracyMixin
from ._callbacks import with_callbacks
from ._fine_tuned import FineTunedEstimator
from ._parameters import NumberInterval
from ._target_validation import is_multilabel
from ._targets import ClassTargets, MultilabelTargets
from ._validation import shorten_list
from .checkpoints.heads import SequenceHead

if TYPE_CHECKING:
    from typing_extensions import Self


class MiniLMClassifier(AccuracyMixin, FineTunedEstimator):
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
    trainable : {"head", "encoder", "all", "lora"} or int, default="encoder"
        What is trained besides the head: nothing (``"head"``), the top k
        layers (an int k; the output of the frozen layers below is computed
        once per text and cached, see :func:`set_config`), all layers
        (``"encoder"``), the layers and the embeddings (``"all"``; of the
        embedding table only the rows of tokens that occur in the texts), or
        low-rank adapters of all layers (``"lora"`` [2]_, rank 8, with the
        extra ``lora``).
    init_head : {"probe", "random"}, default="probe"
        Where the head starts: at a logistic regression on the frozen vectors,
        or at small random numbers.
    refit_head : bool, default=True
        After training fit the head anew to the vectors of the trained
        network, as a logistic regression: it generalises better to other
        languages than the head that training leaves behind. Of pairs the
        network's own columns count 3 to 8 times less in it, the fewer pairs the
        less. With ``early_stopping=True`` it is kept only if it scores at least as well on
        the validation texts. ``trainable="head"``, which changes no vectors,
        and a fit that was interrupted have no refit.
    epochs : int or "auto", default="auto"
        Passes over the texts. ``"auto"``: as few as make 60 steps, but at
        least 3 and at most 10.
    batch_size : int, default=32
        Texts per step.
    learning_rate : float or "auto", default="auto"
        Peak learning rate of the encoder: it rises linearly over the warm-up,
        then falls linearly to 0. ``"auto"``: 1e-4, and 1e-3 for ``"lora"``.
    head_learning_rate : float, default=1e-2
        Peak learning rate of the head, on the same schedule.
    weight_decay : float, default=0.01
        Decoupled weight decay (AdamW) of the weight matrices of the layers.
    warmup_ratio : float, default=0.1
        Share of the steps in which the learning rates rise.
    label_smoothing : float, default=0.0
        Share of the target probability spread over all classes; of several
        labels per text, how far each target is moved towards one half. In
        training and ``validation_loss``: the head that ``refit_head=True`` fits is not smoothed.
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
    class_weight : dict, "balanced" or None, default=None
        Weight of each class in the loss; ``"balanced"``: inversely
        proportional to its frequency. With several labels per text None is
        ``"balanced"`` too: in each column the rows with 1 together weigh as
        much as those with 0 (a row weighs at most 20), as rare labels would
        hardly ever be predicted otherwise. A dict there has the keys 0 and 1,
        which count as it says in every column; ``{0: 1, 1: 1}`` turns balancing off.
    early_stopping : bool, default=False
        Set texts aside, stop when the score on them does not rise any more,
        and go back to the best epoch. The untrained start is a candidate too.
    scoring : str, callable or None, default=None
        The score of the texts that are set aside, where larger is better: one
        of scikit-learn's names (such as ``"f1_macro"``, ``"neg_log_loss"``), or a
        callable that takes the estimator, all these texts as a list of str (of
        pairs of str) and their y. If `fit` gets weights that differ, it gets
        `sample_weight` too, unless it has no such parameter: then all these
        texts count alike. None: accuracy.
    validation_fraction : float, default=0.1
        Share of the texts that ``early_stopping=True`` sets aside, stratified
        by class (at random with several labels per text), unless `fit` gets
        `X_val`. It must be enough for one text of every class that has two or
        more, or `fit` raises an error; a class with a single text is only
        trained on. Translations of these texts, the same texts in other rows,
        and after a warm start these texts themselves, may have been trained on,
        and the score says little then: give `X_val`.
    n_iter_no_change : int, default=3
        Epochs without a better score after which ``early_stopping=True``
        stops. Between equal scores the lower loss wins.
    warm_start : bool, default=False
        Go on from the earlier fit with all its weights. The texts may be
        others; classes, model, revision, `trainable`, pooling, prompt and
        `max_length` must be the same (a fit with ``trainable="head"`` may go on with more).
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
    classes_ : ndarray of shape (n_classes,)
        With several labels per text: the numbers of the labels (after
        :meth:`from_transformers` their names).
    multilabel_ : bool
        y had several columns.
    coef_ : ndarray of float32, shape (n_classes, 384)
        The head; of pairs of shape (n_classes, 1536) with ``pooling="pair"``
        and (n_classes, 2305) with ``"pair+texts"``.
    intercept_ : ndarray of float32, shape (n_classes,)
        Of the head.
    pooler_ : dict of str to ndarray, or None
        After :meth:`from_transformers` the layer below the head: `coef` and
        `intercept` of what a tanh is put over. Else None.
    n_iter_ : int
        Epochs run, those of earlier fits of a warm start included.
    history_ : list of dict
        One per epoch: loss, learning_rate (of the encoder at its end; with
        ``trainable="head"`` of the head), seconds, texts_per_s; with texts set
        aside validation_loss and validation_score (accuracy, or `scoring`), both of
        the head as it is trained.
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
    MiniLMEncoder : The vectors alone, for any scikit-learn classifier.
    MiniLMRegressor : The same for numbers.

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
    >>> from skminilm import MiniLMClassifier
    >>> texts = ["Where is my parcel?", "The card was charged twice.",
    ...          "When will it arrive?", "I never ordered this invoice."]
    >>> labels = ["delivery", "billing", "delivery", "billing"]
    >>> classifier = MiniLMClassifier(trainable="head", random_state=0).fit(texts, labels)
    >>> classifier.predict(["¿Cuándo llega mi paquete?"]).tolist()
    ['delivery']
    """

    _parameter_constraints = {  # noqa: RUF012
        **FineTunedEstimator._parameter_constraints,
        "label_smoothing": [NumberInterval(Real, 0, 1, closed="left")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

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
        label_smoothing: float = 0.0,
        max_length: int = 128,
        pooling: str = "auto",
        prompt: str | None = "auto",
        class_weight: dict | str | None = None,
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
        self.label_smoothing = label_smoothing
        self.max_length = max_length
        self.pooling = pooling
        self.prompt = prompt
        self.class_weight = class_weight
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
        """Train on labelled texts.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
            One column: texts. Two columns: sentence pairs.
        y : array-like of shape (n_texts,) or (n_texts, n_labels)
            Labels: str, int or bool, at least two different ones. Several
            columns (or a sparse matrix) of 0 and 1: any number of labels per text.
        sample_weight : array-like of float, shape (n_texts,), default=None
            Weight of each text in the loss, and where the head is fitted. Only
            their ratios count: they are scaled to mean 1. Texts of weight 0
            are as if they were left out, but that y holds their classes.
        X_val, y_val : like X and y, default=None
            Texts set aside: their loss and score stand in `history_`, and
            ``early_stopping=True`` goes by them.

        Returns
        -------
        self : MiniLMClassifier
            The fitted estimator.

        Raises
        ------
        TypeError, ValueError
            X, y or a parameter is not usable; the message names row and value.
            Or `scoring` gives NaN.
        OSError
            The checkpoint is missing or damaged.
        ImportError
            ``trainable="lora"`` without the extra ``lora``.
        MemoryError
            One text alone does not fit in the memory of a GPU.
        FloatingPointError
            The loss became infinite or NaN; the message names the step. The
            weights are those of the last epoch that was completed (of the
            best with ``early_stopping=True``); where there is none, an earlier
            fit of this estimator is kept.

        Warns
        -----
        UserWarning
            Texts of X or X_val longer than `max_length` were cut off; once a
            fit. Or the fit was interrupted (KeyboardInterrupt), and the
            estimator has what it had learned until then.
        """
        return self._fit(X, y, sample_weight, X_val, y_val)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
            Texts or sentence pairs, as in `fit`.

        Returns
        -------
        ndarray of float32, shape (n_texts, n_classes)
            With two classes of shape (n_texts,): the logit of ``classes_[1]``
            minus that of ``classes_[0]``. With several labels per text one
            column per label.
        """
        logits = self._outputs(X)
        if not self.multilabel_ and len(self.classes_) == 2:
            return logits[:, 1] - logits[:, 0]
        return logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class or label.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
            Texts or sentence pairs, as in `fit`.

        Returns
        -------
        ndarray of float32, shape (n_texts, n_classes)
            In the order of `classes_`. With several labels per text one column per
            label; rows add up to 1 otherwise. Of balanced labels (see
            `class_weight`) they are as if half of the texts had each: on
            average those of a rare label are too high.
        """

        def probabilities(logits: np.ndarray) -> np.ndarray:
            return expit(logits) if self.multilabel_ else softmax(logits, axis=1)

        return self._outputs(X, probabilities)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithm of the probability of each class or label.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
            Texts or sentence pairs, as in `fit`.

        Returns
        -------
        ndarray of float32, shape (n_texts, n_classes)
            In the order of `classes_`. With several labels per text one column per
            label.
        """

        def logarithms(logits: np.ndarray) -> np.ndarray:
            return log_expit(logits) if self.multilabel_ else log_softmax(logits, axis=1)

        return self._outputs(X, logarithms)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each text.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
            Texts or sentence pairs, as in `fit`.

        Returns
        -------
        ndarray of shape (n_texts,) or (n_texts, n_labels)
            Of `classes_`; of equally probable ones the first. With several
            labels per text: int64, 1 where the probability is over one half,
            else 0.
        """

        def choices(logits: np.ndarray) -> np.ndarray:
            if self.multilabel_:
                return logits > 0  # a probability may round to one half
            return softmax(logits, axis=1).argmax(axis=1)  # of equal probabilities the first

        chosen = self._outputs(X, choices)
        return chosen.astype(np.int64) if self.multilabel_ else self.classes_[chosen]

    def _read_targets(self, y: Any, row_weights: np.ndarray) -> ClassTargets | MultilabelTargets:
        if not is_multilabel(y):
            return ClassTargets(y, len(row_weights), self.class_weight, self.label_smoothing)
        return MultilabelTargets(y, row_weights, self.class_weight, self.label_smoothing)

    def _target_attributes(
        self, targets: ClassTargets | MultilabelTargets, coef: np.ndarray, intercept: np.ndarray
    ) -> dict[str, Any]:
        classes = targets.classes if isinstance(targets, ClassTargets) else np.arange(targets.n_outputs)
        return {
            "classes_": classes,
            "multilabel_": isinstance(targets, MultilabelTargets),
            "coef_": coef,
            "intercept_": intercept,
        }

    def _attributes_of_head(self, head: SequenceHead) -> dict[str, Any]:
        multilabel = head.problem_type == "multi_label_classification"
        if head.problem_type == "regression" or (len(head.names) == 1 and not multilabel):
            raise ValueError(
                f"The head of {self.model!r} gives numbers, not classes: use MiniLMRegressor.from_transformers."
            )
        names = np.array(head.names)
        classes, order = np.unique(names, return_index=True)
        if len(classes) < len(head.names):
            raise ValueError(
                f"id2label of {self.model!r} names two outputs alike: {shorten_list(head.names)}. Correct its "
                "config.json."
            )
        if multilabel:
            classes, order = names, np.arange(len(names))
        return {
            "classes_": classes,
            "multilabel_": multilabel,
            "coef_": head.last.coef[order],
            "intercept_": head.last.intercept[order],
        }

    def _head_of_fit(self, targets: ClassTargets | MultilabelTargets) -> tuple[np.ndarray, np.ndarray]:
        attributes = self._target_attributes(targets, self.coef_, self.intercept_)
        now = attributes["classes_"]
        if attributes["multilabel_"] != self.multilabel_:
            one, several = "one label per text", "several columns"
            before, after = (several, one) if self.multilabel_ else (one, several)
            raise ValueError(
                f"warm_start=True goes on from the earlier fit, whose y had {before}, and y has {after}: set "
                "warm_start=False."
            )
        if not np.array_equal(now, self.classes_):
            now, before = now.tolist(), self.classes_.tolist()
            of_now, of_before = set(now), set(before)
            gone = [label for label in before if label not in of_now]
            new = [label for label in now if label not in of_before]
            remedy = "Set warm_start=False."
            if gone and not new:
                remedy = "Add a row of each that it lacks, with sample_weight 0, or set warm_start=False."
            raise ValueError(
                f"warm_start=True goes on with the classes of the earlier fit, {shorten_list(before)}: y lacks "
                f"{shorten_list(gone)} and has {shorten_list(new)} besides. {remedy}"
            )
        return self.coef_, self.intercept_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
