"""Where the first value that is not finite arose in a generation: the module with finite inputs and such an output.

A generation that has computed one is repeated up to that point, with the outputs of all modules checked one by one. A
generation is a function of its case, so the same values come again; finite ones pay nothing for this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from precision_lab.instrument.arrays import described, real, to_numpy
from precision_lab.instrument.scope import current_scope
from precision_lab.instrument.sites import Components, observable, walk
from precision_lab.instrument.tap import Call, Port, ports, tapped
from precision_lab.lab.subject import Case, Subject, generation, picture_of
from precision_lab.lab.watch import has_value, position_row
from precision_lab.numerics.nonfinite import all_finite, count_nonfinite


def origin(subject: Subject, components: Components, case: Case, steps: int, step: int | None) -> dict[str, Any] | None:
    """A row with the position of the output and its counts; None if no module qualifies.

    step: the step in which the value arose, None for one before or after the loop. Of modules inside each other, the
    innermost is named. The inside of an opaque wrapper and of a function that MLX traces cannot be seen, so the module
    around it is named. None qualifies if the value arose outside of modules, or entered with a state or a mask.
    """
    finder = _Finder(step)
    with _same_random_numbers():
        try:
            with tapped(observable(walk(components)), finder.on_call):
                for _, taken in generation(subject, case, steps):
                    state = taken.state
                picture_of(subject, state)
        except _Found as found:
            return found.row
    return None


class _Found(BaseException):
    """Ends the repetition; no `except Exception` of a model may catch it."""

    def __init__(self, row: dict[str, Any]):
        super().__init__()
        self.row = row


class _Finder:
    def __init__(self, step: int | None):
        self._step = step

    def on_call(self, call: Call) -> None:
        labels = current_scope()
        if labels.get("step") != self._step:
            return
        bad = next((port for port in ports(call, ["out"]) if not _is_finite([port])), None)
        if bad is None or not _is_finite(list(ports(call, ["in"]))):
            return
        array = real(bad.array)
        num_nan, num_inf = count_nonfinite(to_numpy(array))
        place = position_row(call.site, bad.name, bad.stream, labels)
        raise _Found({**place, **described(array), "num_nan": num_nan, "num_inf": num_inf})


def _is_finite(found: Sequence[Port]) -> bool:
    """Whether all values are finite; true of arrays without values, which say nothing."""
    arrays = [real(port.array) for port in found if mx.issubdtype(port.array.dtype, mx.inexact)]
    return all_finite([to_numpy(array) for array in arrays if has_value(array)])


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Restores MLX's random state, so that later generations draw the numbers that they would have drawn."""
    state: Any = mx.random.state
    high, low = (int(word) for word in state[0].tolist())
    try:
        yield
    finally:
        mx.random.seed(high << 32 | low)
