"""The layout of a subject: its components, blocks, streams, branches and results, as plain data.

A run stores the layout of its subject in the manifest. Whatever comes after the run (comparison, claims, gate, report)
reads the layout and needs no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from precision_lab.record.address import DEFAULT_PORT, NO_STREAM, join_address, split_address
from precision_lab.record.glob import compile_glob

ANY_BLOCKS = "**.{transformer_blocks,layers,blocks,h,stages}.*"
"""Where the blocks of a model usually are, for a subject that does not say."""


@dataclass(frozen=True)
class Stream:
    """A residual stream of the default component.

    title: its name in figures, "image stream". port: the port of a block's output that carries it, "out.0".
    sites: pattern of the modules that work on it; modules inside those belong to it too. entry: the module whose output
    it begins with, if there is one.
    """

    title: str
    port: str = "out"
    sites: str = ""
    entry: str | None = None


@dataclass(frozen=True)
class Result:
    """The array that a step leaves, and that drift is measured on, at port `out` of its address.

    title: its name in figures. distribution: whether it holds logits, so that its drift has a Kullback-Leibler
    divergence too.
    """

    address: str
    title: str = "result"
    distribution: bool = False

    @property
    def component(self) -> str:
        return split_address(self.address)[0]

    @property
    def site(self) -> str:
        return split_address(self.address)[1]


@dataclass(frozen=True)
class Layout:
    """The parts of a subject. Patterns follow the grammar of `precision_lab.record.glob`.

    - components: names of the components; default: the one that an address without a component is in.
    - result, picture: the array that a step leaves, and the address of the picture where there is one.
    - blocks: patterns of the blocks, `component:glob`, of as many components as have some.
    - depth: number of blocks of the default component.
    - streams: the residual streams of the default component by name, the main one first.
    - joint: pattern of the modules that work on all streams together.
    - adds: patterns of the residual adds by the part of a block that they add, "attention" or "feed-forward".
    - branches: what each branch of a step is, by name, the main one first; empty where a step has no branches.
    - before: components whose calls outside of steps precede the first step.
    - exits: modules after the last block, to be drawn beside the growth over the blocks.
    - level: the name of the number that belongs to a step, such as "noise level σ"; empty where there is none.
    """

    components: tuple[str, ...]
    default: str
    result: Result
    picture: str | None = None
    blocks: tuple[str, ...] = ()
    depth: int = 0
    streams: Mapping[str, Stream] = field(default_factory=dict)
    joint: str = ""
    adds: Mapping[str, str] = field(default_factory=dict)
    branches: Mapping[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    exits: tuple[str, ...] = ()
    level: str = ""

    @classmethod
    def of(cls, components: Iterable[str]) -> Layout:
        """A layout for components of which nothing else is known: blocks where they usually are, no streams."""
        names = tuple(components)
        return cls(
            components=names,
            default=names[0],
            result=Result(f"{names[0]}:."),
            blocks=tuple(f"{name}:{ANY_BLOCKS}" for name in names),
        )

    @property
    def main_branch(self) -> str | None:
        return next(iter(self.branches), None)

    @property
    def other_branches(self) -> tuple[str, ...]:
        return tuple(self.branches)[1:]

    @property
    def main_stream(self) -> str | None:
        return next(iter(self.streams), None)

    @property
    def last_block(self) -> str | None:
        """The path of the last block of the default component."""
        pattern = self._blocks.get(self.default)
        return pattern.removesuffix("*") + str(self.depth - 1) if pattern and self.depth else None

    def address(self, component: str, site: str, port: str = DEFAULT_PORT) -> str:
        """The address as a pattern names it, with its port: the default component and the port `out` are left out."""
        return join_address(component, site, port, self.default)

    def block_of(self, component: str, path: str) -> int | None:
        """Index of the block that the module is, or is part of; the outermost if blocks are nested."""
        return self._labels(component, path)[0]

    def is_block(self, component: str, path: str) -> bool:
        """Whether the path is that of a block, not of a module inside one."""
        return self.block_of(component, path) is not None and self.block_of(component, path.rpartition(".")[0]) is None

    def within_block(self, component: str, path: str) -> tuple[str, str]:
        """The path of the block that the module is, or is part of, and its path inside; outside of blocks, "" and path.

        The outermost block if blocks are nested. A block itself has no path inside.
        """
        if self.block_of(component, path) is None:
            return "", path
        block = next(parent for parent, _ in _ancestors(path) if self.is_block(component, parent))
        return block, path[len(block) + 1 :]

    def is_add(self, component: str, path: str) -> bool:
        """Whether the module is a residual add, whose output is a residual stream. Cached like blocks and streams."""
        if component != self.default:
            return False
        if path not in self._known_adds:
            self._known_adds[path] = any(compile_glob(pattern).fullmatch(path) for pattern in self.adds.values())
        return self._known_adds[path]

    def stream_of(self, component: str, path: str) -> str:
        """The stream that a module works on: a name in `streams`, "joint", or "-" where there is no such thing."""
        return self._labels(component, path)[1]

    def _labels(self, component: str, path: str) -> tuple[int | None, str]:
        """Block and stream, cached: a model has thousands of addresses, and they are looked up in every generation."""
        labels = self._known.get((component, path))
        if labels is None:
            parents = list(_ancestors(path))
            labels = self._known[component, path] = (self._block(component, parents), self._stream(component, parents))
        return labels

    def _block(self, component: str, parents: Sequence[tuple[str, str]]) -> int | None:
        pattern = self._blocks.get(component)
        if pattern is None:
            return None
        expression = compile_glob(pattern)
        found = (int(segment) for parent, segment in parents if segment.isdecimal() and expression.fullmatch(parent))
        return next(found, None)

    def _stream(self, component: str, parents: Sequence[tuple[str, str]]) -> str:
        if component != self.default:
            return NO_STREAM
        for name, pattern in self._stream_patterns.items():
            if any(compile_glob(pattern).fullmatch(parent) for parent, _ in parents):
                return name
        return NO_STREAM

    @cached_property
    def _known(self) -> dict[tuple[str, str], tuple[int | None, str]]:
        return {}

    @cached_property
    def _known_adds(self) -> dict[str, bool]:
        return {}

    @cached_property
    def _blocks(self) -> Mapping[str, str]:
        split = (split_address(pattern, self.default) for pattern in self.blocks)
        return dict(split)

    @cached_property
    def _stream_patterns(self) -> Mapping[str, str]:
        patterns = {"joint": self.joint, **{name: stream.sites for name, stream in self.streams.items()}}
        return {name: pattern for name, pattern in patterns.items() if pattern}


def _ancestors(path: str) -> Iterable[tuple[str, str]]:
    """Every prefix of the path with its last segment, from the shortest to the path itself."""
    segments = path.split(".")
    for length, segment in enumerate(segments, start=1):
        yield ".".join(segments[:length]), segment
