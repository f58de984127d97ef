"""Teacher forcing: variants' modules, and whole steps, on the inputs that the reference has there.

Free-running drift accumulates: a block is fed what all before it got wrong. Here the reference's generation goes on as
it is, and at each chosen site every variant's module is called beside it on the same inputs, rounded to the dtypes that
the variant itself would see there. What differs is local error, made in that module (in the manner of shadow modules in
PyTorch's Numeric Suite). Nothing is stored and nothing but the current arrays is held.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import mlx.core as mx

from precision_lab.instrument.arrays import real, to_numpy
from precision_lab.instrument.observation import Position
from precision_lab.instrument.replica import replica
from precision_lab.instrument.scope import current_scope
from precision_lab.instrument.sites import select, walk
from precision_lab.instrument.tap import Call, ports, tapped
from precision_lab.lab.recorder import position_of
from precision_lab.model.qwen_image.pipeline import Conditioning, Pipeline, Step, denoise
from precision_lab.model.qwen_image.rope import Grid
from precision_lab.model.qwen_image.scheduler import sigmas
from precision_lab.numerics.metrics import compare
from precision_lab.techniques.base import Technique, applied

_PAIRS = 32


class _Pair(NamedTuple):
    variant: str
    position: Position
    array: mx.array
    reference: mx.array


class Shadow:
    """A variant's modules beside the reference's: a replica of the pipeline, rewritten by its techniques."""

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline
        self._modules = {(site.component, site.path): site.module for site in walk(pipeline.components)}
        self._dtypes: dict[tuple[str, str], list[mx.Dtype]] = {}

    def trace(self, sites: Sequence[str], grid: Grid, steps: int, prompt: str) -> None:
        """Learns the dtypes at the inputs of the sites from a step that is built and never evaluated."""

        def on_call(call: Call) -> None:
            dtypes = [port.array.dtype for port in ports(call, ["in"])]
            self._dtypes[call.site.component, call.site.path] = dtypes

        with tapped(select(sites, walk(self.pipeline.components)), on_call):
            cond = self.pipeline.encode([prompt])
            next(self.pipeline.denoise(self.pipeline.noise(0, grid), grid, steps, cond, cond, 2.0))

    def call(self, call: Call) -> Any:
        """The output of this variant's module at the site, for the inputs of `call`."""
        key = call.site.component, call.site.path
        dtypes = iter(self._dtypes[key])
        args = [_cast(value, dtypes) for value in call.args]
        kwargs = {name: _cast(value, dtypes) for name, value in call.kwargs.items()}
        return self._modules[key](*args, **kwargs)


def _cast(value: Any, dtypes: Iterator[mx.Dtype]) -> Any:
    """`value` with its arrays in the given dtypes, in the order in which `ports` names them."""
    if isinstance(value, mx.array):
        return value.astype(next(dtypes))
    if isinstance(value, Mapping):
        return {key: _cast(item, dtypes) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [_cast(item, dtypes) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


class Teacher:
    """Watches one generation of the reference and measures the local error of every variant.

    sites: patterns of modules that are fed the reference's inputs, one by one. steps: the steps in which they are, and
    which are themselves repeated by each variant from the reference's latents. rows: what was measured, in the columns
    of the drift table.
    """

    def __init__(self, sites: Sequence[str], steps: Collection[int]):
        self.rows: list[dict[str, Any]] = []
        self._sites, self._steps = sites, steps
        self._shadows: dict[str, Shadow] = {}
        self._pairs: list[_Pair] = []
        self._seen = 0

    @contextmanager
    def shadowing(
        self, variants: Mapping[str, tuple[Pipeline, Mapping[str, Technique]]], grid: Grid, steps: int, prompt: str
    ) -> Iterator[None]:
        """The variants, as (plain pipeline, techniques), are the ones measured inside the block."""
        with ExitStack() as stack:
            for name, (plain, techniques) in variants.items():
                twins = {part: replica(module) for part, module in plain.components.items()}
                pipeline = replace(
                    plain,
                    transformer=twins["transformer"],
                    text_encoder=twins["text_encoder"],
                    vae=twins["vae"],
                    sampler=twins["pipeline"],
                )
                stack.enter_context(applied(pipeline.components, techniques))
                shadow = Shadow(pipeline)
                shadow.trace(self._sites, grid, steps, prompt)
                self._shadows[name] = shadow
            yield
            self._shadows.clear()

    @contextmanager
    def watching(self, reference: Pipeline) -> Iterator[None]:
        """Modules called inside the block are followed by the variants' modules of the same sites."""
        with tapped(select(self._sites, walk(reference.components)), self._on_call):
            yield
        self._flush()

    def step(
        self,
        step: Step,
        before: mx.array,
        grid: Grid,
        count: int,
        guidance: float,
        texts: Sequence[Conditioning | None],
    ) -> None:
        """Repeats a step of `count` with every variant from the reference's latents `before` it.

        texts: the reference's embeddings of the prompt and of the negative prompt.
        """
        if step.number not in self._steps:
            return
        for name, shadow in self._shadows.items():
            p = shadow.pipeline
            levels = sigmas(p.scheduler, count, grid.height * grid.width)[step.number : step.number + 2]
            cond, uncond = (
                None if text is None else Conditioning(text.embeds.astype(p.dtype), text.mask) for text in texts
            )
            assert cond is not None
            start = before.astype(p.dtype)
            own = next(denoise(p.transformer, p.sampler, start, levels, grid, cond, uncond, guidance)).latents
            position = Position(None, step.number, step.sigma, "pipeline", "euler_step", "out", "-", None, self._seen)
            self._seen += 1
            self._pairs.append(_Pair(name, position, own, step.latents))
        self._flush()

    def _on_call(self, call: Call) -> None:
        if current_scope().get("step") not in self._steps:
            return
        expected = list(ports(call, ["out"]))
        for name, shadow in self._shadows.items():
            own = ports(call._replace(output=shadow.call(call)), ["out"])
            for theirs, port in zip(expected, own, strict=True):
                position = position_of(call.site, port, self._seen)
                self._seen += 1
                self._pairs.append(_Pair(name, position, real(port.array), real(theirs.array)))
        if len(self._pairs) >= _PAIRS:
            self._flush()

    def _flush(self) -> None:
        """Evaluates what is pending and measures it in float64."""
        pairs, self._pairs = self._pairs, []
        mx.eval([array for pair in pairs for array in (pair.array, pair.reference)])
        for variant, position, array, reference in pairs:
            row = {key: value for key, value in position._asdict().items() if key != "sigma"}
            error = compare(to_numpy(array), to_numpy(reference)).values
            self.rows.append({"variant": variant, "mode": "teacher", **row, **error})
