"""device.json, the record of the command `device`, also as an older version wrote it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from precision_lab.errors import InputError, shown
from precision_lab.record.files import read_json

FILE = "device.json"
SCHEMA_VERSION = 2
READABLE = (1, 2)
"""Version 2 adds parts, checks, reading and tf32, and bounds to findings; what version 1 holds is unchanged."""

_KEYS = {"environment": dict, "command": list, "created": str, "claims": list, "s6": dict, "findings": list}
_FINDING = {"op": str, "dtype": str, "property": str, "parameters": dict, "answer": str, "evidence": str}
_OPERATION = {"op": str, "verdict": str, "bits": dict}
_CHECK = {"name": str, "title": str, "verdict": str, "answer": str, "measured": str, "links": list}


@dataclass(frozen=True)
class DeviceRecord:
    """findings: op, dtype, property, parameters, answer, value, unit, evidence, and bound with its source.

    checks: public faults (name, title, verdict: absent, present or not available, measured, right, links).
    reading: what is known of devices that behave like this one. tf32: on, text, and what the other setting changes.
    parts: seconds. The last four may be empty, as in version 1.
    """

    schema_version: int
    environment: Mapping[str, Any]
    command: Sequence[str]
    created: str
    claims: Sequence[Mapping[str, Any]]
    s6: Mapping[str, Any]
    findings: Sequence[Mapping[str, Any]]
    checks: Sequence[Mapping[str, Any]] = ()
    reading: Mapping[str, Any] = field(default_factory=dict)
    tf32: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def operations(self) -> Sequence[Mapping[str, Any]]:
        """For each operation op, verdict on S6, bits by dtype (the narrowest width), evidence."""
        return list(self.s6["ops"])

    @classmethod
    def read(cls, path: Path) -> DeviceRecord:
        """Reads a device.json, or that of a folder. Raises InputError for another version or a malformed entry."""
        path = path / FILE if path.is_dir() else path
        if not path.exists():
            raise InputError(f"{path}: no such file, expected a {FILE} of the command device")
        content = read_json(path)
        if not isinstance(content, dict) or "schema_version" not in content or "findings" not in content:
            raise InputError(f"{path} is no {FILE}, expected a file that the command device wrote")
        found = content["schema_version"]
        if type(found) is not int or found not in READABLE:
            known = " or ".join(map(str, READABLE))
            raise InputError(f"{path} has schema_version {str(found)[:40]}, expected {known}. Measure it again")
        _expect(content, _KEYS, path, "")
        later = {"checks": list, "reading": dict, "tf32": dict, "parts": dict}
        _expect(content, {key: kind for key, kind in later.items() if key in content}, path, "")
        _expect(content["s6"], {"ops": list}, path, "s6.")
        for name, entries, keys in (
            ("findings", content["findings"], _FINDING),
            ("s6.ops", content["s6"]["ops"], _OPERATION),
            ("checks", content.get("checks", []), _CHECK),
            ("claims", content["claims"], {"id": str, "verdict": str}),
        ):
            for at, entry in enumerate(entries):
                _expect(entry, keys, path, f"{name}.{at}.")
        numbers = {f"findings.{at}.value": finding.get("value") for at, finding in enumerate(content["findings"])}
        for at, operation in enumerate(content["s6"]["ops"]):
            numbers |= {f"s6.ops.{at}.bits": value for value in operation["bits"].values()}
        for name, value in numbers.items():
            if value is not None and (type(value) not in (int, float) or abs(value) > sys.float_info.max):
                raise InputError(f"{path}: {name} is {shown(value, 40)}, expected a number. Measure it again")
        return cls(**{key: content[key] for key in cls.__dataclass_fields__ if key in content})


def _expect(content: Any, keys: Mapping[str, type], path: Path, where: str) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{path}: {where.rstrip('.')} is no mapping. Measure it again")
    for key, kind in keys.items():
        if not isinstance(content.get(key), kind):
            raise InputError(f"{path}: {where}{key} is missing or no {kind.__name__}. Measure it again")
