"""`submit`: measures this machine with `device` and a short run, and bundles both to attach to an issue."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from precision_lab.cli.folders import claimed, stamped
from precision_lab.cli.literal import literal
from precision_lab.cli.terminal import open_console
from precision_lab.errors import InputError
from precision_lab.record.device import FILE as DEVICE
from precision_lab.record.folders import check_name, writable

LARGEST = 20_000_000
"""Bytes of a bundle, below what an issue takes as an attachment (25 MB)."""

_TABLES = "*.parquet"
_TEXTS = ("manifest.json", "summary.json")

_README = """# A machine, measured by precision_lab

Device: {device} ({backend}), {os}, MLX {mlx}.

- `device.json`, `device.png`, `device.svg`: how MLX computes on this machine, operation by operation.
- `run/`: a short run ({overrides}): `summary.json`, `manifest.json`, `config.yaml`, {tables}pictures, and
  `report.html`, which a browser opens.
- `versions.json`: the versions of MLX, of Python and of the packages.

Personal paths, user and host names were removed from every file. Look before you attach it all the same.

To attach it: open an issue with the template "A device", and drag `bundle.zip` into its last field.
"""


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Measures and bundles; returns the exit code of the run."""
    from precision_lab.cli import schema

    settings = schema.read(schema.Submit, literal(config))
    given = None if settings.out is None else _checked(settings.out)
    with claimed(stamped("submit")) if given is None else nullcontext(given) as out:
        _child("device", [f"out={_quoted(out / 'device')}"])
        code = _child("run", [*settings.overrides, f"out={_quoted(out / 'run')}"])
        bundle(out, settings.overrides, open_console())
    return code


def bundle(out: Path, overrides: Sequence[str], console: Console) -> Path:
    """Makes `bundle` and bundle.zip in `out` from its folders `device` and `run`; prints their size. Returns the zip.

    Pages and figures are drawn again from records without personal data. Raises InputError if a record cannot be read.
    """
    from precision_lab.record.anonymous import Person
    from precision_lab.record.device import DeviceRecord
    from precision_lab.record.files import read_json, write_json, write_text
    from precision_lab.record.run import Run
    from precision_lab.report import write
    from precision_lab.report.figures import device, style

    person = Person.here()
    DeviceRecord.read(out / "device")
    run = Run.open(out / "run").whole()
    folder = out / "bundle"
    record = person.scrubbed(read_json(out / "device" / DEVICE))
    write_json(folder / DEVICE, record)
    with style.theme():
        style.save(device.draw(record), folder)
    target = folder / "run"
    for part in ("images", "results"):
        if (run.path / part).is_dir():
            shutil.copytree(run.path / part, target / part)
    for name in _TEXTS:
        if (run.path / name).exists():
            write_json(target / name, person.scrubbed(read_json(run.path / name)))
    kept: Any = OmegaConf.to_container(OmegaConf.create(run.config), resolve=False)
    write_text(target / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(person.scrubbed(kept))))
    for table in run.path.glob(_TABLES):
        shutil.copyfile(table, target / table.name)
    write(Run.open(target))
    shutil.rmtree(target / "figures")  # the page holds them
    has_tables = _bounded(folder, target)
    environment: Mapping[str, Any] = record["environment"]
    versions = {"python": environment["python"], "os": environment["os"], **environment["packages"]}
    write_json(folder / "versions.json", {**versions, "commit": environment["commit"]})
    about = {name: environment[name] for name in ("device", "backend", "os", "mlx")}
    line = person.text(f"`{shlex.join(overrides)}`")
    write_text(folder / "README.md", _README.format(**about, overrides=line, tables="tables (.parquet), " * has_tables))
    archive = Path(shutil.make_archive(str(out / "bundle"), "zip", out, "bundle"))
    console.print(f"bundle: {archive}, {archive.stat().st_size / 1e6:.1f} MB", soft_wrap=True)
    return archive


def _bounded(folder: Path, target: Path) -> bool:
    """Removes the tables if the bundle is larger than LARGEST, whose page has what they say. Whether they are kept."""
    if sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= LARGEST:
        return True
    for table in target.glob(_TABLES):
        table.unlink()
    return False


def _child(command: str, arguments: Sequence[str]) -> int:
    """Runs a command in a process of its own, which reads switches such as TF32 anew. Returns its exit code, 0 or 1.

    Raises InputError if it ended with another.
    """
    code = subprocess.run([sys.executable, "-m", "precision_lab", command, *arguments], check=False).returncode
    if code in (-2, 130):
        raise KeyboardInterrupt
    if code not in (0, 1):
        raise InputError(f"submit: the command {command} ended with exit code {code}, see above; nothing was bundled")
    return code


def _quoted(path: Path) -> str:
    """The path as a value of Hydra's grammar."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def _checked(folder: str) -> Path:
    """The folder to write. Raises InputError unless it is new or empty."""
    if not folder:
        raise InputError("out is '', expected a folder")
    out = Path(folder).expanduser()
    check_name(out)
    with writable(out):
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise InputError(f"out={out} exists, expected a new or an empty folder")
    return out
