"""Chosen modules in a narrower format than the rest of the model.

ComfyUI's pull request 12522 runs on chips without bfloat16 in fp32, with a "safe set" in float16: image k and v, text q
and v, and the joint attention (V100, 512x512: 41 -> 23 s). Cost: a cast of inputs and outputs at each site; the gain is
that of the narrow product.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.techniques.parts.casting import cast, float_dtypes
from precision_lab.techniques.parts.narrow_sums import dtype_named


class _Narrow(Wrapper):
    """The inner module on inputs, and with parameters of its own, rounded to `dtype`; outputs as they would be."""

    def __init__(self, inner: nn.Module, dtype: mx.Dtype):
        super().__init__(inner)
        self._dtype = dtype
        self._narrow = copy(inner)
        for name in inner:  # and not items(), which shows only what is in memory
            value = inner[name]
            if isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating):
                self._narrow[name] = value.astype(dtype)

    def __call__(self, *args: Any) -> Any:
        dtypes = float_dtypes(args) or [mx.float32]
        return cast(self._narrow(*cast(args, self._dtype)), dtypes[0])


@dataclass(frozen=True)
class Narrow:
    """`dtype` inside each site, which holds no other module; its surroundings keep the dtype of the computation."""

    sites: Sequence[str]
    dtype: str = "float16"
    preserves_function: bool = True
    composes: bool = False

    def __post_init__(self) -> None:
        dtype_named("narrow.dtype", self.dtype)

    @property
    def unrounded(self) -> Narrow:
        """The same without the rounding that it is for: what a proof of its function looks at."""
        return replace(self, dtype="float32")

    def rewrite(self, site: Site) -> nn.Module:
        if site.module.children():
            raise InputError(f"narrow: {site} holds other modules, name those inside it")
        return _Narrow(site.module, dtype_named("narrow.dtype", self.dtype))
