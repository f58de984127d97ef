"""Changes of the weights of linears: of an adapter, of a second checkpoint, or generated ones of a stated size.

A change is asked for one linear at a time, and nothing is kept of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from zlib import crc32

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components, Site, walk
from precision_lab.lab.agreement import rms
from precision_lab.model.coded import LINEARS, linear_shape, linear_weight
from precision_lab.techniques.parts.adapters import Adapters

Change = Callable[[nn.Module], mx.array]
"""The change (outputs, channels), fp32, of the weight of a linear."""

RMS, RANK = 0.1, 16
"""The size, relative to the weight's, and the rank of a generated change."""


def generated(sites: Sequence[Site], size: float, rank: int | None, seed: int) -> dict[Site, Change]:
    """A change for each linear, with an rms of `size` times that of its weight.

    It is the product of two Gaussian matrices of `rank`, or Gaussian itself for None; from the seed and the site alone.
    """

    def of(site: Site) -> Change:
        def change(module: nn.Module) -> mx.array:
            rng = np.random.Generator(np.random.PCG64([seed, crc32(str(site).encode()), 0]))
            outputs, channels = linear_shape(module)
            if rank is None:
                drawn = mx.array(rng.standard_normal((outputs, channels), dtype=np.float32))
            else:
                up, down = (rng.standard_normal(s, dtype=np.float32) for s in ((outputs, rank), (rank, channels)))
                drawn = mx.array(up) @ mx.array(down)
            return drawn * (size * rms(linear_weight(module)) / rms(drawn))

        return change

    return {site: of(site) for site in sites}


def of_adapter(sites: Sequence[Site], path: str, strength: float, every: Sequence[Site]) -> dict[Site, Change]:
    """The changes of an adapter, a file or a folder, at those of `sites` that it names. every: the sites of the model.

    Raises InputError if the adapter cannot be read or does not fit the model, and if it names none of `sites`.
    """
    adapters = Adapters("adapter", path, strength)
    adapters.check_model(every, ["**"])
    found = {site: deltas for site in sites if (deltas := adapters.at(site))}
    if not found:
        first = next(str(site) for site in every if adapters.at(site))
        raise InputError(f"adapter={path} changes none of the {len(sites)} linears that of= names, but {first}")
    return {site: partial(_matrix, deltas[0]) for site, deltas in found.items()}


def _matrix(delta: Any, module: nn.Module) -> mx.array:
    return delta.matrix()


def of_checkpoint(sites: Sequence[Site], path: str, strength: float, other: Components) -> dict[Site, Change]:
    """The differences of the weights of another checkpoint at `sites`.

    Raises InputError if a site is missing there or has another shape.
    """
    theirs: Mapping[tuple[str, str], nn.Module] = {(each.component, each.path): each.module for each in walk(other)}

    def of(site: Site) -> Change:
        module = theirs.get((site.component, site.path))
        if not isinstance(module, LINEARS):
            raise InputError(f"other={path} has no linear {site}, expected a checkpoint of the same architecture")
        if linear_shape(module) != linear_shape(site.module):
            one, two = (" x ".join(map(str, linear_shape(each))) for each in (site.module, module))
            raise InputError(f"other={path}: {site} is {two}, expected {one}, that of the same architecture")
        return lambda mine: (linear_weight(module) - linear_weight(mine)) * strength

    return {site: of(site) for site in sites}
