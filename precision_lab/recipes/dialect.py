"""A dialect: how one program writes which linears have which format, in both directions.

A dialect says how it spells a format (`spelled`), what it understands of a spelling (`understood`), and how names and
spellings become a text and back (`text`, `entries`). Names, layers that the program never quantises, layers that it
joins, and the collection of what is lost are the same for all, and are here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from precision_lab.errors import InputError, nearest, shown
from precision_lab.recipes.documents import Document
from precision_lab.recipes.recipe import Format, Loss, Losses, Recipe, Target


class Spelled(NamedTuple):
    """A format in the words of a dialect, or back. change: what differs from the format, empty if nothing does."""

    value: Any
    change: str = ""


class UnspeakableError(Exception):
    """A dialect has no words for a format; the message is the reason, as part of a sentence."""


class Written(NamedTuple):
    """text: the recipe in the dialect. recipe: what it says, with their paths in the model."""

    text: str
    recipe: Recipe
    losses: list[Loss]


class Read(NamedTuple):
    """The recipe that a document states, and what of it the lab cannot reproduce."""

    recipe: Recipe
    losses: list[Loss]


class Dialect(ABC):
    """title: the program."""

    title: ClassVar[str]
    needs_naming: ClassVar[bool] = True
    """Whether a model must state how the program names its modules; otherwise they have the names of the model."""

    @abstractmethod
    def spelled(self, kind: Format, channels: int) -> Spelled:
        """The format of a linear with `channels` input channels. Raises UnspeakableError if it has no words."""

    @abstractmethod
    def understood(self, value: Any, channels: int) -> Spelled | None:
        """The format that a spelling means, None for a weight as stored.

        Raises UnspeakableError for a format that the lab does not have, and InputError for one that is malformed.
        """

    @abstractmethod
    def text(self, entries: Mapping[str, Any], target: Target) -> str:
        """The recipe as a text. entries: the spelling of every linear that has a format, by the program's name."""

    @abstractmethod
    def entries(self, document: Document, target: Target, losses: Losses) -> Mapping[str, Any]:
        """The spellings that a document states, by the program's name of a linear of the target.

        Raises InputError for a document that is none of this dialect, or that names modules the target does not have.
        """

    @property
    def _never(self) -> str:
        return f"{self.title} never quantises this layer"

    def write(self, recipe: Recipe, target: Target) -> Written:
        """The recipe in this dialect, and what is lost. Raises InputError if nothing of it can be expressed."""
        losses, naming = Losses(), target.naming
        spelled: dict[str, Spelled] = {}
        for path, kind in recipe.items():
            if naming.is_wide(path):
                losses.add(self._never, path)
                continue
            try:
                spelled[path] = self._spelled(kind, target.channels[path])
            except UnspeakableError as reason:
                losses.add(f"{self.title} has no {kind}: {reason}", path)
        self._agree(spelled, target, losses)
        self._choose(spelled, losses)
        for path, each in spelled.items():
            if each.change:
                losses.add(f"{recipe[path]} becomes {each.change}", path, kept=False)
        if not spelled:
            raise InputError(f"nothing of the recipe can be expressed for {self.title}: {self._foremost(losses)}")
        entries = {naming.theirs(path): each.value for path, each in spelled.items()}
        found = self._recipe(entries, target, Losses())
        return Written(self.text(entries, target), found, losses.all())

    def read(self, document: Document, target: Target) -> Read:
        """The recipe that a document states. Raises InputError as `entries` does, or if it quantises nothing."""
        losses = Losses()
        entries = self.entries(document, target, losses)
        recipe = self._recipe(entries, target, losses)
        if not recipe:
            reason = self._foremost(losses) or "it keeps every linear as stored"
            raise InputError(f"{document.name}: nothing in it can be judged: {reason}")
        return Read(recipe, losses.all())

    def _spelled(self, kind: Format, channels: int) -> Spelled:
        """As `spelled`, with a change where the spelling says less than the format does, such as no scale a tensor."""
        each = self.spelled(kind, channels)
        back = None if each.change else self.understood(each.value, channels)
        return each if back is None or back.value == kind else each._replace(change=str(back.value))

    def _recipe(self, entries: Mapping[str, Any], target: Target, losses: Losses) -> dict[str, Format]:
        """What the entries mean, in order of definition."""
        paths = target.naming.ours(target.channels)
        meant: dict[str, Format] = {}
        for name, value in entries.items():
            for path in paths[name]:
                try:
                    format_ = self.understood(value, target.channels[path])
                except UnspeakableError as reason:
                    losses.add(str(reason), path)
                    continue
                if format_ is None:
                    continue
                if target.naming.is_wide(path):
                    losses.add(self._never, path)
                    continue
                meant[path] = format_.value
                if format_.change:
                    losses.add(format_.change, path, kept=False)
        return {path: meant[path] for path in target.channels if path in meant}

    def _agree(self, spelled: dict[str, Spelled], target: Target, losses: Losses) -> None:
        """Keeps the linears of a layer that the program joins, unless all of them have one format."""
        paths = {target.naming.theirs(path): path for path in target.channels}
        for fused, layers in target.naming.joined(paths).items():
            for members in layers.values():
                ours = [paths[name] for name in members]
                if len({str(spelled[path].value) if path in spelled else None for path in ours}) > 1:
                    for path in ours:
                        if spelled.pop(path, None) is not None:
                            losses.add(f"{self.title} joins it with others in {fused}, which has one format", path)

    def _choose(self, spelled: dict[str, Spelled], losses: Losses) -> None:  # noqa: B027
        """Leaves out what cannot be said together; most dialects can say all."""

    @staticmethod
    def _foremost(losses: Losses) -> str:
        """The reason that most linears have, empty if there is none."""
        return max(losses.all(), key=lambda loss: len(loss.paths)).reason if losses.all() else ""


def known(name: str, target: Target, document: Document) -> str:
    """The name in the form of `Naming.theirs`. Raises InputError for one that no linear of the target has."""
    stripped = target.naming.stripped(name)
    names = target.naming.ours(target.channels)
    if stripped not in names:
        raise InputError(f"{document.name}: {target.model} has no linear {shown(name)}. {nearest(stripped, names)}")
    return stripped
