"""Token states in the middle of the network, kept for the layers above that change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Protocol

import numpy as np
import torch

from ..checkpoints.token_batch import TokenBatch
from .hardware import Compute
from .modes import own_modes
from .packed_model import PackedModel
from .packing import Pack, plan_packs

_SEEN = object()


class ArrayCache(Protocol):
    """What keeps the states; see ``skminilm._cache.VectorCache``."""

    max_bytes: int

    def size_of(self, n_bytes: int) -> int:
        """Return how many bytes of the bound an array takes that has so many."""

    def get(self, keys: Sequence[bytes]) -> list[np.ndarray | None]:
        """Return the array of each key, None where there is none."""

    def put(self, keys: Sequence[bytes], vectors: Sequence[np.ndarray]) -> None:
        """Store a copy of one array a key."""


class LayerStates:
    """The output of the lowest layers of a checkpoint for texts, each computed once as long as it is kept.

    Parameters
    ----------
    model : PackedModel
        The checkpoint as it is.
    compute : Compute
        How `model` computes.
    n_layers : int
        How many layers.
    cache : ArrayCache
        Found by token ids, and by all that the states depend on.
    """

    def __init__(self, model: PackedModel, compute: Compute, n_layers: int, cache: ArrayCache) -> None:
        self.model = model
        self.n_layers = n_layers
        self._cache = cache
        self._keeps_more = True
        self._namespace = repr((model.checkpoint.fingerprint, compute.namespace, n_layers)).encode()

    def of_pack(self, pack: Pack) -> torch.Tensor:
        """Return the states of a pack, (n_slots, hidden_size); slots that fill up are 0."""
        keys = self._keys(pack.batch, pack.rows)
        states = self._cache.get(keys)
        missing = [i for i, array in enumerate(states) if array is None]
        if missing:
            computed = self._compute(pack.batch, pack.rows[missing])
            if self._keeps_more:
                self._cache.put([keys[i] for i in missing], computed)
            for i, array in zip(missing, computed, strict=True):
                states[i] = array
        shape, device = (len(pack.input_ids), self.model.hidden_size), self.model.device
        hidden = torch.zeros(shape, dtype=self.model.dtype, device="cpu", pin_memory=device.type == "cuda")
        hidden[: pack.n_tokens] = _to_tensor(np.concatenate(states), self.model.dtype)
        return hidden.to(device, non_blocking=True)

    def prepare(self, batch: TokenBatch, progress: Callable[[int], object] | None = None) -> None:
        """Compute what is missing of the texts of a fit, in packs of the best size, as far as the cache has room.

        What does not fit is not kept later either: an epoch takes the texts in
        random order, and a cache that drops what was used longest ago would
        have hardly any of them when it comes. Nor is what is dropped during
        the fit, by `clear_cache` or by other fits.

        Parameters
        ----------
        batch : TokenBatch
        progress : callable, default=None
            Called with numbers of texts that are done, or have no room.
        """
        self._keeps_more = False
        packs = list(plan_packs(batch.lengths, self.model.default_batch_tokens))
        is_missing = self._missing_that_fit(batch, np.concatenate(packs))
        for rows in packs:
            some = rows[is_missing[rows]]
            if len(some):
                self._cache.put(self._keys(batch, some), self._compute(batch, some))
            if progress:
                progress(len(rows))

    def _missing_that_fit(self, batch: TokenBatch, rows: np.ndarray) -> np.ndarray:
        """Tell of each text whether it is not in the cache, and finds room beside those that are; of equal ones the first.

        Bool, shape (n_texts,); `rows` are all of them in the order in which they are computed.
        """
        keys = self._keys(batch, rows)
        states = dict(zip(keys, self._cache.get(keys), strict=True))  # and now the last to be dropped
        room = self._cache.max_bytes - sum(
            self._cache.size_of(some.nbytes) for some in states.values() if some is not None
        )
        bytes_a_token = self.model.hidden_size * self.model.dtype.itemsize
        is_missing = np.zeros(len(rows), bool)
        for row, key in zip(rows.tolist(), keys, strict=True):
            if states.pop(key, _SEEN) is None:
                room -= self._cache.size_of(int(batch.lengths[row]) * bytes_a_token)
                if room < 0:
                    break
                is_missing[row] = True
        return is_missing

    def _compute(self, batch: TokenBatch, rows: np.ndarray) -> list[np.ndarray]:
        def of_part(part: np.ndarray) -> list[np.ndarray]:
            with own_modes(inference=True):
                pack = self.model.make_pack(batch, part)
                hidden = self.model.hidden_states(pack, n_layers=self.n_layers)[: pack.n_tokens].cpu()
            return [_to_array(states) for states in hidden.split(batch.lengths[part].tolist())]

        return list(chain.from_iterable(self.model.in_parts_that_fit(batch, rows, of_part)))

    def _keys(self, batch: TokenBatch, rows: np.ndarray) -> list[bytes]:
        base = hashlib.blake2b(self._namespace, digest_size=16)
        keys = []
        for row in rows.tolist():
            digest = base.copy()
            digest.update(batch.ids_of([row]).tobytes())
            keys.append(digest.digest())
        return keys


def _to_array(states: torch.Tensor) -> np.ndarray:
    return states.view(torch.int16).numpy() if states.element_size() == 2 else states.numpy()


def _to_tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(array).view(dtype)


class TopTunedModel(PackedModel):
    """A checkpoint whose upper layers were fine-tuned; the lower ones are shared with the checkpoint's model.

    Parameters
    ----------
    states : LayerStates
        Of the layers that are as in the checkpoint.
    weights : iterable of (str, Tensor)
        Of the layers above.
    """

    def __init__(self, states: LayerStates, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        model = states.model
        super().__init__(model.checkpoint, weights, model.device, model.weights_dtype)
        self._states = states

    def last_hidden_state(self, pack: Pack) -> torch.Tensor:
        """See :class:`PackedModel`."""
        return self.run_layers(self._states.of_pack(pack), pack, first_layer=self._states.n_layers)
