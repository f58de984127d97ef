"""Modules in a narrower format than the rest of the model.

On chips without bfloat16, ComfyUI's pull request 12522 runs in fp32 with a "safe set" in float16: image k and v, text q
and v, and the joint attention (V100, 512x512: 41 -> 23 s). Cost: a cast of inputs and outputs at each site. The gain is
the speed of the narrow product.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.model.casting import is_fixed
from precision_lab.techniques.parts.casting import cast, float_dtypes
from precision_lab.techniques.parts.narrow_sums import dtype_named


class _Narrow(Wrapper):
    """The inner module with its inputs and parameters rounded to `dtype`; outputs keep the dtype of the first input."""

    def __init__(self, inner: nn.Module, dtype: mx.Dtype):
        super().__init__(inner)
        self._dtype = dtype
        self._narrow = copy(inner)
        for name in inner:  # not items(), which lists only parameters in memory
            value = inner[name]
            if isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating) and not is_fixed(inner, name):
                self._narrow[name] = value.astype(dtype)

    def __call__(self, *args: Any) -> Any:
        dtypes = float_dtypes(args) or [mx.float32]
        return cast(self._narrow(*cast(args, self._dtype)), dtypes[0])


@dataclass(frozen=True)
class Narrow:
    """Each site, which must not hold other modules, computes in `dtype`; everything around it keeps its own dtype."""

    sites: Sequence[str]
    dtype: str = "float16"
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        dtype_named("narrow.dtype", self.dtype)

    @property
    def unrounded(self) -> Narrow:
        """The same without its intended rounding; a proof of the function uses this."""
        return replace(self, dtype="float32")

    def rewrite(self, site: Site) -> nn.Module:
        if site.module.children():
            raise InputError(
                f"narrow: {site} holds other modules, expected a module without any; name the modules inside it"
            )
        return _Narrow(site.module, dtype_named("narrow.dtype", self.dtype))
