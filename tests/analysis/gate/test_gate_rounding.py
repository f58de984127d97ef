"""Rates of misrounded values: what is learned, how much a run may differ, and what it is called."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.gate import rounding
from precision_lab.errors import InputError
from tests.fabricated import QWEN_IMAGE as LAYOUT
from tests.spread import slow

OPERATIONS = {"transformer_blocks.{}.img_mlp.net.0.gelu": 2e-5, "transformer_blocks.{}.img_add1": 0.06, "norm_out": 0.3}


def table(rates=OPERATIONS, cases=24, size=4096, seed=0, spread=0.0, dtype="bfloat16"):
    """Counts of independent values, whose rate varies over the cases by a factor of exp(`spread` times a normal)."""
    rng = np.random.default_rng(seed)
    rows = []
    for case in range(cases):
        for order, (site, rate) in enumerate(rates.items()):
            for block in (0, 59) if "{}" in site else (None,):
                p = min(1.0, rate * math.exp(spread * rng.standard_normal()))
                rows.append(
                    {"variant": "baseline", "component": "transformer", "site": site.format(block), "port": "out"}
                    | {"prompt_id": case, "seed": 0, "branch": "cond", "step": 0, "order": order, "dtype": dtype}
                    | {"numel": size, "own_misrounded_pct": 100 * rng.binomial(size, p) / size}
                )
    return pd.DataFrame(rows)


def test_blocks_are_one_operation():
    learned = rounding.learn(table(), LAYOUT)
    assert learned["site"].tolist() == [
        "transformer_blocks.*.img_mlp.net.0.gelu",
        "transformer_blocks.*.img_add1",
        "norm_out",
    ]
    assert learned["values"].tolist() == [24 * 2 * 4096, 24 * 2 * 4096, 24 * 4096]
    assert learned["misrounded"].iloc[1] / learned["values"].iloc[1] == pytest.approx(0.06, rel=0.1)
    assert learned["dispersion"].max() < 2.5
    assert rounding.learn(table(spread=0.3), LAYOUT)["dispersion"].max() > 10
    assert rounding.operation(LAYOUT, "text_encoder", "layers.3.mlp.act_fn") == "layers.*.mlp.act_fn"


def test_only_16_bit_rows_with_a_rate_count():
    rows = table()
    assert rounding.learn(rows.assign(dtype="float32"), LAYOUT).empty
    assert rounding.learn(rows.assign(own_misrounded_pct=np.nan), LAYOUT).empty
    assert rounding.learn(rows.drop(columns="own_misrounded_pct"), LAYOUT).empty


@pytest.mark.parametrize("spread", [slow(0.0), slow(0.1), 0.3])
def test_other_cases_pass(spread):
    learned = rounding.learn(table(spread=spread), LAYOUT)
    for seed in range(1, 60):
        found = rounding.judge(learned, table(cases=4, seed=seed, spread=spread), LAYOUT)
        assert found.violations == []
        assert found.checks["rounding"] == 3


@pytest.mark.parametrize(
    ("site", "rate"),
    [
        ("transformer_blocks.{}.img_mlp.net.0.gelu", 0.01),
        ("transformer_blocks.{}.img_mlp.net.0.gelu", 0.45),
        ("transformer_blocks.{}.img_add1", 0.0),
        ("transformer_blocks.{}.img_add1", 0.12),
        ("norm_out", 0.0),
        ("norm_out", 0.45),
    ],
)
def test_a_moved_rounding_is_named(site, rate):
    learned = rounding.learn(table(spread=0.03), LAYOUT)
    (violation,) = rounding.judge(learned, table({**OPERATIONS, site: rate}, cases=4, seed=1), LAYOUT).violations
    assert violation.address == site.format("*")
    assert (violation.kind, violation.metric, violation.step) == ("rounding", "misrounded_pct", 0)
    assert violation.count == 1


def test_an_operation_without_a_rate_does_not_pass():
    learned = rounding.learn(table(), LAYOUT)
    rows = table(cases=4, seed=1)
    for gone in (rows[rows["site"] != "norm_out"], rows[:0], rows.assign(dtype="float32")):
        found = rounding.judge(learned, gone, LAYOUT).violations
        assert "norm_out" in {violation.site for violation in found}
        assert {violation.got for violation in found} == {"nothing"}


def test_an_operation_that_is_gone_beside_one_that_moved_is_recorded_in_strict_json():
    learned = rounding.learn(table(), LAYOUT)
    rows = table({**OPERATIONS, "transformer_blocks.{}.img_add1": 0.3}, cases=4, seed=1)
    moved, gone = rounding.judge(learned, rows[rows["site"] != "norm_out"], LAYOUT).violations
    assert (moved.site, moved.branch, moved.step) == ("transformer_blocks.*.img_add1", "cond", 0)
    assert (gone.site, gone.branch, gone.step) == ("norm_out", None, None)
    json.dumps([violation.to_json() for violation in (moved, gone)], allow_nan=False)


def test_the_allowed_rates():
    """Wider for fewer values and a larger dispersion; never narrower than the learned rate and the slack around it."""
    few, many = rounding.allowed(300, 1000, 1.0, 1000), rounding.allowed(300_000, 1_000_000, 1.0, 1_000_000)
    assert 0 < few[0] < many[0] < 0.298
    assert 0.302 < many[1] < few[1] < 1
    assert rounding.allowed(300_000, 1_000_000, 50.0, 1_000_000)[1] > many[1]
    low, high = rounding.allowed(0, 100_000, 1.0, 10_000)
    assert low == 0
    assert 0.002 < high < 0.006
    low, high = rounding.allowed(100_000, 100_000, 1.0, 10_000)
    assert high == 1
    assert 0.994 < low < 0.998


def test_the_probability_of_a_false_alarm_is_bounded():
    """With a limit of 1 % instead of 1e-8 and no slack, the share of false alarms can be counted."""
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "_LOG_ODDS", -math.log(0.01))
        patch.setattr(rounding, "_SLACK", 0.0)
        for p in (0.001, 0.05, 0.4):
            alarms = 0
            for _ in range(1000):
                k, n = rng.binomial(20_000, p), 5000
                low, high = rounding.allowed(int(k), 20_000, 1.0, n)
                alarms += not low <= rng.binomial(n, p) / n <= high
            assert alarms <= 10, p


def test_records():
    learned = rounding.learn(table(spread=0.1), LAYOUT)
    again = rounding.from_records(rounding.to_records(learned, "transformer"), "transformer")
    pd.testing.assert_frame_equal(again.drop(columns="dispersion"), learned.drop(columns="dispersion"))
    assert np.allclose(again["dispersion"], learned["dispersion"], atol=0.005)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"site": "a", "variant": "b", "order": 0, "misrounded": 3, "values": 2, "dispersion": 1},
        {"site": "a", "variant": "b", "order": 0, "misrounded": -1, "values": 2, "dispersion": 1},
        {"site": "a", "variant": "b", "order": 0, "misrounded": 0, "values": 0, "dispersion": 1},
        {"site": "a", "variant": "b", "order": 0, "misrounded": 0, "values": 9, "dispersion": 0},
        {"site": "a", "variant": "b", "order": "x", "misrounded": 0, "values": 9, "dispersion": 1},
    ],
)
def test_records_of_another_form(record):
    with pytest.raises(InputError, match="cannot be read"):
        rounding.from_records([record], "transformer")
