"""Which operations an array of a pass is computed by, from other arrays of the same pass.

MLX builds a graph before it computes anything. `mx.export_to_dot` writes the graph with names for given arrays, so the
arrays that enter and leave modules can be found in it, whatever the model does between its modules.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import mlx.core as mx

from precision_lab.instrument.arrays import real
from precision_lab.instrument.sites import Site
from precision_lab.instrument.tap import Call, ports

_EDGE = re.compile(r'^(?:"([^"]+)" -> (\d+)|(\d+) -> "([^"]+)")$', re.MULTILINE)

_MOST_NAMES = 1000
"""MLX takes at most 1,024 names at once."""

Place = tuple[str, str]
"""The path of a site and a port."""


class Dependence:
    """The graph of one pass, from the calls of its modules. No array of it may have been evaluated.

    order: the places of all arrays in order of execution, inputs of a module before its outputs. leaves: the paths of
    the modules that contain no other observed module, in order of execution.
    """

    def __init__(self, calls: Sequence[Call], leaves: Collection[Site], output: mx.array):
        self._nodes: dict[Place, frozenset[str]] = {}
        self.shapes: dict[Place, tuple[int, ...]] = {}
        self.repeated: set[str] = set()
        paths = {site.path for site in leaves}
        self.leaves = list(dict.fromkeys(call.site.path for call in calls if call.site.path in paths))
        arrays: dict[str, mx.array] = {}
        named: dict[int, str] = {}
        names: dict[Place, str] = {}
        writers: dict[str, str] = {}
        seen: set[str] = set()
        for call in calls:
            path = call.site.path
            if path in seen:
                self.repeated.add(path)
                continue
            seen.add(path)
            for port in ports(call, ["in", "out"]):
                name = named.setdefault(id(port.array), f"p{len(named)}")
                arrays[name] = port.array
                names[path, port.name] = name
                self.shapes[path, port.name] = real(port.array).shape
                if port.name.startswith("out") and path in paths:
                    writers.setdefault(name, path)
        self._graph = _Graph(output, arrays)
        self._nodes = {place: self._graph.nodes(name) for place, name in names.items()}
        self._writers = {node: path for name, path in writers.items() for node in self._graph.nodes(name)}
        self._position = {path: at for at, path in enumerate(self.leaves)}

    def operations(self, known: Collection[Place]) -> dict[Place, tuple[str, ...]]:
        """For each of the `known` places the modules between the other known arrays and it, in order of execution.

        None if it is the very output of a module that is known.
        """
        ends = {node for place in known for node in self._nodes[place]}
        outputs: dict[str, set[str]] = defaultdict(set)
        for path, port in known:
            if port.startswith("out"):
                for node in self._nodes[path, port]:
                    outputs[node].add(path)
        return {place: self._between(place, ends, outputs) for place in known}

    def _between(self, place: Place, ends: Collection[str], outputs: Mapping[str, Collection[str]]) -> tuple[str, ...]:
        target = self._nodes[place]
        if place[1].startswith("in") and any({*outputs.get(node, ())} - {place[0]} for node in target):
            return ()  # the output of another module, as it is
        crossed, waiting, visited = set[str](), list(target), set[str]()
        while waiting:
            node = waiting.pop()
            if node in visited or (node in ends and node not in target):
                continue
            visited.add(node)
            if node in self._writers:
                crossed.add(self._writers[node])
            waiting += self._graph.above(node)
        return tuple(sorted(crossed, key=self._position.__getitem__))


class _Graph:
    """Arrays as nodes. What a primitive computes is `PRIMITIVE>N`, and an array that nothing computes has a node for
    each use, `PRIMITIVE<N`, since its name differs from one export to the next.
    """

    def __init__(self, output: mx.array, arrays: Mapping[str, mx.array]):
        self._inputs: dict[str, list[str]] = {}
        self._named: dict[str, set[str]] = defaultdict(set)
        waiting, before = list(arrays), -1
        while waiting and len(waiting) != before:  # an array with two names is exported under one of them
            before = len(waiting)
            for first in range(0, len(waiting), _MOST_NAMES):
                text = io.StringIO()
                named = {name: arrays[name] for name in waiting[first : first + _MOST_NAMES]}
                mx.export_to_dot(text, output, **named)
                self._read(text.getvalue())
            waiting = [name for name in waiting if name not in self._named]

    def nodes(self, name: str) -> frozenset[str]:
        return frozenset(self._named.get(name, ()))

    def above(self, node: str) -> list[str]:
        """The arrays from which the primitive of a node computes it."""
        return self._inputs[node.partition(">")[0]] if ">" in node else []

    def _read(self, text: str) -> None:
        outputs: dict[str, int] = defaultdict(int)
        inputs: dict[str, list[str]] = defaultdict(list)
        written: dict[str, str] = {}
        for found in _EDGE.finditer(text):
            if found[1] is not None:
                inputs[found[2]].append(found[1])
            else:
                written[found[4]] = f"{found[3]}>{outputs[found[3]]}"
                outputs[found[3]] += 1
        for primitive, used in inputs.items():
            nodes = [written.get(name, f"{primitive}<{at}") for at, name in enumerate(used)]
            self._inputs[primitive] = nodes
            for name, node in zip(used, nodes, strict=True):
                self._named[name].add(node)
        for primitive in outputs:
            self._inputs.setdefault(primitive, [])
        for name, node in written.items():
            self._named[name].add(node)
