"""The file of a baseline: one for each back end and experiment, entries keyed by device and MLX version.

Numbers of different back ends differ by more than a gate allows, so a baseline of one never judges another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precision_lab.analysis.gate.entry import ABOUT, LISTS, Entry
from precision_lab.errors import InputError, nearest
from precision_lab.record.files import read_json, write_text

SCHEMA_VERSION = 2
"""2 since entries name their default component and have the settings of a case in the terms of its model."""

FOLDER = Path("results") / "baselines"

_UPDATE = "learn one with gate.update=true"


@dataclass(frozen=True)
class Choice:
    """The entry that judges a run, and the reason for it."""

    entry: Entry
    match: str
    same_device: bool


def path_of(backend: str, experiment: str, model: str) -> Path:
    """Where the baseline of an experiment is for the checkpoint of that name, under the working folder.

    EXPERIMENT.json belongs to the checkpoint that it was first learned from, EXPERIMENT_MODEL.json to another.
    """
    shared = FOLDER / backend / f"{experiment}.json"
    own = shared.with_stem(f"{experiment}_{model.replace('/', '--')}")
    return own if own.is_file() or _model_of(shared) not in (None, model) else shared


def _model_of(path: Path) -> str | None:
    """The name of the checkpoint of a baseline; None for what is not one, which `read` refuses."""
    try:
        return str(read_json(path)["entries"][0]["learned_from"]["checkpoint"]["name"])
    except (InputError, LookupError, TypeError):
        return None


def read(path: Path, backend: str, experiment: str) -> list[dict[str, Any]]:
    """The entries of a baseline, as JSON.

    Raises InputError with what to do: no file, only other back ends, another schema, back end or experiment, not JSON.
    """
    if not path.is_file():
        raise InputError(_missing(path, backend, experiment))
    try:
        content = read_json(path)
    except InputError as error:
        raise InputError(f"{error}. Restore it, or {_UPDATE}") from error
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found != SCHEMA_VERSION:
        convert = ", convert it with experiments/migrations/schema_2.py" if found == 1 else ""
        raise InputError(
            f"{path} has schema_version {found}, expected {SCHEMA_VERSION}. Move it away and {_UPDATE}{convert}, "
            "or use the version of precision_lab that wrote it"
        )
    for key, expected in (("backend", backend), ("experiment", experiment)):
        if content.get(key) != expected:
            raise InputError(
                f"{path} is a baseline of {key} {content.get(key)}, and this run is of {expected}: "
                f"never compared. Name another with gate.baseline=PATH, or {_UPDATE}"
            )
    entries = content.get("entries")
    if not isinstance(entries, list) or not all(isinstance(e, dict) and {"device", "mlx"} <= e.keys() for e in entries):
        raise InputError(
            f"{path} has no list of entries with device and mlx. Restore it, or move it away and {_UPDATE}"
        )
    if not entries:
        raise InputError(f"{path} has no entries: {_UPDATE}")
    return entries


def choose(entries: Sequence[Mapping[str, Any]], device: str, mlx: str) -> Choice:
    """The entry of this device and MLX version; else of this device and the nearest version; else of the back end."""
    here = [entry for entry in entries if entry["device"] == device]
    entry = min(here or entries, key=lambda entry: _distance(str(entry["mlx"]), mlx))
    version = "this MLX version" if entry["mlx"] == mlx else "the nearest MLX version"
    match = f"this device, {version}" if here else f"another device of this back end, {version}"
    return Choice(Entry.from_json(entry), match, bool(here))


def write(path: Path, backend: str, experiment: str, entry: Entry) -> None:
    """Puts an entry in the place of that of the same device and MLX version, or adds it; whole or not at all.

    Raises InputError if the file there is no baseline of the back end and experiment.
    """
    entries = read(path, backend, experiment) if path.is_file() else []
    others = [e for e in entries if (e["device"], e["mlx"]) != (entry.device, entry.mlx)]
    all_entries = sorted([*others, entry.to_json()], key=lambda e: (e["device"], _version(e["mlx"])))
    head = {"schema_version": SCHEMA_VERSION, "experiment": experiment, "backend": backend}
    lines = [f"{_compact(key)}: {_compact(value)}," for key, value in head.items()]
    text = "{\n" + "\n".join(lines) + '\n"entries": [\n' + ",\n".join(map(_lines, all_entries)) + "\n]\n}\n"
    write_text(path, text)


def _lines(entry: Mapping[str, Any]) -> str:
    """An entry with one line a site, so that a change of few sites is a diff of few lines."""
    about = [f"{_compact(name)}: {_compact(entry[name])}" for name in ABOUT]
    lists = [f"{_compact(name)}: [\n" + ",\n".join(map(_compact, entry.get(name, ()))) + "\n]" for name in LISTS]
    return "{\n" + ",\n".join([*about, *lists]) + "\n}"


def _compact(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def _missing(path: Path, backend: str, experiment: str) -> str:
    missing = f"There is no baseline {path}."
    if not FOLDER.is_dir() and path.is_relative_to(FOLDER):
        return (
            f"{missing} Baselines are looked for in {FOLDER} under the working folder: change into the repository, "
            f"name one with gate.baseline=PATH, or {_UPDATE}"
        )
    others = sorted(other.parent.name for other in FOLDER.glob(f"*/{experiment}.json"))
    if others:
        return f"{missing} There is one for {', '.join(others)} only, and back ends are never compared: {_UPDATE}"
    names = [other.stem for other in path.parent.glob("*.json")]
    return f"{missing} {nearest(path.stem, names)} Or {_UPDATE}"


def _version(text: str) -> tuple[int, ...]:
    """0.32.4 as (0, 32, 4); parts that are not numbers count 0."""
    parts = [*text.split("."), "0", "0", "0"][:3]
    return tuple(int(part) if part.isdigit() else 0 for part in parts)


def _distance(version: str, other: str) -> tuple[int, ...]:
    return tuple(abs(a - b) for a, b in zip(_version(version), _version(other), strict=True))
