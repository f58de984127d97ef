"""The settings of the command `survival`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from precision_lab.cli.schema import BesideAModel, Count, Folder, Seed
from precision_lab.errors import InputError
from precision_lab.lab.values import one_of


class Survival(BesideAModel):
    """conf/survival.yaml."""

    adapter: Annotated[str, "the path of an adapter"] | None
    other: Annotated[str, "a folder or a Hub id"] | None
    strength: Annotated[float, "a number"]
    rms: Annotated[float, "a number above 0"] | None
    rank: Count | None
    seed: Seed
    candidate: Annotated[Mapping[str, Any], "candidates by name, candidate=[affine4,nvfp4]"]
    of: Annotated[str | Sequence[str] | None, "a pattern of sites, a list of patterns, or null"]
    orders: Annotated[Sequence[str], "some of before and after"]
    roundings: Annotated[Sequence[str], "some of nearest and stochastic"]
    claims: Mapping[str, Mapping[str, Any]]
    out: Folder | None

    def check(self) -> None:
        """Raises InputError for values that fit none, or contradict each other."""
        given = [name for name in ("adapter", "other", "rms") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(f'{name}=' for name in given)} each state a change, expected one of them")
        for name in ("adapter", "other"):
            if getattr(self, name) == "":
                raise InputError(f"{name} is '', expected a path")
        if self.rms is not None and not self.rms > 0:
            raise InputError(f"rms is {self.rms:g}, expected a number above 0, the size relative to each weight's rms")
        if self.strength == 0:
            raise InputError("strength is 0, of which nothing can arrive, expected another number")
        if self.strength != 1 and self.adapter is None and self.other is None:
            raise InputError(f"strength={self.strength:g} is that of adapter= or other=; rms= has the size of a change")
        for name, known in (("orders", ("before", "after")), ("roundings", ("nearest", "stochastic"))):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"{name} is {list(values)}, expected some of {', '.join(known)}, each once")
            for value in values:
                one_of(name, value, known)
