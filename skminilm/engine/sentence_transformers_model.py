"""Checkpoints of another architecture, run by sentence-transformers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from ..checkpoints import Checkpoint, EncodingSettings
from ..checkpoints.checkpoint import read_json
from ..checkpoints.layout import read_modules
from ..checkpoints.token_batch import check_prompt
from .modes import own_modes
from .pooling import unit_length

_CHUNK_TEXTS = 1024
_BATCH_TOKENS = 4096


def _check_no_own_code(checkpoint: Checkpoint) -> None:
    """Refuse classes of other packages: before 6.0 sentence-transformers runs what lies in a local folder."""
    for module in read_modules(checkpoint.folder):
        settings = read_json(checkpoint.folder / module["path"] / "config.json")
        activation = settings.get("activation_function") if isinstance(settings, dict) else None
        named = [(module["type"], "sentence_transformers."), (activation or "torch.", "torch.")]
        for name, package in named:
            if not str(name).startswith(package):
                raise ValueError(
                    f"{checkpoint.name!r} names {name!r}, which is none of {package.rstrip('.')}: code of a checkpoint is "
                    "not run."
                )


class SentenceTransformersModel:
    """`encode` as :class:`~skminilm.engine.streaming.StreamingModel` has it, computed by sentence-transformers."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        from sentence_transformers import SentenceTransformer

        self.checkpoint = checkpoint
        _check_no_own_code(checkpoint)
        with _quiet():
            self._model = SentenceTransformer(
                str(checkpoint.folder), device=str(device), local_files_only=True, trust_remote_code=False
            )
        self._model.to(dtype)
        self._model.default_prompt_name = None  # the prompt is ours to give
        self._max_seq_length = self._model.max_seq_length
        self._lock = threading.Lock()

    def encode(
        self,
        texts: Sequence[str],
        second: Sequence[str] | None,
        settings: EncodingSettings,
        *,
        batch_tokens: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors (n_texts, hidden_size) and the tokens of each text before truncation."""
        if second is not None:
            raise ValueError(
                f"Sentence pairs need a BERT-shaped checkpoint; {self.checkpoint.name!r} runs through "
                f"sentence-transformers because {self.checkpoint.foreign_reason}."
            )
        defaults = self.checkpoint.defaults
        if settings.pooling != defaults.pooling:
            raise self._fixed("pooling", settings.pooling, "auto")
        if defaults.normalize and not settings.normalize:
            raise self._fixed("normalize", settings.normalize, "auto")
        if settings.long_text != "truncate":
            raise self._fixed("long_text", settings.long_text, "truncate")
        limit = self._max_seq_length
        if limit is not None and settings.max_length > limit:
            raise ValueError(
                f"max_length={settings.max_length} is more than the {limit} tokens that {self.checkpoint.name!r} reads: "
                f"use at most {limit}."
            )
        with self._lock:  # the limit is a property of the shared model
            self._model.max_seq_length = settings.max_length
            return self._encode_chunks(texts, settings.prompt, settings.normalize, batch_tokens, progress)

    @own_modes(inference=True)
    def _encode_chunks(
        self,
        texts: Sequence[str],
        prompt: str,
        normalize: bool,
        batch_tokens: int | None,
        progress: Callable[[int], object] | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        if prompt:
            check_prompt(prompt, self._model.max_seq_length, self._count_tokens)
        lengths = np.array([self._count_tokens(prompt + text) for text in texts])
        longest = min(max(1, int(lengths.max())), self._model.max_seq_length)
        parts = []
        for start in range(0, len(texts), _CHUNK_TEXTS):
            chunk = list(texts[start : start + _CHUNK_TEXTS])
            vectors = self._model.encode(
                chunk,
                prompt=prompt or None,
                batch_size=max(1, (batch_tokens or _BATCH_TOKENS) // longest),
                show_progress_bar=False,
                convert_to_tensor=True,
            )
            parts.append(vectors.float().cpu())
            if progress:
                progress(len(chunk))
        vectors = torch.cat(parts)
        if vectors.shape[1] != self.checkpoint.hidden_size:
            raise ValueError(
                f"{self.checkpoint.name!r} gives vectors of {vectors.shape[1]} numbers, and its configuration files "
                f"say {self.checkpoint.hidden_size}: one of its settings is not read by skminilm or by this version of "
                "sentence-transformers. Compute the vectors with SentenceTransformer and pass them to scikit-learn."
            )
        return (unit_length(vectors) if normalize else vectors).numpy(), lengths

    def _count_tokens(self, text: str) -> int:
        return len(self._model.tokenizer(text, verbose=False)["input_ids"])

    @property
    def survives_fork(self) -> bool:
        """False while another thread computes: the libraries' own locks, as of tokenizers, stay held in the child."""
        return not self._lock.locked()

    def _fixed(self, parameter: str, value: object, only: str) -> ValueError:
        return ValueError(
            f"{parameter}={value!r} cannot be chosen for {self.checkpoint.name!r}, which runs through "
            f"sentence-transformers because {self.checkpoint.foreign_reason}: use {parameter}={only!r}."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bar and the notes that loading prints."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    logger = logging.getLogger("sentence_transformers")
    level = logger.level
    transformers_logging.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
