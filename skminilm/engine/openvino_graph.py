"""What an encoder computes between one attention and the next, as OpenVINO graphs, in floats or quantised to 8 bits."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import locale
import logging
import os
import shutil
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import platformdirs
import torch

from .._folders import own_path, temporary_folder
from .._warnings import warn
from ..checkpoints import BertConfig
from ._openvino_import import import_silently
from .weights import layer_prefix

if TYPE_CHECKING:
    import openvino as ov
else:
    ov = import_silently("openvino")
ops = import_silently("openvino.opset13")

_QUANTIZATION_VERSION = 3  # raise it when the same weights and texts begin to give other graphs
_FLOATS = {torch.float32: ov.Type.f32, torch.bfloat16: ov.Type.bf16}


def build_graphs(
    weights: Mapping[str, torch.Tensor], config: BertConfig, dtype: torch.dtype
) -> list[ov.Model]:
    """Build an encoder, cut where tokens see one another.

    Attention is left out, so tokens need no padding; so is the table of word
    embeddings, four fifths of the parameters, of which a batch needs a few rows.

    Parameters
    ----------
    weights : mapping of str to Tensor
        As :func:`~skminilm.engine.weights.fused_weights` names them.
    config : BertConfig
    dtype : torch.dtype
        Of what passes between the graphs, float32 or bfloat16; tokens are rows.

    Returns
    -------
    list of openvino.Model
        The first takes word embeddings in float32 and positions in int64. Each of the others is a layer, which takes
        what attention made of queries, keys and values, and hidden states. All return
        hidden states and, side by side, the next queries, keys and values; the last
        one hidden states alone, in float32.
    """

    def dense(x, name: str):
        product = ops.matmul(x, _constant(weights[f"{name}.weight"]), False, True)
        return ops.add(product, _constant(weights[f"{name}.bias"]))

    def norm(x, name: str):
        last = ops.constant(np.array([-1], np.int64))
        normalized = ops.mvn(x, last, True, config.layer_norm_eps, "inside_sqrt")
        scaled = ops.multiply(normalized, _constant(weights[f"{name}.weight"]))
        return ops.add(scaled, _constant(weights[f"{name}.bias"]))

    def graph(inputs, hidden, next_layer: int) -> ov.Model:
        if next_layer == config.num_hidden_layers:
            return ov.Model([ops.result(hidden)], inputs)
        outputs = hidden, dense(hidden, layer_prefix(next_layer) + "qkv")
        return ov.Model([ops.result(ops.convert(y, _FLOATS[dtype])) for y in outputs], inputs)

    def states(name: str, of: torch.dtype = dtype):
        return ops.parameter([-1, config.hidden_size], _FLOATS[of], name=name)

    word, positions = (
        states("word_embeddings", torch.float32),
        ops.parameter([-1], ov.Type.i64, name="positions"),
    )
    position = ops.gather(_constant(weights["embeddings.position"]), positions, ops.constant(np.int64(0)))
    graphs = [graph([word, positions], norm(ops.add(word, position), "embeddings.norm"), 0)]
    for layer in range(config.num_hidden_layers):
        prefix = layer_prefix(layer)
        inputs = states("attended"), states("hidden")
        attended, hidden = (ops.convert(x, "f32") for x in inputs)
        hidden = norm(
            ops.add(dense(attended, prefix + "attention_output"), hidden), prefix + "attention_norm"
        )
        inner = ops.gelu(dense(hidden, prefix + "intermediate"), "erf")
        hidden = norm(ops.add(dense(inner, prefix + "output"), hidden), prefix + "output_norm")
        graphs.append(graph(list(inputs), hidden, layer + 1))
    return graphs


Attend = Callable[[torch.Tensor], torch.Tensor]


class AttentionNodes(list):
    """Keeps nodes of one graph alive: OpenVINO does not, and nodes that hold themselves are never freed."""


class Attention(ov.Op):
    """Attention as a node of a graph, computed by a function.

    Parameters
    ----------
    qkv : openvino.Output
        Queries, keys and values side by side, (n_slots, 3 * hidden_size).
    attend : callable
        Takes them as a Tensor, returns one of shape (n_slots, hidden_size).
    nodes : AttentionNodes
        To live as long as the graph. This node and its copies are added.
    """

    class_type_info = ov.DiscreteTypeInfo("Attention", "skminilm")

    def __init__(self, qkv: ov.Output, attend: Attend, nodes: AttentionNodes) -> None:
        # The node keeps what it is given here, usually itself, and would then never be freed.
        super().__init__(None)
        nodes.append(self)
        self._attend, self._nodes = attend, weakref.ref(nodes)
        self.set_arguments([qkv])
        self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        """Set the output's type and shape."""
        self.set_output_type(
            0, self.get_input_element_type(0), _shape_of_output(self.get_input_partial_shape(0))
        )

    def clone_with_new_inputs(self, new_inputs: Sequence[ov.Output]) -> ov.Node:
        """Return a copy for another graph, or where the shape alone is asked for, as in every call, its shape."""
        (qkv,) = new_inputs
        if qkv.partial_shape.is_static:
            return ops.parameter(_shape_of_output(qkv.partial_shape), qkv.element_type)
        return Attention(qkv, self._attend, self._nodes())

    def get_type_info(self) -> ov.DiscreteTypeInfo:
        """Return the name of this kind of node."""
        return self.class_type_info

    def has_evaluate(self) -> bool:
        """Tell that the node computes itself."""
        return True

    def evaluate(self, outputs: Sequence[ov.Tensor], inputs: Sequence[ov.Tensor]) -> bool:
        """Compute the output."""
        _as_torch(outputs[0]).copy_(self._attend(_as_torch(inputs[0])))
        return True


def _shape_of_output(qkv: ov.PartialShape) -> ov.PartialShape:
    n_slots, width = qkv
    return ov.PartialShape([n_slots, width.get_length() // 3])


def _as_torch(values: ov.Tensor) -> torch.Tensor:
    """Return a torch Tensor of the same memory."""
    tensor = torch.from_numpy(values.data)
    # NumPy does not know bfloat16: there OpenVINO calls it float16.
    return tensor.view(torch.bfloat16) if values.element_type == ov.Type.bf16 else tensor


def join_graphs(graphs: Sequence[ov.Model], attend: Attend, nodes: AttentionNodes) -> ov.Model:
    """Return the graphs that :func:`build_graphs` built as one, with attention between; they stay as they are.

    In one graph the memory of a layer serves the next one, and is still in the cache.
    """
    first, *layers = (graph.clone() for graph in graphs)
    outputs = _outputs(first)
    for layer in layers:
        hidden, qkv = outputs
        sources = Attention(qkv, attend, nodes).output(0), hidden
        for parameter, source in zip(layer.get_parameters(), sources, strict=True):
            for target in parameter.output(0).get_target_inputs():
                target.replace_source_output(source)
        outputs = _outputs(layer)
    return ov.Model([ops.result(*outputs)], first.get_parameters())


def _outputs(graph: ov.Model) -> list[ov.Output]:
    return [result.input_value(0) for result in graph.get_results()]


def _constant(values: torch.Tensor):
    return ops.constant(np.ascontiguousarray(values.numpy(), dtype=np.float32))


def quantize_graph(graph: ov.Model, samples: Sequence[Sequence[np.ndarray]]) -> ov.Model:
    """Quantise a graph in float32 to 8-bit weights and activations.

    Static post-training quantisation with SmoothQuant (arXiv:2211.10438), as
    NNCF does it for transformers. The ranges are the extremes over all
    samples, which measured better than their means.

    Parameters
    ----------
    graph : openvino.Model
    samples : sequence of lists of ndarray
        Inputs of the graph.
    """
    with _quiet():
        nncf = import_silently("nncf")
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        return nncf.quantize(
            graph,
            nncf.Dataset(samples),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            advanced_parameters=AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
            ),
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what NNCF logs and its progress bars, and undo its changes to logging."""
    logger = logging.getLogger("nncf")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    # In UTF-8: the bars hold characters that the encoding of the locale may lack.
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            import_silently("nncf").set_log_level(logging.ERROR)
            yield
        finally:
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)


def quantized_folder(fingerprint: str, calibration: tuple) -> Path:
    """Return where graphs quantised with this and these library versions are kept.

    In the folder of the environment variable ``SKMINILM_CACHE``, else in the
    user's cache folder as the system defines it.

    Raises
    ------
    OSError
        There is no such folder.
    """
    chosen = os.environ.get("SKMINILM_CACHE")
    try:
        cache_folder = own_path(chosen) if chosen else platformdirs.user_cache_path("skminilm")
    except RuntimeError as error:
        raise OSError(
            "The quantised graph is kept in the user's cache folder, and this process has no home folder: set the "
            "environment variable SKMINILM_CACHE to a folder."
        ) from error
    versions = [importlib.metadata.version(package) for package in ("openvino", "nncf")]
    parts = (_QUANTIZATION_VERSION, fingerprint, *versions, calibration)
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()
    return cache_folder / "openvino-int8" / digest[:32]


def read_graphs(folder: Path, n_graphs: int) -> list[ov.Model] | None:
    """Return the graphs kept in a folder; None where there are none, or damaged ones (with a warning)."""
    try:
        if not folder.is_dir():
            return None
        if (folder / "sha256").read_text() != _digest(folder):
            raise OSError("its sha256 is another than when it was written")
        core = ov.Core()
        return [core.read_model(folder / f"{i}.xml") for i in range(n_graphs)]
    except PermissionError as error:  # another user's
        warn(
            f"The quantised graph in {folder} may not be read ({error.strerror}): it is computed anew in each process. Set the "
            "environment variable SKMINILM_CACHE to a folder that can be read and written."
        )
        return None
    except (OSError, RuntimeError, ValueError) as error:  # the last of bytes that are no text
        warn(f"The quantised graph in {folder} is damaged ({error}); it is computed again.")
        shutil.rmtree(folder, ignore_errors=True)
        return None


def write_graphs(graphs: Sequence[ov.Model], folder: Path) -> None:
    """Keep graphs in a folder, whole or not at all; where that is impossible, say so and go on."""
    try:
        _write_graphs(graphs, folder)
    except (OSError, RuntimeError) as error:
        warn(
            f"The quantised graph cannot be kept in {folder.parent} ({error}): each process computes it anew. Set the "
            "environment variable SKMINILM_CACHE to a folder that can be written."
        )


def _write_graphs(graphs: Sequence[ov.Model], folder: Path) -> None:
    with temporary_folder(folder.parent) as fresh:
        with _decimal_points():
            for i, graph in enumerate(graphs):
                ov.save_model(graph, fresh / f"{i}.xml", compress_to_fp16=False)
        (fresh / "sha256").write_text(_digest(fresh))
        # Fails where another process has just written the same graphs, which is as good.
        with contextlib.suppress(OSError):
            os.replace(fresh, folder)


@contextlib.contextmanager
def _decimal_points() -> Iterator[None]:
    """Let numbers be written as OpenVINO reads them, in any locale: elsewhere 1e-12 may become 1,0 and be read as 1."""
    before = locale.setlocale(locale.LC_NUMERIC)
    locale.setlocale(locale.LC_NUMERIC, "C")
    try:
        yield
    finally:
        locale.setlocale(locale.LC_NUMERIC, before)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".xml", ".bin")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
