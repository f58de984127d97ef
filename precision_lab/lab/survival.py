"""What arrives of a change of a weight when the weight is stored in a format, one linear at a time.

The change is added to the weight before it is stored, or to the decoded weight of a linear that is stored already,
which is then stored again. What arrives is the difference of the decoded weights with and without the change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from zlib import crc32

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site
from precision_lab.lab.agreement import agreement, correlation, rms, total
from precision_lab.lab.candidates import Candidate
from precision_lab.lab.deltas import Change
from precision_lab.lab.formats import keeps
from precision_lab.model.coded import LINEARS, CodedLinear, linear_shape, linear_weight, with_weight
from precision_lab.model.neighbours import neighbours, step, stochastic
from precision_lab.techniques.coded_weights import CodedWeights

ORDERS = ("before", "after")
ROUNDINGS = ("nearest", "stochastic")
BEFORE, AFTER = ORDERS
NEAREST, STOCHASTIC = ROUNDINGS


@dataclass(frozen=True)
class Unfit:
    """A format that a linear cannot be stored in, and why."""

    format: str
    site: str
    reason: str


@dataclass(frozen=True)
class Unchanged:
    """A linear whose change is zero everywhere, so that nothing can arrive."""

    site: str


class Stored(NamedTuple):
    """A weight as a format stores it: decoded, and its codes; None where the format states none."""

    decoded: mx.array
    codes: mx.array | None


@dataclass(frozen=True)
class Survival:
    """What is measured: the formats, the orders of ORDERS, the ways to round of ROUNDINGS, the seed of the latter."""

    candidates: Sequence[Candidate]
    orders: Sequence[str] = ORDERS
    roundings: Sequence[str] = ROUNDINGS
    seed: int = 0

    def measure(
        self, changes: Mapping[Site, Change], advance: Callable[[float, str], None]
    ) -> Iterator[list[dict[str, Any]] | Unfit | Unchanged]:
        """For each linear and format, its rows, or why there are none. One linear is in memory at a time.

        advance: called with the weights that are done, and what they are in. Raises InputError for a weight or a change
        that is not finite.
        """
        kept = {candidate.name for candidate in self.candidates if keeps(candidate)}
        for site, change in changes.items():
            weight, delta = linear_weight(site.module), change(site.module)
            for what, values in (("weight", weight), ("change", delta)):
                if not mx.isfinite(values).all().item():
                    raise InputError(f"{site} has a {what} that is not finite, of which nothing can be said to arrive")
            if not mx.any(delta != 0).item():
                yield Unchanged(str(site))
                advance(weight.size, str(site))
                continue
            packed = isinstance(site.module, nn.QuantizedLinear | CodedLinear)
            # holds the weight that a module of a paged block would read again whenever it is asked for
            plain = site.module if packed else with_weight(site.module, weight)
            for candidate in self.candidates:
                own = replace(site, module=plain)
                yield self._in_format(own, weight, delta, candidate, candidate.name in kept)
                advance(weight.size / len(self.candidates), f"{candidate.name} {site}")
            del weight, delta, plain
            mx.clear_cache()

    def _in_format(
        self, site: Site, weight: mx.array, delta: mx.array, candidate: Candidate, is_kept: bool
    ) -> list[dict[str, Any]] | Unfit:
        technique = candidate.technique([f"{site.component}:**"])

        def stored(module: nn.Module) -> nn.Module:
            """The linear that stores the weight of another in the format. Raises InputError where it does not fit."""
            found = technique.rewrite(replace(site, module=module))
            if not isinstance(found, LINEARS):
                raise InputError(f"{candidate.name} stores no weight in a format")
            if found is module and not is_kept:
                why = technique.coding.unfit(weight.shape) if isinstance(technique, CodedWeights) else None
                raise InputError(
                    why or f"{candidate.name} leaves a weight of {' x '.join(map(str, weight.shape))} alone"
                )
            return found

        try:
            base = stored(site.module)
        except InputError as error:
            return Unfit(candidate.name, str(site), str(error))
        held, found, decoded = _held(base), neighbours(base), linear_weight(base)
        spacing = math.nan
        if found is not None:
            each = step(found)
            valid = mx.logical_not(mx.isnan(each))
            count = total(valid)
            spacing = total(mx.where(valid, each, 0)) / count if count else math.nan
        delta_rms, weight_rms = rms(delta), rms(weight)
        about = {
            **_place(site),
            "format": candidate.name,
            "outputs": weight.shape[0],
            "channels": weight.shape[1],
            "weight_rms": weight_rms,
            "delta_rms": delta_rms,
            "step": spacing,
            "step_over_delta": spacing / delta_rms if delta_rms else math.nan,
            "format_error": rms(decoded - weight) / weight_rms if weight_rms else math.nan,
        }
        numbers = _numbers(site, self.seed, weight.shape) if STOCHASTIC in self.roundings else None

        def rounded(module: nn.Module, values: mx.array, rounding: str) -> Stored | None:
            """What `module`, which stores `values` rounded to nearest, holds under a rounding."""
            if rounding == NEAREST:
                return _held(module)
            assert numbers is not None
            drawn = stochastic(module, values, numbers)
            return None if drawn is None else Stored(*drawn)

        rows = []
        for order in self.orders:
            summands = weight if order == BEFORE else decoded
            again = {
                amount: stored(with_weight(site.module, weight + change))
                if order == BEFORE
                else with_weight(base, summands + change)
                for amount, change in (("with", delta), ("without", mx.zeros_like(delta)))
            }
            for rounding in self.roundings:
                fused = rounded(again["with"], summands + delta, rounding)
                idle = rounded(again["without"], summands, rounding)
                # rounded at random, a weight without the change is stored with the same random numbers
                plain = idle if order == BEFORE else held
                if fused is None or idle is None or plain is None:
                    continue
                row = {**about, "order": order, "rounding": rounding, **_compared(plain, fused, delta)}
                row["codes_without_delta"] = _share(_differing(plain.codes, idle.codes))
                noise = rms(idle.decoded - plain.decoded)
                row["noise_without_delta"] = noise / delta_rms if delta_rms else math.nan
                rows.append(row)
        return rows


def shape_of(site: Site) -> tuple[int, int]:
    """(outputs, channels) of a linear."""
    return linear_shape(site.module)


def _held(module: nn.Module) -> Stored:
    found = neighbours(module)
    return Stored(linear_weight(module), None if found is None else found.codes)


def _compared(plain: Stored, fused: Stored, delta: mx.array) -> dict[str, float]:
    arrived = fused.decoded - plain.decoded
    moved, codes = fused.decoded != plain.decoded, _differing(plain.codes, fused.codes)
    found = agreement(arrived, delta)
    return {
        "changed_codes": _share(codes),
        "changed_values": _share(moved),
        "correlation": found.correlation,
        "correlation_changed": correlation(arrived, delta, moved if codes is None else codes),
        "gain": found.gain,
        "relative_error": found.relative_error,
    }


def _differing(one: mx.array | None, other: mx.array | None) -> mx.array | None:
    return None if one is None or other is None else one != other


def _share(chosen: mx.array | None) -> float:
    return math.nan if chosen is None else total(chosen) / chosen.size


def _place(site: Site) -> dict[str, Any]:
    _, operation = site.layout.within_block(site.component, site.path)
    return {"component": site.component, "site": site.path, "block": site.block, "operation": operation}


def _numbers(site: Site, seed: int, shape: tuple[int, ...]) -> mx.array:
    """Numbers in [0, 1), fp32, that depend on the site and the seed alone."""
    rng = np.random.Generator(np.random.PCG64([seed, crc32(str(site).encode()), 1]))
    return mx.array(rng.random(shape, dtype=np.float32))
