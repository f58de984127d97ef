"""What the explorer of a page holds: the numbers of the tables, by a stated rule, the same bytes each time."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from precision_lab.record.run import Run
from precision_lab.report.embedding import data as block
from precision_lab.report.interactive import sites
from precision_lab.report.view import View
from precision_lab.report.wording import address
from tests.report.fabricated_run import write_table


@pytest.fixture(scope="module")
def view(reported):
    return View.open(reported)


@pytest.fixture(scope="module")
def told(view):
    return sites.explorer(view)


def _rows(view, told, number, variant):
    """The rows of activations of a site by its number."""
    table = view.run.activations
    own = table[table["variant"] == variant]
    names = [address(view.layout, *key) for key in zip(own["component"], own["site"], own["port"], strict=True)]
    return own[np.array(names) == told["sites"]["address"][number]]


def test_variants_of_one_colour_have_other_dashes(told, view):
    looks = [(each["colour"], *each["dashes"]) for each in told["variants"]]
    assert len(set(looks)) == len(looks) == len(view.variants)


def test_every_history_is_the_table_s(view, told):
    compared = 0
    for at, variant in enumerate(told["variants"]):
        for number in range(0, len(told["sites"]["address"]), 3):
            rows = _rows(view, told, number, variant["name"])
            for branch_at, branch in enumerate(told["branches"]):
                own = rows[rows["branch"].fillna("") == branch["name"]]
                history = told["history"]["amax"][at][branch_at].get(str(number))
                assert (history is None) == own.empty
                for step, value in zip(told["steps"], history or (), strict=False):
                    cell = own[own["step"] == step]
                    if (cell["num_nan"] + cell["num_inf"]).sum():
                        assert value == sites.LOST
                    else:
                        assert value == pytest.approx(cell["amax"].max(), rel=5e-4)
                    compared += 1
    assert compared > 100


def test_the_table_states_the_greatest_value_and_the_first_step_that_is_lost(view, told):
    names = [variant["name"] for variant in told["variants"]]
    assert told["lost_at"][names.index("float16")]
    assert not told["lost_at"][names.index("baseline")]
    for name in ("baseline", "float16"):
        for number in range(len(told["sites"]["address"])):
            rows = _rows(view, told, number, name)
            lost = rows[(rows["num_nan"] + rows["num_inf"]) > 0]
            value = told["summary"]["amax"][names.index(name)][number]
            finite = rows.drop(lost.index)["amax"].max()
            assert value is None if pd.isna(finite) else value == pytest.approx(finite, rel=5e-4)
            expected = None if lost.empty else int(lost["step"].min())
            assert told["lost_at"][names.index(name)].get(str(number)) == expected


def test_drift_is_the_median_over_generations(view, told):
    table = view.run.drift
    names = [variant["name"] for variant in told["variants"]]
    for mode in ("free", "teacher"):
        rows = table[(table["mode"] == mode) & (table["variant"] == "baseline") & (table["step"] == 1)]
        medians = rows.groupby(["component", "site", "port"])["rel_l2"].median()
        for key, median in medians.items():
            number = str(told["sites"]["address"].index(address(view.layout, *key)))
            values = [own[number][1] for own in told["history"][mode][names.index("baseline")] if number in own]
            assert values == [pytest.approx(median, rel=5e-4)]


def test_the_same_tables_give_the_same_bytes_in_any_order_of_the_rows(view, told):
    again = sites.explorer(View.open(Run.open(view.run.path)))
    assert str(block({"d": again})) == str(block({"d": told}))
    assert len(json.dumps(told)) < 500_000


def test_of_many_sites_outputs_are_kept_and_then_the_largest_changes(small_run, monkeypatch):
    view = View.open(small_run(blocks=4, steps=2))
    every = sites.explorer(view)
    monkeypatch.setattr(sites, "MOST_SITES", 2)
    monkeypatch.setattr(sites, "MOST_VALUES", 1)
    few = sites.explorer(view)
    kept = [at for at, stream in enumerate(every["sites"]["output"]) if stream is not None]
    assert len(kept) == 8
    assert len(few["sites"]["address"]) == 8 + 1 + 2  # and the result
    assert set(few["sites"]["address"]) <= set(every["sites"]["address"])
    followed = {int(number) for own in few["history"]["amax"] for branch in own for number in branch}
    assert followed == set(range(9))
    assert "11 of" in few["rule"]
    assert "first 9" in few["rule"]
    assert every["rule"].startswith("All ")


def test_names_of_a_run_are_text_whatever_they_hold(small_run):
    run = small_run(blocks=2, steps=2)
    hostile = "x</script><script>alert(1)</script>"
    table = Run.open(run).activations
    write_table(run, "activations", table.assign(site=table["site"].str.replace("norm_out", hostile)))
    told = sites.explorer(View.open(run))
    assert any(hostile in name for name in told["sites"]["address"])
    text = str(block({"explorer-data": told}))
    assert text.count("<") == 2
    assert hostile in json.dumps(json.loads(text[text.index(">") + 1 : text.rindex("<")]))


def test_a_run_without_block_outputs_says_so(small_run):
    run = small_run()
    assert sites.explorer(View.open(run))["has_blocks"]
    for name in ("activations", "drift"):
        table = pd.read_parquet(run / f"{name}.parquet")
        table[table["component"] == "pipeline"].to_parquet(run / f"{name}.parquet")
    told = sites.explorer(View.open(run))
    assert not told["has_blocks"]
    assert told["sites"]["component"] == ["pipeline"]


def test_a_run_without_tables_has_no_explorer(small_run):
    run = small_run(blocks=2, steps=2)
    for name in ("activations", "drift"):
        (run / f"{name}.parquet").unlink()
    assert sites.explorer(View.open(run)) is None
