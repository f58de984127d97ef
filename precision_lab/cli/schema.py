"""The settings of every command, closed and typed: what is not listed here is refused, before anything else happens.

The classes of `lab.spec` are part of it, with their own checks of ranges. Two parts of the tree are open, because a
`_target_` or the model defines them: `cli.building` compares keys beside a `_target_` with the signature of that
callable, and the subject refuses settings of a case (`sampler`, `image`, `pinned.cases`) that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, field_validator

from precision_lab.cli.paths import suggested
from precision_lab.errors import InputError, nearest, shown
from precision_lab.lab.measures import LatencySpec, TeacherSpec
from precision_lab.lab.spec import ProcessSpec
from precision_lab.settings import validated

Folder = Annotated[str, "a folder, as text like ./runs"]
File = Annotated[str, "a file, as text like ./prompts.txt"]
Margin = Annotated[float, Field(ge=0), "a number of at least 0"]
Count = Annotated[int, Field(ge=1), "a whole number of at least 1"]
Seed = Annotated[int, Field(ge=0, lt=2**63), "a whole number from 0 to 2^63 - 1"]
PinnedCase = Annotated[Mapping[str, Any], "prompt, seed and settings"]
Dtype = Annotated[str | Mapping[str, str], "one of float32, bfloat16, float16, or these by component"]
Techniques = Annotated[
    Mapping[str, Any],
    "techniques by name, through defaults: /technique@{key}: [a, b], or technique=[a,b] on the command line",
]


class Closed(BaseModel):
    """Settings without unknown names."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        frozen=True,
        protected_namespaces=(),
        defer_build=True,  # each command reads one of these classes
    )


C = TypeVar("C", bound=Closed)


class VariantSettings(Closed):
    dtype: Dtype | None = None
    technique: Techniques | None = None
    expect: str | None = None
    process: ProcessSpec | None = None
    settings: Annotated[Mapping[str, Any], "settings of a case, like {steps: 4}"] | None = None


class ReferenceSettings(Closed):
    dtype: Dtype
    technique: Techniques | None


class Factorial(Closed):
    base: str
    factors: Mapping[str, Techniques]
    generators: Mapping[str, Sequence[str]] | None


class Learning(Closed):
    prompts: Sequence[str] | None
    seeds: Sequence[int] | None


class Drift(Closed):
    sites: Sequence[str]
    teacher: TeacherSpec


class Pinned(Closed):
    record: bool
    steps: int
    noise_floor: bool
    cases: Annotated[Mapping[str, PinnedCase | None], "cases by name"] | None
    sites: Sequence[str]
    reordered: Sequence[str]


class GateSettings(Closed):
    baseline: File | None
    update: bool
    learn: Learning
    margin_bits: Margin
    margin_spread: Margin
    drift_bits: Margin
    drift_spread: Margin
    headroom_bits: Margin
    tolerance: Margin | None
    noise_factor: Margin
    latency_margin: Margin
    latency_ratio_margin: Margin
    memory_margin: Margin
    history: Sequence[str] | None


class Experiment(Closed):
    """conf/config.yaml, which `run` composes."""

    experiment: Annotated[str, "a name"]
    model: Mapping[str, Any]
    dtype: Dtype
    probe: Mapping[str, Any]
    technique: Techniques
    variants: Mapping[str, VariantSettings | None]
    baseline: str
    reference: ReferenceSettings
    only: Sequence[str] | None
    factorial: Factorial
    sampler: Mapping[str, Any]
    image: Mapping[str, Any]
    prompts: Sequence[str]
    seeds: Sequence[int]
    learning: Learning
    sites: Mapping[str, str | Sequence[str] | None]
    drift: Drift
    pinned: Pinned
    latency: LatencySpec
    claims: Mapping[str, Mapping[str, Any]]
    workers: int | None
    engine: str
    out: Folder | None
    resume: bool
    # an experiment may state settings for the command `gate`; `run` compares them and has no use for them
    gate: Any = None

    @field_validator("gate", mode="before")
    @classmethod
    def _is_of_a_gate(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            hints = get_type_hints(GateSettings, include_extras=True)
            for name, entry in value.items():
                if name not in GateSettings.model_fields:
                    raise InputError(f"Unknown setting 'gate.{name}'. {nearest(name, GateSettings.model_fields)}")
                validated(hints[name], entry, f"gate.{name}")
        elif value is not None:
            raise InputError(f"gate is {shown(value)}, expected settings below it, like gate.NAME=VALUE")
        return value


class Prove(Experiment):
    """conf/prove.yaml."""

    noise: Sequence[str]
    draws: Count
    draw_seed: Seed


class OnePass(Experiment):
    """The settings of a command that computes one pass."""

    case: Annotated[str, "the name of a pinned case"] | None
    step: Annotated[int, Field(ge=0), "a whole number of at least 0"]


class DumpInputs(OnePass):
    """conf/dump_inputs.yaml."""

    dump_inputs: File


class CompareDump(OnePass):
    """conf/compare_dump.yaml."""

    dump: File
    inputs: File | None


class ScanSettings(Closed):
    steps: Annotated[Sequence[int] | None, "numbers of steps, like [0, 3], or null"]
    cases: Count | None
    rounds: Annotated[int, Field(ge=0), "a whole number of at least 0"]


class Sensitivity(Experiment):
    """conf/sensitivity.yaml."""

    candidate: Annotated[Mapping[str, Any], "candidates by name, candidate=[affine4,nvfp4]"]
    noise: Annotated[Mapping[str, Any], "equivalent rewrites by name, candidate@noise=[reordered_sums]"]
    of: Annotated[str | Sequence[str] | None, "a pattern of sites, a list of patterns, or null"]
    by: Annotated[str | Sequence[str], "keys of groups, like [operation, block]"]
    scan: ScanSettings
    confirm: Annotated[int, Field(ge=0), "a whole number of at least 0"]


class Gate(Experiment):
    """conf/gate.yaml."""

    run: Folder | None
    gate: GateSettings


class Report(Closed):
    """conf/report.yaml."""

    run: Folder | None
    runs: Annotated[str | Sequence[Folder], "a folder of runs, a pattern, or a list like {key}=[A,B]"] | None
    sweep: Folder | None
    history: File | None
    format: Literal["html", "md", "badge"]
    out: Folder | None


class Compare(Closed):
    """conf/compare.yaml."""

    runs: Annotated[Sequence[Folder], "the folders of two or more runs, {key}=[A,B]"]
    reference: Annotated[str, "RUN:VARIANT, the folder of a run and one of its variants"] | None
    base: Annotated[str, "one of runs"] | None
    names: Annotated[str | Mapping[str, str] | None, "a YAML file, or patterns by pattern, {{a.*: b.*}}"]
    blocks: Literal["index", "relative"] | None
    out: Folder | None


class CompareDevices(Closed):
    """conf/compare_devices.yaml."""

    devices: Annotated[Sequence[File], "two or more device.json files, {key}=[A,B]"]
    out: Folder | None


class Device(Closed):
    """conf/device.yaml."""

    tf32: Annotated[bool | None, "true, false or null"]
    claims: Mapping[str, Mapping[str, Any]]
    out: Folder | None


class Submit(Closed):
    """conf/submit.yaml."""

    overrides: Annotated[Sequence[str], "quoted overrides of run, like ['+exp=findings']"]
    out: Folder | None


class BesideAModel(Closed):
    """What a model composes for its cases, unused by a command that needs the model alone."""

    model: Mapping[str, Any]
    sampler: Mapping[str, Any] = Field(default_factory=dict)
    image: Mapping[str, Any] = Field(default_factory=dict)
    prompts: Sequence[Any] = ()
    seeds: Sequence[Any] = ()
    learning: Mapping[str, Any] = Field(default_factory=dict)
    drift: Mapping[str, Any] = Field(default_factory=dict)
    pinned: Mapping[str, Any] = Field(default_factory=dict)
    sites: Mapping[str, Any] = Field(default_factory=dict)


class OfAModel(BesideAModel):
    """A command that takes techniques from one place to another."""

    technique: Techniques
    from_: Annotated[str, "a text"] | None = Field(alias="from")
    to: Annotated[str, "a text"] | None


class Models(OfAModel):
    """conf/models.yaml."""

    inspect: Annotated[str, "a file or a folder of weights"] | None
    make: str | None
    dtype: Literal["float32", "bfloat16", "float16"] | None
    from_: Annotated[str, "a file, a folder or a Hub id"] | None = Field(alias="from")
    to: Folder | None
    seed: Seed


class Recipe(OfAModel):
    """conf/recipe.yaml."""

    from_: Annotated[str, "the name of a dialect"] | None = Field(alias="from")
    to: Annotated[str, "the name of a dialect"] | None
    file: File | None
    name: str | None


def read(kind: type[C], config: DictConfig) -> C:
    """The typed settings of a resolved configuration. Raises InputError for the first entry that does not fit."""
    values: Any = OmegaConf.to_container(config, resolve=True)
    names = {field.alias or name for name, field in kind.model_fields.items()}
    for name in values:
        if name not in names:
            raise InputError(f"Unknown setting {str(name)!r}. {suggested(str(name), names)}")
    settings: C = validated(kind, values)
    return settings
