"""From a composed configuration to a typed RunSpec; the last place that knows of OmegaConf."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from precision_lab.cli import schema
from precision_lab.cli.building import build
from precision_lab.cli.folders import stamped
from precision_lab.cli.literal import settled
from precision_lab.errors import InputError, nearest
from precision_lab.lab.compute import Compute
from precision_lab.lab.factorial import combined, label, treatments
from precision_lab.lab.measures import PinnedCase, PinnedSpec
from precision_lab.lab.spec import REFERENCE, Evidence, ProcessSpec, RunSpec, Variant
from precision_lab.lab.subject import Source
from precision_lab.probes.base import Probe, StreamProbe
from precision_lab.record.folders import user_path
from precision_lab.settings import validated
from precision_lab.techniques.base import Technique


def build_spec(
    config: DictConfig, command: Sequence[str], kind: type[schema.Experiment] = schema.Experiment
) -> RunSpec:
    """The run that a composed configuration describes. Raises InputError for values that fit none; writes nothing.

    kind: the settings of the command; those beyond `run`'s are no part of the spec.
    """
    resolved = settled(config)
    settings = schema.read(kind, resolved)
    out = settings.out
    del resolved.out, resolved.resume, resolved.engine, resolved.workers  # what the numbers do not depend on
    described = _described(settings, resolved)
    if settings.baseline not in described:
        raise InputError(f"baseline: unknown variant {settings.baseline!r}. {nearest(settings.baseline, described)}")
    variants = _variants(settings, described)
    names = [variant.name for variant in variants]
    claims, evidence = _claims(resolved, described, names)
    return RunSpec(
        experiment=settings.experiment,
        source=build_source(resolved.model),
        settings=_case(resolved),
        prompts=settings.prompts,
        seeds=settings.seeds,
        variants=variants,
        baseline=settings.baseline if settings.baseline in names else names[0],  # `only` may leave it out
        probes={str(name): build(node, Probe, f"probe.{name}", StreamProbe) for name, node in resolved.probe.items()},
        drift_sites=settings.drift.sites,
        teacher=settings.drift.teacher,
        pinned=_pinned(settings.pinned, resolved),
        latency=settings.latency,
        out=user_path(out) if out else stamped(settings.experiment),
        resume=settings.resume,
        resolved=OmegaConf.to_yaml(resolved),
        command=["python", "-m", "precision_lab", *command],
        workers=settings.workers,
        engine=settings.engine,
        claims=claims,
        evidence=evidence,
        reference=_reference(settings.reference, resolved.reference),
    )


def spec_of(resolved: str, kind: type[schema.Experiment] = schema.Experiment) -> RunSpec:
    """The run of a configuration, as `RunSpec.resolved` holds it, in a process that does not own its folder."""
    config = OmegaConf.create(resolved)
    assert isinstance(config, DictConfig)
    config.out, config.resume, config.engine, config.workers = None, False, "local", None
    return build_spec(config, (), kind)


def build_source(config: DictConfig) -> Source:
    """The source of weights that `model` names. Raises InputError for unknown settings of it."""
    if "_target_" not in config:
        raise InputError("model: expected a source of weights, named by _target_. Choose one with model=NAME")
    source: Source = build(config, Source, "model")
    return source


@dataclass(frozen=True)
class _Described:
    """A variant before its techniques are built: the node of each by its name, and each node's dotted name."""

    settings: schema.VariantSettings
    nodes: Mapping[str, DictConfig]
    keys: Mapping[str, str]

    @classmethod
    def of(cls, settings: schema.VariantSettings | None, nodes: Mapping[Any, Any] | None, key: str) -> _Described:
        found = {str(name): node for name, node in (nodes or {}).items()}
        return cls(settings or schema.VariantSettings(), found, {name: f"{key}.{name}" for name in found})


def _described(settings: schema.Experiment, resolved: DictConfig) -> dict[str, _Described]:
    """The experiment's variants, those of a factorial, and `custom` if techniques were named."""
    described = {}
    for name, node in resolved.variants.items():
        given = settings.variants[str(name)]
        described[str(name)] = _Described.of(given, (node or {}).get("technique"), f"variants.{name}.technique")
    described |= _factorial(settings.factorial, resolved, described)
    if resolved.technique:
        if "custom" in described:
            raise InputError("technique= adds a variant `custom`, but the experiment has one: give that another name")
        described["custom"] = _Described.of(None, resolved.technique, "technique")
    return described


def _variants(settings: schema.Experiment, described: Mapping[str, _Described]) -> list[Variant]:
    """The variants that `only` leaves of those that are described."""
    for name in settings.only or ():
        if name not in described:
            raise InputError(f"only: unknown variant {name!r}. {nearest(name, described)}")
    run = Compute.read("dtype", settings.dtype)
    variants = [
        Variant(
            name,
            _dtype(f"variants.{name}.dtype", variant.settings.dtype, run),
            {key: build(node, Technique, variant.keys[key]) for key, node in variant.nodes.items()},
            variant.settings.expect or "any",
            variant.settings.process or ProcessSpec(),
            dict(variant.settings.settings or {}),
        )
        for name, variant in described.items()
        if settings.only is None or name in settings.only
    ]
    if not variants:
        raise InputError("No variants are left to run, expected at least one (variants, only)")
    return variants


def _reference(settings: schema.ReferenceSettings, node: DictConfig) -> Variant:
    """The variant that all others are compared with."""
    nodes = {str(name): each for name, each in (node.technique or {}).items()}
    techniques = {name: build(each, Technique, f"reference.technique.{name}") for name, each in nodes.items()}
    return Variant(REFERENCE, str(Compute.read("reference.dtype", settings.dtype)), techniques)


def _dtype(what: str, value: schema.Dtype | None, run: Compute) -> str:
    """The dtypes of a variant: its own, whose default is that of the run, or the run's."""
    return str(run if value is None else Compute.read(what, value, run.default))


def _factorial(
    settings: schema.Factorial, resolved: DictConfig, described: Mapping[str, _Described]
) -> dict[str, _Described]:
    """Variants for all combinations of the factors on the variant `base`; none without factors."""
    if not settings.factors:
        return {}
    if settings.base not in described:
        raise InputError(f"factorial.base: unknown variant {settings.base!r}. {nearest(settings.base, described)}")
    base = described[settings.base]
    factors: dict[str, dict[str, DictConfig]] = {}
    keys = dict(base.keys)
    for name, node in resolved.factorial.factors.items():
        one, key = "_target_" in node, f"factorial.factors.{name}"
        factors[str(name)] = {str(name): node} if one else {str(each): node[each] for each in node}
        keys |= {each: key if one else f"{key}.{each}" for each in factors[str(name)]}
    variants = {}
    for on in filter(None, treatments(list(factors), settings.generators or {})):
        nodes = combined(base.nodes, factors, on)
        if label(settings.base, on) in described:
            raise InputError(f"factorial: there is a variant {label(settings.base, on)} already. Give it another name")
        variants[label(settings.base, on)] = _Described(base.settings, nodes, keys)
    return variants


def _case(resolved: DictConfig) -> dict[str, Any]:
    """The settings of every case, plain values by name. Raises InputError for one that both groups have."""
    sampler, image = plain(resolved.sampler), plain(resolved.image)
    for key in sampler.keys() & image.keys():
        raise InputError(f"sampler.{key} and image.{key} are the same setting, expected one of them")
    return sampler | image


def _claims(
    resolved: DictConfig, variants: Collection[str], kept: Collection[str]
) -> tuple[list[dict[str, Any]], list[Evidence]]:
    described = plain(resolved.claims)
    if not described:
        return [], []
    from precision_lab.cli.claims import build_claims  # loads pandas and SciPy

    return build_claims(described, variants, kept)


def _pinned(settings: schema.Pinned, resolved: DictConfig) -> PinnedSpec:
    """Cases that are null are left out: Hydra merges mappings, so that nothing else takes one away."""
    cases = {}
    for name, case in plain(resolved.pinned.cases or {}).items():
        if case is not None:
            prompt, seed = case.pop("prompt", ""), case.pop("seed", 0)
            faint = validated(Sequence[str], case.pop("faint", []), f"pinned.cases.{name}.faint")
            cases[name] = PinnedCase(prompt, seed, case, tuple(faint))
    return PinnedSpec(cases, settings.sites, settings.steps, settings.noise_floor, settings.reordered, settings.record)


def plain(config: Any) -> dict[str, Any]:
    """A mapping of a resolved configuration by text, with the values as they were given."""
    values: Any = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    return {str(key): value for key, value in values.items()}
