"""The manifest of a run: experiment, subject, environment, settings, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from precision_lab.errors import InputError
from precision_lab.record.columns import Column
from precision_lab.record.files import RESTORE, advising, read_json, write_json
from precision_lab.record.layout import Layout

SCHEMA_VERSION = 2
"""2 since runs store the layout of their subject. Written into manifest.json and summary.json."""

FILE = "manifest.json"
Status = Literal["running", "complete", "failed", "interrupted"]
T = TypeVar("T")


@dataclass(frozen=True)
class Environment:
    """The machine and software of a run, as `device.environment` gives them."""

    device: str
    backend: str
    mlx: str | None
    cores: int | None = None
    os: str = ""
    python: str = ""
    blas: str | None = None
    onednn: str | None = None
    malloc: str | None = None
    packages: Mapping[str, str | None] = field(default_factory=dict)
    switches: Mapping[str, str | None] = field(default_factory=dict)
    commit: str | None = None
    dirty: bool | None = None

    @property
    def machine(self) -> str:
        """Distinguishes devices: the name, with the number of cores of a CPU, whose marketing name says little."""
        return f"{self.device}, {self.cores} cores" if self.backend == "cpu" else self.device


@dataclass(frozen=True)
class WorkerEntry:
    """A worker that took part in a run. name: of a cluster's worker, its address. parts: the names of those it made."""

    name: str
    host: str
    device: str
    backend: str
    mlx: str | None
    parts: Sequence[str] = ()

    @property
    def key(self) -> str:
        """Distinguishes workers."""
        return f"{self.name} {self.host} {self.device} {self.mlx}"


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a run.

    - name: of the model in the configuration; path: as the user gave it.
    - weights: trained, synthetic, published or unknown, see `precision_lab.record.origin`.
    - weights_dtype: "as stored", or the dtype that stored weights were rounded to.
    - settings: those of the source that decide numbers, such as inflate; resources: those that do not, such as paging.
    - notes: remarks on the weights that figures and summaries must show.
    - ignored: by component, keys and tensors that were read and not used.
    """

    name: str
    path: str
    fingerprint: str
    weights: str
    weights_dtype: str = "as stored"
    settings: Mapping[str, Any] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    ignored: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    """Weights of a component: how many, and the bytes that they take with their scales."""

    number: int
    bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class VariantEntry:
    """The configuration of a variant.

    switches: the numeric switches of its process. settings: those of the cases that it overrides. reference: the name
    of the variant that each of its steps is compared with, its own for a reference. linear_weights, weights: by
    component, those of its linears, and all its parameters; runs of earlier versions have the former alone. choices: by
    technique, what it chose by measurement on the device of the worker that planned the run.
    """

    dtype: str
    techniques: Sequence[str] = ()
    expect: str = "any"
    process: Mapping[str, Any] = field(default_factory=dict)
    switches: Mapping[str, str | None] = field(default_factory=dict)
    linear_weights: Mapping[str, Storage] = field(default_factory=dict)
    weights: Mapping[str, Storage] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference: str = "reference"
    choices: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def stored(self, component: str) -> Storage | None:
        """What the weights of a component take: all its parameters, or the linears alone where no more is known."""
        return self.weights.get(component) or self.linear_weights.get(component)


@dataclass(frozen=True)
class Coverage:
    """How many modules a technique rewrote, of how many the components that it names have."""

    matched: int
    of: int


@dataclass(frozen=True)
class Reference:
    """The variant that drift is measured against: by default the plain model in fp32, with reduced modes off."""

    variant: str = "reference"
    computed_in: str = "float32"
    techniques: Sequence[str] = ()
    reduced_modes: str = "off"

    @property
    def is_plain(self) -> bool:
        """Whether it is the plain model in fp32, which the gate's baselines rest on."""
        return self.computed_in == "float32" and not self.techniques

    @property
    def words(self) -> str:
        """What it is: "float32", or "bfloat16 with affine4, fp32_norms"."""
        return f"{self.computed_in} with {', '.join(self.techniques)}" if self.techniques else self.computed_in


@dataclass(frozen=True)
class PinnedCases:
    """The pinned cases of a run. fingerprint: of all that decides their sketches besides weights and code."""

    case: Mapping[str, Any]
    cases: Mapping[str, Mapping[str, Any]]
    sites: Sequence[str]
    noise_floor: bool
    fingerprint: str


@dataclass(frozen=True)
class Manifest:
    """manifest.json. Times are ISO 8601 in UTC; `finished` is null while a run goes on.

    case: the settings that all cases share, in the subject's own terms. sites: coverage by variant and technique.
    errors: exceptions that variants raised. latency_margin: relative. columns: those that probes declare, by table.
    notes: remarks on the settings, which the terminal shows too. unsound_weights: sentences on weights that are not
    finite. environment: of the worker that timed the steps; workers: all that made something.
    """

    status: Status
    experiment: str
    environment: Environment
    checkpoint: Checkpoint
    layout: Layout
    case: Mapping[str, Any]
    baseline: str
    variants: Mapping[str, VariantEntry]
    prompts: Sequence[str]
    seeds: Sequence[int]
    latency_margin: float
    reference: Reference = field(default_factory=Reference)
    command: Sequence[str] = ()
    started: str = ""
    finished: str | None = None
    sites: Mapping[str, Mapping[str, Coverage]] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    unsound_weights: Sequence[str] = ()
    pinned: PinnedCases | None = None
    claims: Sequence[Mapping[str, Any]] = ()
    columns: Mapping[str, Sequence[Column]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    workers: Sequence[WorkerEntry] = ()

    @property
    def devices(self) -> Sequence[str]:
        """The devices that parts were made on, with their MLX versions, each once."""
        return list(dict.fromkeys(f"{worker.device}, MLX {worker.mlx}" for worker in self.workers if worker.parts))

    def write(self, run: Path) -> None:
        """Writes the manifest into the folder of its run, whole or not at all."""
        write_json(run / FILE, {"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def read(cls, run: Path) -> Manifest:
        """The manifest of a run folder. Raises InputError if there is none, or it cannot be read."""
        path = run / FILE
        if not path.exists():
            raise InputError(f"{run} is not the folder of a run: there is no {FILE} in it")
        with advising(RESTORE):
            content = read_json(path)
        manifest = typed(cls, content, path)
        from precision_lab.record.consistency import check  # needs pandas, which writing a manifest does not

        check(manifest, path)
        return manifest


def typed(kind: type[T], content: Any, path: Path) -> T:
    """The content of a JSON file of a run, each entry of exactly its type.

    Raises InputError for another schema_version, and with its place for a malformed entry.
    """
    from pydantic import ValidationError

    found = content.get("schema_version") if isinstance(content, dict) else None
    if type(found) is not int or found != SCHEMA_VERSION:
        found = found if isinstance(found, int | str | None) else type(found).__name__
        older = isinstance(found, int) and found < SCHEMA_VERSION
        advice = "Run the experiment again" if older else "Use the version of precision_lab that wrote it"
        raise InputError(f"{path} has schema_version {str(found)[:40]}, expected {SCHEMA_VERSION}. {advice}")
    try:
        # JSON, since a strict reader of Python values takes no list for a tuple
        value = cast(T, _adapter(cast(Any, kind)).validate_json(json.dumps(content), strict=True))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise InputError(f"{path}: {ascii(where)[1:-1]}: {first['msg']}. {RESTORE}") from error
    return value


@cache
def _adapter(kind: type[Any]) -> Any:
    from pydantic import TypeAdapter  # a tenth of a second that not every command needs

    return TypeAdapter(kind)
