"""What those who make weights and those who compute with them have to agree on."""

# Of a layer, each with weight and bias, and what transformers' ``BertModel`` calls them.
LAYER_PARTS = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "intermediate": ("intermediate.dense",),
    "output": ("output.dense",),
    "output_norm": ("output.LayerNorm",),
}


def layer_prefix(layer: int) -> str:
    """Return how the names of a layer's weights begin."""
    return f"layers.{layer}."
