"""Names of the fused weights."""


def layer_prefix(layer: int) -> str:
    """Return how the names of a layer's weights begin."""
    return f"layers.{layer}."
