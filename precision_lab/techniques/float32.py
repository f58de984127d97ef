"""Computing chosen modules in fp32 and rounding once at the end.

With `sites: [norm_out]` this is the technique of MIXED_PRECISION_OPTIMIZATION (S1): the image stream reaches tens of
millions where the final LayerNorm reads it. Cost: one pass over the module's inputs and outputs more; weights are
upcast where they are used, not stored wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from precision_lab.instrument.sites import Site, Wrapper


class _InFloat32(Wrapper):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        dtype = _first_float(args)
        out = self.inner(*_cast(args, mx.float32), **_cast(kwargs, mx.float32))
        return _cast(out, dtype)


def _first_float(args: tuple[Any, ...]) -> mx.Dtype:
    for arg in args:
        if isinstance(arg, tuple | list):
            return _first_float(tuple(arg))
        if isinstance(arg, mx.array) and mx.issubdtype(arg.dtype, mx.floating):
            return arg.dtype
    return mx.float32


def _cast(tree: Any, dtype: mx.Dtype) -> Any:
    def leaf(x: Any) -> Any:
        return x.astype(dtype) if isinstance(x, mx.array) and mx.issubdtype(x.dtype, mx.floating) else x

    return tree_map(leaf, tree)


@dataclass(frozen=True)
class Float32:
    """Upcasts the floating-point inputs of each site to fp32 and its outputs back to the dtype of the first input."""

    sites: Sequence[str]
    preserves_function: bool = True
    composes: bool = True

    def rewrite(self, site: Site) -> nn.Module:
        return _InFloat32(site.module)
