"""The dtypes that the components of a model compute in: one for all, or some by the name of the component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from precision_lab.errors import InputError, expected, nearest
from precision_lab.lab.subject import Source, Subject, dtyped

DTYPES = ("float32", "bfloat16", "float16")
DEFAULT = "bfloat16"
"""The dtype of components that a run does not name."""

_DEFAULT_KEY = "default"


@dataclass(frozen=True)
class Compute:
    """The dtype of most components, and the others by name.

    The canonical text, which tables show, is the default alone or followed by the others in order of their names:
    `bfloat16+vae=float32`.
    """

    default: str
    others: tuple[tuple[str, str], ...] = ()

    @classmethod
    def read(cls, what: str, value: Any, default: str = DEFAULT) -> Compute:
        """From a dtype, or from a mapping of components to dtypes, in which `default` may stand for all others.

        default: the dtype of components that are not named. Raises InputError, with a message that begins with `what`,
        for an unknown dtype.
        """
        named = dict(value) if isinstance(value, Mapping) else {_DEFAULT_KEY: value}
        for component, dtype in named.items():
            if not isinstance(component, str) or dtype not in DTYPES:
                where = what if component == _DEFAULT_KEY else f"{what}.{component}"
                raise InputError(f"{where} is {dtype!r}, {expected(DTYPES, str(dtype))}")
        default = named.pop(_DEFAULT_KEY, default)
        return cls(default, tuple(sorted((name, dtype) for name, dtype in named.items() if dtype != default)))

    @classmethod
    def parse(cls, what: str, text: str) -> Compute:
        """The inverse of `str`."""
        default, *others = text.split("+") if isinstance(text, str) else (text,)
        return cls.read(what, {_DEFAULT_KEY: default, **dict(other.partition("=")[::2] for other in others)})

    def __str__(self) -> str:
        return "+".join((self.default, *(f"{name}={dtype}" for name, dtype in self.others)))

    def of(self, component: str) -> mx.Dtype:
        """The dtype of a component."""
        dtype: mx.Dtype = getattr(mx, dict(self.others).get(component, self.default))
        return dtype

    def check(self, what: str, source: Source) -> None:
        """Raises InputError if a component is named that has no dtype of its own in this model."""
        known = dtyped(source)
        for component, _ in self.others:
            if component not in known:
                advice = nearest(component, known) if known else "All components of this model compute in one dtype."
                raise InputError(f"{what}.{component}: no component with a dtype of its own. {advice}")

    def load(self, source: Source) -> Subject:
        """The subject that computes in these dtypes."""
        default: mx.Dtype = getattr(mx, self.default)
        if not self.others:
            return source.load(default)
        subject: Subject = source.load(default, {name: self.of(name) for name, _ in self.others})  # type: ignore[call-arg]
        return subject
