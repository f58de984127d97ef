"""The generation of the plain model, recorded so that altered passes can be repeated from its states.

A pass is one step from the state that the plain model had before it, up to the output of the model in the main branch
of the step. What the step leaves undone is neither built nor computed: other branches, guidance, the update.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from precision_lab.instrument.replay import Phase, Recording, replayed
from precision_lab.instrument.sites import Components, Site, walk
from precision_lab.instrument.tap import Call, ports, tapped
from precision_lab.lab.subject import Case, Subject, components_of, generation
from precision_lab.record.glob import ROOT
from precision_lab.record.layout import Layout


class _ReachedError(BaseException):
    """Ends a pass whose result is there. No error of the model, and nothing that catches those may catch it."""

    def __init__(self, output: mx.array):
        super().__init__()
        self.output = output


class Forced:
    """Passes of a subject, altered or not, from the states of its plain generation of a case.

    sites: all, by address. recording: of the chosen steps. states, outputs, sigmas: by step, the state before it, the
    output of the model in the main branch, and the level. result: that of the last step. They are there after `record`.
    """

    def __init__(self, subject: Subject, layout: Layout, case: Case, steps: Sequence[int]):
        self.components: Components = components_of(subject, layout)
        self.sites: Mapping[str, Site] = {str(site): site for site in walk(self.components)}
        blocks = [site for site in self.sites.values() if layout.is_block(site.component, site.path)]
        self.recording = Recording(blocks, steps, layout.main_branch)
        self.states: dict[int, Any] = {}
        self.outputs: dict[int, mx.array] = {}
        self.sigmas: dict[int, float | None] = {}
        self.result: mx.array | None = None
        self._subject, self._layout, self._case, self._steps = subject, layout, case, steps
        self._root = Site(layout.default, ROOT, self.components[layout.default], layout)
        self._kept: frozenset[str] = frozenset()

    def trace(self) -> None:
        """Records the calls of a start and of the first of the chosen steps, without evaluating them."""
        with self.recording.of(self.sites.values()):
            self.output(self._subject.start(self._case), self._steps[0])

    def record(self, count: int) -> None:
        """Generates the case, of `count` steps."""
        first = last = None
        mx.eval(list(self.components.values()))  # weights first: see `Bench.make`
        with self.recording.of(self.sites.values()), self._keeping():
            for number, (before, step) in enumerate(generation(self._subject, self._case, count)):
                first = before if number == 0 else first
                last, self.result = step.state, step.result
                if number in self._steps:
                    self.states[number], self.sigmas[number] = before, step.sigma
                    self.outputs.setdefault(number, step.output)
        mx.eval(self.recording.arrays, list(self.outputs.values()), self.result)
        self._kept = _equal(first, last)

    @contextmanager
    def altering(self, sites: Sequence[Site]) -> Iterator[int]:
        """Context manager in which `sites` may be replaced; passes begin at them. Yields the number spared."""
        with replayed(self.components, self.recording, sites) as spared:
            yield spared

    def calls(self, sites: Collection[Site], step: int) -> list[Phase]:
        """The phases of a pass in which any of these sites is called, once for each site."""
        return [phase for site in sites for phase in self.recording.phases(site) if phase.step in (None, step)]

    def run(self, number: int, altered: Collection[Site]) -> mx.array:
        """The output of a pass, not evaluated, with whatever replaces the modules at `altered`.

        If they are called before the steps, in the text encoder or a prefix, what they leave in the state is that of
        their replacements. Whatever changes from step to step is that of the plain model.
        """
        state = self.states[number]
        if self._kept and any(phase.step is None for phase in self.calls(altered, number)):
            own = self._subject.start(self._case)
            state = tree_map_with_path(lambda path, kept, new: new if path in self._kept else kept, state, own)
        return self.output(state, number)

    def output(self, state: Any, number: int) -> mx.array:
        """The output of the model in the main branch of a step, not evaluated; the prediction without branches."""
        branch = self._layout.main_branch
        if branch is None:
            return self._subject.step(state, number).output

        def on_call(call: Call) -> None:
            if Phase.now() == (number, branch):
                raise _ReachedError(_output(call))

        with tapped([self._root], on_call):
            try:
                return self._subject.step(state, number).output
            except _ReachedError as reached:
                return reached.output

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Context manager in which the outputs of the main branch are kept."""
        branch = self._layout.main_branch

        def on_call(call: Call) -> None:
            step, now = Phase.now()
            if branch is not None and now == branch and step is not None and step in self._steps:
                self.outputs.setdefault(step, _output(call))

        with tapped([self._root], on_call):
            yield


def _output(call: Call) -> mx.array:
    return next(ports(call, ["out"])).array


def _equal(first: Any, last: Any) -> frozenset[str]:
    """The paths of the arrays that no step has changed, in the states before the first and after the last."""
    later = dict(tree_flatten(last))
    return frozenset(
        path
        for path, array in tree_flatten(first)
        if isinstance(array, mx.array)
        and isinstance(other := later.get(path), mx.array)
        and array.shape == other.shape
        and bool(mx.array_equal(array, other, equal_nan=True))
    )
