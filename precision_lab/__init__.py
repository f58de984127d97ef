"""A laboratory for numerical precision in the Qwen-Image diffusion transformer on MLX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precision_lab.lab.capture import capture

__all__ = ["__version__", "capture"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`capture`, imported when asked for: the command line loads a BLAS before anything loads MLX."""
    if name == "capture":
        from precision_lab.lab.capture import capture

        return capture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
