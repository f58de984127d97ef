"""Casting the floating-point arrays among arguments and results; complex ones, masks and other values pass."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map


def cast(tree: Any, dtype: mx.Dtype) -> Any:
    """`tree` with its floating-point arrays in `dtype`; named tuples stay what they are."""
    return tree_map(lambda x: x.astype(dtype) if _is_float(x) else x, tree)


def float_dtypes(tree: Any) -> list[mx.Dtype]:
    """The dtypes of the floating-point arrays in `tree`, in order."""
    return [x.dtype for _, x in tree_flatten(tree) if _is_float(x)]


def _is_float(x: Any) -> bool:
    return isinstance(x, mx.array) and mx.issubdtype(x.dtype, mx.floating)
