"""Checkpoints of another architecture, run by sentence-transformers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from ..checkpoints import Checkpoint

_CHUNK_TEXTS = 1024


class SentenceTransformersModel:
    """The same interface as :class:`~skminilm.engine.packed_model.PackedModel`."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        from sentence_transformers import SentenceTransformer

        self.checkpoint = checkpoint
        with _quiet():
            self._model = SentenceTransformer(
                str(checkpoint.folder), device=str(device), local_files_only=True, trust_remote_code=False
            )
        self._model.to(dtype)

    def encode(
        self,
        texts: Sequence[str],
        second: Sequence[str] | None = None,
        *,
        prompt: str,
        max_length: int,
        pooling: str,
        normalize: bool,
        batch_tokens: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors (n_texts, hidden_size) and the tokens of each text before truncation."""
        if second is not None:
            raise ValueError(
                f"Sentence pairs need a BERT-shaped checkpoint; {self.checkpoint.name!r} runs through "
                f"sentence-transformers because {self.checkpoint.foreign_reason}."
            )
        if pooling != self.checkpoint.defaults.pooling:
            raise ValueError(
                f"pooling={pooling!r} cannot be chosen for {self.checkpoint.name!r}, which runs through "
                f"sentence-transformers because {self.checkpoint.foreign_reason}: use pooling='auto'."
            )
        self._model.max_seq_length = max_length
        lengths = [len(self._model.tokenizer(prompt + text)["input_ids"]) for text in texts]
        parts = []
        for start in range(0, len(texts), _CHUNK_TEXTS):
            chunk = list(texts[start : start + _CHUNK_TEXTS])
            vectors = self._model.encode(
                chunk,
                prompt=prompt or None,
                normalize_embeddings=normalize,
                show_progress_bar=False,
                convert_to_tensor=True,
            )
            parts.append(vectors.float().cpu().numpy())
            if progress:
                progress(len(chunk))
        return np.concatenate(parts), np.array(lengths)


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
