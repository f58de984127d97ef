"""Compares a device's behaviours with those that are known of other devices, in known_devices.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_name("known_devices.yaml")
UNKNOWN = "as nobody has reported yet: please attach device.json to an issue"
_NAMES = ("op", "dtype", "property")


@dataclass(frozen=True)
class Known:
    """What is known of some devices. expect: behaviours as {op, dtype, property, answers, and sizes that matter}."""

    name: str
    backend: str
    basis: str
    reading: str
    sources: Sequence[str]
    expect: Sequence[Mapping[str, Any]]


@cache
def known_devices() -> tuple[Known, ...]:
    """The sets of the package's file."""
    return tuple(Known(**entry) for entry in yaml.safe_load(FILE.read_text(encoding="utf-8")))


def read_behaviour(
    backend: str, findings: Sequence[Mapping[str, Any]], sets: Iterable[Known] | None = None
) -> dict[str, Any]:
    """The entry `reading` of device.json: text, matches (names of sets), and for each set of the backend what differs.

    A set matches if it has measured behaviours and none differs. A behaviour without a measurement does not count, and
    is listed. findings: as device.json has them.
    """
    compared = [_compare(known, findings) for known in (known_devices() if sets is None else sets)]
    own = [entry for entry in compared if entry["backend"] == backend]
    matches = [entry for entry in own if entry["same"] and not entry["differs"]]
    if matches:
        text = "; or ".join(entry["reading"] for entry in matches)
        missing = max(len(entry["not_measured"]) for entry in matches)
        text += f" ({missing} behaviours were not measured)" if missing else ""
        text += "" if matches[0]["basis"] == "measured" else ". From reports of others, not from our measurements"
    elif own:
        nearest = min(own, key=lambda entry: len(entry["differs"]))
        first = nearest["differs"][0] if nearest["differs"] else "nothing was measured"
        text = f"{UNKNOWN}. The nearest is {nearest['name']}, but {first}"
    else:
        text = f"{UNKNOWN}. Nothing is known of the backend {backend}"
    return {"text": text, "matches": [entry["name"] for entry in matches], "compared": own}


def _compare(known: Known, findings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    differs: list[str] = []
    missing: list[str] = []
    same = 0
    for expected in known.expect:
        name = ", ".join(str(expected[key]) for key in _NAMES)
        sizes = {key: value for key, value in expected.items() if key not in (*_NAMES, "answers")}
        answers = sorted({str(f["answer"]) for f in findings if _is_about(f, expected, sizes)})
        if not answers:
            missing.append(name)
        elif set(answers) <= set(expected["answers"]):
            same += 1
        else:
            differs.append(f"{name} is '{' | '.join(answers)}', expected '{' | '.join(expected['answers'])}'")
    return {
        "name": known.name,
        "backend": known.backend,
        "basis": known.basis,
        "reading": known.reading,
        "sources": list(known.sources),
        "same": same,
        "differs": differs,
        "not_measured": missing,
    }


def _is_about(finding: Mapping[str, Any], expected: Mapping[str, Any], sizes: Mapping[str, Any]) -> bool:
    if any(finding[key] != expected[key] for key in _NAMES):
        return False
    return all(finding["parameters"].get(key) == value for key, value in sizes.items())
