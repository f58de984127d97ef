"""What a run and a baseline must share to be comparable, and the refusal that names the first difference."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from precision_lab.errors import InputError


def settings_of(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that decide its numbers, apart from prompts and seeds, from its manifest and config.yaml.

    The checkpoint comes first: where that differs, the rest says nothing.
    """
    checkpoint, pinned = manifest["checkpoint"], manifest.get("pinned") or {}
    described = {**(config.get("variants") or {}), "custom": {"technique": config.get("technique")}}
    variants = {
        name: {
            **{key: variant[key] for key in ("dtype", "expect", "process")},
            "techniques": {
                technique: ((described.get(name) or {}).get("technique") or {}).get(technique)
                for technique in variant["techniques"]
            },
        }
        for name, variant in manifest["variants"].items()
    }
    return {
        "checkpoint": {key: checkpoint[key] for key in ("fingerprint", "weights_dtype", "inflate")},
        "sampler": {**manifest["sampler"], "negative_prompt": manifest["negative_prompt"]},
        "image": dict(manifest["image"]),
        "variants": variants,
        "factorial": config.get("factorial"),
        "probe": config.get("probe"),
        "drift": config.get("drift"),
        "pinned": {key: value for key, value in pinned.items() if key not in ("noise_floor", "fingerprint")},
    }


def differences(given: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(setting, given, expected) wherever two settings differ, in their order; of lists the first entries that do."""
    now, then = dict(_flat(given)), dict(_flat(expected))
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


def require_same(given: Mapping[str, Any], expected: Mapping[str, Any], baseline: str) -> None:
    """Raises InputError with the first difference of a run's settings from those a baseline was learned with."""
    for key, now, then in differences(given, expected):
        what = "Another checkpoint" if key == "checkpoint.fingerprint" else f"Other settings: {key}"
        raise InputError(
            f"{what} is {now} here, and {then} in {baseline}.\n"
            "Give what the baseline has, name another with gate.baseline=PATH, or learn this one with gate.update=true"
        )


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            yield from _flat(entry, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", entry


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
