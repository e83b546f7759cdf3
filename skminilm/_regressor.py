"""MiniLMRegressor: the network and a linear head, fine-tuned on texts with numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score

from ._callbacks import with_callbacks
from ._fine_tuned import FineTunedEstimator
from ._target_validation import check_numbers, check_row_weights
from ._targets import MAX_DEVIATIONS, RealTargets, Targets


class MiniLMRegressor(RegressorMixin, FineTunedEstimator):
    """Predict numbers from texts in about 100 languages with a fine-tuned MiniLM.

    A linear head over the pooled vectors starts at a ridge regression on the
    vectors of the untrained network; then head and encoder are trained
    together on the squared error. Targets are scaled for training and scaled
    back in `coef_` and `intercept_`.

    Parameters
    ----------
    model, revision, trainable, epochs, batch_size, learning_rate, head_learning_rate
        As in :class:`MiniLMClassifier`.
    weight_decay, warmup_ratio, max_length, pooling, prompt
        As in :class:`MiniLMClassifier`.
    validation_fraction, n_iter_no_change, warm_start, gradient_checkpointing
        As in :class:`MiniLMClassifier`.
    precision, device, save_weights, random_state, verbose
        As in :class:`MiniLMClassifier`.
    init_head : {"probe", "random"}, default="probe"
        Where the head starts: at a ridge regression on the frozen vectors
        whose penalty is chosen by leave-one-out, or at small random numbers.
    early_stopping : bool, default=False
        As in :class:`MiniLMClassifier`; the score is R².

    Attributes
    ----------
    coef_ : ndarray of float64, shape (n_targets, 384)
        The head; of pairs, with ``pooling="pair"`` (the default for them), of
        shape (n_targets, 1536).
    intercept_ : ndarray of float64, shape (n_targets,)
    n_iter_, history_, best_epoch_, weights_, weights_digest_, fingerprint_, settings_,
    checkpoint_
        As in :class:`MiniLMClassifier`; validation_score is R².
    n_features_in_, feature_names_in_
        As in :class:`MiniLMClassifier`.

    See Also
    --------
    MiniLMClassifier : The same for classes, with all parameters described.

    Examples
    --------
    >>> from skminilm import MiniLMRegressor
    >>> texts = ["Great, thank you!", "Works.", "It broke on the first day.", "Bien, gracias."]
    >>> regressor = MiniLMRegressor(trainable="head", random_state=0).fit(texts, [5, 3, 1, 4])
    >>> regressor.predict(["Vielen Dank, wunderbar!"]).shape
    (1,)
    """

    _parameter_constraints = FineTunedEstimator._parameter_constraints

    def __init__(
        self,
        model="bundled",
        *,
        revision=None,
        trainable="encoder",
        init_head="probe",
        epochs="auto",
        batch_size=32,
        learning_rate="auto",
        head_learning_rate=1e-2,
        weight_decay=0.01,
        warmup_ratio=0.1,
        max_length=128,
        pooling="auto",
        prompt="auto",
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=3,
        warm_start=False,
        gradient_checkpointing=False,
        precision="auto",
        device="auto",
        save_weights="delta",
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
        self.max_length = max_length
        self.pooling = pooling
        self.prompt = prompt
        self.early_stopping = early_stopping
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
    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, *, X_val: Any = None, y_val: Any = None
    ) -> MiniLMRegressor:
        """Train on texts with numbers.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
            One column: texts. Two columns: sentence pairs.
        y : array-like of float, shape (n_texts,) or (n_texts, n_targets)
        sample_weight, X_val, y_val
            As in :meth:`MiniLMClassifier.fit`.

        Returns
        -------
        self : MiniLMRegressor

        Raises
        ------
        TypeError, ValueError, OSError, FloatingPointError
            As in :meth:`MiniLMClassifier.fit`.
        """
        return self._fit(X, y, sample_weight, X_val, y_val)

    def predict(self, X: Any) -> np.ndarray:
        """Return the numbers, float64 of shape (n_texts,) or (n_texts, n_targets), as y was."""
        outputs = self._outputs(X)
        return outputs[:, 0] if self._one_dimensional else outputs

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R², the mean over targets.

        Parameters
        ----------
        X : list, array, or data-frame column of str, shape (n_texts,) or (n_texts, 2)
        y : array-like of float, shape (n_texts,) or (n_texts, n_targets)
            As in `fit`.
        sample_weight : array-like of float, shape (n_texts,), default=None

        Returns
        -------
        float
        """
        predicted = self.predict(X)
        n_targets = 1 if predicted.ndim == 1 else predicted.shape[1]
        y = check_numbers(y, len(predicted), n_targets).reshape(predicted.shape)
        weights = check_row_weights(sample_weight, len(predicted))
        return float(r2_score(y, predicted, sample_weight=weights))

    def _read_targets(self, y: Any, row_weights: np.ndarray) -> Targets:
        return RealTargets(y, row_weights)

    def _target_attributes(self, targets: Targets, coef: np.ndarray, intercept: np.ndarray) -> dict[str, Any]:
        return {
            "coef_": coef * targets.scale[:, None],
            "intercept_": intercept * targets.scale + targets.mean,
            "_one_dimensional": targets.one_dimensional,
        }

    def _head_of_fit(self, targets: Targets) -> tuple[np.ndarray, np.ndarray]:
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
