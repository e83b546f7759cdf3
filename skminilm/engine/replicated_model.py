"""One checkpoint on several devices, which take turns with the packs of a call."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from ..checkpoints.token_batch import TokenBatch
from .packed_model import PackedModel
from .streaming import StreamingModel


class ReplicatedModel(StreamingModel):
    """Hands the packs of a call to copies of a model in turn.

    A GPU computes on while the next pack is prepared for another, so one
    thread keeps several of them busy. One that has no memory left for a
    single text gets no more.

    Parameters
    ----------
    replicas : sequence of PackedModel
        With the same weights and precision.
    """

    def __init__(self, replicas: Sequence[PackedModel]) -> None:
        first = replicas[0]
        self.tokenizer = first.tokenizer
        self.hidden_size = first.hidden_size
        self.default_batch_tokens = first.default_batch_tokens
        self.max_results_under_way = sum(replica.max_results_under_way for replica in replicas)
        self._replicas = list(replicas)
        self._turn = itertools.count()

    def start(
        self, batch: TokenBatch, rows: np.ndarray, pooling: str, normalize: bool
    ) -> Callable[[], np.ndarray]:
        """Compute a pack on the device whose turn it is. See :meth:`StreamingModel.start`."""
        replicas = self._replicas
        replica = replicas[next(self._turn) % len(replicas)]
        try:
            return replica.start(batch, rows, pooling, normalize)
        except MemoryError:
            others = [other for other in self._replicas if other is not replica]
            if not others:
                raise
        self._replicas = others
        return self.start(batch, rows, pooling, normalize)
