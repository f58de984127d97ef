"""`compare runs=[A,B]`: what changed from one run to another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from omegaconf import DictConfig
from rich.console import Console

from precision_lab.cli.terminal import open_console, print_table
from precision_lab.errors import InputError, shown

if TYPE_CHECKING:
    from precision_lab.record.layout import Layout

_SHOWN = 10


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Prints the headline numbers of shared variants side by side, and the sites whose range changed most."""
    from precision_lab.cli import schema

    runs = schema.read(schema.Compare, config).runs
    if runs is None or len(runs) != 2:
        raise InputError(f"compare needs runs=[A,B], the folders of two runs; got {shown(runs)}")
    from precision_lab.analysis.compare import headline, range_changes
    from precision_lab.record.run import Run

    first, second = (Run.open(Path(run).expanduser()) for run in runs)
    console = open_console()
    _print(headline(first, second), f"{first.path} against {second.path}", console)
    changes = range_changes(first, second)
    largest = with_addresses(changes.head(_SHOWN), second.layout)
    _print(largest, f"Largest changes of amax, in bits ({len(changes)} addresses compared)", console)
    return 0


def with_addresses(changes: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """The changes with one column for component, site and port."""
    place = ["component", "site", "port"]
    shown = changes.drop(columns=place)
    shown.insert(1, "site", [layout.address(*row) for row in changes[place].itertuples(index=False, name=None)])
    return shown


def _print(frame: pd.DataFrame, title: str, console: Console) -> None:
    columns = [str(column) for column in frame.columns]
    rows = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
    print_table(console, columns, rows, title, folding=("site",))


def _cell(value: object) -> str:
    if value is None or value is pd.NA or value != value:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
