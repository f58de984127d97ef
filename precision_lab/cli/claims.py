"""Claims of a configuration, checked against the experiment that they are about."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from precision_lab.analysis.claims import SURVIVAL, Claim
from precision_lab.analysis.measures import METRICS
from precision_lab.errors import InputError, nearest
from precision_lab.lab.spec import REFERENCE, Evidence


def build_claims(
    described: Mapping[str, Any], variants: Collection[str], kept: Collection[str]
) -> tuple[list[dict[str, Any]], list[Evidence]]:
    """The claims about the variants that `only` kept, as plain values, and what a run must record for them.

    described: id -> entries. variants: names of all variants of the experiment. Raises InputError for a claim that is
    malformed, names another variant, or is about a device.
    """
    raw, evidence = [], []
    for key, entries in described.items():
        if not isinstance(entries, Mapping):
            raise InputError(f"claims.{key} is {entries!r}, expected text, source, metric, relation and subject")
        entry = {"id": str(key), **entries}
        claim = Claim.from_dict(entry)
        _check_variants(claim, [*variants, REFERENCE])
        if claim.metric not in METRICS:
            owner = "the command survival" if claim.metric in SURVIVAL else "a device"
            raise InputError(
                f"Claim {claim.id}: metric {claim.metric} is that of {owner}. {nearest(claim.metric, METRICS)}"
            )
        metric = METRICS[claim.metric]
        if not metric.is_installed:
            raise InputError(
                f"Claim {claim.id}: metric {claim.metric} needs the extra {metric.extra}: "
                f"pip install 'precision-lab[{metric.extra}]'"
            )
        if {*claim.variants} <= {*kept, REFERENCE}:
            raw.append(entry)
            evidence.append(_evidence(claim))
    return raw, evidence


def _check_variants(claim: Claim, variants: Collection[str]) -> None:
    named = {"subject": [claim.subject], "against": [claim.against] if claim.against else [], "noise": claim.noise}
    for key, names in named.items():
        for name in names:
            if name not in variants:
                raise InputError(f"Claim {claim.id}: {key}: unknown variant {name!r}. {nearest(name, variants)}")


def _evidence(claim: Claim) -> Evidence:
    metric = METRICS[claim.metric]
    return Evidence(
        claim=claim.id,
        metric=claim.metric,
        sites=claim.sites,
        stream=claim.stream,
        columns=metric.columns,
        drift=metric.drift,
        distribution=metric.distribution,
        picture=metric.picture,
        seeds=metric.seeds,
    )
