"""From token ids to vectors: packing, the forward pass, pooling, devices, loaded models.

Importing this package imports torch; the estimators do so at first use.
"""

from .export import export_network
from .hardware import Compute, compiled_kernels, resolve_compute
from .modes import own_modes
from .registry import (
    get_model,
    get_tuned_model,
    new_layer_states,
    release_models,
)
from .spans import SpanPlaces, find_best_spans
from .weight_reading import read_trainable_weights
from .weights import TunedWeights, merge_weights

__all__ = [
    "Compute",
    "SpanPlaces",
    "TunedWeights",
    "compiled_kernels",
    "export_network",
    "find_best_spans",
    "get_model",
    "get_tuned_model",
    "merge_weights",
    "new_layer_states",
    "own_modes",
    "read_trainable_weights",
    "release_models",
    "resolve_compute",
]
