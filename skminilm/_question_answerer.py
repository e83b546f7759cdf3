"""MiniLMQuestionAnswerer: extractive question answering, fine-tuned on questions with contexts."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions

from ._answers import AnswerSpan, check_answers, check_questions, keep_found
from ._cache import state_cache
from ._callbacks import FitProgress, with_callbacks
from ._encoding import open_checkpoint, resolve_settings, unique_texts
from ._parameters import NumberInterval
from ._progress import tqdm
from ._rows import reread
from ._spans import choose_answers
from ._target_validation import check_row_weights
from ._text_columns import check_both_or_none, check_same_columns
from ._trained_network import EarlierFit, TrainedNetworkEstimator
from ._validation import Texts, shorten
from ._warnings import warn
from ._windows import Windows, cut_windows
from .checkpoints import Checkpoint, EncodingSettings
from .checkpoints.heads import read_span_head
from .metrics import mlqa_exact_match, mlqa_f1

if TYPE_CHECKING:
    from typing_extensions import Self

    from .checkpoints.token_batch import TokenBatch
    from .engine import Compute
    from .finetuning import TrainingResult

_SLICE_CHARACTERS = (
    4_000_000  # of contexts whose tokens are there at a time: their places take many times the memory
)
_START_SCALE = 0.02
_ROOM_FOR_SPECIAL_TOKENS = 4


@dataclass(frozen=True)
class _Data:
    """Windows that are trained on, then windows that are set aside; targets as ``Windows.targets`` has them."""

    batch: TokenBatch
    targets: np.ndarray
    weights: np.ndarray
    n_training: int

    def set_aside(self, other: _Data) -> _Data:
        """Return these windows with those of another, which are not trained on."""
        targets = np.concatenate([self.targets, other.targets])
        weights = np.concatenate([self.weights, other.weights])
        return _Data(self.batch.join(other.batch), targets, weights, self.n_training)


class MiniLMQuestionAnswerer(TrainedNetworkEstimator):
    """Find the answer to a question in a text, in about 100 languages, with a fine-tuned MiniLM.

    Two outputs per token say how likely an answer begins and ends there
    (Devlin et al., 2018 [1]_, section 4.2). Contexts that are too long for the
    network are read in windows that overlap.

    Parameters
    ----------
    model : str or path, default="bundled"
        As in :class:`MiniLMEncoder`. The checkpoint must be BERT-shaped, and
        its vocabulary XLM-R's.
    revision : str, default=None
        Commit, tag or branch of a hub repository.
    trainable : {"encoder", "all", "lora"} or int, default="encoder"
        What is trained besides the head: the top k layers (an int k; the
        output of the frozen layers below is computed once per window and
        cached, see :func:`set_config`), all layers (``"encoder"``), the layers
        and the embeddings (``"all"``; of the embedding table only the rows of
        tokens that occur in the texts), or low-rank adapters of all layers
        (``"lora"`` [3]_, rank 8, with the extra ``lora``).
    epochs : int or "auto", default="auto"
        Passes over the questions. ``"auto"``: as few as make 60 steps, but at
        least 2 and at most 10.
    batch_size : int, default=32
        Windows per step.
    learning_rate : float or "auto", default="auto"
        Peak learning rate of the encoder: it rises linearly over the warm-up,
        then falls linearly to 0. ``"auto"``: 2e-4, and 1e-3 for ``"lora"``.
    head_learning_rate : float, default=1e-2
        Peak learning rate of the head, on the same schedule.
    weight_decay : float, default=0.01
        Decoupled weight decay (AdamW) of the weight matrices of the layers.
    warmup_ratio : float, default=0.1
        Share of the steps in which the learning rates rise.
    max_length : int, default=384
        Tokens of a question with a window of its context, special tokens
        included. A question may take half of what those leave; the rest is cut
        off with a warning.
    stride : int, default=128
        Tokens that neighbouring windows of a context share: fewer than
        ``max_length // 2 - 4``. Answers of more tokens that reach from one
        window into the next are not found: a warning says so where `stride` is
        less than `max_answer_length`.
    max_answer_length : int, default=30
        Tokens that an answer may have at the most. Longer ones are learned,
        but not found: `fit` warns of them.
    no_answer_threshold : float or None, default=None
        `predict` returns "" where the score of "no answer" (a sum of two
        logits) exceeds the score of the best span by more than this, as in the
        evaluation of SQuAD 2.0 [2]_. None: always the best span, and "" only
        where no span is found.
    early_stopping : bool, default=False
        Stop when the share of windows of `X_val` that are answered exactly no
        longer rises, and go back to the best epoch; for a window that does not
        contain the answer, "no answer" is the exact one. The untrained start is
        a candidate too. Needs `X_val`.
    n_iter_no_change : int, default=3
        Epochs without a better score after which ``early_stopping=True``
        stops. Between equal scores the lower loss wins.
    warm_start : bool, default=False
        Go on from the earlier fit with all its weights and its head, or from
        those of :meth:`from_transformers`: so a network that was trained on many questions
        learns a few of your own. Model, revision and `trainable` must be the same.
    gradient_checkpointing : bool, default=False
        Recompute the activations of each layer in the backward pass instead
        of keeping them: takes a third more time and several times less memory
        per window.
    precision : {"auto", "fp32", "bf16", "fp16", "int16"}, default="auto"
        Of the computation, see :class:`MiniLMEncoder`. With ``"int16"`` training
        multiplies integers too: activations, matrices and gradients of the layers.
        Parameters and optimizer are float32 always; with ``"fp16"`` the loss is
        scaled so that gradients do not vanish.
    device : str, default="auto"
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. ``"auto"``: a GPU where one is
        present. Training and predictions take one. A model trained on one
        device predicts on any other.
    save_weights : {"delta", "fp16", "full"}, default="delta"
        What a fitted estimator holds, and what is saved with it. ``"delta"``:
        what training changed, in float32 (7 MB per layer, 85 MB for
        ``"encoder"``; ``"all"`` adds 1.5 kB for each word piece that occurs).
        ``"fp16"``: the same rounded to float16 after training, in half the
        size. ``"full"``: as ``"delta"``, plus the whole checkpoint with its
        tokenizer, so that the estimator works where the checkpoint is missing
        (145 MB more for ``"bundled"``); the checkpoint must be BERT-shaped.
    random_state : int, RandomState instance or None, default=None
        Drives where the head starts, the start of adapters, and the order of
        the windows. Two fits with the same int on the same CPU give the same
        bytes.
    verbose : int, default=0
        1 shows progress bars.

    Attributes
    ----------
    coef_ : ndarray of float32, shape (2, 384)
        The head: for the begin and for the end of an answer.
    intercept_ : ndarray of float32, shape (2,)
        Of the head.
    n_iter_ : int
        Epochs run.
    history_ : list of dict
        One per epoch: loss, learning_rate (of the encoder at its end), seconds,
        texts_per_s (windows, not texts); with `X_val` validation_loss and
        validation_score (the share of windows whose answer is exact).
    best_epoch_ : int
        The epoch whose weights were kept, counted from 1; 0 is the start.
        After an interruption without early stopping: the last completed
        epoch, although the weights also include the steps after it.
    weights_ : dict of str to ndarray
        What training changed in the encoder, float32 (float16 with
        ``save_weights="fp16"``); with ``trainable="all"`` also which word
        pieces occur, int64.
    checkpoint_ : dict or None
        The checkpoint, with ``save_weights="full"``; else None.
    weights_digest_ : str
        sha256 of `weights_`.
    fingerprint_ : str
        sha256 of the checkpoint that it started from.
    settings_ : dict
        The length that it was trained with; no pooling, normalisation or
        prompt. Predictions use the parameters as they are.
    n_features_in_ : int
        Columns seen by `fit`: 2, questions and contexts.
    feature_names_in_ : ndarray of str, shape (2,)
        Their names, where `fit` saw a data frame whose column names are str.
        Predictions refuse a data frame with other names.

    See Also
    --------
    MiniLMClassifier : Classifies texts and sentence pairs.
    skminilm.metrics.mlqa_f1 : The score.

    References
    ----------
    .. [1] J. Devlin et al., "BERT: Pre-training of Deep Bidirectional
       Transformers for Language Understanding", 2018, arXiv:1810.04805.
    .. [2] P. Rajpurkar et al., "Know What You Don't Know: Unanswerable
       Questions for SQuAD", 2018, arXiv:1806.03822.
    .. [3] E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
       ICLR 2022, arXiv:2106.09685.

    Examples
    --------
    >>> from skminilm import MiniLMQuestionAnswerer
    >>> X = [["Where is the key?", "The key is under the mat."], ["Wer kommt?", "Morgen kommt Ada."]]
    >>> answerer = MiniLMQuestionAnswerer(trainable=1, epochs=1, random_state=0)
    >>> answerer.fit(X, [("under the mat", 11), "Ada"]).predict(X).shape
    (2,)
    """

    _encoder_learning_rate = 2e-4
    _min_epochs = 2

    _parameter_constraints = {  # noqa: RUF012
        **TrainedNetworkEstimator._parameter_constraints,
        "trainable": [
            StrOptions({"encoder", "all", "lora"}),
            NumberInterval(Integral, 1, None, closed="left"),
        ],
        "max_length": [NumberInterval(Integral, 16, None, closed="left")],
        "stride": [NumberInterval(Integral, 0, None, closed="left")],
        "max_answer_length": [NumberInterval(Integral, 1, None, closed="left")],
        "no_answer_threshold": [NumberInterval(Real, None, None, closed="neither"), None],
    }

    def __init__(
        self,
        model: str | os.PathLike[str] = "bundled",
        *,
        revision: str | None = None,
        trainable: str | int = "encoder",
        epochs: int | str = "auto",
        batch_size: int = 32,
        learning_rate: float | str = "auto",
        head_learning_rate: float = 1e-2,
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.1,
        max_length: int = 384,
        stride: int = 128,
        max_answer_length: int = 30,
        no_answer_threshold: float | None = None,
        early_stopping: bool = False,
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
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.weight_decay = weight_decay
        self.warmup_ratio = warmup_ratio
        self.max_length = max_length
        self.stride = stride
        self.max_answer_length = max_answer_length
        self.no_answer_threshold = no_answer_threshold
        self.early_stopping = early_stopping
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.gradient_checkpointing = gradient_checkpointing
        self.precision = precision
        self.device = device
        self.save_weights = save_weights
        self.random_state = random_state
        self.verbose = verbose

    @classmethod
    def from_transformers(
        cls,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        max_length: int = 384,
        stride: int = 128,
        max_answer_length: int = 30,
        no_answer_threshold: float | None = None,
        precision: str = "auto",
        device: str = "auto",
        save_weights: str = "delta",
        verbose: int = 0,
    ) -> Self:
        """Open a network that was fine-tuned with transformers, together with its head.

        Nothing is trained: begins and ends of answers get the logits that
        ``AutoModelForQuestionAnswering`` gives them, at this package's speed.
        The network is of the type BERT or XLM-RoBERTa, with XLM-R's vocabulary.

        Parameters
        ----------
        model, revision, max_length, stride, max_answer_length, no_answer_threshold, precision, device, save_weights, verbose
            As in the constructor. What trains has its default, and counts
            when `fit` is called, which begins at this network and its head
            after ``set_params(warm_start=True)``.

        Returns
        -------
        estimator of this class
            Fitted.

        Raises
        ------
        TypeError, ValueError
            A parameter is not usable, the checkpoint holds no such head, or
            the engine cannot run its network.
        OSError
            Files are missing or damaged.
        """
        from .finetuning import TrainingResult

        answerer = cls(
            model,
            revision=revision,
            max_length=max_length,
            stride=stride,
            max_answer_length=max_answer_length,
            no_answer_threshold=no_answer_threshold,
            precision=precision,
            device=device,
            save_weights=save_weights,
            verbose=verbose,
        )
        answerer._validate_params()
        checkpoint = open_checkpoint(model, revision, settings_known=True)
        head = read_span_head(checkpoint)
        settings = answerer._settings(checkpoint)
        result = TrainingResult(head.coef, head.intercept, weights={})
        answerer._set_attributes(
            {
                "coef_": head.coef,
                "intercept_": head.intercept,
                **answerer._network_attributes(result, checkpoint, settings, None),
            }
        )
        return answerer

    @with_callbacks
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        on_missing_answer: str = "raise",
    ) -> Self:
        """Train on questions whose answers are in their contexts.

        Parameters
        ----------
        X : list, array, or data frame of str, shape (n_questions, 2)
            Questions and contexts.
        y : sequence of length n_questions, or two columns
            Answers: (text, start), where start counts code points of the
            context; or the text alone, which stands for its first occurrence;
            or a list of several answers, of which the first is learned; or
            ``{"text": [...], "answer_start": [...]}``, as `datasets` has SQuAD; or
            None (or "") where the context has no answer. Two columns of a
            data frame or an array are texts and starts.
        sample_weight : array-like of float, shape (n_questions,), default=None
            Weight of each question in the loss: of each window of its context.
            Only their ratios count.
        X_val, y_val : like X and y, default=None
            Questions set aside: the loss and the score of their windows stand
            in `history_`, and ``early_stopping=True`` goes by them.
        on_missing_answer : {"raise", "drop"}, default="raise"
            What to do with a row whose answer is not in its context, or in no
            window of it as a whole: an error that names it, or leave such rows
            out with a warning.

        Returns
        -------
        self : MiniLMQuestionAnswerer
            The fitted estimator.

        Raises
        ------
        TypeError, ValueError
            X, y, sample_weight or a parameter is not usable; the message names row and value.
        OSError
            The checkpoint is missing or damaged.
        FloatingPointError
            As in :meth:`MiniLMClassifier.fit`.

        Warns
        -----
        UserWarning
            Rows were left out, questions cut off, or the fit was interrupted.
        """
        self._validate_params()
        if on_missing_answer not in ("raise", "drop"):
            raise ValueError(f"on_missing_answer={on_missing_answer!r}: expected 'raise' or 'drop'.")
        check_both_or_none(X_val, y_val)
        if self.early_stopping and X_val is None:
            raise ValueError("early_stopping=True needs questions to go by: give X_val and y_val.")
        X, y = reread(X), reread(y)  # callbacks get them too
        texts = check_questions(X)
        row_weights = check_row_weights(sample_weight, len(texts))
        if X_val is not None:
            others = check_questions(X_val, "X_val")
            check_same_columns(texts, others)
        random = check_random_state(self.random_state)
        checkpoint = self._open_to_train(settings_known=True)
        self._check_checkpoint(checkpoint)
        settings, compute = self._settings(checkpoint), self._compute(checkpoint)
        earlier = self._earlier_fit(checkpoint)
        data = self._learnable(checkpoint, texts, y, row_weights, on_missing_answer, "y")
        if X_val is not None:
            weights = np.ones(len(others))
            data = data.set_aside(
                self._learnable(checkpoint, others, y_val, weights, on_missing_answer, "y_val")
            )

        def attributes(result: TrainingResult) -> dict[str, Any]:
            return {
                "coef_": result.coef,
                "intercept_": result.intercept,
                **self._network_attributes(result, checkpoint, settings, earlier),
                **self._column_attributes(texts),
            }

        n_epochs = self._n_epochs(data.n_training)
        progress = FitProgress(self, X, y, sample_weight, n_epochs, data.n_training, attributes)
        self._run(
            lambda: self._train(data, checkpoint, compute, random, earlier, n_epochs, progress), progress
        )
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the best answer to each question.

        Parameters
        ----------
        X : list, array, or data frame of str, shape (n_questions, 2)
            Questions and contexts.

        Returns
        -------
        ndarray of str, dtype object, shape (n_questions,)
            "" for no answer.
        """
        return np.array([spans[0].text for spans in self.predict_spans(X)], dtype=object)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each answer of `predict`.

        That of a span among all spans of the context up to
        `max_answer_length`, and no answer: a softmax over the sums of the
        logits of begin and end.

        Parameters
        ----------
        X : list, array, or data frame of str, shape (n_questions, 2)
            Questions and contexts.

        Returns
        -------
        ndarray of float64, shape (n_questions,)
            From 0 to 1.
        """
        return np.array([spans[0].score for spans in self.predict_spans(X)])

    def predict_spans(self, X: Any, n_best: int = 1) -> list[list[AnswerSpan]]:
        """Return the best answers to each question and where they are.

        Parameters
        ----------
        X : list, array, or data frame of str, shape (n_questions, 2)
            Questions and contexts.
        n_best : int, default=1
            Maximum number of answers per question.

        Returns
        -------
        list of list of AnswerSpan
            Best first, each with start and end in code points of the context,
            score (its probability) and text. No answer is start = end = 0 and
            text = ""; it comes first where `no_answer_threshold` asks for it,
            and is left out otherwise.
        """
        if not isinstance(n_best, Integral) or isinstance(n_best, bool) or n_best < 1:
            raise ValueError(f"n_best={n_best!r}: expected an int of at least 1.")
        return self._answer(X, int(n_best))[0]

    def no_answer_margin(self, X: Any) -> np.ndarray:
        """Return by how much no answer scores above the best span.

        Where this is more than `no_answer_threshold`, the answer is "". So a
        threshold can be chosen on questions that are set aside, without
        another fit: the "null odds" of SQuAD 2.0's evaluation
        (arXiv:1806.03822).

        Parameters
        ----------
        X : list, array, or data frame of str, shape (n_questions, 2)
            Questions and contexts.

        Returns
        -------
        ndarray of float64, shape (n_questions,)
            Differences of sums of two logits. Infinite where the context
            holds nothing that could be an answer.
        """
        return self._answer(X, 1)[1]

    def _answer(self, X: Any, n_best: int) -> tuple[list[list[AnswerSpan]], np.ndarray]:
        """Return what :meth:`predict_spans` and :meth:`no_answer_margin` do; each different question is computed once."""
        texts = self._checked_texts(X, check_questions)
        checkpoint = self._fitted_checkpoint()
        self._settings(checkpoint)  # max_length and stride may be others than in fit
        unique, _, index = unique_texts(texts)
        answers: list[list[AnswerSpan]] = []
        margins: list[float] = []
        is_cut, is_windowed = [], False
        with tqdm(total=len(unique), desc="answer", unit="question", disable=not self.verbose) as bar:
            for rows in unique.slices(_SLICE_CHARACTERS):
                some = unique.take(rows)
                windows = self._windows(checkpoint, some)
                found = self._best_spans(windows, checkpoint, windows.spans_an_answer() * n_best)
                chosen = choose_answers(windows, found, some.second, n_best, self.no_answer_threshold)
                answers += chosen[0]
                margins += chosen[1]
                is_cut.append(windows.is_cut)
                is_windowed |= len(windows.first_tokens) > len(some)
                bar.update(len(some))
        self._warn_of_cut_questions(np.concatenate(is_cut)[index])
        self._warn_of_stride(is_windowed)
        return [list(answers[i]) for i in index], np.array(margins)[index]

    def score(self, X: Any, y: Any, sample_weight: Any = None, *, languages: Any = "en") -> float:
        """Return the token F1 of the answers, mean over questions, as MLQA evaluates it.

        Parameters
        ----------
        X : list, array, or data frame of str, shape (n_questions, 2)
            Questions and contexts.
        y : sequence of length n_questions
            As in :meth:`fit`; of several answers the best match counts.
        sample_weight : array-like of float, shape (n_questions,), default=None
            Weight of each question in the mean.
        languages : str or sequence of str, default="en"
            Of the answers, one for all or one per question; see :func:`skminilm.metrics.mlqa_f1`.

        Returns
        -------
        float
            From 0 to 1.
        """
        return mlqa_f1(y, self.predict(X), languages, sample_weight=sample_weight)

    def exact_match(self, X: Any, y: Any, sample_weight: Any = None, *, languages: Any = "en") -> float:
        """Return the share of questions whose answer is exact, as MLQA evaluates it.

        Parameters
        ----------
        X : list, array, or data frame of str, shape (n_questions, 2)
            Questions and contexts.
        y : sequence of length n_questions
            As in :meth:`fit`; of several answers the best match counts.
        sample_weight : array-like of float, shape (n_questions,), default=None
            Weight of each question in the share.
        languages : str or sequence of str, default="en"
            Of the answers, one for all or one per question; see
            :func:`skminilm.metrics.mlqa_exact_match`.

        Returns
        -------
        float
            From 0 to 1.
        """
        return mlqa_exact_match(y, self.predict(X), languages, sample_weight=sample_weight)

    def _settings(self, checkpoint: Checkpoint) -> EncodingSettings:
        if checkpoint.tokenizer is None or checkpoint.tokenizer.pair_template is None:
            raise ValueError(
                f"model={self.model!r} reads no question together with its context: that needs XLM-R's "
                "vocabulary. Use model='bundled' or another checkpoint of the family."
            )
        if self.stride >= self.max_length // 2 - _ROOM_FOR_SPECIAL_TOKENS:
            raise ValueError(
                f"stride={self.stride} leaves no room to go on in windows of max_length={self.max_length} tokens "
                f"with a question: use at most {self.max_length // 2 - _ROOM_FOR_SPECIAL_TOKENS - 1}."
            )
        return resolve_settings(
            checkpoint,
            checkpoint.defaults,
            pooling="none",
            normalize=False,
            prompt=None,
            max_length=self.max_length,
        )

    def _earlier_fit(self, checkpoint: Checkpoint) -> EarlierFit | None:
        if not self._goes_on():
            return None
        if self.fingerprint_ != checkpoint.origin:
            raise ValueError(
                "warm_start=True goes on from the earlier fit, which had another model or revision: restore them, or set "
                "warm_start=False."
            )
        return EarlierFit(self.coef_, self.intercept_, self.weights_, self.history_, self.best_epoch_)

    def _windows(self, checkpoint: Checkpoint, texts: Texts) -> Windows:
        return cut_windows(checkpoint.tokenizer, texts, self.max_length, self.stride, self.max_answer_length)

    def _learnable(
        self,
        checkpoint: Checkpoint,
        texts: Texts,
        y: Any,
        row_weights: np.ndarray,
        on_missing_answer: str,
        name: str,
    ) -> _Data:
        """Return the windows of the rows whose answer is found; errors call y `name`."""
        answers, problems = check_answers(y, texts.second, name, texts.first)
        if on_missing_answer == "raise":
            keep_found(problems, on_missing_answer, name)  # before what takes long
        windows = self._windows(checkpoint, texts)
        targets = windows.targets(answers)
        for row in windows.rows_without_answer(answers, targets):
            problems[row] = problems[row] or (
                f"row {row}: the answer {shorten(answers[row].text)} is too long for windows that share "
                f"stride={self.stride} tokens, so that none holds all of it (raise stride, and max_length with it)"
            )
        kept = keep_found(problems, on_missing_answer, name)
        self._warn_of_cut_questions(windows.is_cut)
        self._warn_of_stride(len(windows.first_tokens) > len(texts))
        self._warn_of_long_answers(windows, targets, name)
        row_of_window = windows.batch.text_of_sequence
        weights = row_weights[row_of_window]
        chosen = np.flatnonzero(kept[row_of_window] & (weights > 0))
        if not len(chosen):
            raise ValueError(
                "sample_weight is zero in every row that is left: give some row a positive weight."
            )
        return _Data(windows.batch.take(chosen), targets[chosen], weights[chosen], len(chosen))

    def _train(
        self,
        data: _Data,
        checkpoint: Checkpoint,
        compute: Compute,
        random: np.random.RandomState,
        earlier: EarlierFit | None,
        n_epochs: int,
        hooks: FitProgress,
    ) -> TrainingResult:
        from .finetuning import SpanObjective, Split, train

        workers, compute = self._workers(compute)
        options = self._training_options(n_epochs, compute, random)
        if earlier is None:
            coef = _START_SCALE * random.standard_normal((2, checkpoint.hidden_size)).astype(np.float32)
            head = coef, np.zeros(2, np.float32)
        else:
            head = earlier.coef, earlier.intercept
        return train(
            self._new_network(data.batch, checkpoint, None, compute, options.seed, earlier, data.n_training),
            *head,
            SpanObjective(self.max_answer_length),
            data.targets,
            data.weights,
            Split(np.arange(data.n_training), np.arange(data.n_training, len(data.targets))),
            options,
            workers=workers,
            hooks=hooks,
        )

    def _best_spans(self, windows: Windows, checkpoint: Checkpoint, n_best: int) -> np.ndarray:
        from .engine import SpanPlaces, find_best_spans, get_tuned_model

        compute = replace(self._compute(checkpoint), helpers=())
        model = get_tuned_model(checkpoint, compute, self._tuned_weights(), state_cache)
        return find_best_spans(
            model,  # type: ignore[arg-type]  # one device: a PackedModel
            windows.batch,
            SpanPlaces(windows.own_starts, windows.own_stops, windows.context_stops),
            self.coef_,
            self.intercept_,
            max_tokens=self.max_answer_length,
            n_best=n_best,
        )

    def _warn_of_long_answers(self, windows: Windows, targets: np.ndarray, name: str) -> None:
        n_tokens = targets[:, 1] - targets[:, 0] + 1
        rows = windows.batch.text_of_sequence[n_tokens > self.max_answer_length]
        if len(rows):
            warn(
                f"{len(np.unique(rows))} of {len(windows.contexts)} answers in {name} have more than max_answer_length="
                f"{self.max_answer_length} tokens, the first in row {rows.min()}, and cannot be found: set "
                f"max_answer_length={n_tokens.max()}, which a fitted estimator takes too."
            )

    def _warn_of_stride(self, is_windowed: bool) -> None:
        if is_windowed and self.stride < self.max_answer_length:
            warn(
                f"Windows share stride={self.stride} tokens, less than max_answer_length={self.max_answer_length}: an answer "
                "that is longer than the stride and reaches from one window into the next is not found. Raise stride, or "
                "lower max_answer_length."
            )

    def _warn_of_cut_questions(self, is_cut: np.ndarray) -> None:
        if is_cut.any():
            warn(
                f"{is_cut.sum()} of {len(is_cut)} questions take more than half of max_length={self.max_length} tokens "
                "and were cut off there. Shorten them, or raise max_length up to the limit of the checkpoint."
            )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.one_d_array = False
        return tags
