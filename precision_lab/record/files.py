"""Writing the files of a run: strict JSON, whole or not at all, and null with a reason for an undefined number."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from precision_lab.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path beside `path`, which becomes `path` when it returns."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two reports of one run may be drawn at once
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """UTF-8 text, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Strict JSON, whole or not at all. Raises ValueError for a number that is not finite."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises InputError for a file that cannot be read or is not strict JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # UnicodeDecodeError is one
        raise InputError(f"{path} is not strict JSON: {error}") from error


@contextmanager
def replacing(out: Path, needed: int) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` at the end of the block, or vanishes if it raises."""
    out = out.absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists, expected a new or an empty folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < needed:
            raise InputError(f"{out}: needs {needed / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB free")
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise InputError(f"{out}: cannot write there: {error.strerror}") from error
    try:
        temporary.chmod(0o755)
        yield temporary
        os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def number_or_reason(key: str, value: float, reason: str) -> dict[str, Any]:
    """`{key: value}`, or for a number that is not finite null, with `<key>_reason` beside it."""
    return {key: float(value)} if math.isfinite(value) else {key: None, f"{key}_reason": reason}


def _refuse(name: str) -> float:
    raise ValueError(f"it holds {name}")
