"""The head over a network that was fine-tuned with transformers, read from the folder of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint import Checkpoint, read_json
from .layout import find_transformer

if TYPE_CHECKING:
    import torch

# The layer below the last one and the last one, as BERT and as XLM-R call them.
_SEQUENCE_HEADS = (("pooler.dense", "classifier"), ("classifier.dense", "classifier.out_proj"))
_HEAD_OF_SETFIT = "model_head.pkl"
_SPAN_HEAD = "qa_outputs"
_TASKS = {"ForSequenceClassification": "texts", "ForQuestionAnswering": "answers"}


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer.

    Attributes
    ----------
    coef : ndarray of float32, shape (n_outputs, n_inputs)
    intercept : ndarray of float32, shape (n_outputs,)
    """

    coef: np.ndarray
    intercept: np.ndarray


@dataclass(frozen=True)
class SequenceHead:
    """The head of ``AutoModelForSequenceClassification``: ``last(tanh(pooler(state of the first token)))``.

    Attributes
    ----------
    pooler, last : LinearLayer
    names : list of str or list of int
        What ``config.json`` calls the outputs; those it does not name are
        ``"LABEL_0"``, ``"LABEL_1"`` and so on, as in transformers. The
        numbers, where all are so.
    problem_type : str or None
        As in ``config.json``.
    """

    pooler: LinearLayer
    last: LinearLayer
    names: list[str] | list[int]
    problem_type: str | None


def read_sequence_head(checkpoint: Checkpoint) -> SequenceHead:
    """Read the head that classifies or scores whole texts or pairs.

    Raises
    ------
    ValueError
        The engine cannot run the network, or there is no such head.
    OSError
        The files are damaged.
    """
    weights, config = _weights(checkpoint), _config(checkpoint)
    _check_task(checkpoint, config, "ForSequenceClassification")
    for pooler_name, last_name in _SEQUENCE_HEADS:
        if {f"{pooler_name}.weight", f"{last_name}.weight"} <= weights.keys():
            break
    else:
        raise _without_head(checkpoint, "ForSequenceClassification")
    size = checkpoint.hidden_size
    pooler, last = _layer(weights, pooler_name, size, size), _layer(weights, last_name, None, size)
    names = _names(checkpoint, config.get("id2label") or {}, len(last.coef))
    return SequenceHead(pooler, last, names, config.get("problem_type"))


def read_span_head(checkpoint: Checkpoint) -> LinearLayer:
    """Read the head of ``AutoModelForQuestionAnswering``: of each token, whether an answer begins or ends there.

    Raises
    ------
    ValueError
        The engine cannot run the network, or there is no such head.
    OSError
        The files are damaged.
    """
    weights = _weights(checkpoint)
    _check_task(checkpoint, _config(checkpoint), "ForQuestionAnswering")
    if f"{_SPAN_HEAD}.weight" not in weights:
        raise _without_head(checkpoint, "ForQuestionAnswering")
    return _layer(weights, _SPAN_HEAD, 2, checkpoint.hidden_size)


def _weights(checkpoint: Checkpoint) -> Mapping[str, torch.Tensor]:
    if checkpoint.foreign_reason:
        raise ValueError(
            f"The head of {checkpoint.name!r} cannot be used here, because the engine cannot run its network: "
            f"{checkpoint.foreign_reason}. Use transformers.pipeline."
        )
    return checkpoint.read_weights()


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    return {} if checkpoint.folder is None else read_json(find_transformer(checkpoint.folder) / "config.json")


def _check_task(checkpoint: Checkpoint, config: Mapping[str, Any], task: str) -> None:
    """Refuse the head of another task, whose layers may have the same names."""
    architectures = config.get("architectures") or []
    if architectures and not any(str(name).endswith(task) for name in architectures):
        raise _without_head(checkpoint, task, f"but was saved by {', '.join(map(str, architectures))}")


def _names(checkpoint: Checkpoint, named: Any, n_outputs: int) -> list[str] | list[int]:
    problem = "it is no object"
    if isinstance(named, Mapping):
        names = [named.get(str(number), f"LABEL_{number}") for number in range(n_outputs)]
        if names == [f"LABEL_{number}" for number in range(n_outputs)]:
            return list(range(n_outputs))
        if all(isinstance(name, int) and not isinstance(name, bool) for name in names):
            return names
        if all(isinstance(name, str) for name in names):
            return names
        problem = f"the outputs are called {names}"
    raise OSError(
        f"config.json of {checkpoint.name!r} garbles id2label: {problem}. Give each output a str, or each an int."
    )


def _without_head(checkpoint: Checkpoint, task: str, found: str = "only a network") -> ValueError:
    if checkpoint.folder is not None and (checkpoint.folder / _HEAD_OF_SETFIT).is_file():
        return ValueError(
            f"{checkpoint.name!r} was saved by SetFit, with a head of scikit-learn: make_pipeline(MiniLMEncoder("
            f"{checkpoint.name!r}), joblib.load({str(checkpoint.folder / _HEAD_OF_SETFIT)!r})) predicts with both. Load only "
            "a file that you trust: it may run code."
        )
    return ValueError(
        f"{checkpoint.name!r} holds no head for {_TASKS[task]} (AutoModel{task}), {found}: fit an estimator on it "
        f"(model={checkpoint.name!r}), or give a checkpoint that was fine-tuned for that with transformers."
    )


def _layer(
    weights: Mapping[str, torch.Tensor], name: str, n_outputs: int | None, n_inputs: int
) -> LinearLayer:
    try:
        coef, intercept = (weights[f"{name}.{kind}"].float().numpy() for kind in ("weight", "bias"))
    except KeyError as error:
        raise OSError(f"The weights lack {error}. Download the checkpoint again.") from error
    expected = (len(coef) if n_outputs is None else n_outputs, n_inputs)
    if coef.shape != expected or intercept.shape != expected[:1]:
        raise OSError(
            f"{name} has the shapes {coef.shape} and {intercept.shape}, and the network takes {expected} and "
            f"{expected[:1]}: the files do not belong together. Download the checkpoint again."
        )
    if not (np.isfinite(coef).all() and np.isfinite(intercept).all()):
        raise OSError(f"{name} holds a number that is not finite. Download the checkpoint again.")
    return LinearLayer(coef, intercept)
