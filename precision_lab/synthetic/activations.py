"""Sizes of activation functions of independent x, y ~ N(0, 1), by which unit gain is kept."""

SILU_RMS = 0.6
"""Root mean square of silu(x)."""

SILU_PRODUCT_RMS = 0.6
"""Root mean square of silu(x) * y."""

GELU_RMS = 0.65
"""Root mean square of gelu(x)."""
