"""How another program names the modules of a model: plain data, kept beside the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from precision_lab.record.glob import compile_glob


@dataclass(frozen=True)
class Naming:
    """The names and the habits of a program for one component of one model.

    - prefix: what its names begin with. read: further prefixes that its files may have instead.
    - renamed: expressions and replacements from a published path to its own, applied in order.
    - wide: globs of the linears that it never quantises.
    - fused: the last part of a layer of its own, and the last parts of the published linears that it joins in it; these
      have one format.
    """

    prefix: str = ""
    read: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    wide: tuple[str, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def theirs(self, path: str) -> str:
        """The program's name for the module at `path`."""
        for pattern, replacement in self.renamed:
            path = re.sub(pattern, replacement, path)
        return self.prefix + path

    def ours(self, paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The paths that each of the program's names stands for, those of fused layers included."""
        found: dict[str, tuple[str, ...]] = {self.theirs(path): (path,) for path in paths}
        for names in self.joined(found).values():
            for fused, parts in names.items():
                found.setdefault(fused, tuple(path for part in parts for path in found[part]))
        return found

    def joined(self, names: Iterable[str]) -> dict[str, dict[str, tuple[str, ...]]]:
        """For each kind of fused layer, its full names and the names of the linears that it joins."""
        known = set(names)
        layers: dict[str, dict[str, tuple[str, ...]]] = {}
        for fused, parts in self.fused.items():
            for name in known:
                head = name.removesuffix(parts[0])
                members = tuple(head + part for part in parts)
                if name.endswith(f".{parts[0]}") and known.issuperset(members):
                    layers.setdefault(fused, {})[head + fused] = members
        return layers

    def is_wide(self, path: str) -> bool:
        """Whether the program never quantises the linear at `path`."""
        return any(compile_glob(glob).fullmatch(path) for glob in self.wide)

    def stripped(self, name: str) -> str:
        """A name in one of the program's files with the prefix of `theirs`."""
        for prefix in sorted((self.prefix, *self.read), key=len, reverse=True):
            if prefix and name.startswith(prefix):
                return self.prefix + name.removeprefix(prefix)
        return name if name.startswith(self.prefix) else self.prefix + name
