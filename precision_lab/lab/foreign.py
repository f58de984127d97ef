"""A foreign implementation against the same pass of the lab, operation by operation.

The lab computes the pass in fp32, and at every array that the dump holds it goes on with the foreign array. Each
operation is thus judged on the inputs that the foreign program gave it, and one wrong operation leaves those after it
alone. Where the dump holds less, an array is judged together with all operations since the foreign arrays before it.

What rounding explains is measured: the same forced pass in the 16-bit format of the dump; or, for fp32, two passes in
which the inputs of every operation move by about a unit in their last place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from precision_lab.errors import InputError, inline, nearest
from precision_lab.instrument.arrays import real, to_numpy
from precision_lab.instrument.dependence import Dependence, Place
from precision_lab.instrument.exchange import exchanged
from precision_lab.instrument.sites import Components, Site, walk
from precision_lab.instrument.tap import Call, tapped
from precision_lab.lab.one_pass import Pass, with_values
from precision_lab.numerics.rounding_share import LEAST, MARGIN, Distance, distance, unit
from precision_lab.record.address import with_port
from precision_lab.record.dump import Dump, place_of

_TAIL = 2.0
"""Ulps that the tail of an activation may always have: it is rounded once, and its input may be rounded again."""

_DRAWS = 2
_SUGGESTED = 3


class Judged(NamedTuple):
    """One array of the dump.

    address: its place in the lab. operations: the modules between the foreign arrays before it and itself, in order of
    execution; none if it should be equal to one of them.
    format: the narrowest format of its values. error, explained: the distance from fp32 of the foreign array and of
    rounding, relative L2. share: the error as a multiple of the largest that rounding explains; wrong above 1. tail:
    whether that is the error of the worst values of an activation, rather than that of the whole array.
    """

    address: str
    operations: tuple[str, ...]
    format: str
    error: float
    explained: float
    share: float
    tail: bool = False

    @property
    def wrong(self) -> bool:
        return not self.share <= 1

    @property
    def local(self) -> bool:
        """Whether a single operation on foreign inputs is judged."""
        return len(self.operations) <= 1


@dataclass(frozen=True)
class Comparison:
    """rows: in order of execution. format: that of most arrays. unknown: names of the dump that the pass has not, with
    the nearest ones. operations, covered: those of the pass, and those whose output the dump holds.
    """

    rows: Sequence[Judged]
    format: str
    unknown: Mapping[str, str]
    operations: int
    covered: int

    @property
    def first_wrong(self) -> int | None:
        """The number of the first row that is wrong."""
        return next((at for at, row in enumerate(self.rows) if row.wrong), None)


def compare(one: Pass, dump: Dump) -> Comparison:
    """Compares a dump with the pass. An array that is named like an input of the pass replaces that input.

    Raises InputError if the dump has no array of this pass, or one of another shape.
    """
    known = one.inputs()
    given = [name for name in dump.names if name in known]
    one = with_values(one, {name: dump.array(name) for name in given}, str(dump.file))
    components = one.components(mx.float32)
    sites = [site for site in walk(components) if site.component == one.source.layout.default]
    holders = {site.path[:at] for site in sites for at, letter in enumerate(site.path) if letter == "."}
    leaves = [site for site in sites if site.path not in holders]
    graph = _traced(one, components, sites, leaves)
    names, unknown = _places(dump, graph, one.source.layout.default, given)
    formats = {place: dump.format(name) for place, name in names.items()}
    fmt = Counter(formats.values()).most_common(1)[0][0]
    rounded = {name: _rounded(array, fmt) for name, array in known.items() if name not in given}
    one = replace(one, values={**one.values, **rounded})
    foreign = {place: dump.array(name) for place, name in names.items()}
    forced = _Forced(one, foreign, sites, leaves)
    exact = forced.run(mx.float32)
    passes = [] if fmt == "float32" else [forced.run(getattr(mx, fmt))]
    if "float32" in formats.values():
        passes += [forced.run(mx.float32, seed) for seed in range(_DRAWS)]
    activations = {site.path for site in leaves if _is_activation(site, graph)}
    between = graph.operations(foreign)
    rows = []
    for place in exact:
        operations = between[place]
        bounded = operations[0] in activations if len(operations) == 1 else False
        found = [distance(each[place], exact[place], formats[place]) for each in passes]
        error = distance(foreign[place], exact[place], formats[place])
        explained = Distance(max(each.rel_l2 for each in found), max(each.tail for each in found))
        share = error.rel_l2 / (MARGIN * max(explained.rel_l2, LEAST[formats[place]] * unit(formats[place])))
        beyond = error.tail / max(MARGIN * explained.tail, _TAIL) if bounded and formats[place] != "float32" else 0.0
        row = Judged(with_port(*place), operations, formats[place], error.rel_l2, explained.rel_l2, share)
        rows.append(row._replace(share=beyond, tail=True) if beyond > share else row)
    held = {path for path, port in foreign if port.startswith("out")}
    covered = sum(path in held for path in graph.leaves)
    return Comparison(rows, fmt, unknown, len(graph.leaves), covered)


def _rounded(array: mx.array, fmt: str) -> np.ndarray:
    """An input as a program that computes in `fmt` has it."""
    if not mx.issubdtype(array.dtype, mx.floating):
        return to_numpy(array)
    return to_numpy(array.astype(getattr(mx, fmt)).astype(mx.float32))


def _traced(one: Pass, components: Components, sites: Sequence[Site], leaves: Sequence[Site]) -> Dependence:
    """The graph of the pass. Nothing is computed."""
    arguments, calls = one.arguments(mx.float32), list[Call]()
    mx.eval(arguments)
    with tapped(sites, calls.append):
        output = components[one.source.layout.default](**arguments)
    return Dependence(calls, leaves, output)


def _places(
    dump: Dump, graph: Dependence, component: str, given: Sequence[str]
) -> tuple[dict[Place, str], dict[str, str]]:
    """The arrays of the dump by place, and the names without one."""
    names, unknown = dict[Place, str](), dict[str, str]()
    for name in dump.names:
        if name in given:
            continue
        place = place_of(name.removeprefix(f"{component}:").removeprefix(f"{component}."))
        expected = graph.shapes.get(place)
        if expected is None:
            few = len(unknown) < _SUGGESTED  # finding the nearest of thousands of names takes a while
            unknown[name] = nearest(".".join(place), [".".join(each) for each in graph.shapes], count=1) if few else ""
            continue
        if place in names:
            raise InputError(f"{dump.file}: {inline(name)} and {inline(names[place])} are the same array, expected one")
        if place[0] in graph.repeated:
            raise InputError(
                f"{dump.file}: {inline(name)} is called twice in the pass, so its array has no one address"
            )
        if dump.shape(name) != expected:
            raise InputError(
                f"{dump.file}: {inline(name)} has the shape {dump.shape(name)}, expected {expected}: write it in that "
                "layout, for one prompt without guidance"
            )
        names[place] = name
    if not names:
        name = next(iter(unknown), "")
        raise InputError(f"{dump.file}: no array of this pass, the first is {inline(name)}. {unknown.get(name, '')}")
    return names, unknown


def _is_activation(site: Site, graph: Dependence) -> bool:
    """Whether a module maps each value of one array to one of its output, without weights."""
    shapes = [graph.shapes.get((site.path, port)) for port in ("in", "out")]
    is_norm = hasattr(site.module, "eps")
    return shapes[0] is not None and shapes[0] == shapes[1] and not site.module.parameters() and not is_norm


class _Forced:
    """Passes that go on with the foreign arrays wherever there is one."""

    def __init__(self, one: Pass, foreign: Mapping[Place, np.ndarray], sites: Sequence[Site], leaves: Sequence[Site]):
        self._one, self._foreign = one, foreign
        places = {path for path, _ in foreign}
        self._sites = {site.path for site in sites if site.path in places}
        self._leaves = {site.path for site in leaves}

    def run(self, dtype: mx.Dtype, seed: int | None = None) -> dict[Place, np.ndarray]:
        """What the lab has at the places of the foreign arrays, in order of execution.

        seed: of the noise in the inputs of all operations; None for none.
        """
        components = self._one.components(dtype)
        default = self._one.source.layout.default
        seen: dict[Place, np.ndarray] = {}
        noise = None if seed is None else np.random.default_rng(seed)

        def exchange(site: Site, port: str, array: mx.array) -> mx.array:
            foreign = self._foreign.get((site.path, port))
            if foreign is not None:
                seen[site.path, port] = to_numpy(real(array).astype(mx.float32))
                array = _like(foreign, array)
            if noise is not None and port.startswith("in") and site.path in self._leaves:
                array = _moved(array, noise)
            return array

        paths = self._sites if noise is None else self._sites | self._leaves
        sites = [site for site in walk(components) if site.component == default and site.path in paths]
        arguments = self._one.arguments(dtype)
        with exchanged(components, sites, exchange):
            mx.eval(components[default](**arguments))
        return seen


def _like(foreign: np.ndarray, array: mx.array) -> mx.array:
    """The foreign values as the array that the lab has there."""
    values = mx.array(np.ascontiguousarray(foreign.astype(np.float32)))
    return values.view(mx.complex64) if array.dtype == mx.complex64 else values.astype(array.dtype)


def _moved(array: mx.array, noise: np.random.Generator) -> mx.array:
    """An fp32 array whose values are larger or smaller by about a unit in the last place, at random."""
    if array.dtype != mx.float32:
        return array
    signs = noise.choice([-1.0, 1.0], array.shape).astype(np.float32)
    return array + array * (mx.array(signs) * 2.0**-23)
