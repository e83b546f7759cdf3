"""What MiniLMClassifier and MiniLMRegressor share: one fit for any targets, and vectors."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from ._callbacks import FitProgress
from ._encoding import (
    encoding_bar,
    open_checkpoint,
    resolve_settings,
    unique_texts,
    warn_of_second_prompt,
    warn_of_truncation,
)
from ._folders import new_folder
from ._pair_vectors import encode_by_themselves, encode_for_head, head_scales
from ._parameters import NumberInterval
from ._progress import tqdm
from ._rows import reread
from ._target_validation import check_row_weights
from ._targets import NetworkState, Targets
from ._text_columns import check_both_or_none, check_same_columns
from ._trained_network import EarlierFit, TrainedNetworkEstimator
from ._validation import Texts, check_texts
from ._validation_score import validation_score
from .checkpoints import PAIR, PAIR_AND_TEXTS, POOLINGS, Checkpoint, EncodingSettings, tokenize
from .checkpoints.heads import SequenceHead, read_sequence_head

if TYPE_CHECKING:
    from typing_extensions import Self

    from .engine import Compute
    from .finetuning import TrainableNetwork, TrainingResult

TRAINABLE = ("head", "encoder", "all", "lora")

_PART_BYTES = 2**26  # of vectors and outputs of a prediction that are there at a time


_PAIR_POOLINGS = (PAIR, PAIR_AND_TEXTS)
_FEW_PAIRS = 1000  # to train on: with fewer the texts by themselves say more than they cost


@dataclass(frozen=True)
class _Data:
    """Texts that are trained on and texts that are set aside, in one list: first X, then X_val."""

    texts: Texts
    n_rows: int  # of X
    values: np.ndarray
    row_weights: np.ndarray
    training: np.ndarray  # rows with a weight
    validation: np.ndarray


class FineTunedEstimator(TrainedNetworkEstimator):
    """A network and a linear head, trained together. See MiniLMClassifier for the parameters."""

    pooler_: dict[str, np.ndarray] | None

    _remedy_for_other_shapes = "Use trainable='head', or a BERT-shaped checkpoint such as 'bundled'."

    _parameter_constraints = {  # noqa: RUF012
        **TrainedNetworkEstimator._parameter_constraints,
        "trainable": [StrOptions(set(TRAINABLE)), NumberInterval(Integral, 1, None, closed="left")],
        "init_head": [StrOptions({"probe", "random"})],
        "refit_head": ["boolean"],
        "max_length": [NumberInterval(Integral, 3, None, closed="left")],
        "pooling": [StrOptions({"auto", *POOLINGS, *_PAIR_POOLINGS})],
        "prompt": [str, None],
        "scoring": [str, callable, None],
        "validation_fraction": [NumberInterval(Real, 0, 1, closed="neither")],
    }

    @abstractmethod
    def _read_targets(self, y: Any, row_weights: np.ndarray) -> Targets: ...

    @abstractmethod
    def _target_attributes(self, targets: Any, coef: np.ndarray, intercept: np.ndarray) -> dict[str, Any]:
        """Return the fitted attributes that depend on what was learned, `coef_` and `intercept_` among them."""

    @abstractmethod
    def _head_of_fit(self, targets: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return coef and intercept of an earlier fit, as training takes them."""

    @abstractmethod
    def _attributes_of_head(self, head: SequenceHead) -> dict[str, Any]:
        """Return what :meth:`_target_attributes` does, for the last layer of a head that is there already."""

    def _refits_head(self) -> bool:
        return self.refit_head and self.trainable != "head"

    @classmethod
    def from_transformers(
        cls,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        max_length: int | str = "auto",
        prompt: str | None = "auto",
        precision: str = "auto",
        device: str = "auto",
        save_weights: str = "delta",
        verbose: int = 0,
    ) -> Self:
        """Open a network that was fine-tuned with transformers, together with its head.

        Nothing is trained: the estimator predicts what
        ``AutoModelForSequenceClassification`` does, at this package's speed.
        The network is of the type BERT or XLM-RoBERTa; pairs need XLM-R's
        vocabulary. `classes_` are the names in ``id2label``, sorted; where
        these are ``"LABEL_0"``, ``"LABEL_1"`` and so on, the numbers. A
        classifier whose ``problem_type`` is ``"multi_label_classification"``
        has one column per label, in the order of ``id2label``. A regressor gives
        the outputs as they are, without the sigmoid that
        sentence-transformers' ``CrossEncoder`` may put over them.

        Parameters
        ----------
        model, revision, max_length, prompt, precision, device, save_weights, verbose
            As in the constructor, but that ``max_length="auto"`` is the limit
            of the checkpoint. What trains has its default, and counts when
            `fit` is called.

        Returns
        -------
        estimator of this class
            Fitted. It takes one column of texts or two of pairs, whichever it
            was trained on: that is not written down.

        Raises
        ------
        TypeError, ValueError
            A parameter is not usable, the checkpoint holds no such head, its
            head is of the other kind (classes, numbers), or the engine cannot
            run its network.
        OSError
            Files are missing or damaged.
        """
        from .finetuning import TrainingResult

        given = {} if max_length == "auto" else {"max_length": max_length}
        options = {"precision": precision, "device": device, "save_weights": save_weights, "verbose": verbose}
        estimator = cls(model, revision=revision, prompt=prompt, **given, **options)
        estimator._validate_params()
        checkpoint = open_checkpoint(model, revision, settings_known=True)
        head = read_sequence_head(checkpoint)
        settings = resolve_settings(
            checkpoint,
            checkpoint.defaults,
            pooling="cls",
            normalize=False,
            prompt=prompt,
            max_length=max_length,
        )
        estimator.max_length = settings.max_length
        result = TrainingResult(head.last.coef, head.last.intercept, weights={})
        estimator._set_attributes(
            {
                **estimator._attributes_of_head(head),
                **estimator._network_attributes(result, checkpoint, settings, None),
                "pooler_": asdict(head.pooler),
            }
        )
        return estimator

    def _fit(self, X: Any, y: Any, sample_weight: Any, X_val: Any, y_val: Any) -> Self:
        self._validate_params()
        X, y = reread(X), reread(y)  # callbacks get them too
        texts = check_texts(X)
        given_weights = check_row_weights(sample_weight, len(texts))
        targets = self._read_targets(y, given_weights)
        random = check_random_state(self.random_state)
        data = self._set_aside(texts, targets, given_weights, X_val, y_val, random)
        checkpoint = self._open_to_train()
        self._check_checkpoint(checkpoint)
        settings = self._settings(checkpoint, texts, len(data.training))
        compute = self._compute(checkpoint)
        warn_of_second_prompt(texts, self.prompt, settings)
        earlier = self._earlier_fit(checkpoint, settings, targets)

        def attributes(result: TrainingResult) -> dict[str, Any]:
            return {
                **self._target_attributes(targets, result.coef, result.intercept),
                **self._network_attributes(result, checkpoint, settings, earlier),
                **self._column_attributes(texts),
                "pooler_": None,
            }

        n_epochs = self._n_epochs(len(data.training))

        progress = FitProgress(self, X, y, sample_weight, n_epochs, len(data.training), attributes)
        self._run(
            lambda: self._train(
                data, targets, checkpoint, settings, compute, random, earlier, n_epochs, progress
            ),
            progress,
        )
        return self

    def _set_aside(
        self,
        texts: Texts,
        targets: Targets,
        given_weights: np.ndarray,
        X_val: Any,
        y_val: Any,
        random: np.random.RandomState,
    ) -> _Data:
        n = len(texts)
        check_both_or_none(X_val, y_val)
        if X_val is not None:
            other = check_texts(X_val, "X_val")
            other_values = targets.encode(y_val, len(other), "y_val")
            check_same_columns(texts, other)
            values = np.concatenate([targets.values, other_values])
            row_weights = targets.weighted(given_weights)
            weights = np.concatenate([row_weights, np.ones(len(other))])
            validation = np.arange(n, n + len(other))
            return _Data(texts.join(other), n, values, weights, np.flatnonzero(row_weights), validation)
        if not self.early_stopping:
            row_weights = targets.weighted(given_weights)
            return _Data(texts, n, targets.values, row_weights, np.flatnonzero(row_weights), np.arange(0))
        training, validation = self._random_split(targets, np.flatnonzero(given_weights), random)
        # Nothing of what is set aside counts in training: neither for the scale of y nor for that of the weights.
        of_training, of_validation = given_weights.copy(), given_weights.copy()
        of_training[validation], of_validation[training] = 0, 0
        of_training = check_row_weights(of_training, n)
        targets.scale_by(of_training)
        row_weights = targets.weighted(of_training)
        training = np.flatnonzero(row_weights)
        # As `score` would: without class weights.
        row_weights[validation] = check_row_weights(of_validation, n)[validation]
        return _Data(texts, n, targets.values, row_weights, training, validation)

    def _random_split(
        self, targets: Targets, rows: np.ndarray, random: np.random.RandomState
    ) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.model_selection import train_test_split

        strata, alone = None, rows[:0]
        if targets.strata is not None:
            # The only text of a class is trained on.
            is_alone = (np.bincount(targets.strata[rows]) == 1)[targets.strata[rows]]
            rows, alone = rows[~is_alone], rows[is_alone]
            strata = targets.strata[rows]
            self._check_fraction(len(np.unique(strata)), len(rows), len(rows) + len(alone))
        try:
            training, validation = train_test_split(
                rows, test_size=self.validation_fraction, stratify=strata, random_state=random
            )
        except ValueError as error:
            raise ValueError(
                f"early_stopping=True cannot set validation_fraction={self.validation_fraction} of {len(rows)} texts "
                f"aside: {str(error).rstrip('.')}. Give more texts, another validation_fraction, or X_val and y_val."
            ) from error
        return np.sort(np.concatenate([training, alone])), np.sort(validation)

    def _check_fraction(self, n_classes: int, n_texts: int, n_given: int) -> None:
        """Raise ValueError where not every class of two texts or more can have one on either side."""
        n_aside = math.ceil(self.validation_fraction * n_texts)
        if min(n_aside, n_texts - n_aside) < n_classes or n_classes == 0:
            remedy = "Give more texts, or X_val and y_val."
            if 0 < 2 * n_classes <= n_texts:
                least, most = n_classes / n_texts, 1 - n_classes / n_texts
                right = "to 0.5" if least == most else f"between {least:.3g} and {most:.3g}"
                remedy = f"Set it {right}, or give X_val and y_val."
            raise ValueError(
                f"early_stopping=True cannot set validation_fraction={self.validation_fraction} of {n_given} texts "
                f"aside: {n_classes} classes have two texts or more, and each needs one there and one to train on. {remedy}"
            )

    def _settings(self, checkpoint: Checkpoint, texts: Texts, n_training: int) -> EncodingSettings:
        pooling = self.pooling
        if pooling in _PAIR_POOLINGS and texts.second is None:
            raise ValueError(
                f"pooling={pooling!r} compares two texts, and X has one column: give pairs, or use 'mean'."
            )
        if pooling == "auto" and texts.second is not None and not checkpoint.foreign_reason:
            pooling = self._pooling_of_pairs(n_training)
        return resolve_settings(
            checkpoint,
            checkpoint.defaults,
            pooling=pooling,
            normalize=pooling not in _PAIR_POOLINGS,
            prompt=self.prompt,
            max_length=self.max_length,
        )

    def _pooling_of_pairs(self, n_training: int) -> str:
        """Return what ``"auto"`` is for pairs."""
        if self.warm_start and hasattr(self, "settings_") and self.settings_["pooling"] in _PAIR_POOLINGS:
            return self.settings_["pooling"]  # however many there are this time
        return PAIR_AND_TEXTS if self.trainable == "head" or n_training < _FEW_PAIRS else PAIR

    def _earlier_fit(
        self, checkpoint: Checkpoint, settings: EncodingSettings, targets: Targets
    ) -> EarlierFit | None:
        if not self._goes_on():
            return None
        if getattr(self, "pooler_", None) is not None:
            raise ValueError(
                "warm_start=True goes on from the earlier head, and one that transformers trained cannot be gone on with: set "
                "warm_start=False, which trains the network and a new head."
            )
        if self.fingerprint_ != checkpoint.origin or self.settings_ != asdict(settings):
            raise ValueError(
                "warm_start=True goes on from the earlier fit, which had another model or revision, pooling, "
                "prompt or max_length (pooling='auto' is another one for pairs than for texts): restore them, or set "
                "warm_start=False."
            )
        if self.trainable == "head" and self.weights_:
            raise ValueError(
                "warm_start=True goes on from the earlier fit, which trained more than the head: use the same "
                "trainable, or set warm_start=False."
            )
        coef, intercept = self._head_of_fit(targets)
        return EarlierFit(coef, intercept, self.weights_, self.history_, self.best_epoch_)

    def _train(
        self,
        data: _Data,
        targets: Targets,
        checkpoint: Checkpoint,
        settings: EncodingSettings,
        compute: Compute,
        random: np.random.RandomState,
        earlier: EarlierFit | None,
        n_epochs: int,
        hooks: FitProgress,
    ) -> TrainingResult:
        from .finetuning import FixedVectors, Split, train

        score = self._validation_score(data, targets)
        workers = None
        if self.trainable != "head":
            workers, compute = self._workers(compute)
        vectors, lengths = None, None
        begins_at_probe = earlier is None and self.init_head == "probe"
        needs_probe = begins_at_probe or (self._refits_head() and targets.keeps_penalty)
        if self.trainable == "head" or needs_probe:
            vectors, lengths = self._frozen_vectors(data, checkpoint, settings, compute)

        fit_head = partial(self._fit_head, data, targets, settings, checkpoint.hidden_size)
        if needs_probe:
            training = vectors if len(data.training) == len(vectors) else vectors[data.training]
            head = fit_head(training, "fixed" if self.trainable == "head" else "to train")
        if earlier is not None:
            head = earlier.coef, earlier.intercept
        elif not begins_at_probe:
            head = _random_head(targets.n_outputs, settings.vector_size(checkpoint.hidden_size), random)
        options = self._training_options(n_epochs, compute, random)
        if self.trainable == "head":
            network: TrainableNetwork = FixedVectors(vectors)
        else:
            # Lengths of all texts, also where no vectors were needed.
            network, lengths = self._network_over(data, checkpoint, settings, compute, options.seed, earlier)
        warn_of_truncation(lengths, settings, data.n_rows)
        del vectors
        return train(
            network,
            *head,
            targets.objective(),
            data.values,
            data.row_weights,
            Split(data.training, data.validation),
            options,
            workers=workers,
            hooks=hooks,
            refit=fit_head if self._refits_head() else None,
            score=score,
        )

    def _fit_head(
        self,
        data: _Data,
        targets: Targets,
        settings: EncodingSettings,
        hidden_size: int,
        vectors: np.ndarray,
        network: NetworkState = "trained",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a head that is fitted to the vectors of the training texts; those of a trained network are lost."""
        values, weights = data.values[data.training], data.row_weights[data.training]
        # A penalty that was chosen before is for columns as they were before.
        scaled_for = "to train" if targets.keeps_penalty and network == "trained" else network
        scales = head_scales(settings, hidden_size, len(values), scaled_for)
        if scales is not None:  # vectors of a trained network are needed for nothing else
            vectors = np.multiply(vectors, scales, out=vectors if network == "trained" else None)
        with tqdm(total=targets.n_models, desc="head", unit="model", disable=not self.verbose) as bar:
            coef, intercept = targets.fit_head(vectors, values, weights, bar.update, network)
        return coef if scales is None else coef * scales, intercept

    def _network_over(
        self,
        data: _Data,
        checkpoint: Checkpoint,
        settings: EncodingSettings,
        compute: Compute,
        seed: int,
        earlier: EarlierFit | None,
    ) -> tuple[TrainableNetwork, np.ndarray]:
        """Return the network over the texts, to be trained, and their tokens before truncation."""
        from .finetuning import BesideFixedVectors

        batch = tokenize(checkpoint.tokenizer, data.texts.first, data.texts.second, settings)
        n_training = len(data.training)
        network = self._new_network(
            batch, checkpoint, settings.of_network, compute, seed, earlier, n_training
        )
        if settings.pooling == PAIR_AND_TEXTS:
            by_themselves = encode_by_themselves(
                data.texts, checkpoint, settings, compute=compute, verbose=self.verbose
            )
            network = BesideFixedVectors(network, by_themselves)
        return network, batch.full_lengths

    def _validation_score(self, data: _Data, targets: Targets) -> Callable[[np.ndarray], float] | None:
        """Return what computes `scoring` from the outputs of the texts that are set aside, or None."""
        if self.scoring is None:
            return None
        rows = data.validation
        return validation_score(
            self, targets, data.texts.take(rows), data.values[rows], data.row_weights[rows]
        )

    def _frozen_vectors(
        self, data: _Data, checkpoint: Checkpoint, settings: EncodingSettings, compute: Compute
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the untrained network makes of the texts, and their tokens before truncation.

        Texts that are set aside are left out, and their vectors 0, unless
        there is no network that computes them later.
        """
        n_rows = len(data.texts)
        rows = np.arange(n_rows) if self.trainable == "head" else data.training
        found, lengths = encode_for_head(
            data.texts.take(rows),
            checkpoint,
            settings,
            compute=compute,
            verbose=self.verbose,
        )
        if len(rows) == n_rows:
            return found, lengths
        vectors = np.zeros((n_rows, found.shape[1]), np.float32)
        vectors[rows] = found
        return vectors, lengths

    def encode(self, X: Any) -> np.ndarray:
        """Return the vectors that the head sees.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
            Texts or sentence pairs, as in `fit`.

        Returns
        -------
        ndarray of float32, shape (n_texts, 384)
            Of norm 1. With ``pooling="pair"`` of shape (n_texts, 1536), with
            ``"pair+texts"`` (n_texts, 2305), and not normalised. After
            :meth:`from_transformers` the states of the first token, below the
            pooler.
        """
        vectors, lengths = self._encode(self._checked_texts(X))
        warn_of_truncation(lengths, EncodingSettings(**self.settings_))
        return vectors

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the trained network to a folder that other packages read, without the head.

        ``SentenceTransformer(path).encode(texts)`` and
        ``MiniLMEncoder(path).transform(texts)`` give the vectors of
        :meth:`encode`, and ``AutoModel.from_pretrained(path)`` the token states
        below. All weights are there, in float32: 0.5 GB. Both cut texts off at
        the `max_length` of this estimator; the network as it was before
        training is written by :meth:`MiniLMEncoder.export`.

        Parameters
        ----------
        path : path
            A new folder.

        Raises
        ------
        ValueError
            The vectors are of pairs, which sentence-transformers cannot
            compare (``pooling="pair"`` or ``"pair+texts"``), the checkpoint is of another
            architecture, or its tokenizer cannot be written as transformers
            reads it.
        FileExistsError
            Something is there.
        OSError
            It cannot be written.
        """
        from .engine import export_network, own_modes

        check_is_fitted(self)
        settings = EncodingSettings(**self.settings_)
        if settings.pooling in _PAIR_POOLINGS:
            raise ValueError(
                f"The network was trained with pooling={settings.pooling!r}, which sentence-transformers does not have: there "
                "is no folder that it could read. Use save."
            )
        checkpoint = self._fitted_checkpoint()
        if checkpoint.foreign_reason:
            raise ValueError(
                f"Only the head was trained, of which {self.model!r} knows nothing: it can be read as it is."
            )
        with new_folder(path) as folder, own_modes(inference=True):
            export_network(folder, checkpoint, settings, self._tuned_weights())

    def _encode(
        self, texts: Texts, row_numbers: np.ndarray | None = None, bar: tqdm | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the vectors that the head sees, and the tokens of each row before truncation."""
        checkpoint = self._fitted_checkpoint()
        return encode_for_head(
            texts,
            checkpoint,
            EncodingSettings(**self.settings_),
            compute=self._compute(checkpoint),
            tuned=self._tuned_weights(),
            row_numbers=row_numbers,
            verbose=self.verbose,
            bar=bar,
        )

    def _outputs(self, X: Any, of_part: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        """Return what the head makes of X, (n_texts, n_outputs) in the dtype of `coef_`, or what `of_part` makes of that."""
        outputs, lengths = self._outputs_of(self._checked_texts(X), of_part=of_part)
        warn_of_truncation(lengths, EncodingSettings(**self.settings_))
        return outputs

    def _outputs_of(
        self,
        texts: Texts,
        *,
        of_part: Callable[[np.ndarray], np.ndarray] | None = None,
        bar: tqdm | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the head makes of texts, and the tokens of each row before truncation.

        Vectors take much more memory than outputs, those of pairs most, and the
        outputs of many classes more than what `of_part` makes of them: some
        are there at a time.
        """
        unique, first_rows, index = unique_texts(texts)
        n_outputs, vector_size = self.coef_.shape
        n_together = max(1, _PART_BYTES // (4 * (vector_size + n_outputs)))
        results, lengths = None, np.empty(len(unique), np.int64)
        parts: AbstractContextManager = nullcontext(bar)
        if bar is None and len(unique) > n_together:  # one bar of all parts
            parts = encoding_bar(len(unique), self._fitted_checkpoint(), self.verbose)
        with parts as bar:
            for start in range(0, len(unique), n_together):
                rows = np.arange(start, min(start + n_together, len(unique)))
                some = unique.take(rows)
                vectors, lengths[rows] = self._encode(some, first_rows[rows], bar)
                result = self._head_outputs(vectors)
                if of_part:
                    result = of_part(result)
                if results is None:
                    results = np.empty((len(unique), *result.shape[1:]), result.dtype)
                results[rows] = result
        return (results, lengths) if unique is texts else (results[index], lengths[index])

    def _head_outputs(self, vectors: np.ndarray) -> np.ndarray:
        pooler = getattr(self, "pooler_", None)  # earlier versions had none
        if pooler is not None:
            vectors = np.tanh(vectors @ pooler["coef"].T + pooler["intercept"])
        if self.settings_["pooling"] == PAIR_AND_TEXTS:
            # The cosine alone makes terms that are large and near each other, whose sum in float32 depends on the rows beside.
            vectors = vectors.astype(np.float64)
        return (vectors @ self.coef_.T + self.intercept_).astype(self.coef_.dtype, copy=False)


def _random_head(
    n_outputs: int, vector_size: int, random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    coef = random.standard_normal((n_outputs, vector_size)) / math.sqrt(vector_size)
    return coef.astype(np.float32), np.zeros(n_outputs, np.float32)
