"""`gate`: an experiment, run and judged by its baseline; or the baseline learned from it."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from precision_lab.cli.literal import literally, settled
from precision_lab.cli.progress import showing
from precision_lab.cli.terminal import open_console
from precision_lab.cli.verdict import conclude
from precision_lab.errors import InputError, VariantError, first_line
from precision_lab.record.files import RESTORE
from precision_lab.record.folders import user_path
from precision_lab.record.run import CONFIG

if TYPE_CHECKING:
    from precision_lab.analysis.gate.baseline import Choice
    from precision_lab.analysis.gate.judge import Limits
    from precision_lab.cli import schema
    from precision_lab.record.manifest import Environment, Reference
    from precision_lab.record.run import Run


@dataclass(frozen=True)
class Settings:
    """The settings under `gate` in conf/gate.yaml."""

    baseline: Path | None
    update: bool
    history: Sequence[str]
    prompts: Sequence[str]
    seeds: Sequence[int]
    limits: Limits


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Runs the experiment, or takes `run`, and judges it or learns from it; returns 1 where something has changed."""
    from precision_lab.cli import schema
    from precision_lab.record.run import Run

    config = settled(config)
    given = schema.read(schema.Gate, config)
    settings = _settings(given.gate)
    console = open_console()
    if given.run is not None:
        run, code = Run.open(user_path(given.run)).whole(), 0
    else:
        try:
            run, code = _run(config, given, settings, command, console)
        except RunError as failure:
            return _judge_failure(Run.open(failure.folder), failure.error, settings, console)
    _check_reference(run.manifest.reference)
    return max(code, _learn(run, settings, console) if settings.update else _judge(run, settings, console))


def _check_reference(reference: Reference) -> None:
    """Raises InputError for a reference that is not the one whose drift a baseline holds."""
    if not reference.is_plain:
        raise InputError(
            f"gate: the reference is {reference.words}, expected the plain model in float32, which baselines rest on: "
            "reference.dtype=float32 and no reference.technique"
        )


class RunError(Exception):
    """An exception ended a run that had begun: the code is to blame, not the input."""

    def __init__(self, folder: Path, error: Exception):
        super().__init__(str(error))
        self.folder, self.error = folder, error


def _run(
    config: DictConfig, given: schema.Gate, settings: Settings, command: Sequence[str], console: Console
) -> tuple[Run, int]:
    """Runs the experiment and draws its report; returns the run and the exit code of its verdicts.

    Raises InputError before that if no baseline could judge it, and RunError if it began and an exception ended it.
    """
    from precision_lab.cli.config import build_spec, spec_of
    from precision_lab.device.environment import environment, set_numeric_switches
    from precision_lab.lab.folder import FolderError
    from precision_lab.lab.spec import LOCAL
    from precision_lab.record.manifest import Environment, Reference

    set_numeric_switches()
    spec = build_spec(_of_a_run(config, given, settings), command)
    if spec.engine != LOCAL:
        raise InputError(
            f"gate: engine is {spec.engine}, expected {LOCAL}: a baseline judges the device of this machine"
        )
    _check_reference(Reference(spec.reference.name, spec.reference.dtype, list(spec.reference.techniques)))
    here = Environment(**environment())
    model = spec.source.checkpoint.name
    path = _path(settings, here.backend, spec.experiment, model)
    told = f"gate: a first baseline is learned, {path}"
    if not settings.update or path.is_file():
        path, choice = _choose(settings, here, spec.experiment, model)
        told = f"gate: {'the baseline' if settings.update else 'judged by'} {path}, {_entry_name(choice)}"
        told += ", is learned again" if settings.update else ""
        if len(choice.entry.sketches) and not spec.pinned.recorded and not settings.update:
            raise InputError(f"{path} compares pinned cases, expected pinned.record=true and pinned.cases")
    from precision_lab.cli.report import judge_and_draw
    from precision_lab.lab.run import run
    from precision_lab.record.run import Run

    _say(console, told)
    before = _manifest_text(spec.out)
    try:
        with showing(console) as progress:
            run(spec, progress, spec_of)
    except (FolderError, OSError):  # what the folder holds is another run's
        raise
    except Exception as error:
        if settings.update or _manifest_text(spec.out) == before:
            raise
        cause = error.__cause__ if isinstance(error, VariantError) else error
        raise RunError(spec.out, cause if isinstance(cause, Exception) else error) from error
    measured = Run.open(spec.out)
    return measured, judge_and_draw(measured, console)


def _manifest_text(folder: Path) -> str:
    from precision_lab.record.manifest import FILE

    path = folder / FILE
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _of_a_run(config: DictConfig, given: schema.Gate, settings: Settings) -> DictConfig:
    """The configuration without the gate's own settings; for learning, with more cases and the noise floor."""
    config = config.copy()
    with open_dict(config):
        del config.run, config.gate
        if settings.update:
            config.prompts = literally(list(dict.fromkeys([*given.prompts, *settings.prompts])))
            config.seeds = list(dict.fromkeys([*given.seeds, *settings.seeds]))
            if given.pinned.record and given.pinned.cases:
                config.pinned.noise_floor = True
    return config


def _judge(run: Run, settings: Settings, console: Console) -> int:
    from precision_lab.analysis.gate import bands, history
    from precision_lab.analysis.gate.judge import judge

    manifest = run.completed().manifest
    path, choice = _choose(settings, manifest.environment, manifest.experiment, manifest.checkpoint.name)
    log = history.path_of(manifest.environment.backend, manifest.experiment if settings.baseline else path.stem)
    if settings.history:
        history.check(log)
    findings = judge(run, _config_of(run), choice, settings.limits, str(path))
    passed = conclude(run, path, choice, settings.limits, findings, console)
    if settings.history:
        now = bands.learn(run.activations)
        verdict = "passed" if passed else "failed"
        history.append(log, history.rows(manifest, verdict, now, choice.entry.bands, settings.history))
    return int(not passed)


def _judge_failure(run: Run, error: Exception, settings: Settings, console: Console) -> int:
    """Writes the verdict on a run that an exception ended, and the traceback to traceback.txt in its folder."""
    from precision_lab.analysis.gate.judge import judge_failure
    from precision_lab.instrument.blame import place_of
    from precision_lab.record.files import write_text

    manifest = run.manifest
    path, choice = _choose(settings, manifest.environment, manifest.experiment, manifest.checkpoint.name)
    write_text(run.path / "traceback.txt", "".join(traceback.format_exception(error)))
    place = place_of(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    message = f"{type(error).__name__}: {first_line(error)} ({Path(last.filename).name}:{last.lineno}, traceback.txt)"
    where = place._asdict() if place else {}
    findings = judge_failure(run, _config_of(run), choice, str(path), message, where)
    conclude(run, path, choice, settings.limits, findings, console)
    return 1


def _learn(run: Run, settings: Settings, console: Console) -> int:
    from precision_lab.analysis.gate import baseline
    from precision_lab.analysis.gate.changes import changes
    from precision_lab.analysis.gate.entry import learn
    from precision_lab.analysis.gate.settings import HOW_TO_RECORD

    manifest = run.completed().manifest
    backend, experiment = manifest.environment.backend, manifest.experiment
    model = manifest.checkpoint.name
    path = _path(settings, backend, experiment, model)
    before = _choose(settings, manifest.environment, experiment, model)[1] if path.is_file() else None
    config = _config_of(run)
    if manifest.pinned is None and (config.get("pinned") or {}).get("cases"):
        raise InputError(f"{run.path} has no pinned cases, which a baseline learns. {HOW_TO_RECORD}")
    entry = learn(run, config)
    baseline.write(path, backend, experiment, entry)
    if before is None:
        _say(console, f"a first baseline: {len(entry.bands)} bands, {len(entry.sketches)} sketches")
    else:
        lines = changes(before.entry, entry)
        _say(
            console,
            f"changed against {_entry_name(before)}:" if lines else f"as {_entry_name(before)}, nothing changed",
        )
        for line in lines:
            _say(console, f"  {line}")
    if not entry.learned_from["noise_floor"] and len(entry.sketches):
        _say(console, "no noise floor was measured: pinned.noise_floor=true measures it")
    _say(console, f"baseline: {path}")
    return 0


def _settings(given: schema.GateSettings) -> Settings:
    from precision_lab.analysis.gate.bands import Margin
    from precision_lab.analysis.gate.judge import Limits

    return Settings(
        baseline=user_path(given.baseline) if given.baseline else None,
        update=given.update,
        history=given.history or (),
        prompts=given.learn.prompts or (),
        seeds=given.learn.seeds or (),
        limits=Limits(
            ranges=Margin(given.margin_bits, given.margin_spread, given.headroom_bits),
            drift=Margin(given.drift_bits, given.drift_spread),
            tolerance=given.tolerance,
            noise_factor=given.noise_factor,
            latency=given.latency_margin,
            latency_ratio=given.latency_ratio_margin,
            memory=given.memory_margin,
        ),
    )


def _path(settings: Settings, backend: str, experiment: str, model: str) -> Path:
    from precision_lab.analysis.gate.baseline import path_of

    return settings.baseline or path_of(backend, experiment, model)


def _choose(settings: Settings, environment: Environment, experiment: str, model: str) -> tuple[Path, Choice]:
    from precision_lab.analysis.gate import baseline

    path = _path(settings, environment.backend, experiment, model)
    entries = baseline.read(path, environment.backend, experiment)
    return path, baseline.choose(entries, environment.machine, str(environment.mlx))


def _config_of(run: Run) -> Mapping[str, Any]:
    try:
        config: Any = OmegaConf.to_container(OmegaConf.create(run.config))
    except InputError:
        raise
    except Exception as error:  # of damaged yaml, its parser and OmegaConf raise whatever the text leads to
        raise InputError(f"{run.path / CONFIG} is not yaml: {first_line(error)}. {RESTORE}") from error
    if not isinstance(config, dict):
        raise InputError(f"{run.path / CONFIG} holds no settings. {RESTORE}")
    return config


def _entry_name(choice: Choice) -> str:
    return f"the entry of {choice.entry.device}, MLX {choice.entry.mlx} ({choice.match})"


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True)
