"""From the `model` parameter to a verified checkpoint.

``loading`` finds it: ``presets`` names the known checkpoints, ``bundled``,
``folder`` and ``hub`` are the places they come from, ``tokenizer`` turns texts
into ids.
"""

from .checkpoint import LONG_TEXTS, PAIR, PAIR_AND_TEXTS, POOLINGS, BertConfig, Checkpoint, EncodingSettings
from .loading import known_hidden_size, load_checkpoint
from .presets import BUNDLED, PRESETS
from .token_batch import tokenize

__all__ = [
    "BUNDLED",
    "LONG_TEXTS",
    "PAIR",
    "PAIR_AND_TEXTS",
    "POOLINGS",
    "PRESETS",
    "BertConfig",
    "Checkpoint",
    "EncodingSettings",
    "known_hidden_size",
    "load_checkpoint",
    "tokenize",
]
