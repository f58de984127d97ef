"""Named scopes: where in a generation the program is, in the manner of `jax.named_scope`.

The denoising loop states its position (step, sigma, branch); observers of a module read it.
Nothing in the model depends on it.
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
    """Adds `labels` to the current ones for the length of the block."""
    token = _labels.set(MappingProxyType({**_labels.get(), **labels}))
    try:
        yield
    finally:
        _labels.reset(token)


def current_scope() -> Mapping[str, Any]:
    """The labels of all enclosing scopes, the innermost winning."""
    return _labels.get()
