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


class ArrayCache(Protocol):
    """What keeps the states; see ``skminilm._cache.VectorCache``."""

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
        self._namespace = repr((model.checkpoint.fingerprint, compute.namespace, n_layers)).encode()

    def of_pack(self, pack: Pack) -> torch.Tensor:
        """Return the states of a pack, (n_slots, hidden_size); slots that fill up are 0."""
        keys = self._keys(pack.batch, pack.rows)
        states = self._cache.get(keys)
        missing = [i for i, array in enumerate(states) if array is None]
        if missing:
            computed = self._compute(pack.batch, pack.rows[missing])
            self._cache.put([keys[i] for i in missing], computed)
            for i, array in zip(missing, computed, strict=True):
                states[i] = array
        shape, device = (len(pack.input_ids), self.model.hidden_size), self.model.device
        hidden = torch.zeros(shape, dtype=self.model.dtype, device="cpu", pin_memory=device.type == "cuda")
        hidden[: pack.n_tokens] = _to_tensor(np.concatenate(states), self.model.dtype)
        return hidden.to(device, non_blocking=True)

    def prepare(self, batch: TokenBatch, progress: Callable[[int], object] | None = None) -> None:
        """Compute what is missing of some texts, in packs of the best size.

        Parameters
        ----------
        batch : TokenBatch
        progress : callable, default=None
            Called with numbers of texts that are done.
        """
        for rows in plan_packs(batch.lengths, self.model.default_batch_tokens):
            keys = self._keys(batch, rows)
            missing = [i for i, array in enumerate(self._cache.get(keys)) if array is None]
            if missing:
                self._cache.put([keys[i] for i in missing], self._compute(batch, rows[missing]))
            if progress:
                progress(len(rows))

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
