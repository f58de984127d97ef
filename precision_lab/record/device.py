"""device.json, the record of the command `device`, also as an older version wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from precision_lab.errors import InputError
from precision_lab.record.files import read_json

FILE = "device.json"
SCHEMA_VERSION = 2
READABLE = (1, 2)
"""Version 2 adds parts, checks and reading, and a bound to findings; what version 1 holds is unchanged."""

_KEYS = {"environment": dict, "command": list, "created": str, "claims": list, "s6": dict, "findings": list}
_FINDING = {"op": str, "dtype": str, "property": str, "parameters": dict, "answer": str, "evidence": str}
_CHECK = {"name": str, "title": str, "verdict": str, "answer": str, "measured": str, "links": list}


@dataclass(frozen=True)
class DeviceRecord:
    """findings: op, dtype, property, parameters, answer, value, unit, evidence, and bound with its source.

    checks: public faults (name, title, verdict: absent, present or not available, measured, right, links).
    reading: what is known of devices that behave like this one. parts: seconds. The last three are empty for version 1.
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
    parts: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> DeviceRecord:
        """Reads a device.json, or that of a folder. Raises InputError for another version or a malformed entry."""
        path = path / FILE if path.is_dir() else path
        if not path.exists():
            raise InputError(f"{path}: no such file, expected a {FILE} of the command device")
        content = read_json(path)
        found = content.get("schema_version") if isinstance(content, dict) else None
        if type(found) is not int or found not in READABLE:
            known = " or ".join(map(str, READABLE))
            raise InputError(f"{path} has schema_version {str(found)[:40]}, expected {known}. Measure it again")
        _expect(content, _KEYS, path, "")
        later = {"checks": list, "reading": dict, "parts": dict}
        _expect(content, {key: kind for key, kind in later.items() if key in content}, path, "")
        for name, entries, keys in (
            ("findings", content["findings"], _FINDING),
            ("checks", content.get("checks", []), _CHECK),
        ):
            for at, entry in enumerate(entries):
                _expect(entry, keys, path, f"{name}.{at}.")
        return cls(**{key: content[key] for key in cls.__dataclass_fields__ if key in content})


def _expect(content: Any, keys: Mapping[str, type], path: Path, where: str) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{path}: {where.rstrip('.')} is no mapping. Measure it again")
    for key, kind in keys.items():
        if not isinstance(content.get(key), kind):
            raise InputError(f"{path}: {where}{key} is missing or no {kind.__name__}. Measure it again")
