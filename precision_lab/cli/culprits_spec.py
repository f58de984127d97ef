"""The cases and the run specification of a search for culprits, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from omegaconf import DictConfig, OmegaConf

from precision_lab.cli import culprits_schema, schema
from precision_lab.cli.config import build_spec
from precision_lab.cli.literal import settled
from precision_lab.cli.probes import without_settings_of_absent
from precision_lab.errors import InputError
from precision_lab.lab.measures import LatencySpec, PinnedSpec, TeacherSpec
from precision_lab.lab.pinned import check_settings
from precision_lab.lab.spec import RunSpec, Variant
from precision_lab.lab.subject import Case

NOTHING_SPARED, ALL_SPARED = "nothing_spared", "all_spared"
"""The names of the variants at the two ends of a search."""


@dataclass(frozen=True)
class Prepared:
    """What a configuration describes.

    spec: of the trials. search, validation: the cases that are searched with, and those that test the result. others:
    the variants of the configuration by name, with which a claim compares.
    """

    settings: culprits_schema.Culprits
    resolved: DictConfig
    spec: RunSpec
    search: Sequence[Case]
    validation: Sequence[Case]
    others: Mapping[str, Variant]


def prepare(config: DictConfig, command: Sequence[str]) -> Prepared:
    """Raises InputError for values that fit none; nothing is written."""
    from precision_lab.cli.sparing import compares_checkpoints

    config = without_settings_of_absent(settled(config))
    settings = schema.read(culprits_schema.Culprits, config)
    if compares_checkpoints(settings, config):
        config.model.path = (settings.between or ())[0]
        if "name" in config.model:
            config.model.name = None
    resolved = config.copy()
    spec = build_spec(config, command, culprits_schema.Culprits)
    check_settings(spec)  # its trials run no pinned case, which the rest of the spec does not show
    others = {variant.name: variant for variant in spec.variants}
    search, validation = _cases(settings, spec)
    spec = replace(
        spec,
        prompts=list(dict.fromkeys(case.prompt for case in (*search, *validation))),
        seeds=list(dict.fromkeys(case.seed for case in (*search, *validation))),
        variants=[Variant(NOTHING_SPARED, str(spec.variants[0].dtype))],
        baseline=NOTHING_SPARED,
        latency=LatencySpec(max_rounds=0),
        teacher=TeacherSpec(),
        pinned=PinnedSpec(),
        claims=(),
        evidence=spec.evidence if _is_of_claim(settings) else (),
        drift_sites=spec.drift_sites if _is_of_claim(settings) else [spec.source.layout.result.address],
    )
    return Prepared(settings, resolved, spec, search, validation, others)


def spec_of(resolved: str) -> RunSpec:
    """The spec of the trials again, in a process that does not own the folder."""
    config = OmegaConf.create(resolved)
    assert isinstance(config, DictConfig)
    config.out, config.resume, config.engine, config.workers = None, False, "local", None
    return prepare(config, ()).spec


def _is_of_claim(settings: culprits_schema.Culprits) -> bool:
    return isinstance(settings.criterion, culprits_schema.CriterionSettings) and settings.criterion.claim is not None


def _cases(settings: culprits_schema.Culprits, spec: RunSpec) -> tuple[list[Case], list[Case]]:
    """The cases that are searched with, and others that test the result."""
    count = settings.searched or (len(spec.prompts) if _is_of_claim(settings) else 1)
    if count > len(spec.prompts):
        raise InputError(f"searched is {count}, but there are {len(spec.prompts)} prompts")
    prompts, wanted = list(spec.prompts[:count]), settings.validate_
    left = list(wanted.prompts if wanted.prompts is not None else spec.prompts[count:])
    seeds = list(wanted.seeds if wanted.seeds is not None else spec.seeds)
    if not left and wanted.prompts is None:
        left = prompts
        if wanted.seeds is None:
            seeds = [max(spec.seeds) + 1]
    every = list(dict.fromkeys([*prompts, *left]))
    number = {prompt: at for at, prompt in enumerate(every)}

    def cases(prompts: Sequence[str], seeds: Sequence[int]) -> list[Case]:
        return [Case(number[prompt], prompt, seed, spec.settings) for prompt in prompts for seed in seeds]

    search = cases(prompts, spec.seeds)
    return search, [case for case in cases(left, seeds) if case not in search]
