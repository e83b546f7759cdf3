"""What a head sees of texts and of pairs: the vectors of the network, and beside those of a pair each text by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ._cache import memory_cache
from ._encoding import encode_texts
from ._progress import tqdm
from ._validation import Texts
from .checkpoints import PAIR, PAIR_AND_TEXTS, Checkpoint, EncodingSettings

if TYPE_CHECKING:
    from ._targets import NetworkState
    from .engine import Compute, TunedWeights

_COSINE_SCALE = 10.0  # 5 measured alike
# What the columns that compare the two texts of a pair are divided by before a head is fitted, so that the texts by
# themselves count as well. A network that has seen y tells the pairs apart that it was trained on, the better the fewer
# they are, and others less so.
_DIVISOR, _DIVISOR_TRAINED, _DIVISOR_TRAINED_ON_FEW = 2.0, 3.0, 8.0
_FEW = 300  # pairs, and from there on the divisor falls


def encode_for_head(
    texts: Texts,
    checkpoint: Checkpoint,
    settings: EncodingSettings,
    *,
    compute: Compute,
    tuned: TunedWeights | None = None,
    row_numbers: np.ndarray | None = None,
    verbose: int = 0,
    bar: tqdm | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the head sees of each row, and the tokens of each row before truncation.

    Float32 (n_rows, settings.vector_size(hidden_size)) and int64 (n_rows,); for
    the parameters see ``encode_texts``.
    """
    vectors, lengths = encode_texts(
        texts,
        checkpoint,
        settings.of_network,
        compute=compute,
        cache=memory_cache,
        tuned=tuned,
        row_numbers=row_numbers,
        verbose=verbose,
        bar=bar,
    )
    if settings.pooling == PAIR_AND_TEXTS:
        by_themselves = encode_by_themselves(
            texts,
            checkpoint,
            settings,
            compute=compute,
            row_numbers=row_numbers,
            verbose=verbose if bar is None else 0,
        )
        vectors = np.hstack([vectors, by_themselves])
    return vectors, lengths


def encode_by_themselves(
    texts: Texts,
    checkpoint: Checkpoint,
    settings: EncodingSettings,
    *,
    compute: Compute,
    row_numbers: np.ndarray | None = None,
    verbose: int = 0,
) -> np.ndarray:
    """Return what the untrained network makes of both texts of each pair, and how near these are.

    Float32 (n_pairs, 2 * hidden_size + 1): both vectors, of norm 1, and their
    cosine times 10. The cache has them of MiniLMEncoder too, if its prompt and
    `max_length` are the same.
    """
    alone = replace(settings, pooling=checkpoint.defaults.pooling, normalize=True)
    both = Texts(texts.first + texts.second)
    vectors, _ = encode_texts(
        both,
        checkpoint,
        alone,
        compute=compute,
        cache=memory_cache,
        row_numbers=np.tile(np.arange(len(texts)) if row_numbers is None else row_numbers, 2),
        verbose=verbose,
    )
    u, v = vectors[: len(texts)], vectors[len(texts) :]
    cosines = np.einsum("ij,ij->i", u, v)[:, None]
    return np.hstack([u, v, _COSINE_SCALE * cosines])


def head_scales(
    settings: EncodingSettings, hidden_size: int, n_texts: int, network: NetworkState
) -> np.ndarray | None:
    """Return what each column is multiplied by before a head is fitted to `n_texts` rows; None: 1 for all."""
    divisor = 1.0
    if settings.pooling == PAIR_AND_TEXTS:
        divisor = _DIVISOR
        if network == "trained":
            divisor = min(
                _DIVISOR_TRAINED_ON_FEW, max(_DIVISOR_TRAINED, _DIVISOR_TRAINED_ON_FEW * _FEW / n_texts)
            )
    elif settings.pooling == PAIR and network == "trained":
        divisor = _DIVISOR_TRAINED
    if divisor == 1:
        return None
    scales = np.ones(settings.vector_size(hidden_size), np.float32)
    scales[: settings.of_network.vector_size(hidden_size)] /= divisor
    return scales
