"""The protocols of a model: a source of weights, and the subject that computes with them in one dtype.

Anything with these members is a subject, from any package; the laboratory knows no particular model. A configuration
names the source by its `_target_` (`conf/model/*.yaml`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.instrument.sites import Components
from precision_lab.record.layout import Layout
from precision_lab.record.manifest import Checkpoint


@dataclass(frozen=True)
class Case:
    """One generation to make with every variant. settings: in the subject's own terms, such as steps and height."""

    prompt_id: int
    prompt: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Step(Protocol):
    """A step that was built: its arrays need not be evaluated.

    - sigma: the level that belongs to it, None where there is none.
    - output: the model's prediction.
    - result: the array that the step leaves, at the address `layout.result`.
    - state: the state before the next step; it contains `result`.
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
    """A model that computes in one dtype, that of its activations.

    A state is a tree of tuples, lists and mappings; any array in it may depend on the variant. No method
    changes a state that it is given, and none evaluates anything. Modules are reached through attributes of the
    subject, so that a copy of it may have modules of its own (`precision_lab.instrument.replica`).
    """

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """The modules that have addresses, by the names of `layout.components`."""

    def start(self, case: Case) -> Any:
        """The state before the first step."""

    def step(self, state: Any, number: int) -> Step:
        """Step `number` of the case that `state` belongs to, inside `scope(step=number, sigma=...)`.

        Branches of a step state their name with `scope(branch=...)`.
        """

    def picture(self, state: Any) -> mx.array | None:
        """Pixel values (H, W, C) in [0, 255] of the state after the last step, unrounded; None without a picture."""


@runtime_checkable
class Source(Protocol):
    """The weights of a model, their place and their origin. Nothing is read before a member is used."""

    @property
    def layout(self) -> Layout:
        """The layout of the subject."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The record of the weights: name, path, fingerprint, origin. Raises InputError where there are none."""

    def steps(self, case: Case) -> int:
        """How many steps the case has.

        Raises InputError for a prompt or for settings that this model cannot take, unknown ones included.
        """

    def load(self, dtype: mx.Dtype) -> Subject:
        """The model computing in `dtype`; weights that two dtypes can share exactly should be loaded once."""


def components_of(subject: Subject, layout: Layout) -> Components:
    """The components of a subject with its layout, so that addresses know their blocks and streams."""
    return Components(subject.components, layout)


def generation(subject: Subject, case: Case, steps: int) -> Iterator[tuple[Any, Step]]:
    """THE loop: the steps of a case, each with the state before it, evaluated one by one."""
    state = subject.start(case)
    mx.eval(state)
    for number in range(steps):
        step = subject.step(state, number)
        mx.eval(step.state)
        yield state, step
        state = step.state


def picture_of(subject: Subject, state: Any) -> np.ndarray | None:
    """The evaluated picture of a state after its last step, None without one."""
    pixels = subject.picture(state)
    return None if pixels is None else np.asarray(pixels)
