"""Which candidates are formats of weights: those that store the weight of a linear in fewer bits, or as it is."""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components, Site, walk
from precision_lab.lab.candidates import Candidate
from precision_lab.model.coded import LINEARS, linear_weight
from precision_lab.model.layers import Linear
from precision_lab.record.layout import Layout

_WIDTH = 256
"""Of the linear that formats are tried on: a multiple of every group of values in use."""


def expect_formats(candidates: Iterable[Candidate]) -> None:
    """Raises InputError for a candidate that stores no weight in a format, wherever it is applied."""
    for candidate in candidates:
        found = _tried(candidate)
        if isinstance(found, InputError):
            raise InputError(f"candidate {candidate.name}: {found}")
        if found is None:
            raise InputError(
                f"candidate {candidate.name} stores no weights in a format, expected one like affine4 or int8"
            )


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates that store weights, each storage once: those that differ in what they do to inputs are one."""
    kept: list[Candidate] = []
    seen: list[mx.array] = []
    for candidate in candidates:
        found = _tried(candidate)
        if found is None or isinstance(found, InputError):
            continue
        weight = linear_weight(found)
        if not any(mx.array_equal(weight, other).item() for other in seen):
            seen.append(weight)
            kept.append(candidate)
    return kept


def keeps(candidate: Candidate) -> bool:
    """Whether a candidate leaves the weight of a linear as the checkpoint stores it, where every format would fit."""
    site = _site()
    return candidate.technique(["**"]).rewrite(site) is site.module


def _tried(candidate: Candidate) -> nn.Module | InputError | None:
    """What a candidate makes of a linear: one that stores its weight, None for anything else, or its refusal."""
    try:
        found = candidate.technique(["**"]).rewrite(_site())
    except InputError as error:
        return error
    return found if isinstance(found, LINEARS) else None


def _site() -> Site:
    linear = Linear(_WIDTH, _WIDTH, bias=False)
    drawn = np.random.default_rng(0).standard_normal((_WIDTH, _WIDTH), dtype=np.float32)
    linear.weight = mx.array(drawn).astype(mx.bfloat16)
    holder = nn.Module()
    holder.linear = linear
    [site] = walk(Components({"model": holder}, Layout.of(["model"])))
    return site
