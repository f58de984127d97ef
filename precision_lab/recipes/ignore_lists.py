"""Programs with one method for all layers and a list of those that it leaves alone."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from precision_lab.errors import InputError, expected, shown
from precision_lab.recipes.dialect import Dialect, Spelled, UnspeakableError
from precision_lab.recipes.documents import Document, mapping, names
from precision_lab.recipes.expressions import Rules
from precision_lab.recipes.recipe import Format, Losses, Target

_HOLDERS = ("quantization_config", "quantization")


class IgnoreList(Dialect):
    """methods: by the value that selects a method, its format and what of it the lab has not.

    keys: the entries that may hold the list, that which is written first. method_keys: those that may hold the method.
    """

    methods: ClassVar[Mapping[str, tuple[Format, str]]]
    keys: ClassVar[tuple[str, ...]]
    method_keys: ClassVar[tuple[str, ...]]

    @abstractmethod
    def configured(self, method: str, ignored: Sequence[str]) -> Mapping[str, Any]:
        """The configuration with a method and the list."""

    @abstractmethod
    def expression(self, entry: str) -> str:
        """The expression that is found in the names that an entry of the list means."""

    def texts(self, name: str) -> tuple[str, ...]:
        """What of a name an expression is looked for in."""
        return (name,)

    def meant(self, entry: str, name: str) -> bool:
        """Whether an entry means a layer of this name if its expression is found in none."""
        return False

    def listed(self, ignored: Sequence[str], target: Target) -> list[str]:
        """The list for the layers of these names."""
        return list(ignored)

    def spelled(self, kind: Format, channels: int) -> Spelled:
        for method, (format_, without) in self.methods.items():
            if kind == format_:
                return Spelled(method, without and f"{method} of {self.title}: {without}")
        raise UnspeakableError(f"it has {', '.join(str(format_) for format_, _ in self.methods.values())}")

    def understood(self, value: Any, channels: int) -> Spelled | None:
        format_, without = self.methods[value]
        return Spelled(format_, without and f"not computed here: {without}")

    def text(self, entries: Mapping[str, Any], target: Target) -> str:
        ignored = [name for name in self._quantised(target) if name not in entries]
        content = self.configured(next(iter(entries.values())), self.listed(ignored, target))
        return json.dumps(content, indent=2) + "\n"

    def entries(self, document: Document, target: Target, losses: Losses) -> Mapping[str, Any]:
        content = mapping(document.json(), document.name)
        for key in _HOLDERS:
            if key in content:
                content = mapping(content[key], f"{document.name}: {key}")
                break
        method = next((content[key] for key in self.method_keys if key in content), None)
        if not isinstance(method, str) or method not in self.methods:
            raise InputError(
                f"{document.name}: {self.method_keys[0]} is {shown(method)}, in {self.title} "
                f"{expected(self.methods, str(method))}"
            )
        key = next((key for key in self.keys if content.get(key) is not None), self.keys[0])
        everything = target.naming.ours(target.channels)
        listed = names(content.get(key) or [], f"{document.name}: {key}")
        ignored = self._ignored(listed, everything, f"{document.name}: {key}", target, losses)
        for fused, layers in target.naming.joined(everything).items():
            for name, members in layers.items():
                if name in ignored:
                    ignored.update(members)
                elif ignored.intersection(members) and not ignored.issuperset(members):
                    raise InputError(
                        f"{document.name}: {key} has some but not all of {', '.join(members)}, one {fused}"
                    )
        return {name: method for name in self._quantised(target) if name not in ignored}

    def _choose(self, spelled: dict[str, Spelled], losses: Losses) -> None:
        """Keeps the method of most linears."""
        counts = Counter(each.value for each in spelled.values())
        if len(counts) < 2:
            return
        kept = counts.most_common(1)[0][0]
        for path, each in list(spelled.items()):
            if each.value != kept:
                losses.add(f"{self.title} has one method for all layers, here {kept}, not {each.value}", path)
                del spelled[path]

    def _ignored(
        self, listed: Sequence[str], everything: Iterable[str], what: str, target: Target, losses: Losses
    ) -> set[str]:
        """The names among `everything` that entries of the list mean; an entry that means none is a loss."""
        rules = Rules([self.expression(entry) for entry in listed], what)
        found: list[set[str]] = [set() for _ in listed]
        linears = [target.naming.theirs(path) for path in target.channels]
        for name in linears:
            for number in set().union(*(rules.all(text) for text in self.texts(name))):
                found[number].add(name)
        for entry, meant in zip(listed, found, strict=True):
            meant.update({entry}.intersection(everything))  # a fused layer by its very name
            if not meant:
                meant.update(name for name in everything if self.meant(entry, name))
            if not meant:
                losses.add(f"{what}: {shown(entry)} names no linear of {target.model}")
        return set().union(*found)

    @staticmethod
    def _quantised(target: Target) -> list[str]:
        """The names of the linears that the program quantises unless the list has them."""
        return [target.naming.theirs(path) for path in target.channels if not target.naming.is_wide(path)]
