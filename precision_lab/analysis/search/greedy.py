"""The rule that most tools follow, for comparison: narrow the group that costs least for each byte, until it fits."""

from __future__ import annotations

import heapq

from precision_lab.analysis.search.menu import Choice, Menu, Option


def greedy(menu: Menu, nbytes: int) -> Choice | None:
    """The choice within a limit of bytes that is reached from everything as stored; None where nothing fits.

    Of all steps to the next smaller option of a group, the one with the least predicted error for each byte that it
    saves is taken, again and again.
    """
    level = [len(frontier) - 1 for frontier in menu.frontiers]
    size = menu.fixed + sum(_option(menu, at, each).nbytes for at, each in enumerate(level))
    steps = [step for at in range(len(level)) if (step := _step(menu, at, level[at])) is not None]
    heapq.heapify(steps)
    while size > nbytes:
        if not steps:
            return None
        _, at, saved = heapq.heappop(steps)
        level[at] -= 1
        size -= saved
        if (step := _step(menu, at, level[at])) is not None:
            heapq.heappush(steps, step)
    return tuple(menu.frontiers[at][each] for at, each in enumerate(level))


def _option(menu: Menu, at: int, level: int) -> Option:
    return menu.options[at][menu.frontiers[at][level]]


def _step(menu: Menu, at: int, level: int) -> tuple[float, int, int] | None:
    """Error for each byte saved, group and bytes saved of the step to the next smaller option; None at the smallest."""
    if level == 0:
        return None
    present, smaller = _option(menu, at, level), _option(menu, at, level - 1)
    saved = present.nbytes - smaller.nbytes
    return (smaller.error - present.error) / saved, at, saved
