"""Texts to vectors, as every estimator does it: unique texts, cache, engine, one warning."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import sklearn
from tqdm.auto import tqdm

from ._cache import VectorCache, vector_keys
from ._disk_cache import DiskVectorCache
from ._validation import Texts
from .checkpoints import Checkpoint, EncodingSettings, load_checkpoint

if TYPE_CHECKING:
    from .engine import Compute, TunedWeights

_RESULTS_VERSION = 1  # raise it when the same weights and texts begin to give other vectors


def open_checkpoint(
    model: str | os.PathLike[str],
    revision: str | None,
    *,
    local_files_only: bool = False,
    fingerprint: str | None = None,
) -> Checkpoint:
    """Load a checkpoint and refuse one with other weights than at fit.

    Parameters
    ----------
    fingerprint : str or None
        That of the checkpoint that an estimator was fitted with; None for an
        estimator that is not fitted.
    """
    checkpoint = load_checkpoint(model, revision, local_files_only=local_files_only)
    if fingerprint is not None and fingerprint != checkpoint.fingerprint:
        raise ValueError(
            f"model={model!r} has other weights, tokenizer or configuration here (fingerprint "
            f"{checkpoint.fingerprint[:12]}) than when the estimator was fitted ({fingerprint[:12]}). Fit it "
            "again, or restore the checkpoint that it was fitted with."
        )
    return checkpoint


def resolve_settings(
    checkpoint: Checkpoint,
    defaults: EncodingSettings,
    *,
    pooling: str,
    normalize: bool | str,
    prompt: str | None,
    max_length: int | str,
) -> EncodingSettings:
    """Replace ``"auto"`` by `defaults`, and check the rest against the checkpoint.

    Raises
    ------
    ValueError
        `max_length` is more than the checkpoint has positions.
    """
    limit = checkpoint.config.max_position_embeddings if checkpoint.config else None
    if max_length != "auto" and limit is not None and max_length > limit:
        raise ValueError(
            f"max_length={max_length} is more than the {limit} positions of {checkpoint.name!r}: use at most "
            f"{limit}."
        )
    return EncodingSettings(
        pooling=defaults.pooling if pooling == "auto" else pooling,
        normalize=defaults.normalize if normalize == "auto" else bool(normalize),
        prompt=defaults.prompt if prompt == "auto" else (prompt or ""),
        max_length=defaults.max_length if max_length == "auto" else int(max_length),
    )


def encode_texts(
    texts: Texts,
    checkpoint: Checkpoint,
    settings: EncodingSettings,
    *,
    compute: Compute,
    cache: VectorCache | DiskVectorCache | None,
    tuned: TunedWeights | None = None,
    batch_tokens: int | None = None,
    verbose: int = 0,
) -> np.ndarray:
    """Return one vector a row, float32 (n_rows, hidden_size).

    Each different text is computed once a call, and not at all when `cache`
    has it. `tuned` weights replace some of the checkpoint's; vectors of such
    a model are not cached.

    Warns
    -----
    UserWarning
        Some texts are longer than the limit; one warning a call.
    """
    from .engine import get_model, get_tuned_model

    if tuned:
        cache = None
    # Everything a vector depends on but its text.
    namespace = repr((_RESULTS_VERSION, checkpoint.fingerprint, settings, compute.namespace))
    keys = vector_keys(namespace, texts.first, texts.second)
    first_row: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        first_row.setdefault(key, row)
    unique_keys = list(first_row)
    # An entry is the vector and, behind it, the tokens of the text before truncation.
    entries: dict[bytes, np.ndarray] = {}
    if cache is not None:
        found = zip(unique_keys, cache.get(unique_keys), strict=True)
        entries = {key: entry for key, entry in found if entry is not None}
    missing = [key for key in unique_keys if key not in entries]
    if missing:
        model = get_tuned_model(checkpoint, compute, tuned) if tuned else get_model(checkpoint, compute)
        if checkpoint.foreign_reason and verbose:
            tqdm.write(f"{checkpoint.name} runs through sentence-transformers: {checkpoint.foreign_reason}.")
        computed = _compute(
            model.encode, texts.take(first_row[key] for key in missing), settings, batch_tokens, verbose
        )
        entries.update(zip(missing, computed, strict=True))
        if cache is not None:
            cache.put(missing, computed)
    rows = np.stack([entries[key] for key in keys])
    warn_if_truncated(rows[:, -1], settings.max_length)
    return np.ascontiguousarray(rows[:, :-1])


def _compute(
    encode: Callable, texts: Texts, settings: EncodingSettings, batch_tokens: int | None, verbose: int
) -> np.ndarray:
    with tqdm(total=len(texts), desc="encode", unit="text", disable=not verbose) as bar:
        vectors, lengths = encode(
            texts.first,
            texts.second,
            prompt=settings.prompt,
            max_length=settings.max_length,
            pooling=settings.pooling,
            normalize=settings.normalize,
            batch_tokens=batch_tokens,
            progress=bar.update,
        )
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise FloatingPointError(
            f"The vector of the text {texts.first[row][:60]!r} is not finite: the weights are damaged or the "
            "precision is too low for them. Try precision='fp32'."
        )
    return np.column_stack([vectors, lengths.astype(np.float32)])


def warn_if_truncated(lengths: np.ndarray, max_length: int) -> None:
    """Warn once if some texts have more tokens than `max_length`."""
    too_long = int((lengths > max_length).sum())
    if too_long:
        warnings.warn(
            f"{too_long} of {len(lengths)} texts have more than max_length={max_length} tokens and were cut "
            f"off there; the longest, row {int(lengths.argmax())}, has {int(lengths.max())}. Shorten or split "
            "them, or raise max_length up to the limit of the checkpoint.",
            UserWarning,
            stacklevel=_callers_level(),
        )


def _callers_level() -> int:
    """Return the `stacklevel` of the first caller outside this package and scikit-learn."""
    own = tuple(os.path.dirname(module.__file__) + os.sep for module in (sys.modules[__package__], sklearn))
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(own):
        frame, level = frame.f_back, level + 1
    return level
