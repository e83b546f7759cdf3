"""A network as a folder that sentence-transformers, transformers and this package read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from .._folders import copy_rights
from ..checkpoints import BertConfig, Checkpoint, EncodingSettings
from ..checkpoints.layout import POOLING_KEYS
from ..checkpoints.tokenizer import write_tokenizer
from .weight_reading import read_fused_weights
from .weights import TunedWeights, replaced_weights, unfused_weights

_MODULES = "sentence_transformers.models."  # the names that all releases read
# The oldest that this package takes. Where a folder names none, 4.57 advises an option that breaks its tokenizer.
_TRANSFORMERS = "4.48.0"


def export_network(
    folder: Path, checkpoint: Checkpoint, settings: EncodingSettings, tuned: TunedWeights | None
) -> None:
    """Write a BERT-shaped network with its tokenizer, pooling and prompt into an empty folder.

    Weights are in float32, under the names of transformers' ``BertModel``,
    whatever the checkpoint was laid out as.

    Raises
    ------
    ValueError
        The checkpoint came out of a saved estimator, with a vocabulary that is not XLM-R's: what transformers needs
        to know of it beside the vocabulary is not kept there.
    """
    padding = write_tokenizer(folder, checkpoint)
    weights = read_fused_weights(checkpoint)
    if tuned:
        weights = replaced_weights(weights, tuned)
    tensors = {name: tensor.contiguous() for name, tensor in unfused_weights(weights, checkpoint.config)}
    file = folder / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    for name, content in _configuration(checkpoint.config, settings, padding).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    copy_rights(folder / "config.json", file)  # safetensors may write for the owner alone


def _configuration(config: BertConfig, settings: EncodingSettings, padding: int | None) -> dict[str, Any]:
    """Return the content of the JSON files by their names."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if settings.normalize:
        modules.append(("2_Normalize", "Normalize"))
    poolings = {key: name == settings.pooling for key, name in POOLING_KEYS.items()}
    prompted = (
        {"prompts": {"text": settings.prompt}, "default_prompt_name": "text"} if settings.prompt else {}
    )
    return {
        "config.json": {
            "model_type": "bert",
            "architectures": ["BertModel"],
            "hidden_act": "gelu",
            **asdict(config),
            "pad_token_id": padding,
            "transformers_version": _TRANSFORMERS,
        },
        "modules.json": [
            {"idx": number, "name": str(number), "path": path, "type": _MODULES + name}
            for number, (path, name) in enumerate(modules)
        ],
        "sentence_bert_config.json": {"max_seq_length": settings.max_length, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": config.hidden_size, **poolings},
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine", **prompted},
    }
