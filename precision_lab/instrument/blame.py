"""The site and moment at which an exception was raised, carried by the exception itself."""

from __future__ import annotations

from typing import NamedTuple

from precision_lab.instrument.scope import current_scope

_ATTRIBUTE = "precision_lab_place"


class Place(NamedTuple):
    """The innermost observed module in whose call an exception was raised, and the step and branch of that call."""

    component: str
    site: str
    step: int | None = None
    branch: str | None = None

    @classmethod
    def now(cls, component: str, site: str) -> Place:
        """The place of a call at `site` in the current scope."""
        labels = current_scope()
        return cls(component, site, labels.get("step"), labels.get("branch"))


def blame(error: BaseException, place: Place) -> None:
    """Records where `error` was raised, unless an inner call has recorded it before."""
    if place_of(error) is None:
        setattr(error, _ATTRIBUTE, place)


def place_of(error: BaseException) -> Place | None:
    """The recorded place of an exception; None for one that was raised outside any observed call."""
    place: Place | None = getattr(error, _ATTRIBUTE, None)
    return place
