"""What is learned - classes, labels, numbers - as the training loop takes it, and where the head starts."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import sklearn
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.fixes import parse_version

from ._target_validation import (
    check_classes,
    check_labels,
    check_numbers,
    check_row_weights,
    complete_class_weight,
    encode_classes,
)

if TYPE_CHECKING:
    from .finetuning import Objective

# What becomes of the network to whose vectors a head is fitted.
NetworkState = Literal["to train", "trained", "fixed"]
# Inverse strength of the L2 penalty of a logistic regression: with few texts the least hardly tells classes apart. But
# where a network is to be trained a small loss would leave it little to learn, and one that is trained tells them apart.
_LEAST_C, _C_OF_ONE_TEXT, _C_A_CLASS = 10.0, 10_000.0, 0.4
_MOST_C: dict[NetworkState, float] = {"to train": 10.0, "trained": 30.0, "fixed": 100.0}
_MOST_CLASSES_FOR_NEWTON = 25
_MAX_PROBE_STEPS = 50
_RIDGE_ALPHAS = np.logspace(-3, 2, 11)
_MAX_LOG_ODDS = 4.0
_MAX_LABEL_WEIGHT = 20.0
_ABSENT_LOG_ODDS = 8.0  # of classes without weight together, against another class
MAX_DEVIATIONS = 1e18  # whose square float32 can hold
_MAX_DEVIATION = 1e304  # that leaves room for what a head multiplies it with


Progress = Callable[[int], object]


def _ignore(n_models: int) -> None: ...


class Targets(ABC):
    """The y of a fit.

    Attributes
    ----------
    values : ndarray
        As the objective takes them: int64 (n_rows,) or float32 (n_rows, n_outputs).
    n_outputs : int
        Outputs of the head.
    n_models : int
        Linear models that :meth:`fit_head` fits one after the other.
    strata : ndarray or None
        What a split into training and validation texts keeps in proportion.
    keeps_penalty : bool
        A head is fitted to a trained network with the penalty that
        :meth:`fit_head` chose on the untrained one.
    """

    values: np.ndarray
    n_outputs: int
    n_models: int = 1
    strata: np.ndarray | None = None
    keeps_penalty: bool = False

    @abstractmethod
    def encode(self, y: Any, n_rows: int, name: str) -> np.ndarray:
        """Return another y in the form of `values`; errors call it `name`."""

    @abstractmethod
    def decode(self, values: np.ndarray) -> np.ndarray:
        """Return the y that has these `values`."""

    def decode_outputs(self, outputs: np.ndarray) -> np.ndarray:
        """Return outputs of a head that was trained on `values` as the fitted estimator gives them."""
        return outputs

    def scale_by(self, row_weights: np.ndarray) -> None:  # noqa: B027 - most are relative to nothing
        """Take what `values` are relative to from rows with a weight alone."""

    def weighted(self, row_weights: np.ndarray) -> np.ndarray:
        """Return how much each row counts, given what the user says; here that alone."""
        return row_weights

    @abstractmethod
    def objective(self) -> Objective:
        """Return what training minimises."""

    @abstractmethod
    def fit_head(
        self,
        vectors: np.ndarray,
        values: np.ndarray,
        row_weights: np.ndarray,
        progress: Progress = _ignore,
        network: NetworkState = "fixed",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fit a linear model on vectors: coef (n_outputs, hidden_size) and intercept (n_outputs,).

        `progress` is called with 1 after each of the `n_models`. The penalty
        depends on `network`.
        """


class ClassTargets(Targets):
    """One of several classes a row.

    Parameters
    ----------
    y : array-like of shape (n_rows,)
    n_rows : int
        Rows of X.
    class_weight : dict, "balanced" or None, default=None
    label_smoothing : float, default=0.0

    Attributes
    ----------
    classes : ndarray of shape (n_classes,)
    """

    def __init__(
        self,
        y: Any,
        n_rows: int,
        class_weight: dict | str | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.classes, self.values = check_classes(y, n_rows)
        self._class_weight, self._label_smoothing = class_weight, label_smoothing
        self.n_outputs = len(self.classes)
        self.strata = self.values

    def encode(self, y: Any, n_rows: int, name: str) -> np.ndarray:
        """Return the class codes of another y, int64 (n_rows,)."""
        return encode_classes(y, n_rows, self.classes, name)

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Return the classes that have these codes."""
        return self.classes[values]

    def weighted(self, row_weights: np.ndarray) -> np.ndarray:
        """Return the weights times those of the classes."""
        if self._class_weight is None:
            return row_weights
        if isinstance(self._class_weight, dict):
            of_classes = complete_class_weight(self._class_weight, self.classes)
        else:  # "balanced"
            totals = np.bincount(self.values, weights=row_weights)
            of_classes = np.divide(1.0, totals, out=np.zeros_like(totals), where=totals > 0)
        return check_row_weights(
            row_weights * of_classes[self.values], len(row_weights), "sample_weight times class_weight"
        )

    def objective(self) -> Objective:
        """Return cross-entropy."""
        from .finetuning import SoftmaxObjective

        return SoftmaxObjective(self._label_smoothing)

    def fit_head(
        self,
        vectors: np.ndarray,
        values: np.ndarray,
        row_weights: np.ndarray,
        progress: Progress = _ignore,
        network: NetworkState = "fixed",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fit a multinomial logistic regression; a class without weight gets a constant, far below the others."""
        coef = np.zeros((self.n_outputs, vectors.shape[1]), np.float32)
        present = np.unique(values[row_weights > 0])
        n_absent = max(1, self.n_outputs - len(present))
        intercept = np.full(self.n_outputs, -_ABSENT_LOG_ODDS - np.log(n_absent), np.float32)
        if len(present) == 1:
            intercept[present] = 0.0
            progress(1)
            return coef, intercept
        found, found_intercept = _logistic_regression(_as_solved(vectors), values, row_weights, network)
        progress(1)
        if len(present) == 2:  # one row of logit differences: half of it to each class
            found = np.vstack([-found, found]) / 2
            found_intercept = np.concatenate([-found_intercept, found_intercept]) / 2
        coef[present], intercept[present] = found, found_intercept
        return coef, intercept


class MultilabelTargets(Targets):
    """Any number of labels per row, as an indicator matrix.

    A label is mostly rare, and what is fitted to rows as they are says "no" of
    nearly all: so the rows with it weigh as much as those without it.

    Parameters
    ----------
    y : array-like or sparse matrix of 0 and 1, shape (n_rows, n_labels)
    row_weights : ndarray of float64, shape (n_rows,)
    class_weight : dict, "balanced" or None, default=None
        A dict says how much 0 and 1 count in all columns, and nothing else.
    label_smoothing : float, default=0.0
    """

    def __init__(
        self,
        y: Any,
        row_weights: np.ndarray,
        class_weight: dict | str | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.values = check_labels(y, len(row_weights))
        unknown = [key for key in class_weight if key not in (0, 1)] if isinstance(class_weight, dict) else []
        if unknown:
            raise ValueError(
                f"class_weight names {unknown[0]!r}: where y has several columns, it says how much 0 and 1 count in all of "
                "them, such as {0: 1, 1: 5}. Columns have no weights of their own."
            )
        self._class_weight, self._label_smoothing = class_weight, label_smoothing
        self.n_outputs = self.n_models = self.values.shape[1]
        self.scale_by(row_weights)

    def scale_by(self, row_weights: np.ndarray) -> None:
        """Take the shares of the labels from rows with a weight alone."""
        # Column by column: in float64 all at once would take twice the memory of the values.
        share = np.array([np.average(column, weights=row_weights) for column in self.values.T])
        shares = np.stack([1 - share, share])
        if isinstance(self._class_weight, dict):
            weights = complete_class_weight(self._class_weight, np.arange(2))[:, None]
            means = (weights * shares).sum(axis=0)
            if not means.all():
                raise ValueError(
                    f"class_weight={self._class_weight} leaves no row with a weight in column {int(means.argmin())} of y."
                )
            self._label_weights = weights / means
            return
        weights = np.divide(0.5, shares, out=np.ones_like(shares), where=shares > 0)
        # A row with a label that hardly any has is not to outweigh all else.
        self._label_weights = np.minimum(weights, _MAX_LABEL_WEIGHT)

    def encode(self, y: Any, n_rows: int, name: str) -> np.ndarray:
        """Return another indicator matrix, float32 (n_rows, n_labels)."""
        return check_labels(y, n_rows, self.n_outputs, name)

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Return an indicator matrix of int64."""
        return values.astype(np.int64)

    def objective(self) -> Objective:
        """Return binary cross-entropy."""
        from .finetuning import MultilabelObjective

        return MultilabelObjective(self._label_weights, self._label_smoothing)

    def fit_head(
        self,
        vectors: np.ndarray,
        values: np.ndarray,
        row_weights: np.ndarray,
        progress: Progress = _ignore,
        network: NetworkState = "fixed",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fit one logistic regression a label; a label that is always or never there gets a constant."""
        coef = np.zeros((self.n_outputs, vectors.shape[1]), np.float32)
        intercept = np.zeros(self.n_outputs, np.float32)
        vectors = _as_solved(vectors)
        for label in range(self.n_outputs):
            weights = row_weights * self._label_weights[values[:, label].astype(np.int64), label]
            present = np.unique(values[weights > 0, label])
            if len(present) == 1:
                intercept[label] = _MAX_LOG_ODDS if present[0] else -_MAX_LOG_ODDS
            elif len(present) == 2:
                found, found_intercept = _logistic_regression(vectors, values[:, label], weights, network)
                coef[label], intercept[label] = found[0], found_intercept[0]
            progress(1)
        return coef, intercept


class RealTargets(Targets):
    """One or several numbers a row, each scaled to mean 0 and standard deviation 1 for training.

    Parameters
    ----------
    y : array-like of float, shape (n_rows,) or (n_rows, n_targets)
    row_weights : ndarray of float64, shape (n_rows,)
        For mean and standard deviation.

    Attributes
    ----------
    mean, scale : ndarray of float64, shape (n_targets,)
    one_dimensional : bool
        y had one dimension.
    """

    keeps_penalty = True

    def __init__(self, y: Any, row_weights: np.ndarray) -> None:
        numbers = check_numbers(y, len(row_weights))
        self.one_dimensional = numbers.ndim == 1
        numbers = numbers.reshape(len(row_weights), -1)
        self.n_outputs = numbers.shape[1]
        self._numbers, self._counts = numbers, row_weights > 0
        # Of one text alone none is chosen, and any will do.
        self._penalties = np.full(self.n_outputs, _RIDGE_ALPHAS[-1])
        self.scale_by(row_weights)

    def scale_by(self, row_weights: np.ndarray) -> None:
        """Take mean and standard deviation from rows with a weight alone.

        Raises
        ------
        ValueError
            The other numbers are too far from those, or those from each other.
        """
        numbers, weighted = self._numbers, row_weights > 0
        self.mean, self.scale = _mean_and_deviation(numbers[weighted], row_weights[weighted])
        if not (self.scale < _MAX_DEVIATION).all():
            raise ValueError(
                f"y reaches from {numbers.min():.3g} to {numbers.max():.3g}, too far: scale it down."
            )
        # Whatever stands in rows that do not count, nothing is to come of it.
        self.values = self._scaled(np.where(self._counts[:, None], numbers, self.mean), "y")

    def encode(self, y: Any, n_rows: int, name: str) -> np.ndarray:
        """Return another y on the same scale, float32 (n_rows, n_targets).

        Raises
        ------
        TypeError, ValueError
            Another shape, or a number that is not finite, or too far from those that are trained on.
        """
        return self._scaled(check_numbers(y, n_rows, self.n_outputs, name).reshape(n_rows, -1), name)

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Return the numbers, of float64, with as many dimensions as the y of the fit."""
        numbers = self.decode_outputs(values)
        return numbers[:, 0] if self.one_dimensional else numbers

    def decode_outputs(self, outputs: np.ndarray) -> np.ndarray:
        """Return the numbers that these are on the scale of training."""
        return outputs * self.scale + self.mean

    def _scaled(self, numbers: np.ndarray, name: str) -> np.ndarray:
        with np.errstate(over="ignore"):
            bad = np.argwhere(~(np.abs(numbers / self.scale - self.mean / self.scale) < MAX_DEVIATIONS))
        if len(bad):
            row, target = bad[0]
            raise ValueError(
                f"{name} has a number that is too far from those that are trained on (mean {self.mean[target]:.3g}, "
                f"standard deviation {self.scale[target]:.3g}): row {row} is {numbers[row, target]:.3g}."
            )
        return ((numbers - self.mean) / self.scale).astype(np.float32)

    def objective(self) -> Objective:
        """Return squared error."""
        from .finetuning import RegressionObjective

        return RegressionObjective()

    def fit_head(
        self,
        vectors: np.ndarray,
        values: np.ndarray,
        row_weights: np.ndarray,
        progress: Progress = _ignore,
        network: NetworkState = "fixed",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fit a ridge regression whose penalties, one per target, were chosen by leaving out one text after the other.

        A trained network has seen the number that is left out, so there the
        penalties are those that were chosen on the untrained one.
        """
        from sklearn.linear_model import Ridge, RidgeCV  # not at import: they take as long as all of ours

        vectors, values, weights = _counted(vectors, values, row_weights)
        if network != "trained":  # other rows of a text would tell the number of the one that is left out
            vectors, values, weights = _one_row_per_vector(vectors, values, weights)
        if len(values) == 1:  # none is left where one is left out
            progress(1)
            return np.zeros((self.n_outputs, vectors.shape[1]), np.float32), values[0].astype(np.float32)
        if network == "trained":
            ridge = Ridge(self._penalties).fit(vectors, values, sample_weight=weights)
        else:
            # Where targets shared one, those that texts say nothing about would flatten the others.
            ridge = RidgeCV(_RIDGE_ALPHAS, alpha_per_target=True).fit(vectors, values, sample_weight=weights)
            self._penalties = ridge.alpha_
        progress(1)
        coef = ridge.coef_.reshape(self.n_outputs, -1)
        return coef.astype(np.float32), np.broadcast_to(ridge.intercept_, self.n_outputs).astype(np.float32)


def _mean_and_deviation(numbers: np.ndarray, row_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of each column, 1 of a constant one; infinite if too large."""

    def largest(values: np.ndarray) -> np.ndarray:
        found = np.abs(values).max(axis=0)
        return np.where(found > 0, found, 1.0)

    with np.errstate(over="ignore", invalid="ignore"):
        unit = largest(numbers)  # sums and squares in units of the largest number neither overflow nor vanish
        mean = unit * np.average(numbers / unit, axis=0, weights=row_weights)
        unit = largest(numbers - mean)
        deviation = unit * np.sqrt(np.average(((numbers - mean) / unit) ** 2, axis=0, weights=row_weights))
        constant = (deviation <= 1e-12 * np.abs(mean)) | (numbers == numbers[:1]).all(axis=0)
    return mean, np.where(constant, 1.0, deviation)


def _counted(
    vectors: np.ndarray, values: np.ndarray, row_weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows that have a weight; weights of mean 1, so that a penalty does not depend on their scale."""
    counted = row_weights > 0
    if not counted.all():  # a copy takes as much memory as the vectors
        vectors, values, row_weights = vectors[counted], values[counted], row_weights[counted]
    return vectors, values, row_weights / row_weights.mean()


def _one_row_per_vector(
    vectors: np.ndarray, values: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows of least squares with the same solution: of equal vectors one, with the mean of their values."""
    found: dict[bytes, int] = {}
    index = np.array([found.setdefault(vector.tobytes(), len(found)) for vector in vectors])
    if len(found) == len(vectors):
        return vectors, values, weights
    first_rows = np.unique(index, return_index=True)[1]
    total = np.bincount(index, weights)
    sums = np.column_stack([np.bincount(index, weights * column) for column in values.T])
    return vectors[first_rows], (sums / total[:, None]).astype(values.dtype), total


def _as_solved(vectors: np.ndarray) -> np.ndarray:
    """Return vectors in a precision that LogisticRegression takes."""
    if parse_version(sklearn.__version__) < parse_version("1.9"):
        # With NumPy 2 a step of its Newton's method may be in float64, and an error ends the fit in float32.
        return vectors.astype(np.float64)
    return vectors


def _inverse_penalty(n_texts: int, n_classes: int, network: NetworkState) -> float:
    return max(_LEAST_C, min(_MOST_C[network], _C_OF_ONE_TEXT / n_texts), _C_A_CLASS * n_classes)


def _logistic_regression(
    vectors: np.ndarray, codes: np.ndarray, row_weights: np.ndarray, network: NetworkState
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression  # not at import: it takes as long as all of ours

    vectors, codes, weights = _counted(vectors, codes, row_weights)
    of_classes = np.bincount(np.unique(codes, return_inverse=True)[1], weights=weights)
    # The gradient that a class has part in is as small as the class.
    tolerance = min(1e-4, 2e-3 * float(of_classes.min() / of_classes.sum()))
    c = _inverse_penalty(len(codes), len(of_classes), network)
    # In float32 and with so many columns Newton's method takes a tenth of the time of L-BFGS, to a lower minimum;
    # with hundreds of classes its steps go too far, and it gives up where it began.
    solver = "newton-cg" if len(of_classes) <= _MOST_CLASSES_FOR_NEWTON else "lbfgs"
    probe = LogisticRegression(C=c, max_iter=_MAX_PROBE_STEPS, solver=solver, tol=tolerance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough to start at
        probe.fit(vectors, codes, sample_weight=weights)
    return probe.coef_, probe.intercept_
