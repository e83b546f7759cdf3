"""Texts to vectors, as every estimator does it: unique texts, cache, engine, one warning."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np

from ._cache import VectorCache, state_cache, vector_keys
from ._progress import tqdm
from ._validation import Texts, shorten
from ._warnings import warn
from .checkpoints import Checkpoint, EncodingSettings, load_checkpoint

if TYPE_CHECKING:
    from ._disk_cache import DiskVectorCache
    from .engine import Compute, TunedWeights

# What is computed between two visits of the cache, which is what an interrupted call loses: well under a minute's work.
_SLICE_CHARACTERS = {"cpu": 500_000, "cuda": 10_000_000}
_CHARACTERS_A_TEXT = 30  # that prompt and special tokens cost
_KEYS_A_LOOK = 8192
_NAMES_OF_PROMPTS = ("query", "passage", "document")  # that sentence-transformers has
_PROMPTS_OF_E5, _PROMPTED_ROWS = ("query: ", "passage: "), 100
_RESULTS_VERSION = 5  # raise it when the same weights and texts begin to give other vectors


def open_checkpoint(
    model: str | os.PathLike[str],
    revision: str | None,
    *,
    local_files_only: bool = False,
    fingerprint: str | None = None,
    settings_known: bool = False,
) -> Checkpoint:
    """Load a checkpoint and refuse one with other weights than at fit.

    Parameters
    ----------
    fingerprint : str or None
        That of the checkpoint that an estimator was fitted with; None for an
        estimator that is not fitted.
    settings_known : bool
        Pooling, normalisation and prompt are not read from the checkpoint; those of a fitted estimator never are.
    """
    checkpoint = load_checkpoint(
        model,
        revision,
        local_files_only=local_files_only,
        settings_known=settings_known or fingerprint is not None,
    )
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
    long_text: str = "truncate",
) -> EncodingSettings:
    """Replace ``"auto"`` by `defaults`, and check the rest against the checkpoint.

    Raises
    ------
    ValueError
        `max_length` is more than the checkpoint has positions, or `prompt` is a name of one.
    """
    if prompt in _NAMES_OF_PROMPTS:
        raise ValueError(
            f"prompt={prompt!r} looks like the name of a prompt: give the text that is put before texts, such as "
            f"prompt='{prompt}: '."
        )
    limit = checkpoint.config.max_position_embeddings if checkpoint.config else None
    if max_length != "auto" and limit is not None and int(max_length) > limit:
        raise ValueError(
            f"max_length={max_length} is more than the {limit} positions of {checkpoint.name!r}: use at most "
            f"{limit}."
        )
    return EncodingSettings(
        pooling=defaults.pooling if pooling == "auto" else pooling,
        normalize=defaults.normalize if normalize == "auto" else bool(normalize),
        prompt=defaults.prompt if prompt == "auto" else (prompt or ""),
        max_length=defaults.max_length if max_length == "auto" else int(max_length),
        long_text=long_text,
    )


def warn_of_second_prompt(texts: Texts, prompt: str | None, settings: EncodingSettings) -> None:
    """Warn where the default prompt would come before prompts that are in the texts already."""
    if prompt != "auto" or not settings.prompt:
        return
    some = texts.first[:_PROMPTED_ROWS]
    found = [next((p for p in _PROMPTS_OF_E5 if text.startswith(p)), "") for text in some]
    n_prompted = sum(map(bool, found))
    if 2 * n_prompted > len(some):
        warn(
            f"{n_prompted} of the first {len(some)} texts begin with a prompt ({max(found)!r}), and prompt='auto' puts "
            f"{settings.prompt!r} before them too: give prompt=None, or leave theirs out."
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
    row_numbers: np.ndarray | None = None,
    verbose: int = 0,
    bar: tqdm | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return one vector a row, and the tokens of each row before truncation.

    Float32 (n_rows, settings.vector_size(hidden_size)) and int64 (n_rows,).
    Each different text is computed once per call, and not at all when `cache`
    has it. `tuned` weights replace some of the checkpoint's; vectors of such
    a model are not cached. Errors call the rows by their `row_numbers`, where
    they are part of a larger X, whose `bar` then says what is done.
    """
    from .engine import get_tuned_model

    if tuned:
        cache = None
    unique, first_rows, index = unique_texts(texts)
    if row_numbers is not None:
        first_rows = row_numbers[first_rows]
    vectors = np.zeros((len(unique), settings.vector_size(checkpoint.hidden_size)), np.float32)
    lengths = np.zeros(len(unique), np.int64)
    missing = np.arange(len(unique))
    if cache is not None:
        # Everything a vector depends on but its text.
        depends_on = [_RESULTS_VERSION, checkpoint.fingerprint, settings, compute.namespace]
        if compute.is_calibrated:
            depends_on.append(checkpoint.defaults)
        keys = vector_keys(repr(tuple(depends_on)), unique.first, unique.second)
        missing = missing[~_look_up(cache, keys, vectors, lengths)]
    if bar is not None:
        bar.update(len(unique) - len(missing))
    if len(missing):
        model = get_tuned_model(checkpoint, compute, tuned, state_cache)
        todo = unique.take(missing)
        slices: Iterable[range] = [range(len(todo))]
        if cache is not None:
            slices = todo.slices(_SLICE_CHARACTERS[compute.device.type], _CHARACTERS_A_TEXT)
        with encoding_bar(len(missing), checkpoint, verbose) if bar is None else nullcontext(bar) as bar:
            for rows in slices:
                some = missing[rows.start : rows.stop]
                selected = todo.take(rows)
                found, n_tokens = model.encode(
                    selected.first, selected.second, settings, batch_tokens=batch_tokens, progress=bar.update
                )
                _check_finite(found, selected.first, first_rows[some])
                if len(some) == len(vectors):  # of which there may be millions: without a copy
                    vectors, lengths = found, n_tokens
                else:
                    vectors[some], lengths[some] = found, n_tokens
                if cache is not None:
                    for start in range(0, len(some), _KEYS_A_LOOK):
                        part = slice(start, start + _KEYS_A_LOOK)
                        cache.put([keys[i] for i in some[part]], _entries(found[part], n_tokens[part]))
    return (vectors, lengths) if unique is texts else (vectors[index], lengths[index])


def encoding_bar(n_texts: int, checkpoint: Checkpoint, verbose: int) -> tqdm:
    """Return the progress bar of a call that computes vectors."""
    bar = tqdm(total=n_texts, desc="encode", unit="text", disable=not verbose)
    if checkpoint.foreign_reason and verbose:
        bar.write(f"{checkpoint.name} runs through sentence-transformers: {checkpoint.foreign_reason}.")
    return bar


def unique_texts(texts: Texts) -> tuple[Texts, np.ndarray, np.ndarray]:
    """Return the different texts or pairs, the first row of each, and which of them each row is."""
    rows = texts.first if texts.second is None else zip(texts.first, texts.second, strict=True)
    numbers: dict[object, int] = {}
    index = np.array([numbers.setdefault(row, len(numbers)) for row in rows], np.int64)
    first_rows = np.unique(index, return_index=True)[1]
    return texts.take(first_rows), first_rows, index


def _entries(vectors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return what a cache keeps of some texts: the vector and, behind it, the tokens before truncation."""
    return np.column_stack([vectors, lengths.astype(np.float32)])


def _look_up(
    cache: VectorCache | DiskVectorCache, keys: Sequence[bytes], vectors: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Fill in what the cache has, and return of which keys, bool (n_keys,)."""
    is_known = np.zeros(len(keys), bool)
    shape = (vectors.shape[1] + 1,)
    for start in range(0, len(keys), _KEYS_A_LOOK):  # entries take as much memory as the vectors
        entries_of_some = enumerate(cache.get(keys[start : start + _KEYS_A_LOOK]), start)
        found = {i: entry for i, entry in entries_of_some if entry is not None and entry.shape == shape}
        if found:
            entries = np.stack(list(found.values()))
            with np.errstate(invalid="ignore"):  # of a damaged or foreign cache
                usable = np.isfinite(entries.sum(axis=1))
            rows, entries = np.array(list(found))[usable], entries[usable]
            vectors[rows], lengths[rows], is_known[rows] = entries[:, :-1], entries[:, -1], True
    return is_known


def _check_finite(vectors: np.ndarray, texts: Sequence[str], row_numbers: np.ndarray) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        place = int(np.flatnonzero(~finite)[0])
        raise FloatingPointError(
            f"The vector of row {row_numbers[place]}, {shorten(texts[place])}, is not finite: the weights are damaged or the "
            "precision is too low for them. Try precision='fp32'."
        )


def warn_of_truncation(lengths: np.ndarray, settings: EncodingSettings, n_rows: int | None = None) -> None:
    """Warn once if texts lost tokens.

    Parameters
    ----------
    lengths : ndarray of int64, shape (n_texts,)
        Tokens of each text before truncation.
    settings : EncodingSettings
    n_rows : int or None
        Rows of X, where those behind them are of X_val.
    """
    n_cut = int((lengths > settings.max_length).sum())
    if not n_cut or settings.long_text == "chunk_mean":
        return
    where = "off there" if settings.long_text == "truncate" else "in the middle"
    longest = int(lengths.argmax())
    row = f"row {longest}"
    if n_rows is not None and longest >= n_rows:
        row = f"row {longest - n_rows} of X_val"
    warn(
        f"{n_cut} of {len(lengths)} texts have more than max_length={settings.max_length} tokens and were cut "
        f"{where}; the longest, {row}, has {lengths[longest]}. Shorten or split them, or raise max_length where the "
        "checkpoint takes more; of single texts MiniLMEncoder reads all with long_text='chunk_mean'."
    )
