"""transformers' BertModel with the bundled weights: what the packed engine is compared with."""

from __future__ import annotations

import numpy as np
import torch
from transformers import BertConfig, BertModel

from skminilm.checkpoints import load_checkpoint
from skminilm.checkpoints.q4 import dequantize_q4


def load_reference() -> BertModel:
    """Return the dequantised bundled checkpoint as a BertModel in float32."""
    checkpoint = load_checkpoint("bundled")
    weights = checkpoint.read_weights()
    table = "embeddings.word_embeddings.weight"
    weights[table] = dequantize_q4(weights[table])
    shape = checkpoint.config
    config = BertConfig(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_position_embeddings,
        layer_norm_eps=shape.layer_norm_eps,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    keys = model.load_state_dict(weights, strict=False)
    if keys.unexpected_keys or any("position_ids" not in key for key in keys.missing_keys):
        raise RuntimeError(f"the weights do not fit BertModel: {keys}")
    return model


def pooled_vectors(model: BertModel, texts: list[str], pooling: str = "mean") -> np.ndarray:
    """Return the pooled last hidden states of each text, computed one by one, without prompt."""
    tokenizer = load_checkpoint("bundled").tokenizer
    vectors = []
    for text in texts:
        ids = torch.from_numpy(tokenizer.encode([text], max_length=512).input_ids).long()[None]
        with torch.no_grad():
            hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        pooled = {"mean": hidden.mean(dim=0), "cls": hidden[0], "max": hidden.max(dim=0).values}[pooling]
        vectors.append(pooled.numpy())
    return np.array(vectors)
