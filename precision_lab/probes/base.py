"""What a probe is: a pure function from an array to named scalars, and where to apply it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import mlx.core as mx

Scalar = mx.array | float | int


@runtime_checkable
class Probe(Protocol):
    """Each scalar becomes a column of activations.parquet.

    Anything with these members works, from any package.
    """

    @property
    def sites(self) -> Sequence[str]:
        """Patterns of the modules to observe."""

    @property
    def ports(self) -> Sequence[str]:
        """ "out", "in" or both: which arrays of a call to measure."""

    def measure(self, x: mx.array) -> Mapping[str, Scalar]:
        """Scalars of one evaluated array; those that are MLX arrays may be lazy, they are evaluated in groups."""
