"""Replay of a pass from an altered module on: blocks called before it return what they returned in a recorded pass.

MLX is lazy, so nothing that only a recalled block needs is computed. The result is that of a whole pass, bit for bit:
what comes before the altered module receives the same inputs, and has no state of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from precision_lab.instrument.scope import current_scope
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.instrument.swap import swapped
from precision_lab.instrument.tap import Call, tapped

_IMMUTABLE = (mx.array, mx.Dtype, np.ndarray, np.generic, str, int, float, complex, type(None), type)


class Phase(NamedTuple):
    """A part of a generation: a step, or all outside of steps, in one branch."""

    step: int | None
    branch: str | None

    @classmethod
    def now(cls) -> Phase:
        """The phase of the current scope."""
        labels = current_scope()
        return cls(labels.get("step"), labels.get("branch"))


def mutable_value(call: Call) -> object | None:
    """An argument of a call that the module may have changed, such as a cache; None without one.

    A second call would change it again.
    """
    return next((x for x in _leaves((call.args, call.kwargs)) if not isinstance(x, _IMMUTABLE)), None)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


class Recording:
    """The order in which modules were called in each phase, and what blocks returned.

    blocks: the sites whose outputs are kept. steps, branch: of the phases that are recorded, beside those outside of
    steps and of branches.
    """

    def __init__(self, blocks: Iterable[Site], steps: Collection[int], branch: str | None):
        self._blocks = {site: dict[Phase, Any]() for site in blocks}
        self._steps, self._branch = steps, branch
        self._order: dict[Phase, dict[Site, int]] = {}
        self._unfit: dict[Site, str] = {}

    @contextmanager
    def of(self, sites: Iterable[Site]) -> Iterator[None]:
        """Context manager in which the calls of `sites` are recorded."""
        with tapped(sites, self._on_call):
            yield

    @property
    def arrays(self) -> list[mx.array]:
        """The outputs that are kept."""
        kept = [list(outputs.values()) for outputs in self._blocks.values()]
        return [array for _, array in tree_flatten(kept) if isinstance(array, mx.array)]

    def phases(self, site: Site) -> list[Phase]:
        """The phases in which a module was called."""
        return [phase for phase, order in self._order.items() if site in order]

    @property
    def blocks(self) -> list[Site]:
        """The blocks, in order of definition."""
        return list(self._blocks)

    @property
    def unfit(self) -> Mapping[Site, str]:
        """The blocks that cannot be recalled, and why not."""
        return self._unfit

    def before(self, altered: Collection[Site]) -> dict[Site, dict[Phase, Any]]:
        """The blocks that returned before any of `altered` was called, with their outputs in these phases.

        Steps depend on all that comes before them: if one of `altered` was called outside of steps, which may have
        changed the state, no block of a step is recalled.
        """
        recalled: dict[Site, dict[Phase, Any]] = {}
        first = {phase: self._first(phase, altered) for phase in self._order}
        for block, outputs in self._blocks.items():
            if block in self._unfit or any(_holds(site, block) for site in altered):
                continue
            kept = {phase: x for phase, x in outputs.items() if self._order[phase][block] < first[phase]}
            if kept:
                recalled[block] = kept
        return recalled

    def _first(self, phase: Phase, altered: Collection[Site]) -> float:
        """When the first of `altered` was called. One that holds blocks began before them, and returned after them."""
        order = self._order[phase]
        if phase.step is not None and any(other.step is None for site in altered for other in self.phases(site)):
            return -1
        if any(_holds(site, block) and site != block for site in altered for block in self._blocks if site in order):
            return -1
        return min((order[site] for site in altered if site in order), default=float("inf"))

    def _on_call(self, call: Call) -> None:
        phase = Phase.now()
        if phase.step not in (None, *self._steps) or phase.branch not in (None, self._branch):
            return
        order = self._order.setdefault(phase, {})
        outputs = self._blocks.get(call.site)
        if outputs is not None:
            if call.site in order:
                self._unfit[call.site] = f"it is called twice in {phase}"
            elif (mutable := mutable_value(call)) is not None:
                self._unfit[call.site] = f"it is called with a {type(mutable).__name__}, which it may change"
            elif not all(isinstance(x, _IMMUTABLE) for x in _leaves(call.output)):
                self._unfit[call.site] = "it returns what is no array"
            outputs[phase] = call.output
        order.setdefault(call.site, len(order))


def _holds(outer: Site, inner: Site) -> bool:
    return outer.component == inner.component and f"{inner.path}.".startswith(f"{outer.path}.")


class _Recalled(Wrapper):
    """Returns what the block returned in the current phase of the recording; calls it in others."""

    def __init__(self, block: nn.Module, outputs: Mapping[Phase, Any]):
        super().__init__(block)
        self._outputs = outputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        phase = Phase.now()
        return self._outputs[phase] if phase in self._outputs else self.inner(*args, **kwargs)


@contextmanager
def replayed(components: Mapping[str, nn.Module], recording: Recording, altered: Sequence[Site]) -> Iterator[int]:
    """Context manager in which the blocks before the sites `altered` are recalled; yields their number.

    The modules at `altered` may be replaced inside the context, as often as needed.
    """
    blocks = {site: _Recalled(site.module, outputs) for site, outputs in recording.before(altered).items()}
    with swapped(components, blocks):
        yield len(blocks)
