"""Named scopes that label the current position in a generation, similar to `jax.named_scope`.

The denoising loop sets its position (step, sigma, branch), and observers and some techniques read it. The plain
model does not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

_labels: ContextVar[Mapping[str, Any]] = ContextVar("labels", default=MappingProxyType({}))


@contextmanager
def scope(**labels: Any) -> Iterator[None]:
    """Context manager that adds `labels` to the current ones.

    labels: `step`, an integer from 0, `branch`, a name of the layout, or `sigma`, the noise level. What is measured in
    the modules that are called inside has them as columns.
    """
    token = _labels.set(MappingProxyType({**_labels.get(), **labels}))
    try:
        yield
    finally:
        _labels.reset(token)


def current_scope() -> Mapping[str, Any]:
    """The labels of all enclosing scopes; inner labels override outer ones."""
    return _labels.get()
