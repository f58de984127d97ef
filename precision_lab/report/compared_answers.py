"""The short answer of a comparison of runs, in sentences for the terminal and for the top of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from precision_lab.analysis.across import Across, Beside
from precision_lab.analysis.alike import Difference
from precision_lab.analysis.changes import Change
from precision_lab.analysis.exactness import Outcomes
from precision_lab.report.figures.labels import shorten
from precision_lab.report.sections import text

_NAMED, _SHORT = 3, 60


def answers(found: Across) -> list[str]:
    """The short answer in sentences, for the terminal and the top of the page."""
    lines = [run.standing and f"{label}: {run.standing}" for label, run in found.runs.items()]
    lines = [line for line in lines if line]
    changed = sum(differs for _, differs, _ in found.facts)
    lines.append(f"{changed} of {len(found.facts)} facts on configuration, checkpoint and environment differ")
    for label, beside in found.beside.items():
        lines.append(f"{label}: {beside.pairing.words}")
        if beside.why:
            lines.append(f"{label}: arrays are not compared one by one, because {beside.why}; only peaks of ranges are")
        elif beside.is_equal:
            arrays = sum(change.compared for change in beside.changes)
            results = sum(each.compared for each in beside.digests.values())
            known = f", and {text(results)} of {text(results)} results have equal digests" if results else ""
            lines.append(
                f"{label}: equal to the base to the bit, in every number recorded of {text(arrays)} arrays{known}"
            )
        else:
            lines += [f"{label}: {_said(change, beside)}" for change in beside.changes]
        lines += [f"{label}: {line}" for line in _sketched(beside)]
    verdicts = found.claims[found.claims["changed"].astype(bool)]
    lines += [f"claim {row['id']}: {_verdicts(found, row)}" for row in verdicts.to_dict("records")]
    return lines


def _said(change: Change, beside: Beside) -> str:
    digests = beside.digests.get(change.variant)
    ending = _results(digests)
    if change.first is None:
        words = f"{change.variant} is equal in every number recorded of {text(change.compared)} arrays{ending}"
        if digests is not None and digests.first is not None:
            words += f"; the change moves no recorded number; {_cause(change.variant, beside)}"
        return words
    words = f"{change.variant} changed first at {where(change.first)}: {change.first['what']}{size(change.first)}; "
    words += f"equal until {change.first['before']}; " if change.first["before"] else "no array before it is equal; "
    words += (
        f"{_cause(change.variant, beside)}; {text(change.equal)} of {text(change.compared)} arrays are equal{ending}"
    )
    later = change.first_beyond
    if later is None:
        return f"{words}; no array differs by more than rounding explains"
    if later != change.first:
        words += f"; beyond rounding first at {where(later)}{size(later)}"
    return words


def _results(digests: Outcomes | None) -> str:
    """How many results have equal digests."""
    if digests is None:
        return ""
    first = (
        ""
        if digests.first is None or not digests.equal
        else f", not that of prompt {digests.first[0]}, seed {digests.first[1]}"
    )
    return f", and {text(digests.equal)} of {text(digests.compared)} results are equal to the bit{first}"


def _cause(variant: str, beside: Beside) -> str:
    """What of the configuration of a variant differs; if nothing, what of machine and software."""
    configured = beside.configured.get(variant, ())
    if configured:
        return f"its configuration differs: {_listed(configured)}"
    if beside.expects_equality:
        return "although configuration, machine, commit and software are the same"
    if beside.environment:
        return f"with the same configuration, but another machine or software: {_listed(beside.environment)}"
    return "with the same configuration, machine and software, but not from one known commit without changes"


def _listed(found: Sequence[Difference]) -> str:
    named = [f"{each.what} {shorten(each.first, _SHORT)} and {shorten(each.second, _SHORT)}" for each in found[:_NAMED]]
    more = f", and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{', '.join(named)}{more}"


def _sketched(beside: Beside) -> list[str]:
    """What the sketches of pinned cases say."""
    found = beside.sketched
    if found is None:
        return []
    if found.first is None:
        return [f"pinned cases: all {text(found.compared)} sketches are equal"]
    first = found.first
    until = f"equal until {first['before']}" if first["before"] else "no array before it is equal"
    moment = ", ".join(str(part) for part in (first["case"], f"step {first['step']}", first["branch"]) if part)
    size = f", by about {text(first['rel_l2'])} relative L2" if first["rel_l2"] is not None else ""
    counts = f"{text(found.equal)} of {text(found.compared)} sketches are equal"
    return [f"pinned cases changed first at {first['site']} ({moment}){size}; {until}; {counts}"]


def where(change: Mapping[str, Any]) -> str:
    """The address with its moment."""
    parts = [change["site"], change["step"] is not None and f"step {change['step']}", change["branch"]]
    parts += [f"prompt {change['prompt_id']}", f"seed {change['seed']}"]
    return ", ".join(str(part) for part in parts if part)


def size(change: Mapping[str, Any]) -> str:
    """The size of a change in units of rounding."""
    if change["units"] is None:
        return ""
    return f", {text(change['units'])} units of rounding ({text(change['relative'])} relative)"


def _verdicts(found: Across, row: Mapping[Any, Any]) -> str:
    return ", ".join(f"{row[f'verdict {label}'] or 'not stated'} in {label}" for label in found.runs)
