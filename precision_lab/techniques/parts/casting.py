"""Casts of the floating-point arrays among arguments and results; complex arrays, masks and other values pass."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from precision_lab.instrument.sites import Wrapper


def cast(tree: Any, dtype: mx.Dtype) -> Any:
    """`tree` with its floating-point arrays in `dtype`; named tuples keep their class."""
    return tree_map(lambda x: x.astype(dtype) if _is_float(x) else x, tree)


def float_dtypes(tree: Any) -> list[mx.Dtype]:
    """The dtypes of the floating-point arrays in `tree`, in order."""
    return [x.dtype for _, x in tree_flatten(tree) if _is_float(x)]


def result_dtype(module: nn.Module, *args: Any) -> mx.Dtype:
    """The dtype that the result of `module(*args)` should have: that of the first floating-point argument, else fp32.

    A wrapper around the module may state another dtype through a method `result_dtype(*args)`. The end of an fp32
    residual stream does: its first argument is fp32, its result is in the dtype of the computation.
    """
    while isinstance(module, Wrapper):
        if hasattr(module, "result_dtype"):
            return module.result_dtype(*args)
        module = module.inner
    return next(iter(float_dtypes(args)), mx.float32)


def _is_float(x: Any) -> bool:
    return isinstance(x, mx.array) and mx.issubdtype(x.dtype, mx.floating)
