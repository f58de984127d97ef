"""The check of a module's class before a technique replaces it."""

from __future__ import annotations

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site


def expect_kind(technique: str, site: Site, *kinds: type) -> None:
    """Raises InputError unless the module at `site` is an instance of one of `kinds`; the message names `technique`."""
    if not isinstance(site.module, kinds):
        *others, last = (kind.__name__ for kind in kinds)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise InputError(f"{technique}: {site} is {type(site.module).__name__}, expected {expected}")
