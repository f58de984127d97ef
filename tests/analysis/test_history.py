"""Steps in the history of a gate: planted ones are found at their commit, none in what does not change."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.gate import history as gate
from precision_lab.analysis.history import FLOOR_BITS, _partition, change_points, read, steps
from precision_lab.errors import InputError
from tests.fabricated import ENVIRONMENT, manifest

HEADER = ",".join(gate.COLUMNS)


def row(day, site="transformer:norm_out", bits=1.0, variant="baseline", verdict="passed", device="a", mlx="0.32.4"):
    return f"2026-01-{day:02}T08:00:00+00:00,c{day},{device},{mlx},{verdict},{variant},{site},{bits},{bits - 0.5}"


def written(path, rows):
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


@pytest.mark.parametrize("size", [0.05, -0.05, FLOOR_BITS, 3.0])
@pytest.mark.parametrize(("runs", "at"), [(2, 1), (3, 1), (3, 2), (4, 2), (10, 1), (10, 9), (300, 150)])
def test_a_step_in_an_exact_series(runs, at, size):
    values = 12.3456 + size * (np.arange(runs) >= at)
    assert change_points(values) == [at]


def test_several_steps_by_hand():
    assert change_points([1.0, 1.0, 1.0, 1.5, 1.5, 1.5, 1.25, 1.25, 1.25]) == [3, 6]
    assert change_points([1.0] * 5 + [2.0] + [1.0] * 5) == [5, 6]  # made and mended


@pytest.mark.parametrize("runs", [0, 1, 2, 3, 50, 300])
def test_no_step_in_a_constant_series(runs):
    assert change_points([7.25] * runs) == []


def test_no_step_below_the_floor_until_it_adds_up():
    assert change_points([1.0] * 4 + [1.0 + 0.9 * FLOOR_BITS] * 4) == []
    flicker = 1.0 + 0.9 * FLOOR_BITS * (np.arange(40) % 3 == 0)
    assert change_points(flicker) == []
    drift = np.repeat(np.arange(8) * 0.5 * FLOOR_BITS, 4)
    found = change_points(drift)
    assert found
    assert set(found) <= set(range(4, 32, 4))


@pytest.mark.parametrize("runs", [3, 5, 7, 9, 14, 24, 80])
def test_false_alarms_in_noise(runs):
    """In 1 % of the series, or fewer; four standard deviations of that count are left for chance."""
    noise = np.random.default_rng(runs).normal(5, 3.0, (400, runs))
    assert sum(bool(change_points(series)) for series in noise) <= 4 + 4 * np.sqrt(4)


@pytest.mark.parametrize("seed", range(5))
def test_a_large_step_in_noise(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.1, 60) + 0.8 * (np.arange(60) >= 25)
    found = change_points(values)
    assert len(found) == 1
    assert abs(found[0] - 25) <= 1


def test_the_partition_is_the_best_there_is():
    """Against all partitions of short series."""

    def cost(x, cuts, penalty):
        return sum(((piece - piece.mean()) ** 2).sum() for piece in np.split(x, cuts)) + penalty * len(cuts)

    rng = np.random.default_rng(3)
    for penalty in (0.05, 0.3, 2.0):
        x = rng.normal(size=8).round(1) + np.repeat([0, 1, -1, 0], 2)
        every = [list(cuts) for count in range(8) for cuts in combinations(range(1, 8), count)]
        assert cost(x, _partition(x, penalty), penalty) == pytest.approx(min(cost(x, cuts, penalty) for cuts in every))


def test_steps_name_the_commits_and_levels(tmp_path):
    sites = ("transformer:img_in", "transformer:transformer_blocks.0 (out.1)", "vae:decoder.conv_in")
    rows = [
        row(day, site, bits=2.0 + 0.25 * (day >= 4) * (at == 1)) for day in range(1, 7) for at, site in enumerate(sites)
    ]
    history = read(written(tmp_path / "gate.csv", rows))
    found = steps(history)
    assert len(found) == 1
    step = found.iloc[0]
    assert (step["component"], step["site"], step["port"]) == ("transformer", "transformer_blocks.0", "out.1")
    assert history.runs.loc[step["run_before"], "commit"] == "c3"
    assert history.runs.loc[step["run"], "commit"] == "c4"
    assert (step["before"], step["after"], step["bits"], step["order"]) == (2.0, 2.25, 0.25, 1)


def test_series_are_of_one_device_and_version(tmp_path):
    rows = [row(day, device="ab"[day % 2], bits=float(day % 2)) for day in range(1, 9)]
    assert steps(read(written(tmp_path / "gate.csv", rows))).empty
    rows = [row(day, mlx=f"0.3{day > 4:d}", bits=float(day > 4)) for day in range(1, 9)]
    assert steps(read(written(tmp_path / "gate.csv", rows))).empty


def test_order_is_of_time_not_of_the_file(tmp_path):
    rows = [row(day, bits=1.0 + (day >= 5)) for day in (5, 1, 6, 3, 2, 4)]
    history = read(written(tmp_path / "gate.csv", rows))
    assert list(history.runs["commit"]) == ["c1", "c2", "c3", "c4", "c5", "c6"]
    assert history.runs.loc[steps(history)["run"].iloc[0], "commit"] == "c5"


def test_a_run_judged_again_counts_once(tmp_path):
    rows = [row(1), row(2, verdict="failed"), row(2, verdict="passed", bits=1.0)]
    history = read(written(tmp_path / "gate.csv", rows))
    assert list(history.runs["verdict"]) == ["passed", "passed"]
    assert len(history.rows) == 2


def test_a_value_lost_is_a_step_and_a_new_site_is_none(tmp_path):
    rows = [row(day, "transformer:img_in") for day in range(1, 6)]
    rows += [row(day, "transformer:norm_out") for day in (1, 2, 5)]
    rows += [row(day, "transformer:proj_out") for day in (4, 5)]
    history = read(written(tmp_path / "gate.csv", rows))
    found = steps(history)
    assert list(found["site"]) == ["norm_out", "norm_out"]
    assert list(history.runs.loc[found["run"], "commit"]) == ["c3", "c5"]
    assert np.isinf(found["bits"]).all()
    assert np.isnan(found["after"].iloc[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (HEADER + "\n", "no gate run yet"),
        ("a,b\n1,2\n", "has the columns a,b"),
        (f"{HEADER}\n{row(1)}\n2026-01-02T08:00:00Z,c2,a", "line 3"),
        (f"{HEADER}\n{row(1).replace('1.0', 'nan')}\n", "line 2"),
        (f"{HEADER}\n{row(1).replace('1.0', 'inf')}\n", "line 2"),
        (f"{HEADER}\n{row(1)}\n{row(2).replace('2026-01-02', 'today')}\n", "line 3"),
        (f"{HEADER}\n{row(1, verdict='maybe')}\n", "line 2"),
        (f"{HEADER}\n{row(1)}\n{row(2, site='norm_out')}\n", "line 3"),
        (f"{HEADER}\n{row(1)}\n{row(2, site='')}\n", "line 3"),
        (f"{HEADER}\n{row(1)}\n{row(2)},1,2\n", "no table of gate runs"),
        (b"\xff\xfe\x00\x01", "no table of gate runs"),
    ],
    ids=["empty", "header", "other", "cut", "nan", "inf", "date", "verdict", "component", "site", "wide", "binary"],
)
def test_files_that_are_no_history(tmp_path, text, said):
    path = tmp_path / "gate.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=said):
        read(path)


def test_paths_that_are_no_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "gate.csv")
    written(tmp_path / "gate.csv", [row(1)])
    with pytest.raises(InputError, match=r"holds gate\.csv"):
        read(tmp_path)


@pytest.mark.parametrize("floor", [0, -1, float("nan"), float("inf")])
def test_a_floor_must_be_positive(tmp_path, floor):
    history = read(written(tmp_path / "gate.csv", [row(1)]))
    with pytest.raises(InputError, match="smallest step"):
        steps(history, floor)


def test_what_the_gate_appends_is_read(tmp_path):
    bands = {"log2_amax_min": [1.0, 2.0], "log2_amax_max": [1.5, 2.5]}
    place = {"variant": "baseline", "component": "transformer", "site": ["img_in", "transformer_blocks.0"]}
    table = pd.DataFrame({**place, "port": ["out", "out.0"], **bands})
    run = manifest(environment=replace(ENVIRONMENT, commit="ab" * 20, dirty=True))
    sites = ["img_in", "transformer_blocks.*"]
    path = tmp_path / "gate.csv"
    for _ in range(2):
        gate.append(path, gate.rows(run, "passed", table, table, sites))
    history = read(path)
    assert list(history.rows["port"]) == ["out", "out.0"]
    assert list(history.rows["component"]) == ["transformer", "transformer"]
    assert set(history.runs["device"]) == {"a CPU, 2 cores"}
    assert list(history.rows["deviation_bits"]) == [0.25, 0.25]
    assert history.runs["commit"].tolist() == ["ab" * 20 + "-dirty"]
