"""A laboratory for numerical precision in the Qwen-Image diffusion transformer on MLX."""

__version__ = "0.1.0"
