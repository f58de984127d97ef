"""Converts a baseline of the gate from schema_version 1 to 2, or back, without touching a number.

    python -m experiments.migrations.schema_2 OLD.json NEW.json
    python -m experiments.migrations.schema_2 --undo NEW.json OLD.json

Schema 1 supports only Qwen-Image 1.x: its records of sites omit the component `transformer`, its entries have the
settings of a case in `sampler` and `image`, and the pinned cases repeat some of them. An entry of schema 2 names the
component that its records omit, and has the settings of a case in one mapping, and those of the weights' source next to
the fingerprint. A file has one line per site and one line for each other part of an entry. Two of the latter are
rewritten and one is added; all other lines are unchanged byte for byte.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

COMPONENT = "transformer"
_SAMPLER = ("steps", "guidance_scale", "negative_prompt")
_IMAGE = ("height", "width")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--undo", action="store_true", help="convert schema_version 2 to 1")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    text = arguments.source.read_text(encoding="utf-8")
    try:
        converted = old(text) if arguments.undo else new(text)
    except ValueError as error:
        parser.error(f"{arguments.source}: {error}")
    arguments.target.write_text(converted, encoding="utf-8")


def new(text: str) -> str:
    """The file converted to schema 2. Raises ValueError for another schema, or if the conversion is not reversible."""
    _require(text, 1)
    converted = _joined(_newer(text.splitlines()))
    if old(converted) != text:
        raise ValueError("it holds settings that were not written by the gate. Learn it again with gate.update=true")
    return converted


def old(text: str) -> str:
    """The file of schema 1 that `new` converted. Raises ValueError for another schema."""
    _require(text, 2)
    return _joined(_older(text.splitlines()))


def _require(text: str, version: int) -> None:
    found = json.loads(text).get("schema_version")
    if found != version:
        raise ValueError(f"schema_version is {found}, expected {version}")


def _newer(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        key, value = _part(line)
        if key == "schema_version":
            yield _line(key, 2)
        elif key == "settings":
            yield _line(key, _new_settings(value))
        elif key == "cost":
            yield line
            yield _line("component", COMPONENT)
        else:
            yield line


def _older(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        key, value = _part(line)
        if key == "schema_version":
            yield _line(key, 1)
        elif key == "settings":
            yield _line(key, _old_settings(value))
        elif key != "component":
            yield line


def _new_settings(settings: dict[str, Any]) -> dict[str, Any]:
    checkpoint, sampler, image, pinned = (settings.pop(key) for key in ("checkpoint", "sampler", "image", "pinned"))
    of_source = {"inflate": checkpoint.pop("inflate")}
    case = sampler | image
    return {
        "checkpoint": checkpoint | {"settings": of_source},
        "case": case,
        **settings,
        "pinned": {
            # height and width are those of each pinned case
            "case": {key: pinned[key] for key in _SAMPLER},
            **{key: pinned[key] for key in ("cases", "sites")},
        },
    }


def _old_settings(settings: dict[str, Any]) -> dict[str, Any]:
    checkpoint, case, pinned = (settings.pop(key) for key in ("checkpoint", "case", "pinned"))
    of_source, of_pinned = checkpoint.pop("settings"), pinned.pop("case")
    return {
        "checkpoint": checkpoint | {"inflate": of_source["inflate"]},
        "sampler": {key: case[key] for key in _SAMPLER},
        "image": {key: case[key] for key in _IMAGE},
        **settings,
        "pinned": of_pinned | pinned,
    }


def _part(line: str) -> tuple[str, Any]:
    """Key and value of a line that is one part, such as `"mlx": "0.32.4",`; an empty key for any other line."""
    key, separator, value = line.partition(": ")
    if not (separator and key.startswith('"') and key.endswith('"') and value.endswith(",")):
        return "", None
    return json.loads(key), json.loads(value.removesuffix(","))


def _line(key: str, value: Any) -> str:
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return f"{json.dumps(key)}: {text},"


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
