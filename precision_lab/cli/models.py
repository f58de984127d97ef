"""`models`: which models can be named, and making synthetic checkpoints of any of the presets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from precision_lab.cli.paths import conf_dir
from precision_lab.cli.progress import open_console, showing
from precision_lab.errors import InputError, nearest


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Lists the models, or writes the checkpoint `make` to the folder `to`."""
    console = open_console()
    if config.make is None:
        _list(console)
    else:
        _make(str(config.make), config.to, config.seed, console)
    return 0


def _list(console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("model", "path", "what it is"):
        table.add_column(column, overflow="fold")
    for file in sorted((conf_dir() / "model").glob("*.yaml")):
        about = file.read_text().splitlines()[0].removeprefix("#").strip()
        settings = OmegaConf.load(file)
        table.add_row(f"model={file.stem}", settings.path or "give model.path=DIR", about)
    console.print(table)


def _make(preset: str, to: str | None, seed: object, console: Console) -> None:
    from precision_lab.synthetic import PRESETS, make

    if preset not in PRESETS:
        raise InputError(f"make={preset}: unknown preset. {nearest(preset, PRESETS)}")
    if not to:
        raise InputError(f"make={preset} needs to=DIR, the folder to write")
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed is {seed!r}, expected an integer from 0 on")
    with showing(console) as progress:
        before = 0

        def on_bytes(done: int, total: int) -> None:
            nonlocal before
            if not before:
                progress.start(total)
            progress.advance(done - before, "writing")
            before = done

        make(PRESETS[preset], Path(to).expanduser(), seed, on_bytes)
        progress.note(f"wrote {to}: model.path={to} uses it")
