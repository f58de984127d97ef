"""The settings that a run and a baseline must share to be comparable; a refusal names the first difference."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from precision_lab.errors import InputError
from precision_lab.record.manifest import Manifest, PinnedCases

HOW_TO_RECORD = "Run it again with pinned.record=true, or let `gate` run the experiment"


def settings_of(manifest: Manifest, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that decide its numbers, apart from prompts and seeds, from its manifest and config.yaml.

    The checkpoint comes first: runs of different checkpoints have nothing to compare.
    """
    checkpoint, pinned = manifest.checkpoint, manifest.pinned
    described = {**(config.get("variants") or {}), "custom": {"technique": config.get("technique")}}
    variants = {
        name: {
            "dtype": variant.dtype,
            "expect": variant.expect,
            "process": dict(variant.process),
            "settings": dict(variant.settings),
            "techniques": {
                technique: ((described.get(name) or {}).get("technique") or {}).get(technique)
                for technique in variant.techniques
            },
        }
        for name, variant in manifest.variants.items()
    }
    return {
        "checkpoint": {
            "fingerprint": checkpoint.fingerprint,
            "weights_dtype": checkpoint.weights_dtype,
            "settings": dict(checkpoint.settings),
        },
        "case": dict(manifest.case),
        "variants": variants,
        "factorial": config.get("factorial"),
        "probe": config.get("probe"),
        "drift": config.get("drift"),
        "pinned": {} if pinned is None else _pinned(pinned),
    }


def _pinned(pinned: PinnedCases) -> dict[str, Any]:
    cases = {name: dict(case) for name, case in pinned.cases.items()}
    return {"case": dict(pinned.case), "cases": cases, "sites": list(pinned.sites)}


def differences(current: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(setting, given, expected) wherever two settings differ, in their order; of lists the first entries that do."""
    now, then = dict(_flat(current)), dict(_flat(expected))
    for key in dict.fromkeys((*now, *then)):
        a, b = now.get(key), then.get(key)
        if a == b:
            continue
        if isinstance(a, list) and isinstance(b, list):
            more, fewer = [x for x in a if x not in b], [x for x in b if x not in a]
            if more or fewer:
                yield key, _shown(more[0] if more else None), _shown(fewer[0] if fewer else None)
                continue
        yield key, _shown(a), _shown(b)


def require_same(current: Mapping[str, Any], expected: Mapping[str, Any], baseline: str) -> None:
    """Raises InputError with the first difference of a run's settings from those that a baseline was learned with."""
    for key, now, then in differences(current, expected):
        if key.startswith("pinned.") and not current.get("pinned"):
            raise InputError(
                f"The run has no pinned cases, and {baseline} compares them. {HOW_TO_RECORD}, or name another baseline"
            )
        what = "Another checkpoint" if key == "checkpoint.fingerprint" else f"Other settings: {key}"
        raise InputError(
            f"{what} is {now} here, and {then} in {baseline}.\n"
            "Give its settings, name another baseline with gate.baseline=PATH, or learn this one with gate.update=true"
        )


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            yield from _flat(entry, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", entry


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
