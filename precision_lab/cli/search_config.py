"""From the configuration of `search` to what it works with: the run of its trials, the scan, and what is included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from precision_lab.cli import schema, search_schema
from precision_lab.cli.candidates import build_candidates
from precision_lab.cli.composing import composed_with
from precision_lab.cli.config import build_source, build_spec, plain
from precision_lab.cli.literal import settled
from precision_lab.cli.sensitivity import build_scan
from precision_lab.errors import InputError, first_line, nearest, shown
from precision_lab.lab.candidates import Candidate
from precision_lab.lab.groups import Group, check_keys, groups_of
from precision_lab.lab.recipes import Recipes
from precision_lab.lab.scan_plan import ScanSpec
from precision_lab.lab.spec import RunSpec
from precision_lab.lab.subject import Case
from precision_lab.lab.trials import Trial
from precision_lab.lab.values import NAMED, is_name
from precision_lab.record import manifest
from precision_lab.record.address import NO_STREAM
from precision_lab.record.files import read_text
from precision_lab.record.folders import user_path
from precision_lab.record.run import CONFIG
from precision_lab.record.scan import Scan

SCAN = "sensitivity"
"""The folder of the scan in that of a search."""

_OWN = ("strategy", "budget", "sensitivity", "include", "trials", "holdout", "optuna")
"""The settings that a scan does not have."""

_MOST_HELD_OUT = 4
"""The most prompts that are held out by default."""


@dataclass(frozen=True)
class Prepared:
    """Everything of a search that can be known before anything is computed.

    spec: the run of its trials, on the cases of the search and those held out. scan: what to scan in its folder, or
    None; scanned: a finished scan, or None. included: trials that are tried as they are, by name. noise: equivalent
    rewrites.
    """

    spec: RunSpec
    cases: Sequence[Case]
    held_out: Sequence[Case]
    recipes: Recipes
    noise: Sequence[Candidate]
    included: Mapping[str, Trial]
    scan: ScanSpec | None
    scanned: Scan | None

    @property
    def dtype(self) -> str:
        """The dtype that the trials compute in."""
        return next(variant.dtype for variant in self.spec.variants if variant.name == self.spec.baseline)


def prepared(config: DictConfig, settings: search_schema.Search, command: Sequence[str], scans: bool) -> Prepared:
    """What a settled configuration describes. scans: whether the strategy needs sensitivities.

    Raises InputError for values that fit none, before anything is written.
    """
    scanned = Scan.open(user_path(settings.sensitivity)) if settings.sensitivity else None
    if scanned is not None:
        config.candidate = _candidates_of(scanned, config, command)
    if not config.candidate:
        raise InputError("candidate is empty, expected names like candidate=[affine4,affine8]")
    seen, unseen = _cases(config, settings)
    config.prompts = list(dict.fromkeys(prompt for prompt, _ in (*seen, *unseen)))
    config.seeds = list(dict.fromkeys(seed for _, seed in (*seen, *unseen)))
    config.drift.sites = [build_source(config.model).layout.result.address]
    config.claims = {}
    if settings.factorial.factors:
        raise InputError("factorial: search chooses by itself what to try, expected no factors; include=[NAME,...]")
    included: dict[str, tuple[str | None, dict[str, Any]]] = {
        name: (None, _technique(name)) for name in settings.include
    }
    spec = build_spec(config, command, search_schema.Search)
    if not spec.has_plain_reference:
        raise InputError("search compares with the plain model in fp32, expected no other reference")
    included |= {name: (dtype, nodes) for name, dtype, nodes in _variants(spec, config)}
    own = {(prompt, seed): case for case in spec.cases for prompt, seed in [(case.prompt, case.seed)]}
    dtype = next(variant.dtype for variant in spec.variants if variant.name == spec.baseline)
    return Prepared(
        spec=spec,
        cases=[own[pair] for pair in seen],
        held_out=[own[pair] for pair in unseen],
        recipes=_recipes(config, settings, spec, dtype, scanned),
        noise=build_candidates(config, "noise"),
        included={name: Trial(own_dtype or dtype, nodes, name) for name, (own_dtype, nodes) in included.items()},
        scan=_scan(config, settings, spec, seen, command) if scans and scanned is None else None,
        scanned=scanned,
    )


def _cases(config: DictConfig, settings: search_schema.Search) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The prompts and seeds of the search, and those held out."""
    pairs = [(prompt, seed) for prompt in settings.prompts for seed in settings.seeds]
    seen = pairs[: settings.trials.cases]
    used = {prompt for prompt, _ in seen}
    prompts = settings.holdout.prompts
    if prompts is None:
        known = dict.fromkeys((*settings.prompts, *(settings.learning.prompts or ())))
        prompts = [prompt for prompt in known if prompt not in used][:_MOST_HELD_OUT]
    unseen = [(prompt, seed) for prompt in dict.fromkeys(prompts) for seed in dict.fromkeys(settings.holdout.seeds)]
    if not unseen:
        raise InputError(
            "holdout: no case is left that the search has not seen, expected holdout.prompts=[...] and "
            "holdout.seeds=[...], or fewer trials.cases"
        )
    for prompt, seed in unseen:
        if (prompt, seed) in seen:
            raise InputError(
                f"holdout: prompt {shown(prompt, 40)} with seed {seed} is a case of the search too, expected others"
            )
    return seen, unseen


def _candidates_of(scanned: Scan, config: DictConfig, command: Sequence[str]) -> dict[str, Any]:
    """The candidates of a finished scan that the search may use: all, or those named by candidate=.

    They are those of this configuration: nothing of the scan's folder is built.
    """
    measured = list(dict.fromkeys(map(str, scanned.sensitivity["candidate"])))
    named = any(argument.startswith("candidate=") for argument in command)
    for name in plain(config.candidate) if named else ():
        if name not in measured:
            raise InputError(
                f"candidate {name}: the scan in {scanned.path} did not measure it. {nearest(name, measured)}"
            )
    if named:
        nodes = plain(config.candidate)
    else:
        for name in measured:
            if not is_name(name):
                raise InputError(f"{scanned.path} names the candidate {shown(name)}, expected {NAMED}")
        nodes = plain(settled(composed_with("candidate", measured)).candidate)
    then = _config_of(scanned).get("candidate") or {}
    for name, node in nodes.items():
        if then.get(name) != node:
            raise InputError(f"candidate {name} is not what {scanned.path} measured under this name. Scan again")
    return nodes


def _config_of(scanned: Scan) -> dict[str, Any]:
    path = scanned.path / CONFIG
    try:
        values: Any = OmegaConf.to_container(OmegaConf.create(read_text(path)))
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from error
    return values if isinstance(values, dict) else {}


def _technique(name: str) -> dict[str, Any]:
    """The nodes of an option of the group technique."""
    if not is_name(name):
        raise InputError(f"include holds {shown(name)}, expected names of techniques: {NAMED}")
    return plain(settled(composed_with("technique", [name])).technique)


def _variants(spec: RunSpec, config: DictConfig) -> list[tuple[str, str, dict[str, Any]]]:
    """The variants of an experiment with techniques, by name with dtype and nodes; `technique=` is `custom`."""
    found = []
    for variant in spec.variants:
        if variant.name == spec.baseline and not variant.techniques:
            continue
        if variant.settings or variant.process.tf32:
            raise InputError(f"variants.{variant.name}: search tries techniques and dtypes, expected no other settings")
        described = config.variants.get(variant.name)
        nodes = config.technique if described is None else described.get("technique")
        found.append((variant.name, variant.dtype, plain(nodes or {})))
    return found


def _recipes(
    config: DictConfig, settings: search_schema.Search, spec: RunSpec, dtype: str, scanned: Scan | None
) -> Recipes:
    from precision_lab.lab.bench import Bench

    candidates = build_candidates(config)
    components = Bench(spec).components(dtype)
    if scanned is None:
        by = [settings.by] if isinstance(settings.by, str) else list(settings.by)
        check_keys(by)
        of = [settings.of] if isinstance(settings.of, str) else settings.of
        return Recipes(components, groups_of(components, of, by), candidates)
    now, then = spec.source.checkpoint, scanned.manifest.checkpoint
    if now.fingerprint != then.fingerprint:
        raise InputError(
            f"sensitivity={scanned.path} is of other weights, {then.name} ({then.fingerprint[:12]}), "
            f"and this search of {now.name} ({now.fingerprint[:12]}). Scan again"
        )
    recipes = Recipes(components, _groups(scanned), candidates)
    saved = recipes.rows().set_index(["group", "candidate"])["bytes_saved"]
    measured = scanned.sensitivity.drop_duplicates(["group", "candidate"]).set_index(["group", "candidate"])[
        "bytes_saved"
    ]
    if not measured.reindex(saved.index).equals(saved.astype("Int64")):
        raise InputError(f"sensitivity={scanned.path} does not agree with this model on the bytes saved. Scan again")
    return recipes


def _groups(scanned: Scan) -> list[Group]:
    about = scanned.sensitivity.drop_duplicates("group").astype(object)
    about = about.where(about.notna(), None).set_index("group")
    sites = scanned.groups.groupby("group", sort=False)["site"].agg(tuple)
    return [
        Group(
            name,
            None if row["component"] == NO_STREAM else row["component"],
            row["block"],
            row["operation"],
            None if row["stream"] == NO_STREAM else row["stream"],
            tuple(sites[name]),
        )
        for name, row in zip(map(str, about.index), about.to_dict("records"), strict=True)
        if name in sites.index
    ]


def _scan(
    config: DictConfig,
    settings: search_schema.Search,
    spec: RunSpec,
    seen: Sequence[tuple[str, int]],
    command: Sequence[str],
) -> ScanSpec:
    """The scan that the search makes in its own folder, with the weights that it loads anyway."""
    own = deepcopy(config)
    for name in _OWN:
        del own[name]
    own.experiment, own.technique, own.probe = "sensitivity", {}, {}
    own.variants, own.baseline, own.only = {spec.baseline: None}, spec.baseline, None
    own.prompts = list(dict.fromkeys(prompt for prompt, _ in seen))
    own.seeds = list(dict.fromkeys(seed for _, seed in seen))
    own.scan.cases = settings.scan.cases or 1
    out = spec.out / SCAN
    own.out, own.resume = str(out), spec.resume and (out / manifest.FILE).exists()
    own.engine, own.workers = settings.engine, settings.workers
    made = build_scan(own, schema.read(schema.Sensitivity, own), command)
    return replace(made, run=replace(made.run, source=spec.source))
