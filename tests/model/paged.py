"""What a pass of a paged model has in memory."""

import gc
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.model import weights
from precision_lab.model.paging import PagedBlock
from precision_lab.model.qwen_image.rope import rotations
from precision_lab.model.qwen_image_21.rope import rotations as rotations_21


def widen(folder: Path) -> None:
    """Stores the weights of a transformer in fp32. MLX's products in fp32 then need no copies of weights.

    MLX reserves such copies for products that it has yet to compute. How many of them is a matter of threads.
    """
    for file in folder.glob("*.safetensors"):
        wide = {name: array.astype(mx.float32) for name, array in mx.load(str(file)).items()}
        mx.save_safetensors(str(file), wide, {"format": "pt"})


def block_nbytes(folder: Path) -> int:
    """The size of the first block of a transformer in its files."""
    places = weights.extents(folder).items()
    return sum(place.nbytes for name, place in places if name.startswith("transformer_blocks.0."))


def measure_blocks(
    monkeypatch: pytest.MonkeyPatch, layers: int, forward: Callable[[], object]
) -> tuple[int, np.ndarray]:
    """MLX's memory beyond that before `forward`: its peak, and what is active after each block, (passes, layers).

    The process keeps rotary tables. The caches are emptied first, or a pass might release larger tables of other tests.
    """
    after: list[int] = []
    call = PagedBlock.__call__

    def measured(block, *args, **kwargs):
        out = call(block, *args, **kwargs)
        after.append(mx.get_active_memory())
        return out

    for tables in (rotations, rotations_21):
        tables.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(PagedBlock, "__call__", measured)
        gc.disable()  # else another test's model may be freed during the pass
        try:
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            forward()
            return mx.get_peak_memory() - before, np.array(after).reshape(-1, layers) - before
        finally:
            gc.enable()
