"""How an address is written: `component:site`, and with its port `component:site (out.0)`."""

from __future__ import annotations

import re

NO_STREAM = "-"
DEFAULT_PORT = "out"

_WITH_PORT = re.compile(r"(.+?)(?: \(([^)]+)\))?")


def split_address(address: str, default: str = "") -> tuple[str, str]:
    """The component, `default` if none is named, and the site or glob."""
    component, _, site = address.rpartition(":")
    return component or default, site


def join_address(component: str, site: str, port: str = DEFAULT_PORT, default: str = "") -> str:
    """The address as a pattern names it, without the component `default`, and with its port: `vae:decoder (in)`."""
    return with_port(site if component == default else f"{component}:{site}", port)


def with_port(address: str, port: str) -> str:
    """`transformer_blocks.3 (out.1)`; the port `out` is left out."""
    return address if port in (DEFAULT_PORT, "-") else f"{address} ({port})"


def split_port(text: str) -> tuple[str, str]:
    """The address and the port of what `with_port` wrote."""
    found = _WITH_PORT.fullmatch(text)
    assert found is not None
    return found[1], found[2] or DEFAULT_PORT
