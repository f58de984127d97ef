"""The runs of `scales`: one for each set of cases with the same settings, to choose from and to try on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from precision_lab.cli import scales_schema
from precision_lab.cli.config import build_spec, plain, spec_of
from precision_lab.cli.literal import literally
from precision_lab.cli.progress import showing
from precision_lab.errors import InputError, nearest
from precision_lab.lab.run import run
from precision_lab.lab.spec import RunSpec
from precision_lab.record.files import write_text
from precision_lab.record.folders import user_path
from precision_lab.record.manifest import FILE, Manifest
from precision_lab.record.run import CONFIG, Run

RECIPE = "scales"
"""The variant with the chosen scales."""

_OWN = ("strategy", "margin", "coverage", "holdout", "scalings", "wide", "noise", "of", "inputs")


Covered = scales_schema.Scales | scales_schema.Fp8Scales
"""Settings with cases to choose from and others to try on."""


@dataclass(frozen=True)
class Cases:
    """Every prompt with every seed, with the same settings. name: of the set, which is that of its folder."""

    name: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]

    @property
    def keys(self) -> set[tuple[str, int, str]]:
        """What tells its cases apart from those of another set of the same model."""
        return {(prompt, seed, _text(self.settings)) for prompt in self.prompts for seed in self.seeds}


def coverage_of(settings: Covered, config: DictConfig) -> list[Cases]:
    """The sets to choose from; none where ranges of finished runs are used."""
    prompts = settings.prompts if settings.coverage.prompts is None else settings.coverage.prompts
    return [] if settings.coverage.runs else sets_of("coverage", settings.coverage, prompts, config)


def heldout_of(settings: Covered, config: DictConfig) -> list[Cases]:
    """The sets to try on. Raises InputError where there are none, or a case is in the coverage set too."""
    covered = coverage_of(settings, config)
    prompts = settings.holdout.prompts
    if prompts is None:
        seen = set(settings.prompts if settings.coverage.prompts is None else settings.coverage.prompts)
        prompts = [prompt for prompt in settings.learning.prompts or () if prompt not in seen]
        if not prompts:
            raise InputError(
                "holdout.prompts is null, and the model has no prompts in `learning` that coverage.prompts leaves, "
                "expected prompts that scales are not chosen from"
            )
    found = sets_of("holdout", settings.holdout, prompts, config)
    both = {key for cases in covered for key in cases.keys} & {key for cases in found for key in cases.keys}
    if both:
        prompt, seed, _ = min(both)
        raise InputError(
            f"holdout has a case of coverage, prompt {prompt!r} with seed {seed} and the same settings, "
            "expected cases that scales are not chosen from"
        )
    return found


def sets_of(kind: str, chosen: scales_schema.CaseSets, prompts: Sequence[str], config: DictConfig) -> list[Cases]:
    """The sets of cases that a section of the configuration describes, one for each of its settings."""
    if not prompts or not chosen.seeds or not chosen.settings:
        raise InputError(f"{kind} has no cases, expected at least one entry in its prompts, seeds and settings")
    base = {**plain(config.sampler), **plain(config.image)}
    found = [
        Cases(f"{kind}-{number}", tuple(prompts), tuple(chosen.seeds), {**base, **own})
        for number, own in enumerate(chosen.settings)
    ]
    texts = [_text(cases.settings) for cases in found]
    for number, text in enumerate(texts):
        if text in texts[:number]:
            raise InputError(f"{kind}.settings[{number}] is the same as {kind}.settings[{texts.index(text)}]")
    return found


def check_variants(settings: Covered, recipe: str) -> None:
    """Raises InputError for techniques that belong to no variant, a variant called `recipe`, and an unknown `noise`."""
    if settings.technique or settings.factorial.factors:
        raise InputError(
            f"{recipe} chooses the techniques, expected no technique= and no factorial; variants.NAME adds one"
        )
    if recipe in settings.variants:
        raise InputError(f"variants has {recipe}, which is the name of the variant with the chosen scales")
    if settings.noise is not None and settings.noise not in settings.variants:
        raise InputError(f"noise: unknown variant {settings.noise!r}. {nearest(settings.noise, settings.variants)}")


def spec_for(
    config: DictConfig,
    cases: Cases,
    out: Path,
    command: Sequence[str],
    sites: Sequence[str] | None = None,
    ports: Sequence[str] | None = None,
    **changed: Any,
) -> RunSpec:
    """The run of one set of cases, as `run` could be told to carry it out.

    sites, ports: what the range catalogue records; None leaves it as configured. changed: other top-level settings, as
    plain values.
    """
    config = config.copy()
    image = plain(config.image)
    with open_dict(config):
        for name in _OWN:
            config.pop(name, None)
        for key, value in cases.settings.items():
            (config.image if key in image else config.sampler)[key] = literally(value)
        config.prompts, config.seeds = literally(list(cases.prompts)), list(cases.seeds)
        if sites is not None:
            if "range" not in config.probe:
                raise InputError("probe leaves out range, expected probe=[range,...], which records the ranges")
            config.probe.range.sites = list(sites)
            if ports is not None:
                config.probe.range.ports = list(ports)
        config.out = str(out / cases.name)
        for key, value in changed.items():
            config[key] = OmegaConf.create(literally(value)) if isinstance(value, dict) else literally(value)
    spec = build_spec(config, command)
    return replace(spec, resume=spec.resume and (spec.out / FILE).exists())


def check_resumed(settings: Covered, out: Path) -> None:
    """Raises InputError if there is nothing to resume in the folder of the command."""
    if settings.resume and not any(out.glob(f"*/{FILE}")):
        raise InputError(f"resume=true: {out} holds no run. Give out=DIR of an interrupted command")


def write_config(config: DictConfig, out: Path) -> None:
    """Writes the configuration of the command, without what the numbers do not depend on."""
    config = config.copy()
    with open_dict(config):
        for name in ("out", "resume", "engine", "workers"):
            config.pop(name)
    write_text(out / CONFIG, OmegaConf.to_yaml(config))


def carried_out(spec: RunSpec, console: Console) -> Run:
    """The run of a spec, which is carried out unless an earlier start of the command has completed it."""
    is_done = spec.resume and Manifest.read(spec.out).status == "complete"
    if not (is_done and Run.open(spec.out).config == spec.resolved):
        with showing(console) as progress:
            run(spec, progress, spec_of)
    return Run.open(spec.out)


def opened(folders: Sequence[str], fingerprint: str) -> dict[str, Run]:
    """Finished runs of the same weights, each by the name of its folder, or by its path where two have that name.

    Raises InputError for a run of other weights, or one that is not finished.
    """
    found: dict[str, Run] = {}
    for folder in folders:
        run = Run.open(user_path(folder)).whole().completed()
        own = run.manifest.checkpoint
        if own.fingerprint != fingerprint:
            raise InputError(
                f"coverage.runs: {folder} is a run of other weights, {own.name} ({own.fingerprint[:12]}), expected "
                f"those of model= ({fingerprint[:12]})"
            )
        if any(run.path.resolve() == other.path.resolve() for other in found.values()):
            raise InputError(f"coverage.runs names {folder} twice")
        found[run.path.name if run.path.name not in found else str(run.path)] = run
    return found


def _text(settings: Mapping[str, Any]) -> str:
    """The settings as text, the same whatever their order."""
    return repr(sorted((key, repr(value)) for key, value in settings.items()))
