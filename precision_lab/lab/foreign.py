"""A foreign implementation against the same pass of the lab, operation by operation.

The lab computes the pass in fp32, and at every array that the dump holds it goes on with the foreign array. Each
operation is thus judged on the inputs that the foreign program gave it, and one wrong operation leaves those after it
alone. Where the dump holds less, an array is judged together with all operations since the foreign arrays before it.

What rounding explains is measured: the same forced pass in the 16-bit format of the dump; or, for fp32, two passes in
which the inputs of every operation move by about a unit in their last place. An array with fewer bits than the dump is
judged as the others are: rounding that the rest of the program does not do is a deviation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.errors import InputError, inline, nearest
from precision_lab.instrument.arrays import real, to_numpy
from precision_lab.instrument.dependence import Dependence, Place
from precision_lab.instrument.exchange import exchanged
from precision_lab.instrument.sites import Components, Site, walk
from precision_lab.instrument.tap import Call, tapped
from precision_lab.lab.one_pass import Pass, with_values
from precision_lab.numerics import norms
from precision_lab.numerics.activations import rounded_in_steps, taken_for
from precision_lab.numerics.formats import format_named
from precision_lab.numerics.rounding_share import LEAST, MARGIN, Distance, distance, unit
from precision_lab.record.address import with_port
from precision_lab.record.dump import Dump, place_of
from precision_lab.record.foreign import Comparison, Judged

_TAIL = 2.0
"""Ulps that the tail of an activation may always have: it is rounded once, and its input may be rounded again."""

_DRAWS = 2
_SUGGESTED = 3


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
    stored = {place: dump.format(name) for place, name in names.items()}
    fmt = Counter(stored.values()).most_common(1)[0][0]
    formats = {place: _at_least(fmt, own) for place, own in stored.items()}
    rounded = {name: _rounded(array, fmt) for name, array in known.items() if name not in given}
    one = replace(one, values={**one.values, **rounded})
    foreign = {place: dump.array(name) for place, name in names.items()}
    activations = {site.path for site in leaves if _is_activation(site, graph)}
    of_norms = {site.path: site.module for site in leaves if _is_norm(site)}
    forced = _Forced(one, foreign, sites, leaves, {*activations, *of_norms})
    exact = forced.run(mx.float32)
    inputs = dict(forced.inputs)
    passes = [] if fmt == "float32" else [forced.run(getattr(mx, fmt))]
    if "float32" in formats.values():
        passes += [forced.run(mx.float32, seed) for seed in range(_DRAWS)]
    between = graph.operations(foreign)
    rows = []
    for place in exact:
        operations = between[place]
        found = [distance(each[place], exact[place], formats[place]) for each in passes]
        x = inputs.get(operations[0]) if len(operations) == 1 else None
        norm = of_norms.get(operations[0]) if len(operations) == 1 else None
        rows.append(_judged(place, operations, formats[place], foreign[place], exact[place], found, x, norm))
        if rows[-1].wrong and stored[place] != formats[place]:
            rows[-1] = rows[-1]._replace(rounded=stored[place])
    held = {path for path, port in foreign if port.startswith("out")}
    covered = sum(path in held for path in graph.leaves)
    return Comparison(rows, fmt, unknown, len(graph.leaves), covered)


def _judged(
    place: Place,
    operations: tuple[str, ...],
    fmt: str,
    foreign: np.ndarray,
    exact: np.ndarray,
    passes: Sequence[Distance],
    x: np.ndarray | None,
    norm: nn.Module | None,
) -> Judged:
    """One array. passes: the distances of what rounding does. x: the input, if a single activation or norm is judged.

    norm: the module, if it is a norm.
    """
    error = distance(foreign, exact, fmt)
    explained = Distance(max(each.rel_l2 for each in passes), max(each.tail for each in passes))
    share = error.rel_l2 / (MARGIN * max(explained.rel_l2, LEAST[fmt] * unit(fmt)))
    row = Judged(with_port(*place), operations, fmt, error.rel_l2, explained.rel_l2, share)
    if x is None or x.shape != foreign.shape:
        return row
    if norm is not None:
        weight = to_numpy(norm["weight"].astype(mx.float32)) if "weight" in norm else None
        return row._replace(fits=norms.taken_for(x, foreign, exact, fmt, norm.eps, weight))
    beyond = error.tail / max(MARGIN * explained.tail, _TAIL) if fmt != "float32" else 0.0
    fits = taken_for(x, foreign, exact, fmt, beyond > 1)
    if share <= 1 and not fits and rounded_in_steps(x, foreign, exact, fmt):
        return row
    return row._replace(share=max(share, beyond), tail=beyond > share, fits=fits)


def _at_least(fmt: str, own: str) -> str:
    """The format in which an array is judged: its own, or that of the dump if its own has fewer bits."""
    return own if format_named(own).mantissa_bits >= format_named(fmt).mantissa_bits else fmt


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
    keeps = shapes[0] is not None and shapes[0] == shapes[1]
    return keeps and not site.module.parameters() and not _is_norm(site)


def _is_norm(site: Site) -> bool:
    """Whether a module says that it is a norm, by its `eps`."""
    return isinstance(getattr(site.module, "eps", None), int | float)


class _Forced:
    """Passes that go on with the foreign arrays wherever there is one."""

    def __init__(
        self,
        one: Pass,
        foreign: Mapping[Place, np.ndarray],
        sites: Sequence[Site],
        leaves: Sequence[Site],
        watched: Collection[str],
    ):
        self._one, self._foreign, self._watched = one, foreign, watched
        self.inputs: dict[str, np.ndarray] = {}
        """What the `watched` operations were given in the last pass, by path."""
        places = {path for path, _ in foreign}
        self._sites = {site.path for site in sites if site.path in places} | {*watched}
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
            if port == "in" and site.path in self._watched:
                self.inputs[site.path] = to_numpy(real(array).astype(mx.float32))
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
