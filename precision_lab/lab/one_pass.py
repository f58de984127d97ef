"""One pass of the default component, with what it is called with: what another program needs to compute the same.

The pass is that of the main branch in one step of a case. A file of its inputs holds the arrays by the names of the
parameters of the component's `__call__` (`latents`, `timestep`, `text`), in fp32 or whole numbers, and in its metadata
what identifies the pass.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from precision_lab import __version__
from precision_lab.device import memory
from precision_lab.errors import InputError, nearest, shown
from precision_lab.instrument.arrays import real
from precision_lab.instrument.exchange import mapped
from precision_lab.instrument.replay import Phase
from precision_lab.instrument.sites import Components, Site
from precision_lab.instrument.tap import Call, tapped
from precision_lab.lab.subject import Case, Source, components_of, least_memory
from precision_lab.record.dump import Dump
from precision_lab.record.files import write_atomically
from precision_lab.record.glob import ROOT

FORMAT = "precision_lab inputs 1"

NAMING = (
    "an array of a dump is named PATH or PATH.PORT: the path of the module in the model, and out (the default), in, or "
    "in.N and out.N where there are several, in the order of the arguments"
)


@dataclass(frozen=True)
class Pass:
    """One pass that a source can compute in any dtype.

    values: arrays that replace the inputs, fp32 or whole numbers, by name; see `Pass.inputs`.
    """

    source: Source
    case: Case
    step: int = 0
    values: Mapping[str, np.ndarray] = field(default_factory=dict)

    def components(self, dtype: mx.Dtype) -> Components:
        """The modules that compute in `dtype`."""
        return components_of(self.source.load(dtype), self.source.layout)

    def arguments(self, dtype: mx.Dtype) -> dict[str, Any]:
        """The arguments of the call by parameter, in `dtype`, with `values` in the place of their arrays.

        Raises InputError if the case has no such step or needs more memory than there is, or if a value has another
        shape than the case.
        """
        count = self.source.steps(self.case)
        if not 0 <= self.step < count:
            raise InputError(f"step is {self.step}, expected 0 to {count - 1}")
        needed, there_is = least_memory(self.source, self.case), memory.physical()
        if needed > there_is:
            raise InputError(
                f"A pass with {shown(dict(self.case.settings))} needs at least {needed / 1e9:.1f} GB, but this machine "
                f"has {there_is / 1e9:.1f} GB of memory"
            )
        subject, layout = self.source.load(dtype), self.source.layout
        root = components_of(subject, layout)[layout.default]
        signature = inspect.signature(type(root).__call__)
        found: dict[str, Any] = {}

        def on_call(call: Call) -> None:
            if not found and Phase.now() == (self.step, layout.main_branch):
                found.update(signature.bind(root, *call.args, **call.kwargs).arguments)

        with tapped([Site(layout.default, ROOT, root, layout)], on_call):
            state = subject.start(self.case)
            for number in range(self.step + 1):
                step = subject.step(state, number)
                state = step.state
        if not found:
            raise InputError(
                f"{layout.default} is not called as a whole in a step, expected a call that can be repeated"
            )
        found.pop(next(iter(found)))  # self
        names = iter([name for name, _ in _arrays(found)])
        return {key: mapped(value, lambda x: self._value(next(names), x)) for key, value in found.items()}

    def inputs(self) -> dict[str, mx.array]:
        """The arrays among the arguments in fp32 by name: `latents`, or `prefix.0.keys` inside a tree."""
        return dict(_arrays(self.arguments(mx.float32)))

    def _value(self, name: str, array: mx.array) -> mx.array:
        value = self.values.get(name)
        if value is None:
            return array
        if value.shape != array.shape:
            raise InputError(f"input {name} has the shape {value.shape}, expected {array.shape}, that of the case")
        return mx.array(value).astype(array.dtype)


def write_inputs(one: Pass, file: Path) -> None:
    """Writes the inputs of a pass, whole or not at all."""
    arguments = one.arguments(mx.float32)
    arrays = {name: real(array) for name, array in _arrays(arguments)}
    mx.eval(arrays)
    case = one.case
    about = {
        "format": FORMAT,
        "version": __version__,
        "model": one.source.checkpoint.name,
        "fingerprint": one.source.checkpoint.fingerprint,
        "prompt": case.prompt,
        "seed": str(case.seed),
        "step": str(one.step),
        "settings": json.dumps(dict(case.settings)),
        "arguments": json.dumps(dict(_others(arguments))),
        "naming": NAMING,
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as opened:
            mx.save_safetensors(opened, arrays, metadata=about)

    write_atomically(file, write)


def read_inputs(source: Source, file: Path) -> Pass:
    """The pass whose inputs `write_inputs` wrote. Raises InputError for another file, or another checkpoint."""
    dump = Dump.open(file, integers=True)
    about = dump.metadata
    if about.get("format") != FORMAT:
        raise InputError(f"{file}: no inputs of a pass, expected a file that `models dump_inputs=FILE` wrote")
    own = source.checkpoint.fingerprint
    if about.get("fingerprint") != own:
        raise InputError(
            f"{file}: inputs of {about.get('model', '?'):.80}, fingerprint {about.get('fingerprint', '?'):.80}, but "
            f"the checkpoint is {source.checkpoint.name}, {own}. Give its model="
        )
    try:
        settings = json.loads(about["settings"])
        case = Case(0, about["prompt"], int(about["seed"]), dict(settings))
        one = Pass(source, case, int(about["step"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: its metadata cannot be read. Write it again with `models dump_inputs=FILE`"
        ) from error
    return with_values(one, {name: dump.array(name) for name in dump.names}, str(file))


def with_values(one: Pass, values: Mapping[str, np.ndarray], what: str) -> Pass:
    """`one` with these inputs. Raises InputError for a name that is none of them."""
    known = one.inputs()
    for name in values:
        if name not in known:
            raise InputError(f"{what}: unknown input {name:.80}. {nearest(name, known)}")
    wide = {k: v.astype(np.float32) if v.dtype.kind not in "iub" else v for k, v in values.items()}
    return Pass(one.source, one.case, one.step, {**one.values, **wide})


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, tuple | list):
        items = zip(getattr(value, "_fields", range(len(value))), value, strict=True)  # type: ignore[assignment]
    else:
        yield name, value
        return
    for key, item in items:
        yield from _leaves(item, f"{name}.{key}" if name else str(key))


def _arrays(value: Any) -> Iterator[tuple[str, mx.array]]:
    return ((name, leaf) for name, leaf in _leaves(value) if isinstance(leaf, mx.array))


def _others(value: Any) -> Iterator[tuple[str, Any]]:
    """Numbers and texts, such as the grid of tokens."""
    return ((name, leaf) for name, leaf in _leaves(value) if isinstance(leaf, int | float | str))
