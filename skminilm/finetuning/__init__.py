"""Fine-tuning: a network and a linear head over its vectors, trained together. No scikit-learn here.

The head starts at a linear model on the frozen vectors, then network and head
are trained together ("LP-FT", Kumar et al., 2022, arXiv:2202.10054).
"""

from .contract import Split, TrainingDivergedError, TrainingHooks, TrainingOptions, TrainingResult
from .loop import train
from .networks import (
    BesideFixedVectors,
    EncoderOptions,
    FixedVectors,
    TrainableEncoder,
    TrainableNetwork,
    n_frozen_layers,
)
from .objectives import MultilabelObjective, Objective, RegressionObjective, SoftmaxObjective, SpanObjective
from .workers import Workers, find_workers

__all__ = [
    "BesideFixedVectors",
    "EncoderOptions",
    "FixedVectors",
    "MultilabelObjective",
    "Objective",
    "RegressionObjective",
    "SoftmaxObjective",
    "SpanObjective",
    "Split",
    "TrainableEncoder",
    "TrainableNetwork",
    "TrainingDivergedError",
    "TrainingHooks",
    "TrainingOptions",
    "TrainingResult",
    "Workers",
    "find_workers",
    "n_frozen_layers",
    "train",
]
