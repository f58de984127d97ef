"""The interface between the laboratory and a model: a source of weights, and a subject that computes in one dtype.

Any object with these members, from any package, is a subject; the laboratory depends on no particular model. A
configuration names the source by its `_target_` (`conf/model/*.yaml`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.instrument.sites import Components
from precision_lab.recipes.naming import Naming
from precision_lab.record.layout import Layout
from precision_lab.record.manifest import Checkpoint


@dataclass(frozen=True)
class Case:
    """One generation to run with every variant. settings: in the subject's own terms, such as steps and height."""

    prompt_id: int
    prompt: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Step(Protocol):
    """One step, whose arrays may be lazy.

    sigma: its noise level, or None. output: the prediction of the model. result: the result of the step, which is the
    array at the address `layout.result`. state: the state before the next step, which contains `result`.
    """

    @property
    def sigma(self) -> float | None: ...

    @property
    def output(self) -> mx.array: ...

    @property
    def result(self) -> mx.array: ...

    @property
    def state(self) -> Any: ...


class Subject(Protocol):
    """A model that computes in one dtype, the dtype of its activations.

    A state is a tree of tuples, lists and mappings; only its arrays may depend on the variant. No method changes a
    state that it receives, and none evaluates arrays. Modules must be reached through attributes of the subject, so
    that a copy can have its own modules (`precision_lab.instrument.replica`).
    """

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """The modules that have addresses, by the names of `layout.components`."""

    def start(self, case: Case) -> Any:
        """The state before the first step."""

    def step(self, state: Any, number: int) -> Step:
        """Builds step `number` of the case of `state`, inside `scope(step=number, sigma=...)`.

        Branches of a step set their name with `scope(branch=...)`.
        """

    def picture(self, state: Any) -> mx.array | None:
        """Unrounded pixel values (H, W, C) in [0, 255] of the state after the last step; None without a picture."""


@runtime_checkable
class Source(Protocol):
    """The weights of a model. Nothing is read before a member is accessed."""

    @property
    def layout(self) -> Layout:
        """The components, blocks and streams of the subject."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The record of the weights: name, path, fingerprint, origin. Raises InputError if there are no weights."""

    def steps(self, case: Case) -> int:
        """The number of steps of the case.

        Raises InputError for a prompt or settings that this model does not accept, including unknown settings.
        """

    def load(self, dtype: mx.Dtype) -> Subject:
        """The model that computes in `dtype`. Weights that two dtypes can share exactly should be loaded only once."""


def varied(source: Source) -> tuple[str, ...]:
    """The settings that may differ between the variants of a run: the optional member `varied` of a source.

    Variants with different settings must leave results of the same shape, since their last results are compared.
    """
    return tuple(getattr(source, "varied", ()))


def dtyped(source: Source) -> tuple[str, ...]:
    """The components that may have a dtype of their own: the optional member `dtyped` of a source.

    `load` of such a source takes a mapping of components to dtypes as a second argument.
    """
    return tuple(getattr(source, "dtyped", ()))


def naming(source: Source, dialect: str) -> Naming | None:
    """How the program of a dialect of recipes names the modules of the default component: an entry of the optional
    member `namings` of a source; None if it states none.
    """
    found: Naming | None = getattr(source, "namings", {}).get(dialect)
    return found


def remarks(source: Source, case: Case) -> list[str]:
    """What a user should know of a case: the optional method `remarks(case)` of a source, one sentence each."""
    own = getattr(source, "remarks", None)
    return [] if own is None else list(own(case))


def least_memory(source: Source, case: Case) -> int:
    """Bytes that one generation of a case needs at the least, beside the weights: the optional method `memory(case)`
    of a source. 0 where it says nothing. A run that needs more than the machine has is refused before it starts.
    """
    own = getattr(source, "memory", None)
    return 0 if own is None else int(own(case))


def components_of(subject: Subject, layout: Layout) -> Components:
    """The components of a subject with its layout, from which addresses derive their blocks and streams."""
    return Components(subject.components, layout)


def generation(subject: Subject, case: Case, steps: int) -> Iterator[tuple[Any, Step]]:
    """The only denoising loop: yields each step of a case, evaluated, with the state before it."""
    state = subject.start(case)
    mx.eval(state)
    for number in range(steps):
        step = subject.step(state, number)
        mx.eval(step.state)
        yield state, step
        state = step.state


def picture_of(subject: Subject, state: Any) -> np.ndarray | None:
    """The evaluated picture of the state after the last step; None without one."""
    pixels = subject.picture(state)
    return None if pixels is None else np.asarray(pixels)
