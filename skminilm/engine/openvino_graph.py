"""What an encoder computes between attention and attention, as OpenVINO graphs, in floats or quantised to 8 bits."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..checkpoints import BertConfig
from ._names import layer_prefix
from ._openvino_import import import_silently

ov = import_silently("openvino")
ops = import_silently("openvino.opset13")

_QUANTIZATION_VERSION = 2  # raise it when the same weights and texts begin to give other graphs
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
        As :func:`~skminilm.engine.packed_model.fused_weights` names them.
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
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import_silently("nncf").set_log_level(logging.ERROR)
            yield
        finally:
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)


def quantized_folder(cache_folder: Path, fingerprint: str, calibration: Sequence[str]) -> Path:
    """Return where graphs quantised with these texts and library versions are kept."""
    versions = [importlib.metadata.version(package) for package in ("openvino", "nncf")]
    parts = [str(_QUANTIZATION_VERSION), fingerprint, *versions, *calibration]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return cache_folder / "openvino-int8" / digest[:32]


def read_graphs(folder: Path, n_graphs: int) -> list[ov.Model] | None:
    """Return the graphs kept in a folder; None where there are none, or damaged ones (with a warning)."""
    if not folder.is_dir():
        return None
    try:
        if (folder / "sha256").read_text() != _digest(folder):
            raise OSError("its sha256 is another than when it was written")
        core = ov.Core()
        return [core.read_model(folder / f"{i}.xml") for i in range(n_graphs)]
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"The quantised graph in {folder} is damaged ({error}); it is computed again.",
            UserWarning,
            stacklevel=2,
        )
        shutil.rmtree(folder, ignore_errors=True)
        return None


def write_graphs(graphs: Sequence[ov.Model], folder: Path) -> None:
    """Keep graphs in a folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as temporary:
        fresh = Path(temporary) / "graphs"
        fresh.mkdir()
        for i, graph in enumerate(graphs):
            ov.save_model(graph, fresh / f"{i}.xml", compress_to_fp16=False)
        (fresh / "sha256").write_text(_digest(fresh))
        # Fails where another process has just written the same graphs, which is as good.
        with contextlib.suppress(OSError):
            os.replace(fresh, folder)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".xml", ".bin")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
