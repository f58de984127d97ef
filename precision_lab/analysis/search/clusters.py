"""Clusters of groups that a search moves together: an operation in all blocks, in ranges of blocks, in one block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from precision_lab.analysis.search.menu import Menu, Place

Cluster = tuple[int, ...]
"""The numbers of places."""


def of_ranges(menu: Menu, ranges: int) -> list[Cluster]:
    """For each operation, its groups in at most this many ranges of consecutive blocks, as equal as they can be.

    Groups whose sites have no operation in common form ranges of blocks alone.
    """
    kinds: dict[str | None, list[int]] = {}
    for at, place in enumerate(menu.places):
        kinds.setdefault(place.operation, []).append(at)
    found = []
    for members in kinds.values():
        ordered = sorted(members, key=lambda at: (-1 if (block := menu.places[at].block) is None else block, at))
        parts = min(ranges, len(ordered))
        ends = [round(part * len(ordered) / parts) for part in range(parts + 1)]
        found += [tuple(ordered[low:high]) for low, high in pairwise(ends)]
    return found


def levels(menu: Menu) -> list[list[Cluster]]:
    """Clusters from coarse to fine: each operation as a whole, in halves, in quarters, down to single groups."""
    found, ranges = [of_ranges(menu, 1)], 1
    while any(len(cluster) > 1 for cluster in found[-1]):
        ranges *= 2
        found.append(of_ranges(menu, ranges))
    return found


def label(places: Sequence[Place]) -> str:
    """A cluster in words: `attn.to_q of blocks 0 to 29`."""
    operation = places[0].operation or places[0].name
    blocks = sorted({place.block for place in places if place.block is not None})
    if not blocks:
        return operation
    return f"{operation} of block{f's {blocks[0]} to {blocks[-1]}' if len(blocks) > 1 else f' {blocks[0]}'}"
