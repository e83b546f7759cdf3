"""What the head is trained on: vectors of a network that is trained too, or fixed ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from ..checkpoints import BertConfig
from ..checkpoints.token_batch import TokenBatch
from ..engine.forward import embed, encoder_layer
from ..engine.layer_states import LayerStates
from ..engine.layers import check_sizes
from ..engine.linear import IntegerLinear, Linear, PlainLinear
from ..engine.packed_model import MAX_PADDING
from ..engine.packing import Pack, make_pack, plan_packs, to_device
from ..engine.pooling import pool
from ..engine.varlen import can_use_varlen
from ..engine.weights import WORD, WORD_ROWS, dense_rows
from .lora import LORA, AdaptedLayers
from .parameters import FlatParameters

# Tokens of one forward and backward pass: longer steps are cut into several, whose gradients add up.
_MAX_TOKENS = {"cpu": 2048, "cuda": 65_536}
_ROWS_TOGETHER = 4096  # of fixed vectors
_TRAINING_PADDING = 0.25
_LENGTH_STEP = 16


class TrainableNetwork(ABC):
    """Gives vectors of texts, with gradients for its parameters.

    Attributes
    ----------
    parameters : list of FlatParameters
    device : torch.device
    """

    parameters: list[FlatParameters]
    device: torch.device

    @abstractmethod
    def vectors(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield vectors of some texts part by part: which texts, and float32 (n_vectors, hidden_size).

        One vector per text, or one per token of each text.

        The caller is done with a part before it asks for the next one.
        """

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Return what was trained, by name."""

    def shrink_parts(self) -> bool:
        """Make the parts smaller, because the memory was too small for them; tell whether that is possible."""
        return False


class FixedVectors(TrainableNetwork):
    """Vectors that were computed before: only the head is trained.

    Parameters
    ----------
    vectors : ndarray of float32, shape (n_texts, hidden_size)
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self.parameters = []
        self.device = torch.device("cpu")
        self._vectors = torch.from_numpy(vectors)

    def vectors(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield the vectors of `rows`, of some thousands at a time: what a head makes of them may be larger."""
        for start in range(0, len(rows), _ROWS_TOGETHER):
            some = rows[start : start + _ROWS_TOGETHER]
            yield some, self._vectors[torch.from_numpy(some)]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return nothing: nothing was trained."""
        return {}


class BesideFixedVectors(TrainableNetwork):
    """A network whose vectors stand beside others that were computed before.

    Parameters
    ----------
    network : TrainableNetwork
        Gives one vector per text.
    fixed : ndarray of float32, shape (n_texts, n_columns)
    """

    def __init__(self, network: TrainableNetwork, fixed: np.ndarray) -> None:
        self.parameters = network.parameters
        self.device = network.device
        self._network = network
        self._fixed = torch.from_numpy(fixed).to(network.device)

    def vectors(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield the columns of the network, then the fixed ones."""
        for some, vectors in self._network.vectors(rows):
            fixed = self._fixed[to_device(some, self.device)]
            yield some, torch.cat([vectors, fixed], dim=1)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what was trained, by name."""
        return self._network.arrays()

    def shrink_parts(self) -> bool:
        """Make the parts of the network smaller."""
        return self._network.shrink_parts()


@dataclass(frozen=True)
class EncoderOptions:
    """How a network is trained; the names are those of MiniLMClassifier.

    Attributes
    ----------
    trainable : {"encoder", "all", "lora"} or int
    pooling : str or None
        None: no pooling, the states of the tokens are the vectors.
    normalize : bool
        Scale pooled vectors to norm 1.
    learning_rate, weight_decay : float
    dtype : torch.dtype
        Of the computation; parameters and optimizer stay in float32.
    in_integers : bool
        Multiply by 16-bit integers, on a CPU; with dtype float32.
    gradient_checkpointing : bool
    seed : int
        For the start of adapters.
    """

    trainable: str | int
    pooling: str | None
    normalize: bool
    learning_rate: float
    weight_decay: float
    dtype: torch.dtype
    in_integers: bool
    gradient_checkpointing: bool
    seed: int


class TrainableEncoder(TrainableNetwork):
    """The packed network over some texts.

    Parameters
    ----------
    weights : iterable of (str, Tensor)
        In float32, under the names of ``engine.weights.fused_weights``; those
        above the frozen layers suffice where `states` gives what is below.
    config : BertConfig
    batch : TokenBatch
        The texts.
    device : torch.device
    options : EncoderOptions
    states : LayerStates or None
        Output of the frozen layers.
    adapters : mapping of str to ndarray, or None
        Where ``trainable="lora"`` starts; None: at adapters that change nothing.
    """

    def __init__(
        self,
        weights: Iterable[tuple[str, torch.Tensor]],
        config: BertConfig,
        batch: TokenBatch,
        device: torch.device,
        options: EncoderOptions,
        states: LayerStates | None = None,
        adapters: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        if options.in_integers:
            check_sizes(config, torch.int16)
        self.device = device
        self._config = config
        self._options = options
        self._states = states
        self._first_layer = n_frozen_layers(options.trainable, config.num_hidden_layers) if states else 0
        self._max_tokens = _MAX_TOKENS[device.type]
        self._takes_any_lengths = can_use_varlen(device, options.dtype, config.head_size, gradients=True)
        self._word_rows: np.ndarray | None = None
        if options.trainable == "all":
            # Only rows that occur in the texts get a gradient, so only they are trained.
            self._word_rows, compact_ids = np.unique(batch.input_ids, return_inverse=True)
            batch = replace(batch, input_ids=compact_ids.astype(np.int32))
        self._batch = batch
        self._frozen, trained = self._split(weights)
        if options.trainable == LORA:
            layers = AdaptedLayers(self._frozen, options.seed, options.in_integers)
            trained = layers.adapters()
            trained |= {
                name: torch.from_numpy(np.array(array, np.float32)).to(device)
                for name, array in (adapters or {}).items()
            }
        self.parameters = self._parameters(trained)
        views = {name: view for part in self.parameters for name, view in part.views.items()}
        self._weights: Mapping[str, torch.Tensor] = {**self._frozen, **views}
        self._linear: Linear = (IntegerLinear if options.in_integers else PlainLinear)(self._weights)
        if options.trainable == LORA:
            layers.use(views)
            self._linear = layers

    def _split(
        self, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        trainable = self._options.trainable
        first_trained = n_frozen_layers(trainable, self._config.num_hidden_layers)
        frozen, trained = {}, {}
        for name, tensor in weights:
            is_layer = name.startswith("layers.")
            if is_layer:
                is_trained = trainable != LORA and int(name.split(".")[1]) >= first_trained
            else:
                is_trained = trainable == "all"
            if name == WORD and is_trained:
                tensor = dense_rows(tensor, torch.from_numpy(self._word_rows.astype(np.int64)))
            if is_trained:
                trained[name] = tensor.to(self.device)
            else:
                frozen[name] = tensor.to(self.device, self._options.dtype if is_layer else None)
        return frozen, trained

    def _parameters(self, trained: dict[str, torch.Tensor]) -> list[FlatParameters]:
        options = self._options
        rate, dtype = options.learning_rate, options.dtype
        layers = {name: tensor for name, tensor in trained.items() if name.startswith("layers.")}
        matrices = {name: tensor for name, tensor in layers.items() if tensor.ndim == 2}
        others = {name: tensor for name, tensor in layers.items() if tensor.ndim == 1}
        parts = [FlatParameters(matrices, dtype, rate, options.weight_decay)]
        if others:
            parts.append(FlatParameters(others, dtype, rate))
        embeddings = {name: tensor for name, tensor in trained.items() if name not in layers}
        if embeddings:
            parts.append(FlatParameters(embeddings, torch.float32, rate))
        return parts

    def vectors(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield pooled vectors, or the states of all tokens, longest texts first."""
        for some in plan_packs(self._batch.lengths[rows], self._max_tokens):
            pack = make_pack(self._batch, rows[some], self.device, *self._padding())
            yield pack.rows, self._pool(self._last_hidden_state(pack), pack)

    def _padding(self) -> tuple[float | None, int]:
        """Return how attention may be padded, see ``make_pack``."""
        if self._takes_any_lengths:
            return None, 1
        # Without gradients attention is that of inference.
        return (
            (_TRAINING_PADDING, _LENGTH_STEP)
            if torch.is_grad_enabled()
            else (MAX_PADDING[self.device.type], 1)
        )

    def _pool(self, hidden: torch.Tensor, pack: Pack) -> torch.Tensor:
        if self._options.pooling is None:
            return hidden[: pack.n_tokens].float()
        return pool(hidden, pack, self._options.pooling, self._options.normalize)

    def _last_hidden_state(self, pack: Pack) -> torch.Tensor:
        options, config = self._options, self._config
        if self._states:
            hidden = self._states.of_pack(pack)
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and options.trainable == "all"):
                hidden = embed(self._weights, pack, config.layer_norm_eps, options.dtype)
        layer_of: Callable = encoder_layer
        if options.gradient_checkpointing and torch.is_grad_enabled():
            layer_of = partial(
                recompute_in_backward, encoder_layer, use_reentrant=False, preserve_rng_state=False
            )
        for layer in range(self._first_layer, config.num_hidden_layers):
            hidden = layer_of(hidden, self._weights, layer, pack, config, self._linear)
        return hidden

    def shrink_parts(self) -> bool:
        """Halve the tokens of a part."""
        if self._max_tokens <= int(self._batch.lengths.max()):
            return False
        self._max_tokens //= 2
        return True

    def names(self) -> set[str]:
        """Return the names of :meth:`arrays`."""
        names = {name for part in self.parameters for name in part.views}
        return names if self._word_rows is None else {*names, WORD_ROWS}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what was trained, by name."""
        arrays = {name: array for part in self.parameters for name, array in part.arrays().items()}
        if self._word_rows is not None:
            arrays[WORD_ROWS] = self._word_rows.astype(np.int64)
        return arrays


def n_frozen_layers(trainable: str | int, n_layers: int) -> int:
    """Return how many of the lowest layers `trainable` leaves as they are.

    Raises
    ------
    ValueError
        It asks for more layers than there are.
    """
    if isinstance(trainable, str):
        return 0
    if trainable > n_layers:
        raise ValueError(f"trainable={trainable} is more than the {n_layers} layers of the checkpoint.")
    return n_layers - trainable
