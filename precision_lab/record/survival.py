"""What arrived of a change of weights in formats: survival.json and survival.parquet of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.errors import InputError, first_line
from precision_lab.record.columns import Column, dtypes
from precision_lab.record.files import RESTORE, advising, read_json, write_atomically, write_json
from precision_lab.record.manifest import SCHEMA_VERSION, Checkpoint, Environment, typed

FILE = "survival.json"
TABLE = "survival.parquet"

COLUMNS: Sequence[Column] = (
    Column("component", "string", "", "component that the linear is in"),
    Column("site", "string", "", "path of the linear in its component"),
    Column("block", "Int64", "", "index of the block that it is in; null outside of blocks"),
    Column("operation", "string", "", "its path inside the block; outside of blocks the whole path"),
    Column("format", "string", "", "name of the format"),
    Column("order", "string", "", "before: fused, then quantised; after: dequantised, added, quantised again"),
    Column("rounding", "string", "", "nearest or stochastic"),
    Column("outputs", "Int64", "", "outputs of the linear"),
    Column("channels", "Int64", "", "its input channels"),
    Column("weight_rms", "float64", "", "root mean square of the weight"),
    Column("delta_rms", "float64", "", "root mean square of the change that was meant"),
    Column(
        "step", "float64", "", "mean distance of the format's neighbouring values at the weights; null without codes"
    ),
    Column("step_over_delta", "float64", "", "step / delta_rms"),
    Column("changed_codes", "float64", "", "share of the codes that the change changes; null without codes"),
    Column("changed_values", "float64", "", "share of the decoded weights that it changes"),
    Column("correlation", "float64", "", "of what arrived with what was meant, over all weights; null if undefined"),
    Column("correlation_changed", "float64", "", "the same over the weights whose codes (else values) changed"),
    Column("gain", "float64", "", "projection of what arrived on what was meant; 1: in full on average"),
    Column("relative_error", "float64", "", "rms(arrived - meant) / delta_rms, lower is better"),
    Column("codes_without_delta", "float64", "", "share of the codes that the same procedure changes without a change"),
    Column("noise_without_delta", "float64", "", "rms of what it changes the weights by then / delta_rms"),
    Column("format_error", "float64", "", "rms(decoded - weight) / weight_rms, of the weight without the change"),
)
"""One row for each linear, format, order and rounding."""

_SHARES = ("changed_codes", "changed_values", "codes_without_delta")
_NEVER_NULL = ("component", "site", "operation", "format", "order", "rounding", "changed_values")


@dataclass(frozen=True)
class FormatEntry:
    """A format: how many of the linears it fits, and why it does not fit the first of the others; "" if it fits all."""

    fits: int
    of: int
    reason: str = ""


@dataclass(frozen=True)
class Findings:
    """survival.json.

    - status: complete, or interrupted, when the table lacks linears. change: what was added, in words.
    - sites: linears that were measured. unchanged: those whose change is zero everywhere.
    - stated: claims as the configuration has them. claims: with their verdicts, as summary.json of a run has them.
    - summary: the medians over linears by format, order and rounding; null is an undefined number.
    """

    status: str
    experiment: str
    environment: Environment
    checkpoint: Checkpoint
    change: str
    sites: int
    unchanged: int
    formats: Mapping[str, FormatEntry]
    command: Sequence[str] = ()
    created: str = ""
    seconds: float = 0.0
    stated: Sequence[Mapping[str, Any]] = ()
    claims: Sequence[Mapping[str, Any]] = ()
    summary: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes survival.json, whole or not at all."""
        write_json(folder / FILE, {"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Findings:
        """Raises InputError if there is none, or it cannot be read."""
        with advising(RESTORE):
            content = read_json(folder / FILE)
        return typed(cls, content, folder / FILE)


def frame_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as the table, in its dtypes."""
    names = [column.name for column in COLUMNS]
    return pd.DataFrame(list(rows), columns=names).astype(dict(dtypes(COLUMNS)))


def write_table(folder: Path, table: pd.DataFrame) -> None:
    """Writes survival.parquet, whole or not at all."""
    write_atomically(folder / TABLE, lambda file: table.to_parquet(file, index=False, write_page_checksum=True))


def read_table(folder: Path) -> pd.DataFrame:
    """Raises InputError for a file that cannot be read, or whose columns or values are not those of such a table."""
    path = folder / TABLE
    if not path.is_file():
        raise InputError(f"{path} is missing. {RESTORE}")
    try:
        found = pd.read_parquet(path, page_checksum_verification=True)
        table = found[[column.name for column in COLUMNS]].astype(dict(dtypes(COLUMNS)))
    except KeyError as error:
        raise InputError(f"{path} has no column {first_line(error)}, expected a table of survival") from error
    except Exception as error:  # of a damaged file, Arrow and pandas raise whatever the bytes lead to
        raise InputError(f"{path} is not a table that can be read: {first_line(error)}. {RESTORE}") from error
    for name in _NEVER_NULL:
        if table[name].isna().any():
            raise InputError(f"{path}: column {name} has no value in row {int(table[name].isna().argmax())}. {RESTORE}")
    for name in _SHARES:
        values = table[name].to_numpy(float)
        if ((values < 0) | (values > 1) | np.isinf(values)).any():
            raise InputError(f"{path}: column {name} holds a value outside of 0 to 1. {RESTORE}")
    return table


def holds_survival(folder: Path) -> bool:
    """Whether a folder holds what the command `survival` leaves."""
    return (folder / FILE).is_file()
