"""Teacher forcing: runs the modules of variants, and whole steps, on the inputs of the reference.

Free-running drift accumulates: the inputs of a block contain the error of all earlier blocks. With teacher forcing, the
reference's generation proceeds unchanged. At each chosen site, the module of every variant is called on the same
inputs, rounded to the dtypes that the variant itself has there. The difference is local error, introduced by that
module (like the shadow modules of PyTorch's Numeric Suite). Only the current arrays are held in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import mlx.core as mx

from precision_lab.errors import InputError
from precision_lab.instrument.arrays import real, to_numpy
from precision_lab.instrument.observation import Position
from precision_lab.instrument.replay import mutable_value
from precision_lab.instrument.replica import replica
from precision_lab.instrument.scope import current_scope
from precision_lab.instrument.sites import Components, select, walk
from precision_lab.instrument.tap import Call, ports, tapped
from precision_lab.lab.drift import error_of
from precision_lab.lab.observing import position_of
from precision_lab.lab.subject import Case, Step, Subject, components_of
from precision_lab.record.address import DEFAULT_PORT, NO_STREAM
from precision_lab.record.layout import Layout
from precision_lab.techniques.base import Technique, applied
from precision_lab.techniques.parts.casting import cast

_PAIRS = 32


class _Pair(NamedTuple):
    variant: str
    position: Position
    array: mx.array
    reference: mx.array


class Shadow:
    """The modules of a variant, in a replica of the subject to which its techniques are applied."""

    def __init__(self, subject: Subject, dtype: mx.Dtype, components: Components):
        self.subject, self.dtype = subject, dtype
        self._components = components
        self._modules = {(site.component, site.path): site.module for site in walk(components)}
        self._dtypes: dict[tuple[str, str], list[mx.Dtype]] = {}

    def trace(self, sites: Sequence[str], case: Case) -> None:
        """Records the input dtypes of the sites from a step that is built but never evaluated."""

        def on_call(call: Call) -> None:
            dtypes = [port.array.dtype for port in ports(call, ["in"])]
            self._dtypes[call.site.component, call.site.path] = dtypes

        with tapped(select(sites, walk(self._components)), on_call):
            self.subject.step(self.subject.start(case), 0)

    def call(self, call: Call) -> Any:
        """The output of this variant's module at the site of `call`, for the inputs of `call`."""
        key = call.site.component, call.site.path
        dtypes = iter(self._dtypes[key])
        args = [_cast(value, dtypes) for value in call.args]
        kwargs = {name: _cast(value, dtypes) for name, value in call.kwargs.items()}
        return self._modules[key](*args, **kwargs)


def check(subject: Subject, components: Components, sites: Sequence[str], case: Case) -> None:
    """Raises InputError for a site whose module is called with a mutable argument, such as a cache.

    A second call would change the argument that the reference continues with. The step is built but never evaluated.
    """

    def on_call(call: Call) -> None:
        mutable = mutable_value(call)
        if mutable is not None:
            raise InputError(
                f"drift.teacher.sites: {call.site} is called with a {type(mutable).__name__}, which it may change, so "
                "its local error cannot be measured. Name modules inside it"
            )

    with tapped(select(sites, walk(components)), on_call):
        subject.step(subject.start(case), 0)


def _cast(value: Any, dtypes: Iterator[mx.Dtype]) -> Any:
    """`value` with its arrays cast to `dtypes`, in the order of `ports`."""
    if isinstance(value, mx.array):
        return value.astype(next(dtypes))
    if isinstance(value, Mapping):
        return {key: _cast(item, dtypes) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [_cast(item, dtypes) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


class Teacher:
    """Observes one generation of the reference and measures the local error of every variant.

    sites: patterns of the modules that each variant runs on the reference's inputs. steps: the steps in which it does
    so; each variant also repeats these steps as a whole from the reference's state. rows: the measurements, with the
    columns of the drift table.
    """

    def __init__(self, layout: Layout, sites: Sequence[str], steps: Collection[int]):
        self.rows: list[dict[str, Any]] = []
        self._layout, self._sites, self._steps = layout, sites, steps
        self._shadows: dict[str, Shadow] = {}
        self._pairs: list[_Pair] = []
        self._seen = 0

    @contextmanager
    def shadowing(
        self, variants: Mapping[str, tuple[Subject, mx.Dtype, Mapping[str, Technique]]], case: Case
    ) -> Iterator[None]:
        """Context manager that sets the variants to measure, given as (plain subject, dtype, techniques) by name."""
        with ExitStack() as stack:
            for name, (plain, dtype, techniques) in variants.items():
                subject = replica(plain)
                components = components_of(subject, self._layout)
                stack.enter_context(applied(components, techniques))
                shadow = Shadow(subject, dtype, components)
                shadow.trace(self._sites, case)
                self._shadows[name] = shadow
            yield
            self._shadows.clear()

    @contextmanager
    def watching(self, components: Components) -> Iterator[None]:
        """Context manager in which each call of a selected module is repeated with the modules of the variants."""
        with tapped(select(self._sites, walk(components)), self._on_call):
            yield
        self._flush()

    def step(self, number: int, before: Any, step: Step) -> None:
        """Repeats a step of the reference with every variant, from the reference's state `before` it."""
        if number not in self._steps:
            return
        result = self._layout.result
        for name, shadow in self._shadows.items():
            own = shadow.subject.step(cast(before, shadow.dtype), number).result
            position = Position(
                None, number, step.sigma, result.component, result.site, DEFAULT_PORT, NO_STREAM, None, self._seen
            )
            self._seen += 1
            self._pairs.append(_Pair(name, position, own, step.result))
        self._flush()

    def _on_call(self, call: Call) -> None:
        if current_scope().get("step") not in self._steps:
            return
        expected = list(ports(call, ["out"]))
        for name, shadow in self._shadows.items():
            own = ports(call._replace(output=shadow.call(call)), ["out"])
            for theirs, port in zip(expected, own, strict=True):
                position = position_of(call.site, port, self._seen)
                self._seen += 1
                self._pairs.append(_Pair(name, position, real(port.array), real(theirs.array)))
        if len(self._pairs) >= _PAIRS:
            self._flush()

    def _flush(self) -> None:
        """Evaluates the pending pairs and measures them in float64."""
        pairs, self._pairs = self._pairs, []
        mx.eval([array for pair in pairs for array in (pair.array, pair.reference)])
        for variant, position, array, reference in pairs:
            row = {key: value for key, value in position._asdict().items() if key != "sigma"}
            error = error_of(to_numpy(array), to_numpy(reference), position, self._layout.result)
            self.rows.append({"variant": variant, "mode": "teacher", **row, **error})
