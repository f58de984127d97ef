"""Running an experiment: every variant on every case, then timing; leaves tables, images and a manifest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from precision_lab.device.environment import backend, environment
from precision_lab.errors import InputError
from precision_lab.instrument.sites import select, walk
from precision_lab.lab import latency, tables
from precision_lab.lab.folder import prepare, save_image, write_json
from precision_lab.lab.generation import encode, generate
from precision_lab.lab.models import Models, open_checkpoint
from precision_lab.lab.recorder import (
    CALL,
    DriftRecorder,
    Observer,
    ReferenceRecorder,
    join_rows,
    observing,
    recorder_of,
)
from precision_lab.lab.reference import ReferenceReader, writing
from precision_lab.lab.spec import REFERENCE, Case, RunSpec, Variant, one_of
from precision_lab.lab.teacher import Teacher
from precision_lab.model.pipeline import Conditioning, Pipeline, Step
from precision_lab.techniques.base import Coverage, applied

SCHEMA_VERSION = 1


class Progress(Protocol):
    """What a run tells whoever waits for it; `amount` is in denoising steps, timing rounds included."""

    def start(self, total: float) -> None: ...

    def advance(self, amount: float, label: str) -> None: ...

    def note(self, text: str) -> None: ...


def run(spec: RunSpec, progress: Progress) -> None:
    """Runs `spec` into `spec.out`. Raises InputError before anything is written if it cannot be run.

    A variant that raises is noted in the manifest, and the others go on. After Ctrl-C the manifest says
    `interrupted` and everything finished stays; `spec.resume` continues.
    """
    Laboratory(spec, progress).run()


class Laboratory:
    """One run: the spec, the models, and the manifest as it grows."""

    def __init__(self, spec: RunSpec, progress: Progress):
        self.spec = spec
        self.progress = progress
        self.checkpoint = open_checkpoint(spec.model)
        self.models = Models(self.checkpoint)
        reference = self.models(mx.float32)
        self.grid = reference.grid(spec.sampler.height, spec.sampler.width)
        reference.tokenizer([*spec.prompts, spec.sampler.negative_prompt])
        sites = walk(reference.components)
        for name, probe in spec.probes.items():
            for port in probe.ports:
                one_of(f"probe.{name}.ports", port, ("in", "out", CALL))
            if CALL in probe.ports and len(probe.ports) > 1:
                raise InputError(f"probe.{name}.ports is {list(probe.ports)}, expected [call] alone, or in and out")
        for patterns in (spec.drift_sites, spec.teacher.sites, *(probe.sites for probe in spec.probes.values())):
            select(patterns, sites)
        self.errors: dict[str, str] = {}
        self.coverage = {variant.name: self._dry_run(variant) for variant in spec.all_variants}
        self.margin = spec.latency.margin or latency.DEFAULT_MARGIN[backend()]
        self.fingerprint = self.checkpoint.fingerprint()
        self.started = _now()

    def run(self) -> None:
        prepare(self.spec.out, self.spec.resume, self.spec.resolved, self._identity())
        (self.spec.out / "config.yaml").write_text(self.spec.resolved)
        self._write_manifest("running")
        try:
            self._measure()
        except KeyboardInterrupt:
            self._write_manifest("interrupted")
            raise
        except BaseException:
            self._write_manifest("failed")
            raise
        tables.merge(self.spec.out)
        shutil.rmtree(self.spec.out / "reference", ignore_errors=True)
        self._write_manifest("complete")

    def _identity(self) -> dict[str, Any]:
        """What must not change between the parts of one run."""
        now = environment()
        return {"checkpoint": self.fingerprint, "device": now["device"], "mlx": now["mlx"]}

    def _measure(self) -> None:
        spec = self.spec
        per_case = len(spec.all_variants) * spec.sampler.steps
        timing = len(spec.variants) * spec.latency.min_rounds
        self.progress.start(len(spec.cases) * per_case + timing)
        for case in spec.cases:
            for variant in spec.all_variants:
                self._make(variant, case)
            reference_path(spec.out, case).unlink(missing_ok=True)  # gigabytes for a large model
        self._time_steps(timing)

    def _make(self, variant: Variant, case: Case) -> None:
        part = f"{variant.name}__p{case.prompt_id}__s{case.seed}"
        if self._is_done(variant, case) or variant.name in self.errors:
            self.progress.advance(self.spec.sampler.steps, variant.name)
            return
        try:
            self._generate(variant, case, part, reference_path(self.spec.out, case))
        except OSError:
            raise
        except Exception as error:
            if variant.name == REFERENCE:
                raise
            self._failed(variant, error)

    def _is_done(self, variant: Variant, case: Case) -> bool:
        """Whether a generation was finished before; the reference's, only if no variant still needs its arrays."""
        if variant.name == REFERENCE and not reference_path(self.spec.out, case).exists():
            return all(self._is_done(other, case) for other in self.spec.variants)
        part = f"{variant.name}__p{case.prompt_id}__s{case.seed}"
        return tables.part_path(self.spec.out, "activations", part).exists()

    def _generate(self, variant: Variant, case: Case, part: str, store: Path) -> None:
        """One generation under observation; its parts are written only when it is whole, activations last."""
        probes = [recorder_of(probe) for probe in self.spec.probes.values()]
        labels = {"variant": variant.name, "prompt_id": case.prompt_id, "seed": case.seed}
        with self._variant(variant) as (pipeline, _):
            if variant.name == REFERENCE:
                with writing(store) as writer:
                    recorder = ReferenceRecorder(self.spec.drift_sites, writer)
                    pixels, local = self._teach(pipeline, case, [*probes, recorder])
                rows = [{**row, **labels, "variant": row["variant"], "reference": REFERENCE} for row in local]
                tables.write_part(self.spec.out, "drift", part, rows)
            else:
                drift = DriftRecorder(self.spec.drift_sites, ReferenceReader(store))
                pixels = self._observe(pipeline, case, variant.name, [*probes, drift])
                rows = [{**labels, "reference": REFERENCE, "mode": "free", **row} for row in drift.rows]
                tables.write_part(self.spec.out, "drift", part, rows)
        save_image(self.spec.out / "images" / f"{part}.png", pixels)
        tables.write_part(self.spec.out, "activations", part, [{**labels, **row} for row in join_rows(probes)])

    def _observe(self, pipeline: Pipeline, case: Case, label: str, observers: list[Observer]) -> np.ndarray:
        with observing(pipeline.components, observers):
            return generate(pipeline, self.spec.sampler, self.grid, case, lambda *_: self.progress.advance(1, label))

    def _teach(
        self, pipeline: Pipeline, case: Case, observers: list[Observer]
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """The reference's pixels, and rows of the variants' local error beside it."""
        spec, count = self.spec, self.spec.sampler.steps
        steps = spec.teacher.steps(count, spec.cases.index(case))
        if not steps:
            return self._observe(pipeline, case, REFERENCE, observers), []
        teacher = Teacher(spec.teacher.sites, steps)
        taught = {
            v.name: (self.models(getattr(mx, v.dtype)), v.techniques)
            for v in spec.variants
            if v.name not in self.errors
        }

        def on_step(step: Step, before: mx.array, texts: Sequence[Conditioning | None]) -> None:
            self.progress.advance(1, REFERENCE)
            teacher.step(step, before, self.grid, count, spec.sampler.guidance_scale, texts)

        with (
            teacher.shadowing(taught, self.grid, count, case.prompt),
            observing(pipeline.components, observers),
            teacher.watching(pipeline),
        ):
            pixels = generate(pipeline, spec.sampler, self.grid, case, on_step)
        return pixels, teacher.rows

    def _time_steps(self, weight: float) -> None:
        part = "step"
        if tables.part_path(self.spec.out, "latency", part).exists():
            self.progress.advance(weight, "timing")
            return
        variants = [v for v in self.spec.variants if v.name not in self.errors]
        timed = {v.name: lambda v=v: self._timed_step(v) for v in variants}
        if self.spec.baseline not in timed:
            return
        shown = 0.0

        def on_round(share: float) -> None:
            nonlocal shown
            self.progress.advance(max(0.0, min(share, 1.0) - shown) * weight, "timing")
            shown = max(shown, min(share, 1.0))

        rows = latency.measure(timed, self.spec.baseline, self.spec.latency, self.margin, on_round)
        on_round(1.0)
        tables.write_part(self.spec.out, "latency", part, rows)

    @contextmanager
    def _timed_step(self, variant: Variant) -> Iterator[latency.Timed]:
        """The first denoising step of the first case, with its text already encoded."""
        case = self.spec.cases[0]
        with self._variant(variant) as (pipeline, _):
            cond, uncond = encode(pipeline, self.spec.sampler, case.prompt)
            noise = pipeline.noise(case.seed, self.grid)
            modules = list(pipeline.components.values())
            mx.eval(cond, uncond, noise, modules)  # also what techniques prepared
            scale, steps = self.spec.sampler.guidance_scale, self.spec.sampler.steps
            yield latency.Timed(
                lambda: next(pipeline.denoise(noise, self.grid, steps, cond, uncond, scale)).latents,
                sum(array.nbytes for array in _arrays(modules)),
            )

    @contextmanager
    def _variant(self, variant: Variant) -> Iterator[tuple[Pipeline, dict[str, Coverage]]]:
        pipeline = self.models(getattr(mx, variant.dtype))
        with applied(pipeline.components, variant.techniques) as coverage:
            yield pipeline, coverage

    def _dry_run(self, variant: Variant) -> dict[str, Coverage]:
        """Applies the techniques once: what the user got wrong is an error now, what they get wrong is a result."""
        try:
            with self._variant(variant) as (_, coverage):
                return coverage
        except InputError:
            raise
        except Exception as error:
            self._failed(variant, error)
            return {}

    def _failed(self, variant: Variant, error: Exception) -> None:
        self.errors[variant.name] = f"{type(error).__name__}: {error}"
        self.progress.note(f"{variant.name} failed: {self.errors[variant.name]}")

    def _write_manifest(self, status: str) -> None:
        spec = self.spec
        manifest: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "status": status,
            "experiment": spec.experiment,
            "command": list(spec.command),
            "started": self.started,
            "finished": None if status == "running" else _now(),
            "environment": environment(),
            "checkpoint": {
                "name": spec.model.name,
                "path": spec.model.given or spec.model.path,
                "fingerprint": self.fingerprint,
                "weights": self.checkpoint.weights,
                "weights_dtype": spec.model.weights_dtype or "as stored",
                "inflate": spec.model.inflate,
                "ignored": self.checkpoint.ignored,
            },
            "model": {"num_layers": self.checkpoint.transformer_config().num_layers},
            "reference": {"variant": REFERENCE, "computed_in": "float32", "reduced_modes": "off"},
            "baseline": spec.baseline,
            "variants": {
                v.name: {"dtype": v.dtype, "techniques": list(v.techniques), "expect": v.expect}
                for v in spec.all_variants
            },
            "sites": {
                name: {technique: c._asdict() for technique, c in coverage.items()}
                for name, coverage in self.coverage.items()
            },
            "errors": self.errors,
            "prompts": list(spec.prompts),
            "negative_prompt": spec.sampler.negative_prompt if spec.sampler.guided else None,
            "seeds": list(spec.seeds),
            "sampler": {"steps": spec.sampler.steps, "guidance_scale": spec.sampler.guidance_scale},
            "image": {"height": spec.sampler.height, "width": spec.sampler.width},
            "latency": {"margin": self.margin},
            "claims": [dict(claim) for claim in spec.claims],
        }
        write_json(spec.out / "manifest.json", manifest)


def reference_path(out: Path, case: Case) -> Path:
    """Where the reference's arrays of a case stand until all its variants are compared."""
    return out / "reference" / f"p{case.prompt_id}__s{case.seed}.f32"


def _arrays(modules: Sequence[nn.Module]) -> list[mx.array]:
    """The arrays of the modules, once each: a technique may hold a module that shares its weights with another."""
    leaves = {id(leaf): leaf for _, leaf in tree_flatten(list(modules)) if isinstance(leaf, mx.array)}
    return list(leaves.values())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
