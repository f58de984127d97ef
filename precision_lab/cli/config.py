"""From a composed configuration to a typed RunSpec; the last place that knows of OmegaConf."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from precision_lab.analysis.claims import Claim
from precision_lab.cli.literal import literal
from precision_lab.errors import InputError, nearest
from precision_lab.lab.factorial import combined, label, treatments
from precision_lab.lab.spec import (
    LatencySpec,
    PinnedCase,
    PinnedSpec,
    ProcessSpec,
    RunSpec,
    TeacherSpec,
    Variant,
)
from precision_lab.lab.subject import Source
from precision_lab.probes.base import Probe, StreamProbe
from precision_lab.settings import checked
from precision_lab.techniques.base import Technique

_GROUPS = (
    "model",
    "sampler",
    "image",
    "latency",
    "drift",
    "pinned",
    "probe",
    "technique",
    "variants",
    "factorial",
    "claims",
)
_VARIANT_KEYS = ("dtype", "technique", "expect", "process")

T = TypeVar("T")


def build_spec(config: DictConfig, command: Sequence[str]) -> RunSpec:
    """Raises InputError for values that fit no run; writes nothing."""
    resolved = literal(config)
    for key in _GROUPS:
        if not isinstance(resolved[key], DictConfig):
            raise InputError(f"{key} is {resolved[key]!r}, expected settings below it, like {key}.NAME=VALUE")
    out, resume = resolved.pop("out"), resolved.pop("resume")
    if not isinstance(resume, bool) or not isinstance(out, str | None):
        raise InputError(f"out is {out!r} and resume {resume!r}, expected a folder, and true or false")
    if not isinstance(resolved.experiment, str):
        raise InputError(f"experiment is {resolved.experiment!r}, expected a name")
    drift = resolved.drift
    if not isinstance(drift, DictConfig) or not isinstance(drift.teacher, DictConfig):
        raise InputError(f"drift is {drift!r}, expected sites, and teacher with its settings")
    described_variants = _described(resolved)
    if resolved.baseline not in described_variants:
        raise InputError(
            f"baseline: unknown variant {resolved.baseline!r}. {nearest(str(resolved.baseline), described_variants)}"
        )
    variants = _variants(resolved, described_variants)
    names = [variant.name for variant in variants]
    baseline = resolved.baseline if resolved.baseline in names else names[0]  # `only` may leave it out
    described: Any = OmegaConf.to_container(resolved.claims, resolve=True)
    claims = [{"id": str(key), **(claim if isinstance(claim, dict) else {})} for key, claim in described.items()]
    for claim in claims:
        Claim.from_dict(claim)
    return RunSpec(
        experiment=resolved.experiment,
        source=build_source(resolved.model),
        settings=_settings(resolved),
        prompts=listed(resolved, "prompts"),
        seeds=listed(resolved, "seeds"),
        variants=variants,
        baseline=baseline,
        probes={str(name): build(node, Probe, f"probe {name}", StreamProbe) for name, node in resolved.probe.items()},
        drift_sites=listed(resolved, "drift.sites"),
        teacher=checked(TeacherSpec, {**drift.teacher, "sites": listed(resolved, "drift.teacher.sites")}),
        pinned=_pinned(resolved),
        latency=checked(LatencySpec, resolved.latency),
        out=Path(out).expanduser() if out else _default_out(resolved.experiment),
        resume=resume,
        resolved=OmegaConf.to_yaml(resolved),
        command=["python", "-m", "precision_lab", *command],
        workers=resolved.workers,
        claims=claims,
    )


def _described(config: DictConfig) -> dict[str, Any]:
    """The settings of the experiment's variants, of those of a factorial, and of `custom` if techniques were named."""
    described: dict[str, Any] = {str(name): value or {} for name, value in config.variants.items()}
    described |= _factorial(config.factorial, described)
    if config.technique:
        described["custom"] = {"technique": config.technique}
    return described


def _variants(config: DictConfig, described: Mapping[str, Any]) -> list[Variant]:
    """The variants that `only` leaves of those that are described."""
    if config.only is not None:
        only = listed(config, "only")
        for name in only:
            if name not in described:
                raise InputError(f"only: unknown variant {name!r}. {nearest(str(name), described)}")
        described = {name: value for name, value in described.items() if name in only}
    variants = []
    for name, value in described.items():
        if not isinstance(value, dict | DictConfig) or not isinstance(value.get("technique") or {}, dict | DictConfig):
            raise InputError(
                f"variants.{name} is {value!r}, expected dtype, technique, expect; techniques by name through "
                f"defaults: /technique@variants.{name}.technique: [a, b], or technique=[a,b]"
            )
        for key in value:
            if key not in _VARIANT_KEYS:
                raise InputError(f"Unknown setting 'variants.{name}.{key!s}'. {nearest(str(key), _VARIANT_KEYS)}")
        techniques = {
            str(key): build(node, Technique, f"technique {key}") for key, node in (value.get("technique") or {}).items()
        }
        process = value.get("process") or {}
        if not isinstance(process, dict | DictConfig):
            raise InputError(f"variants.{name}.process is {process!r}, expected settings like {{tf32: true}}")
        variants.append(
            Variant(
                name,
                value.get("dtype") or config.dtype,
                techniques,
                value.get("expect") or "any",
                checked(ProcessSpec, process),
            )
        )
    if not variants:
        raise InputError("No variants are left to run, expected at least one (variants, only)")
    return variants


def _factorial(config: DictConfig, described: Mapping[str, Any]) -> dict[str, Any]:
    """Variants for all combinations of the factors on the variant `base`; none without factors."""
    if not config.factors:
        return {}
    base = str(config.base)
    if base not in described:
        raise InputError(f"factorial.base: unknown variant {base!r}. {nearest(base, described)}")
    factors: dict[str, Mapping[str, Any]] = {}
    for name, node in config.factors.items():
        if not isinstance(node, DictConfig):
            raise InputError(f"factorial.factors.{name} is {node!r}, expected a technique or several by name")
        factors[str(name)] = {str(name): node} if "_target_" in node else {str(key): node[key] for key in node}
    generators = {str(name): listed(config, f"generators.{name}") for name in config.generators or {}}
    variants = {}
    for on in filter(None, treatments(list(factors), generators)):
        techniques = combined(described[base].get("technique") or {}, factors, on)
        if label(base, on) in described:
            raise InputError(f"factorial: there is a variant {label(base, on)} already. Give it another name")
        variants[label(base, on)] = {**described[base], "technique": techniques}
    return variants


def build(node: Any, kind: Any, what: str, *others: Any) -> Any:
    """The object a `_target_` names, checked against the protocol it must follow, or one of `others`."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise InputError(f"{what}: expected a mapping with a _target_, got {node!r}")
    try:
        built = _instantiated(node)
    except InstantiationException as error:  # Hydra puts a line of its own before the message of the class
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        raise
    if not any(_follows(built, protocol) for protocol in (kind, *others)):
        missing = [name for name in _members(kind) if not hasattr(type(built), name)]
        raise InputError(f"{what}: {node._target_} is no {kind.__name__}, it lacks {', '.join(missing)}")
    return built


def _instantiated(node: DictConfig) -> Any:
    """The object that a node describes. A configuration is the user's own program: any class of theirs may be named."""
    if "_execution_whitelist_" not in inspect.signature(instantiate).parameters:  # Hydra 1.3
        return instantiate(node, _convert_="all")
    from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS

    return instantiate(node, _convert_="all", _execution_whitelist_=UNSAFE_DISABLE_EXECUTION_CHECKS)


def _follows(built: Any, protocol: type) -> bool:
    """As isinstance, which would read the members: a source opens its checkpoint for some."""
    own = getattr(built, "__dict__", {})
    return all(hasattr(type(built), name) or name in own for name in _members(protocol))


def _members(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]


def build_source(config: DictConfig) -> Source:
    """The source of weights that `model` names. Raises InputError for unknown settings of it."""
    if "_target_" not in config:
        raise InputError("model: expected a source of weights, named by _target_. Choose one with model=NAME")
    accepted = _parameters(config["_target_"])
    for key in config:
        if key != "_target_" and accepted is not None and key not in accepted:
            raise InputError(f"Unknown setting 'model.{key!s}'. {nearest(str(key), accepted)}")
    source: Source = build(config, Source, f"model {config.get('name', '')}".strip())
    return source


def _parameters(target: str) -> list[str] | None:
    """Names that a callable accepts; None where it accepts any, or cannot be found (building it says so)."""
    try:
        parameters = inspect.signature(get_object(target)).parameters.values()
    except Exception:  # whatever importing somebody's module raises
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters]


def _settings(config: DictConfig) -> dict[str, Any]:
    """The settings of every case, plain values by name."""
    settings: Any = OmegaConf.to_container(OmegaConf.merge(config.sampler, config.image), resolve=True)
    return {str(key): value for key, value in settings.items()}


def _pinned(config: DictConfig) -> PinnedSpec:
    """Cases that are null are left out: Hydra merges mappings, so that nothing else takes one away."""
    pinned = config.pinned
    if not isinstance(pinned, DictConfig):
        raise InputError(f"pinned is {pinned!r}, expected settings below it; pinned.cases=null records none")
    described = pinned.cases or {}
    if not isinstance(described, dict | DictConfig):
        raise InputError(f"pinned.cases is {described!r}, expected cases by name, or null for none")
    cases = {}
    for name, case in described.items():
        if not isinstance(case, DictConfig | None):
            raise InputError(f"pinned.cases.{name!s} is {case!r}, expected prompt, seed and settings; or null")
        if case is not None:
            entries: dict[str, Any] = {str(key): value for key, value in case.items()}
            prompt, seed = entries.pop("prompt", ""), entries.pop("seed", 0)
            cases[str(name)] = PinnedCase(prompt, seed, entries)
    lists = {key: listed(config, f"pinned.{key}") for key in ("sites", "reordered")}
    return checked(PinnedSpec, {**pinned, **lists, "cases": cases})


def listed(config: DictConfig, key: str) -> list[Any]:
    """A setting that is a list, as `drift.sites`. Raises InputError for anything else."""
    value = OmegaConf.select(config, key)
    if not isinstance(value, ListConfig):
        raise InputError(f"{key} is {value!r}, expected a list like {key}=[a,b]")
    items: Any = OmegaConf.to_container(value, resolve=True)
    return list(items)


def whole_number(config: DictConfig, key: str, least: int) -> int:
    """A setting that is a whole number of at least `least`. Raises InputError for anything else."""
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{key} is {value!r}, expected a whole number of at least {least}")
    return value


def _default_out(experiment: str) -> Path:
    """results/runs/<experiment>/<UTC time>, with a number if that second is taken (multirun)."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    base = Path("results") / "runs" / experiment / stamp
    out, number = base, 1
    while out.exists():
        number += 1
        out = base.with_name(f"{stamp}-{number}")
    return out
