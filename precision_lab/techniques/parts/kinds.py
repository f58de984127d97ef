"""Checks of a module before a technique replaces it."""

from __future__ import annotations

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site
from precision_lab.model.coded import LINEARS, CodedLinear


def expect_kind(technique: str, site: Site, *kinds: type) -> None:
    """Raises InputError unless the module at `site` is an instance of one of `kinds`; the message names `technique`."""
    if not isinstance(site.module, kinds):
        *others, last = (kind.__name__ for kind in kinds)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise InputError(f"{technique}: {site} is {type(site.module).__name__}, expected {expected}")


def expect_exact_inputs(technique: str, site: Site) -> None:
    """Raises InputError unless the module at `site` is a linear that multiplies its inputs as they are."""
    expect_kind(technique, site, *LINEARS)
    if isinstance(site.module, CodedLinear) and site.module.inputs is not None:
        raise InputError(
            f"{technique}: {site} rounds its inputs to {site.module.inputs.name}, expected a linear that does not"
        )
