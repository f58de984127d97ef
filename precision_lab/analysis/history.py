"""The history of a gate: how the range of each site drifted over commits, and the commits at which it stepped.

A series is one site of one variant on one device and one version of MLX. The same code on the same machine gives the
same numbers, bit for bit, so most series are constant, but the method also handles noise. Steps are those of the
piecewise constant function with the smallest squared error plus a penalty per step. It is computed exactly (optimal
partitioning, Jackson et al. 2005, An algorithm for optimal partitioning of data on an interval).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from precision_lab.analysis.gate.history import COLUMNS, FOLDER
from precision_lab.errors import InputError
from precision_lab.record.address import split_address, split_port

RUN = ("time", "commit", "device", "mlx")
ADDRESS = ("variant", "component", "site", "port")
VERDICTS = ("passed", "failed")
SERIES = (*ADDRESS, "device", "mlx")
STEP_COLUMNS = (*SERIES, "order", "run_before", "run", "before", "after", "bits")
FLOOR_BITS = 0.02
"""The smallest step that is reported. One unit in the last place of a bfloat16 is 0.0056 to 0.011 bits."""

# By the number of runs: the penalty, in noise variances, at which 1 % of series of independent Gaussian noise show a
# step. The values were simulated with the estimate of `_noise`, which is poor for few runs. Once 3 log(n) is larger, it
# is the penalty, following Zhang and Siegmund (2007, A modified Bayes information criterion).
_PENALTY = {
    3: 7300.0,
    4: 265.0,
    5: 265.0,
    6: 105.0,
    7: 105.0,
    8: 46.0,
    10: 38.0,
    15: 35.0,
    20: 24.0,
    30: 20.0,
    60: 16.5,
}

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class History:
    """The gate runs and their measurements as two tables.

    runs: one row per gate run, indexed by its number in order of time, with RUN and `verdict`.
    rows: one row per run and address, from the first value of a series on: SERIES, `run` (its number), `order` (the
    position of the address in execution order), `log2_amax` (the largest over the cases, in bits) and `deviation_bits`
    (from the middle of the band of the baseline at that time). Both are NaN if the run has no value, because no element
    was finite and non-zero, or because the site did not exist.
    """

    runs: pd.DataFrame
    rows: pd.DataFrame


def read(path: Path) -> History:
    """Reads the table that gate runs append to. Raises InputError for any other file.

    For a run that was judged several times, only the last judgement counts.
    """
    table = _text(path)
    for name in ("log2_amax", "deviation_bits"):
        table[name] = _numbers(table[name], name, path)
    moments = pd.to_datetime(table["time"], utc=True, errors="coerce", format="ISO8601")
    _refuse(moments.isna() | ~table["verdict"].isin(VERDICTS), table, path)
    _refuse(~table["site"].str.fullmatch("[^:]+:.+"), table, path)
    table["component"], table["site"], table["port"] = zip(*map(_address, table["site"]), strict=True)
    table = table.assign(moment=moments).sort_values("moment", kind="stable", ignore_index=True)
    table["run"] = table.groupby(list(RUN), sort=False).ngroup()
    runs = table.drop_duplicates("run", keep="last").set_index("run")[[*RUN, "verdict"]]
    table = table.drop_duplicates(["run", *ADDRESS], keep="last", ignore_index=True)
    table["order"] = _execution_order(table)
    return History(runs, _with_gaps(table))


def steps(history: History, floor: float = FLOOR_BITS) -> pd.DataFrame:
    """The steps of all series, with STEP_COLUMNS, sorted by run and then by order of execution.

    run_before, run: the numbers of the last run at the old level and the first at the new level, whose commits bound
    the change. before, after: mean log2 amax of the stretch on either side, in bits; NaN without values. bits: after -
    before, infinite if only one side has values. Raises InputError for a floor that is not above 0.
    """
    if not (isinstance(floor, int | float) and 0 < floor < math.inf):
        raise InputError(f"the smallest step to report is {floor!r} bits, expected a number above 0")
    found = []
    for key, series in history.rows.groupby(list(SERIES), sort=False):
        values, runs = series["log2_amax"].to_numpy(float), series["run"].to_numpy()
        order = series["order"].iloc[0]
        for first, before, after in _stretches(values, floor):
            bits = after - before if math.isfinite(before) and math.isfinite(after) else math.inf
            found.append((*key, order, runs[first - 1], runs[first], before, after, bits))
    table = pd.DataFrame(found, columns=list(STEP_COLUMNS))
    return table.sort_values(["run", "variant", "order"], kind="stable", ignore_index=True)


def change_points(values: Sequence[float] | Values, floor: float = FLOOR_BITS) -> list[int]:
    """Indices of the first value of each new level, where the level of finite `values` changes by at least `floor`.

    The penalty of a step grows with the noise, estimated from differences between consecutive runs (`_noise`), so that
    1 % of noisy series of three or more values show a step. Two values allow no estimate of the noise, so only the
    floor decides. Steps below the floor are removed again, smallest first: a slow drift counts once it accumulates.
    """
    x = np.asarray(values, dtype=np.float64)
    assert np.isfinite(x).all()
    floor *= 1 - 1e-9  # 0.12 - 0.10 is a step of 0.02
    if len(x) < 2 or np.ptp(x) < floor:
        return []
    # a step of `floor` gains at least floor^2 / 2 in squared error
    cuts = _partition(x, _penalty(len(x)) * _noise(x) ** 2 + 0.49 * floor**2)
    while cuts:
        sizes = np.abs(np.diff([piece.mean() for piece in np.split(x, cuts)]))
        smallest = int(sizes.argmin())
        if sizes[smallest] >= floor:
            break
        del cuts[smallest]
    return cuts


def _stretches(values: Values, floor: float) -> list[tuple[int, float, float]]:
    """The index of each step and the levels before and after it; a level of NaN means no values."""
    finite = np.flatnonzero(np.isfinite(values))
    starts = {int(finite[cut]) for cut in change_points(values[finite], floor)}
    starts |= {int(at) + 1 for at in np.flatnonzero(np.diff(np.isfinite(values).astype(int)))}
    cuts = sorted(starts)
    levels = [piece[np.isfinite(piece)] for piece in np.split(values, cuts)]
    means = [float(level.mean()) if len(level) else math.nan for level in levels]
    return list(zip(cuts, means[:-1], means[1:], strict=True))


def _noise(x: Values) -> float:
    """Standard deviation of independent noise, from the median absolute first difference, robust against a few steps.

    It is divided by 0.6745 for a normal distribution and by sqrt(2) for a difference. For an even number of
    differences, the lower of the middle two is used, so that one step in three exact values is not noise.
    """
    if len(x) == 2:
        return 0.0
    differences = np.sort(np.abs(np.diff(x)))
    return float(differences[(len(differences) - 1) // 2]) / 0.6744897501960817 / math.sqrt(2)


def _penalty(count: int) -> float:
    return max(float(np.interp(math.log(count), np.log(list(_PENALTY)), list(_PENALTY.values()))), 3 * math.log(count))


def _partition(x: Values, penalty: float) -> list[int]:
    """The cuts that minimise the squared error about the means of the pieces plus `penalty` per cut, in O(n^2)."""
    x = x - x.mean()
    count = len(x)
    sums, squares = np.append(0.0, np.cumsum(x)), np.append(0.0, np.cumsum(x * x))
    best, origin = np.zeros(count + 1), np.zeros(count + 1, dtype=int)
    best[0] = -penalty
    for end in range(1, count + 1):
        start = np.arange(end)
        error = squares[end] - squares[:end] - (sums[end] - sums[:end]) ** 2 / (end - start)
        cost = best[:end] + np.maximum(error, 0.0) + penalty
        origin[end] = int(cost.argmin())
        best[end] = cost[origin[end]]
    cuts = [int(origin[count])]
    while cuts[-1]:
        cuts.append(int(origin[cuts[-1]]))
    return cuts[-2::-1]


def _text(path: Path) -> pd.DataFrame:
    """The cells of the file as text. Raises InputError if it cannot be read, is empty or has another header."""
    if path.is_dir():
        inside = ", ".join(sorted(file.name for file in path.glob("*.csv"))[:5])
        raise InputError(f"history={path} is a folder, expected a file of gate runs. It holds {inside or 'no .csv'}")
    if not path.is_file():
        raise InputError(f"history={path}: no such file. `gate` appends to {FOLDER}/<backend>/<experiment>.csv")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False).fillna("")
    except pd.errors.EmptyDataError as error:
        raise InputError(f"{path} is empty, expected a table of gate runs") from error
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no table of gate runs: {str(error).strip().splitlines()[0]}") from error
    if tuple(table) != COLUMNS:
        raise InputError(f"{path} has the columns {','.join(map(str, table))[:80]}, expected {','.join(COLUMNS)}")
    if table.empty:
        raise InputError(f"{path} holds a header and no gate run yet")
    return table


def _numbers(cells: pd.Series, name: str, path: Path) -> pd.Series:
    numbers = pd.to_numeric(cells, errors="coerce").astype(float)
    _refuse(~numbers.between(-math.inf, math.inf, inclusive="neither"), cells.to_frame(name), path)
    return numbers


def _refuse(wrong: pd.Series, table: pd.DataFrame, path: Path) -> None:
    """Raises InputError with the first row that is `wrong`; the header is line 1."""
    if wrong.any():
        at = int(wrong.to_numpy().argmax())
        row = ",".join(table.iloc[at].astype(str))
        raise InputError(f"{path}, line {at + 2}: {row[:100]!r} is not what a gate run writes. Delete that line")


def _address(text: str) -> tuple[str, str, str]:
    """Component, site and port of an address such as `component:site (out.0)`; the default port `out` is omitted."""
    address, port = split_port(text)
    return *split_address(address), port


def _execution_order(table: pd.DataFrame) -> pd.Series:
    """The position of each address among those of its variant, which a gate run writes in order of execution.

    Runs of different code may have different sites, so each address has its position in its last run.
    """
    place = table.groupby(["run", "variant"], sort=False).cumcount()
    last = table.assign(place=place).drop_duplicates(list(ADDRESS), keep="last").set_index(list(ADDRESS))["place"]
    return pd.Series(last.reindex(pd.MultiIndex.from_frame(table[list(ADDRESS)])).to_numpy(), index=table.index)


def _with_gaps(table: pd.DataFrame) -> pd.DataFrame:
    """Adds missing rows: one per series and run of its variant, device and MLX version, from its first value on."""
    first = table.drop_duplicates(list(SERIES))[[*SERIES, "order", "run"]].rename(columns={"run": "first"})
    had = table[["variant", "device", "mlx", "run"]].drop_duplicates()
    whole = first.merge(had, on=["variant", "device", "mlx"])
    whole = whole[whole["run"] >= whole["first"]].drop(columns="first")
    values = table[[*SERIES, "run", "log2_amax", "deviation_bits"]]
    whole = whole.merge(values, on=[*SERIES, "run"], how="left")
    return whole.sort_values(["run", "variant", "order"], kind="stable", ignore_index=True)
