"""The encoder's layers as an OpenVINO graph, in float32 or quantised to 8 bits."""

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

_QUANTIZATION_VERSION = 1  # raise it when the same weights and texts begin to give another graph
_GRAPH_FILE = "openvino_model.xml"


def build_graph(weights: Mapping[str, torch.Tensor], config: BertConfig) -> ov.Model:
    """Build the layers of an encoder.

    Parameters
    ----------
    weights : mapping of str to Tensor
        As :func:`~skminilm.engine.packed_model.fused_weights` names them.
    config : BertConfig

    Returns
    -------
    openvino.Model
        Inputs: the embeddings, float32 (n_texts, length, hidden_size), and
        what is added to the attention scores, float32 (n_texts, 1, 1,
        length): 0 at tokens, `HIDDEN_MASKED` at padding. Output: the last
        hidden states. The embedding table stays outside: four fifths of the
        parameters, of which a batch needs a few rows.
    """
    hidden_size, n_heads = config.hidden_size, config.num_attention_heads
    head_size = hidden_size // n_heads
    heads_shape, merged_shape = _integers(0, 0, n_heads, head_size), _integers(0, 0, hidden_size)
    swap = _integers(0, 2, 1, 3)

    def linear(x, weight: np.ndarray, bias: np.ndarray):
        return ops.add(ops.matmul(x, _constant(weight), False, True), _constant(bias))

    def norm(x, name: str):
        normalized = ops.mvn(x, _integers(-1), True, config.layer_norm_eps, "inside_sqrt")
        scaled = ops.multiply(normalized, _constant(weights[f"{name}.weight"].numpy()))
        return ops.add(scaled, _constant(weights[f"{name}.bias"].numpy()))

    embeddings = ops.parameter([-1, -1, hidden_size], np.float32, name="embeddings")
    mask = ops.parameter([-1, 1, 1, -1], np.float32, name="attention_mask")
    hidden = embeddings
    for layer in range(config.num_hidden_layers):
        prefix = layer_prefix(layer)

        def dense(x, part: str, prefix: str = prefix):
            name = prefix + part
            return linear(x, weights[f"{name}.weight"].numpy(), weights[f"{name}.bias"].numpy())

        heads = []
        for part in range(3):
            rows = slice(part * hidden_size, (part + 1) * hidden_size)
            # The scores' scale goes into the queries.
            scale = np.float32(head_size**-0.5 if part == 0 else 1)
            weight, bias = (
                weights[f"{prefix}qkv.{kind}"][rows].numpy() * scale for kind in ("weight", "bias")
            )
            heads.append(ops.transpose(ops.reshape(linear(hidden, weight, bias), heads_shape, True), swap))
        query, key, value = heads
        scores = ops.add(ops.matmul(query, key, False, True), mask)
        attended = ops.matmul(ops.softmax(scores, -1), value, False, False)
        attended = ops.reshape(ops.transpose(attended, swap), merged_shape, True)
        hidden = norm(ops.add(dense(attended, "attention_output"), hidden), prefix + "attention_norm")
        inner = ops.gelu(dense(hidden, "intermediate"), "erf")
        hidden = norm(ops.add(dense(inner, "output"), hidden), prefix + "output_norm")
    return ov.Model([ops.result(hidden, name="last_hidden_state")], [embeddings, mask], "encoder")


def _constant(values: np.ndarray):
    return ops.constant(np.ascontiguousarray(values, dtype=np.float32))


def _integers(*values: int):
    return ops.constant(np.array(values, np.int64))


def quantize_graph(graph: ov.Model, samples: Sequence[Sequence[np.ndarray]]) -> ov.Model:
    """Quantise a graph to 8-bit weights and activations.

    Static post-training quantisation with SmoothQuant (arXiv:2211.10438), as
    NNCF does it for transformers. The ranges are the extremes over all
    samples, which measured better than their means.

    Parameters
    ----------
    graph : openvino.Model
    samples : sequence of inputs
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
    """Return where the graph quantised with these texts and library versions is kept."""
    versions = [importlib.metadata.version(package) for package in ("openvino", "nncf")]
    parts = [str(_QUANTIZATION_VERSION), fingerprint, *versions, *calibration]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return cache_folder / "openvino-int8" / digest[:32]


def read_graph(folder: Path) -> ov.Model | None:
    """Return the graph kept in a folder; None where there is none, or a damaged one (with a warning)."""
    path = folder / _GRAPH_FILE
    if not path.is_file():
        return None
    try:
        digest = (folder / "sha256").read_text()
        if digest != _digest(folder):
            raise OSError("its sha256 is another than when it was written")
        return ov.Core().read_model(path)
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"The quantised graph in {folder} is damaged ({error}); it is computed again.",
            UserWarning,
            stacklevel=2,
        )
        shutil.rmtree(folder, ignore_errors=True)
        return None


def write_graph(graph: ov.Model, folder: Path) -> None:
    """Keep a graph in a folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as temporary:
        fresh = Path(temporary) / "graph"
        fresh.mkdir()
        ov.save_model(graph, fresh / _GRAPH_FILE, compress_to_fp16=False)
        (fresh / "sha256").write_text(_digest(fresh))
        # Fails where another process has just written the same graph, which is as good.
        with contextlib.suppress(OSError):
            os.replace(fresh, folder)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for suffix in (".xml", ".bin"):
        digest.update((folder / _GRAPH_FILE).with_suffix(suffix).read_bytes())
    return digest.hexdigest()
