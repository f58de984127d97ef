"""Weights of another checkpoint of the same architecture, to find the tensors that explain a difference between two.

Cost: a second copy of the weights in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components, Site, walk
from precision_lab.record.layout import Layout


class Checkpoint(Protocol):
    """The members of a source of weights (`precision_lab.lab.subject.Source`) that are used here."""

    @property
    def layout(self) -> Layout: ...

    def load(self, dtype: mx.Dtype) -> Any: ...


@dataclass(frozen=True)
class OtherWeights:
    """Each site computes with its own arrays in `model`, a source as `conf/model` describes it; modules inside keep
    theirs. dtype: in which the other model is loaded, which decides nothing for weights that are used as stored."""

    model: Checkpoint
    sites: Sequence[str]
    dtype: str = "float32"
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = False
    of_linears: ClassVar[bool] = True

    def rewrite(self, site: Site) -> nn.Module:
        found = modules_of(self.model, self.dtype).get((site.component, site.path))
        if found is None:
            raise InputError(
                f"other_weights: the other checkpoint has no {site}, expected one of the same architecture"
            )
        if not found.children():
            return found
        changed = copy(site.module)
        for name in arrays_of(site.module):
            changed[name] = found[name]
        return changed


def modules_of(model: Checkpoint, dtype: str) -> Mapping[tuple[str, str], nn.Module]:
    """The modules of a source by component and path. The last model is kept: a search asks for it in every trial."""
    return _modules(_Named(model), dtype)


def arrays_of(module: nn.Module) -> dict[str, mx.array]:
    """The arrays of a module itself, without those of the modules inside."""
    return {name: module[name] for name in module if isinstance(module[name], mx.array)}


class _Named:
    """A source that equals others with the same settings, which is what `repr` shows of one."""

    def __init__(self, model: Checkpoint):
        self.model = model
        self.name = f"{type(model).__module__}.{model!r}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Named) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


@lru_cache(maxsize=1)
def _modules(named: _Named, dtype: str) -> Mapping[tuple[str, str], nn.Module]:
    subject = named.model.load(getattr(mx, dtype))
    components = Components(subject.components, named.model.layout)
    return {(site.component, site.path): site.module for site in walk(components)}
