"""The criterion of a search, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from precision_lab.analysis.claims import Claim
from precision_lab.analysis.criteria import Bound, Criterion, Finite, Verdict
from precision_lab.cli import culprits_schema
from precision_lab.cli.config import plain
from precision_lab.cli.sparing import nodes_of
from precision_lab.errors import InputError, nearest, shown
from precision_lab.lab.spec import REFERENCE, Variant
from precision_lab.lab.trials import Trial
from precision_lab.lab.values import one_of

if TYPE_CHECKING:
    from precision_lab.record.layout import Layout

VERDICTS = ("supported", "refuted", "inconclusive")
KINDS = ("drift", "metric", "claim")


def build_criterion(
    settings: culprits_schema.Culprits, resolved: DictConfig, variants: Mapping[str, Variant], layout: Layout
) -> tuple[Criterion, list[Trial]]:
    """The criterion, and the trials with which it compares. Raises InputError for an unknown metric, claim or bound."""
    wanted = settings.criterion
    if isinstance(wanted, str):
        if wanted != "finite":
            known = ("finite", *(f"criterion.{kind}" for kind in KINDS))
            raise InputError(
                f"criterion is {shown(wanted)}, expected finite, or a setting below it. {nearest(wanted, known)}"
            )
        return Finite(), []
    given = [kind for kind in KINDS if getattr(wanted, kind) is not None]
    if len(given) > 1:
        raise InputError(f"criterion.{given[0]} and criterion.{given[1]} exclude each other")
    if wanted.metric is None and (wanted.least is not None or wanted.most is not None):
        raise InputError("criterion.least and criterion.most are the bounds of criterion.metric=NAME, which is missing")
    if wanted.drift is not None:
        return Bound("drift", most=wanted.drift), []
    if wanted.metric is not None:
        bound = Bound(wanted.metric, wanted.least, wanted.most)
        bound.check(layout)
        return bound, []
    if wanted.claim is None:
        return Finite(), []
    return _verdict(wanted.claim, wanted.verdict, resolved, variants)


def _verdict(
    name: str, verdict: str, resolved: DictConfig, variants: Mapping[str, Variant]
) -> tuple[Criterion, list[Trial]]:
    claims = plain(resolved.claims)
    if name not in claims:
        known = nearest(name, claims) if claims else "There are none; +exp=NAME or /claim@claims adds some."
        raise InputError(f"criterion.claim: unknown claim {name!r}. {known}")
    claim = Claim.from_dict({"id": name, **claims[name]})
    one_of("criterion.verdict", verdict, VERDICTS)
    trials: dict[str, Trial] = {}
    for other in claim.variants:
        if other not in (claim.subject, REFERENCE):
            if other not in variants:
                raise InputError(f"criterion.claim: {name} names the variant {other!r}. {nearest(other, variants)}")
            trials[other] = Trial(variants[other].dtype, nodes_of(variants[other], resolved), other)
    keys = {REFERENCE: REFERENCE, **{name: trial.key for name, trial in trials.items()}}
    return Verdict(claim, keys, verdict), list(trials.values())
