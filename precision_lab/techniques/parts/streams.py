"""The residual streams in what a block of the transformer takes or returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from precision_lab.model.qwen_image.streams import Streams
from precision_lab.model.qwen_image_21.prefix import Output


def over_streams(change: Callable[[mx.array], mx.array], value: Any) -> Any:
    """`value` with `change` applied to its residual streams: a pair of streams, one array, or one array with the keys
    and values that a block keeps, which are no stream and stay.
    """
    if isinstance(value, Streams):
        return Streams(img=change(value.img), txt=change(value.txt))
    if isinstance(value, Output):
        return value._replace(img=change(value.img))
    return change(value)
