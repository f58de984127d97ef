"""Checks that a run will record what its claims need, before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from precision_lab.errors import InputError, nearest
from precision_lab.instrument.sites import Site, select
from precision_lab.lab.observing import CALL
from precision_lab.lab.spec import Evidence, RunSpec
from precision_lab.probes.base import AnyProbe, Declaring
from precision_lab.record.address import NO_STREAM
from precision_lab.record.glob import named_sites
from precision_lab.record.layout import Layout


def check(spec: RunSpec, layout: Layout, sites: Sequence[Site]) -> None:
    """Raises InputError for the first claim that nothing in `spec` is observed for."""
    for needed in spec.evidence:
        _check_subject(needed, layout)
        if needed.seeds > len(spec.seeds):
            raise InputError(
                f"Claim {needed.claim}: metric {needed.metric} needs at least {needed.seeds} seeds, whose pictures it "
                f"compares; this run has {len(spec.seeds)}. Add some, or leave the claim out: '~claims.{needed.claim}'"
            )
        if needed.columns or needed.drift:
            _check_sites(needed, layout, _observed(needed, spec, sites), sites)


def _check_subject(needed: Evidence, layout: Layout) -> None:
    claim, stream = f"Claim {needed.claim}", needed.stream
    streams = (*layout.streams, "joint", NO_STREAM)
    if stream is not None and stream not in streams:
        raise InputError(
            f"{claim}: unknown stream {stream!r} of this model. {nearest(stream, streams)} "
            f"Or leave the claim out: '~claims.{needed.claim}'"
        )
    if needed.distribution and not layout.result.distribution:
        raise InputError(
            f"{claim}: metric {needed.metric} needs logits, the result of this model is its {_result(layout)}"
        )
    if needed.picture and layout.picture is None:
        raise InputError(
            f"{claim}: metric {needed.metric} needs pictures, the result of this model is its {_result(layout)}"
        )


def _result(layout: Layout) -> str:
    return layout.result.title


def _observed(needed: Evidence, spec: RunSpec, sites: Sequence[Site]) -> list[Site]:
    """The sites at which the run records what is needed."""
    if needed.drift:
        return select(spec.drift_sites, sites)
    probes = [probe for probe in spec.probes.values() if _may_add(probe, needed)]
    if not probes:
        raise InputError(
            f"Claim {needed.claim}: metric {needed.metric} needs the columns {', '.join(needed.columns)}, which no "
            f"probe of this run adds. Add the probe, or leave the claim out: '~claims.{needed.claim}'"
        )
    return select([pattern for probe in probes for pattern in probe.sites], sites)


def _may_add(probe: AnyProbe, needed: Evidence) -> bool:
    """Whether a probe adds the columns, at outputs where sites are named. A probe that declares none may add any."""
    declared = {column.name for column in probe.adds} if isinstance(probe, Declaring) else set()
    return (not declared or declared >= set(needed.columns)) and (
        not needed.sites or not {"out", CALL}.isdisjoint(probe.ports)
    )


def _check_sites(needed: Evidence, layout: Layout, observed: Sequence[Site], sites: Sequence[Site]) -> None:
    by_place = {(site.component, site.path): site for site in observed}
    claim = f"Claim {needed.claim}"
    for pattern in needed.sites:
        matched = [by_place[place] for place in named_sites([pattern], by_place, layout.default)]
        if not matched:
            try:
                select([pattern], sites)  # names the nearest where no module matches at all
            except InputError as error:
                raise InputError(f"{claim}: sites: {error}") from error
            raise InputError(
                f"{claim}: sites {pattern!r} matches nothing that this run observes for the metric {needed.metric}. "
                f"Observe it, or leave the claim out: '~claims.{needed.claim}'"
            )
        if needed.stream is not None and all(_is_of_another(site, needed.stream, layout) for site in matched):
            raise InputError(f"{claim}: no output at sites {pattern!r} belongs to the stream {needed.stream!r}")


def _is_of_another(site: Site, stream: str, layout: Layout) -> bool:
    """Whether the module works on another stream alone; the outputs of a block have streams of their own."""
    return site.stream in layout.streams and site.stream != stream and not layout.is_block(site.component, site.path)
