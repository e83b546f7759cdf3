"""What a graph and those who feed it have to agree on."""

HIDDEN_MASKED = -1e4  # added to a score that must not count: far below any, and finite in every precision


def layer_prefix(layer: int) -> str:
    """Return how the names of a layer's weights begin."""
    return f"layers.{layer}."
