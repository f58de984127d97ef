"""Applies one probe to one operation, which this build of MLX may not provide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from precision_lab.device.behaviour.bridge import UnavailableError
from precision_lab.device.behaviour.finding import NOT_AVAILABLE, Finding, Outcome
from precision_lab.device.behaviour.storage import Storage


def ask(
    op: str,
    storage: Storage,
    about: str,
    probe: Callable[..., Outcome],
    *arguments: Any,
    sizes: Mapping[str, int | str] | None = None,
) -> Finding:
    """The finding of `probe(*arguments)`. If the operation is not available, the finding states MLX's reason."""
    try:
        outcome = probe(*arguments)
    except UnavailableError as error:
        outcome = Outcome(NOT_AVAILABLE, str(error))
    return Finding(op, storage.name, about, outcome, sizes or {})
