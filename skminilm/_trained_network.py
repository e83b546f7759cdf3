"""What the estimators that train a network share, whatever its head: opening, training, keeping it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils._param_validation import StrOptions

from ._base import TextEstimator
from ._cache import state_cache
from ._callbacks import CallbackSupportMixin, FitProgress
from ._encoding import open_checkpoint
from ._parameters import TRAINING_PRECISIONS, NumberInterval
from ._progress import tqdm
from ._warnings import warn
from .checkpoints import Checkpoint, EncodingSettings
from .checkpoints.digests import arrays_digest
from .checkpoints.embedded import check_embeddable, embed_checkpoint, is_embedded, open_embedded

if TYPE_CHECKING:
    from .checkpoints.token_batch import TokenBatch
    from .engine import Compute, TunedWeights
    from .finetuning import TrainableNetwork, TrainingOptions, TrainingResult, Workers

_LORA_LEARNING_RATE = 1e-3
_MIN_STEPS, _MAX_EPOCHS = 60, 10  # of epochs="auto"


@dataclass(frozen=True)
class EarlierFit:
    """Where a fit with ``warm_start=True`` begins."""

    coef: np.ndarray
    intercept: np.ndarray
    weights: dict[str, np.ndarray]
    history: list[dict[str, float]]
    best_epoch: int


class TrainedNetworkEstimator(CallbackSupportMixin, TextEstimator):
    """A network that is trained together with a head. See MiniLMClassifier for the parameters."""

    warm_start: bool
    coef_: np.ndarray
    intercept_: np.ndarray
    n_iter_: int
    history_: list[dict[str, float]]
    best_epoch_: int
    weights_: dict[str, np.ndarray]
    weights_digest_: str
    checkpoint_: dict[str, Any] | None
    fingerprint_: str
    settings_: dict[str, Any]

    _encoder_learning_rate = 1e-4  # what "auto" is
    _min_epochs = 3  # of "auto"
    _remedy_for_other_shapes = "Use a BERT-shaped checkpoint such as 'bundled'."

    _parameter_constraints = {  # noqa: RUF012
        "model": "no_validation",
        "revision": [str, None],
        "epochs": [NumberInterval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "batch_size": [NumberInterval(Integral, 1, None, closed="left")],
        "learning_rate": [NumberInterval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "head_learning_rate": [NumberInterval(Real, 0, None, closed="neither")],
        "early_stopping": ["boolean"],
        "n_iter_no_change": [NumberInterval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "weight_decay": [NumberInterval(Real, 0, None, closed="left")],
        "warmup_ratio": [NumberInterval(Real, 0, 1, closed="both")],
        "gradient_checkpointing": ["boolean"],
        "precision": [StrOptions(set(TRAINING_PRECISIONS))],
        "device": [str],
        "save_weights": [StrOptions({"delta", "fp16", "full"})],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def _learning_rate(self, n_texts: int) -> float:
        """Return that of the encoder at its peak, in a fit to so many texts."""
        if self.learning_rate != "auto":
            return float(self.learning_rate)
        return _LORA_LEARNING_RATE if self.trainable == "lora" else self._encoder_learning_rate

    def _n_epochs(self, n_rows: int) -> int:
        """Return how often at most a fit passes over its rows."""
        if self.epochs != "auto":
            return int(self.epochs)
        steps = math.ceil(n_rows / self.batch_size)
        return min(_MAX_EPOCHS, max(self._min_epochs, math.ceil(_MIN_STEPS / steps)))

    def _open_to_train(self, *, settings_known: bool = False) -> Checkpoint:
        embedded = getattr(self, "checkpoint_", None)
        # Where `model` or `revision` was changed since, the new one is opened and compared.
        if self.warm_start and embedded is not None and is_embedded(embedded, self.model, self.revision):
            return open_embedded(embedded)
        return open_checkpoint(self.model, self.revision, settings_known=settings_known)

    def _goes_on(self) -> bool:
        """Tell whether `fit` begins where an earlier one ended."""
        return self.warm_start and hasattr(self, "weights_")

    def _check_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Check that this estimator can train and keep it."""
        if self.trainable != "head":
            if checkpoint.foreign_reason:
                raise ValueError(
                    f"model={self.model!r} cannot be fine-tuned here: {checkpoint.foreign_reason}. "
                    f"{self._remedy_for_other_shapes}"
                )
            from .finetuning import n_frozen_layers

            n_frozen_layers(self.trainable, checkpoint.config.num_hidden_layers)
        if self.save_weights == "full":
            check_embeddable(checkpoint)

    def _compute(self, checkpoint: Checkpoint) -> Compute:
        from .engine import resolve_compute

        return resolve_compute("torch", self.device, self.precision, config=checkpoint.config)

    def _workers(self, compute: Compute) -> tuple[Workers, Compute]:
        """Return the processes that train together, and with what this one computes: one device."""
        from .finetuning import find_workers

        workers, device = find_workers(compute.device, compute.precision, self.random_state)
        return workers, replace(compute, device=device, helpers=())

    def _training_options(
        self, epochs: int, compute: Compute, random: np.random.RandomState
    ) -> TrainingOptions:
        from .finetuning import TrainingOptions

        return TrainingOptions(
            epochs=epochs,
            batch_size=self.batch_size,
            head_learning_rate=self.head_learning_rate,
            warmup_ratio=self.warmup_ratio,
            n_iter_no_change=self.n_iter_no_change if self.early_stopping else None,
            seed=random.randint(np.iinfo(np.int32).max),
            loss_scaling=self.trainable != "head" and compute.precision == "fp16",
        )

    def _new_network(
        self,
        batch: TokenBatch,
        checkpoint: Checkpoint,
        settings: EncodingSettings | None,
        compute: Compute,
        seed: int,
        earlier: EarlierFit | None,
        n_training: int,
    ) -> TrainableNetwork:
        """Return the network over some texts, of which `n_training` are trained on.

        Without `settings` it gives the states of tokens, not pooled.
        """
        from .engine import new_layer_states, read_trainable_weights
        from .finetuning import EncoderOptions, TrainableEncoder, n_frozen_layers

        n_frozen = n_frozen_layers(self.trainable, checkpoint.config.num_hidden_layers)
        states = None
        if n_frozen:
            states = new_layer_states(checkpoint, compute, n_frozen, state_cache)
            with tqdm(
                total=len(batch.lengths), desc="frozen layers", unit="text", disable=not self.verbose
            ) as bar:
                states.prepare(batch, bar.update)
        options = EncoderOptions(
            trainable=self.trainable,
            pooling=settings.pooling if settings else None,
            normalize=settings.normalize if settings else False,
            learning_rate=self._learning_rate(n_training),
            weight_decay=self.weight_decay,
            dtype=compute.training_dtype,
            in_integers=compute.precision == "int16",
            gradient_checkpointing=self.gradient_checkpointing,
            seed=seed,
        )
        tuned = self._tuned_weights() if earlier else None
        weights = read_trainable_weights(checkpoint, n_frozen, tuned)
        network = TrainableEncoder(
            weights,
            checkpoint.config,
            batch,
            compute.device,
            options,
            states,
            tuned.arrays if tuned else None,
        )
        if tuned and set(tuned.arrays) != network.names():
            raise ValueError(
                f"warm_start=True goes on from the earlier fit, which trained other weights than "
                f"trainable={self.trainable!r} does: use the same, or set warm_start=False."
            )
        return network

    def _run(self, training: Callable[[], TrainingResult], progress: FitProgress) -> None:
        """Train, and set what was learned: all of it, or the last that was good."""
        from .engine import own_modes
        from .finetuning import TrainingDivergedError

        attributes = progress.attributes
        is_interrupted = False
        try:
            with own_modes(inference=False), progress:
                result = training()
            is_interrupted = result.interrupted
            try:
                learned = attributes(result)
            except KeyboardInterrupt:  # too late to lose what was learned
                learned, is_interrupted = attributes(result), True
            self._set_attributes(learned)
            progress.end_fit()
        except TrainingDivergedError as error:
            if error.last_good is not None:
                self._set_attributes(attributes(error.last_good))
            raise
        if is_interrupted:
            warn("Training interrupted by user.")

    def _network_attributes(
        self,
        result: TrainingResult,
        checkpoint: Checkpoint,
        settings: EncodingSettings,
        earlier: EarlierFit | None,
    ) -> dict[str, Any]:
        from .engine import merge_weights

        history = [] if earlier is None else list(earlier.history)
        best_epoch = len(history) + result.best_epoch
        if earlier is not None and result.best_epoch == 0:  # where the earlier fit had ended
            best_epoch = earlier.best_epoch
        weights = result.weights if earlier is None else merge_weights(earlier.weights, result.weights)
        if self.save_weights == "fp16":
            weights = {n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in weights.items()}
        embedded = None
        if self.save_weights == "full":
            embedded = embed_checkpoint(checkpoint, self.model, self.revision)
        return {
            "weights_": weights,
            "weights_digest_": arrays_digest(weights),
            "checkpoint_": embedded,
            "history_": history + result.history,
            "n_iter_": len(history) + len(result.history),
            "best_epoch_": best_epoch,
            "fingerprint_": checkpoint.origin,
            "settings_": asdict(settings),
        }

    def _fitted_checkpoint(self) -> Checkpoint:
        if self.checkpoint_ is not None:
            return open_embedded(self.checkpoint_)
        return open_checkpoint(self.model, self.revision, fingerprint=self.fingerprint_)

    def _tuned_weights(self) -> TunedWeights | None:
        """Return what training changed in the network; None where it is as in the checkpoint."""
        from .engine import TunedWeights

        return TunedWeights(self.weights_, self.weights_digest_) if self.weights_ else None
