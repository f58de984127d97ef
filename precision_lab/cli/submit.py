"""`submit`: measures this machine with `device` and a short run, and bundles both to attach to an issue."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from precision_lab.cli.composing import composed, parsed
from precision_lab.cli.folders import claimed, stamped
from precision_lab.cli.literal import literal
from precision_lab.cli.terminal import open_console
from precision_lab.errors import InputError
from precision_lab.record.device import FILE as DEVICE
from precision_lab.record.files import replacing
from precision_lab.record.folders import given_folder

LARGEST = 20_000_000
"""Bytes of a bundle, below what an issue takes as an attachment (25 MB)."""

ARCHIVE = "bundle.zip"

_NEEDED = 200_000_000
"""Bytes on the disk: what the two commands measure, the bundle and its archive."""

_PATIENCE = 10.0
"""Seconds that a command has to end after an interruption."""

_TABLES = "*.parquet"
_TEXTS = ("manifest.json", "summary.json")

_README = """# A machine, measured by precision_lab

Device: {device} ({backend}), {os}, MLX {mlx}.

- `device/`: how MLX computes on this machine, operation by operation: `device.json` and its figure.
- `run/`: a short run ({overrides}): `summary.json`, `manifest.json`, `config.yaml`, {tables}pictures, and
  `report.html`, which a browser opens.
- `versions.json`: the versions of MLX, of Python and of the packages.

Personal paths, user and host names were removed from every file. Look before you attach it all the same.

To attach it: open an issue with the template "A device", and drag `bundle.zip` into its last field.
"""


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Measures and bundles; returns the exit code of the run. The folder exists only if all of it is there."""
    from precision_lab.cli import schema

    settings = schema.read(schema.Submit, literal(config))
    given = None if settings.out is None else _checked(settings.out)
    _check(settings.overrides)
    with claimed(stamped("submit")) if given is None else nullcontext(given) as out, replacing(out, _NEEDED) as folder:
        measured = folder / "measured"
        try:
            code = measure("run", settings.overrides, measured / "run", out / "run")
            measure("device", (), measured / "device", out / "device")
            size = bundle(measured, folder, settings.overrides)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("Interrupted. Nothing was bundled.") from None
        shutil.rmtree(measured)
    _print(out, size, open_console())
    return code


def measure(command: str, arguments: Sequence[str], out: Path, shown: Path) -> int:
    """Runs a command in a process of its own, which reads switches such as TF32 anew. Returns its exit code, 0 or 1.

    shown: the folder that it names in what it prints, in place of `out`, which it writes. Raises InputError if it ends
    with another code, and KeyboardInterrupt.
    """
    folders = [source.path for source in HydraConfig.get().runtime.config_sources if source.provider == "command-line"]
    words = [*(f"--config-dir={folder}" for folder in folders), *arguments, f"out={_quoted(out)}"]
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        with subprocess.Popen(
            [sys.executable, "-m", "precision_lab", command, *words],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
        ) as process:
            try:
                for line in process.stdout or ():
                    print(line.replace(str(out), str(shown)), end="", flush=True)  # noqa: T201
                code = process.wait()
            except BaseException:
                _end(process)
                raise
        errors.seek(0)
        said = errors.read().strip().replace(str(out), str(shown))
    if code in (-2, 130):
        raise KeyboardInterrupt
    if code not in (0, 1):
        raise InputError(f"{command}: {said or f'ended with exit code {code}'}")
    if said:
        print(said, file=sys.stderr)  # noqa: T201
    return code


def bundle(measured: Path, folder: Path, overrides: Sequence[str]) -> int:
    """Fills `folder` from the folders `device` and `run` of `measured`. Returns the size of its archive in bytes.

    Pages and figures are drawn again from records without personal data. Raises InputError if a record cannot be read.
    """
    from precision_lab.record.anonymous import Person
    from precision_lab.record.device import DeviceRecord
    from precision_lab.record.files import read_json, write_json, write_text
    from precision_lab.record.run import Run
    from precision_lab.report import write
    from precision_lab.report.figures import device, device_errors, style

    person = Person.here()
    DeviceRecord.read(measured / "device")
    run = Run.open(measured / "run").whole()
    record = person.scrubbed(read_json(measured / "device" / DEVICE))
    write_json(folder / "device" / DEVICE, record)
    with style.theme():
        for drawing in (device.draw(record), device_errors.draw(record)):
            if drawing is not None:
                style.save(drawing, folder / "device")
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
    shutil.rmtree(target / "figures", ignore_errors=True)  # the page holds them
    has_tables = _bounded(folder, target)
    environment: Mapping[str, Any] = record["environment"]
    versions = {"python": environment["python"], "os": environment["os"], **environment["packages"]}
    write_json(folder / "versions.json", {**versions, "commit": environment["commit"]})
    about = {name: environment[name] for name in ("device", "backend", "os", "mlx")}
    line = person.text(f"`{shlex.join(overrides)}`")
    write_text(folder / "README.md", _README.format(**about, overrides=line, tables="tables (.parquet), " * has_tables))
    return _archived(folder, [path for path in sorted(folder.rglob("*")) if measured not in path.parents])


def _archived(folder: Path, paths: Sequence[Path]) -> int:
    """Puts files of a folder into ARCHIVE beside them. Returns its size in bytes."""
    archive = folder / ARCHIVE
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in paths:
            if path.is_file():
                file.write(path, Path(archive.stem) / path.relative_to(folder))
    return archive.stat().st_size


def _bounded(folder: Path, target: Path) -> bool:
    """Removes the tables if the bundle is larger than LARGEST, whose page has what they say. Whether they are kept."""
    files = [*(folder / "device").rglob("*"), *target.rglob("*")]
    if sum(path.stat().st_size for path in files if path.is_file()) <= LARGEST:
        return True
    for table in target.glob(_TABLES):
        table.unlink()
    return False


def _check(overrides: Sequence[str]) -> None:
    """Raises InputError, before anything is measured, for overrides that `run` refuses or that this command sets."""
    from precision_lab.cli.config import build_spec

    for override in parsed(overrides):
        if override.key_or_group in ("out", "resume"):
            raise InputError(f"overrides: {override.input_line} is set by submit, whose folder is out=DIR")
    build_spec(composed("config", overrides), ("run", *overrides))


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a process, and lets it end its own workers."""
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()


def _quoted(path: Path) -> str:
    """The path as a value of Hydra's grammar."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def _checked(folder: str) -> Path:
    """The folder to write. Raises InputError unless it is new or empty."""
    out = given_folder(folder)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"out={out} exists, expected a new or an empty folder")
    return out


def _print(out: Path, size: int, console: Console) -> None:
    console.print(f"bundle: {out / ARCHIVE}, {size / 1e6:.1f} MB", soft_wrap=True)
    console.print(f"Look at {out} before you attach the archive to an issue", soft_wrap=True)
