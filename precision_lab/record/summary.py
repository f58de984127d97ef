"""summary.json: the results of a run for each variant and each claim.

In Python an undefined number is a `Quantity` without a value; in the file it is null, with `<key>_reason` beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from precision_lab.record.files import RESTORE, advising, read_json, write_json
from precision_lab.record.manifest import SCHEMA_VERSION, typed

FILE = "summary.json"


@dataclass(frozen=True)
class Quantity:
    """A finite number, or the reason why there is none."""

    value: float | int | None
    reason: str = ""

    @classmethod
    def of(cls, value: float, reason: str) -> Quantity:
        """`value`, or where it is not finite the reason."""
        return cls(float(value)) if math.isfinite(value) else cls(None, reason)


NOT_RECORDED = Quantity(None, "not recorded")


@dataclass(frozen=True)
class Dtypes:
    """The dtypes of a variant: of its weights ("as stored": those of the checkpoint), and of its computation."""

    weights: str
    compute: str


@dataclass(frozen=True)
class FirstNonfinite:
    """The first array with a NaN or an infinity; step and branch are null outside of the loop.

    inputs_finite: true where the value arose in this module, whose inputs are finite; null where the array is the first
    one in which it was seen, and may have received it.
    """

    component: str
    site: str
    port: str
    step: int | None
    branch: str | None
    prompt_id: int | None = None
    seed: int | None = None
    dtype: str | None = None
    num_nan: int = 0
    num_inf: int = 0
    inputs_finite: bool | None = None


@dataclass(frozen=True)
class NearMiss:
    """An array whose finite values came near the overflow of its dtype. headroom_bits: log2(max / amax)."""

    component: str
    site: str
    port: str
    step: int | None
    branch: str | None
    prompt_id: int | None
    seed: int | None
    format: str
    headroom_bits: float


@dataclass(frozen=True)
class NearMisses:
    """How many sites came near overflow, and the nearest of them."""

    count: int
    nearest: Sequence[NearMiss] = ()


@dataclass(frozen=True)
class Latency:
    """Seconds of a step, and the ratio to the baseline variant with its simultaneous 95 % interval."""

    median_s: float
    ratio: float
    verdict: str
    ci95: tuple[float, float] | None = None
    ci95_reason: str = ""


@dataclass(frozen=True)
class VariantSummary:
    """The results of one variant.

    amax_final: largest magnitude of the main stream after the last block. latent_rel_l2: drift of the result after the
    last step, the median over cases. psnr_db, ssim: of the pictures, medians. latency and near_misses are None where
    they were not measured, with the reason. metrics: further ones that the result has, such as kl, medians over cases.
    pictures: measures of its pictures beside the reference's, such as flat_grain, medians over cases.
    model_bytes, weight_bytes: of all parameters with their scales, of the model and of its default component (the
    denoiser). bits_per_weight: of the latter, effective: 8 weight_bytes / number of weights.
    """

    dtype: Dtypes
    techniques: Sequence[str]
    error: str | None
    expect: str
    expectation_met: bool
    amax_final: Quantity
    latent_rel_l2: Quantity
    psnr_db: Quantity
    ssim: Quantity
    num_nonfinite: Quantity
    first_nonfinite: FirstNonfinite | None
    near_misses: NearMisses | None
    latency: Latency | None
    peak_memory_bytes: Quantity
    metrics: Mapping[str, Quantity] = field(default_factory=dict)
    near_misses_reason: str = ""
    latency_reason: str = ""
    model_bytes: Quantity = NOT_RECORDED
    weight_bytes: Quantity = NOT_RECORDED
    bits_per_weight: Quantity = NOT_RECORDED
    pictures: Mapping[str, Quantity] = field(default_factory=dict)


@dataclass(frozen=True)
class ClaimEntry:
    """A claim and its verdict: supported, refuted or inconclusive.

    effect, ci95: the ratio to `against` (for psnr_db the difference in dB), or beside a bound the quantity itself, or a
    count. verdict_reason: why the claim could not be judged; empty where it was.
    """

    id: str
    text: str
    source: str
    verdict: str
    metric: str
    relation: str
    subject: str
    against: str | None
    bound: float | None
    effect: Quantity
    noise_floor: Quantity
    ci95: tuple[float, float] | None = None
    ci95_reason: str = ""
    verdict_reason: str = ""


@dataclass(frozen=True)
class HealthEntry:
    """A reason to doubt a run as a whole, in a sentence.

    kind: weights (not finite), reference (not finite), constant (all values of an outcome are equal), prompts or seeds
    (outcomes of different ones are identical). variant: None for weights. cases: pairs of prompt_id and seed.
    """

    kind: str
    text: str
    variant: str | None = None
    cases: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Summary:
    """summary.json.

    weights: trained, synthetic, published or unknown. path: that of the checkpoint, as the user gave it. notes: remarks
    to be shown beside the weights. health: reasons to doubt the run as a whole.
    """

    experiment: str
    reference: str
    variants: Mapping[str, VariantSummary]
    claims: Sequence[ClaimEntry] = ()
    factorials: Sequence[Mapping[str, Any]] = ()
    weights: str = ""
    path: str = ""
    notes: Sequence[str] = ()
    health: Sequence[HealthEntry] = ()

    @property
    def fatal(self) -> Sequence[HealthEntry]:
        """The entries of `health` on weights and references, on which all other numbers rest."""
        return [e for e in self.health if e.kind in ("weights", "reference") or e.variant == self.reference]

    def write(self, run: Path) -> None:
        """Writes the summary into the folder of its run, whole or not at all."""
        write_json(run / FILE, {"schema_version": SCHEMA_VERSION, **to_json(self)})

    @classmethod
    def read(cls, run: Path) -> Summary | None:
        """The summary in a run folder, None if there is none. Raises InputError for one that cannot be read."""
        path = run / FILE
        if not path.exists():
            return None
        with advising(RESTORE):
            content = read_json(path)
        return typed(cls, _with_quantities(content), path)


def to_json(value: Any) -> Any:
    """Strict JSON of a record: a Quantity without a value becomes null, with `<key>_reason` beside it."""
    if is_dataclass(value):
        return to_json({f.name: getattr(value, f.name) for f in fields(value)})
    if isinstance(value, Mapping):
        out: dict[str, Any] = {}
        for key, item in value.items():
            if isinstance(item, Quantity):
                out[key] = item.value
                if item.value is None:
                    out[f"{key}_reason"] = item.reason
            elif not (str(key).endswith("_reason") and not item):
                out[key] = to_json(item)
        return out
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


_QUANTITIES = {
    kind: tuple(f.name for f in fields(kind) if f.type == "Quantity") for kind in (VariantSummary, ClaimEntry)
}


def _with_quantities(content: Any) -> Any:
    """The content of the file with `{value, reason}` in place of numbers and nulls that are quantities."""
    if not isinstance(content, dict):
        return content
    variants = content.get("variants")
    claims = content.get("claims")
    out = dict(content)
    if isinstance(variants, dict):
        out["variants"] = {name: _quantified(entry, VariantSummary) for name, entry in variants.items()}
    if isinstance(claims, list):
        out["claims"] = [_quantified(entry, ClaimEntry) for entry in claims]
    return out


def _quantified(entry: Any, kind: type[Any]) -> Any:
    if not isinstance(entry, dict):
        return entry
    out = dict(entry)
    for name in _QUANTITIES[kind]:
        if name in entry:
            out[name] = {"value": entry[name], "reason": entry.get(f"{name}_reason") or ""}
    for group in ("metrics", "pictures"):
        metrics = entry.get(group)
        if isinstance(metrics, dict):
            names = [name for name in metrics if not name.endswith("_reason")]
            out[group] = {n: {"value": metrics[n], "reason": metrics.get(f"{n}_reason") or ""} for n in names}
    return out
