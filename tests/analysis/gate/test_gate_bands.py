import json
import math

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.gate import bands
from precision_lab.analysis.gate.bands import Margin
from precision_lab.errors import InputError
from tests.analysis.gate import fabricated_gate as fabricated
from tests.spread import slow, thinned

LAYOUT = fabricated.LAYOUT
TIGHT = Margin(bits=0.5, spread=0.0, headroom_bits=100)


def simple(values, case=None, **columns):
    """One site whose arrays have these amax, a row each."""
    rows = {"site": "a", "dtype": "bfloat16", "amax": values, "rms": 1.0, "num_nan": 0, "num_inf": 0}
    rows |= {"case": list(range(len(values))) if case is None else case}
    return pd.DataFrame(rows | columns)


def test_a_band_by_hand():
    table = simple([2.0, 8.0, 4.0, 1.0], case=["x", "x", "y", "y"], step=[0, 1, 0, 1])
    (band,) = bands.learn(table).to_dict("records")
    assert (band["log2_amax_min"], band["log2_amax_max"]) == (2, 3), "the peaks of the cases: 8 and 4"
    assert (band["log2_rms_min"], band["log2_rms_max"]) == (0, 0)
    assert (band["variant"], band["component"], band["port"]) == ("-", "-", "-")


@pytest.mark.parametrize(
    ("amax", "outside"), [(8 * 2**0.49, 0), (8 * 2**0.51, 1), (4 * 2**-0.49, 0), (4 * 2**-0.51, 1)]
)
def test_the_margin_in_bits(amax, outside):
    learned = bands.learn(simple([4.0, 8.0]))
    found = bands.judge(learned, simple([amax]), TIGHT, LAYOUT)
    assert len(found.violations) == outside
    assert all(v.magnitude == pytest.approx(0.01, abs=1e-6) for v in found.violations)
    wide = Margin(bits=0.5, spread=1.0)
    assert not bands.judge(learned, simple([amax]), wide, LAYOUT).violations, "one more width, 1 bit"


def test_what_it_learned_from_is_inside_whatever_the_margin():
    table = fabricated.activations(rng_seed=3, spread=2.0)
    found = bands.judge(bands.learn(table), table, Margin(0, 0, 0), LAYOUT)
    assert found.violations == []
    assert set(found.checks) == {"sites", "dtypes", "nonfinite", "ranges", "headroom"}
    assert found.checks["ranges"] == 2 * len(table)


def test_the_first_array_beyond_leads_and_the_worst_gives_the_magnitude():
    table = fabricated.activations(spread=0.0)
    learned = bands.learn(table)
    changed = table.copy()
    broken = (changed["site"] == "transformer_blocks.0") & (changed["variant"] == "upcast")
    changed.loc[broken & (changed["branch"] == "uncond") & (changed["step"] == 0), "amax"] *= 4
    changed.loc[broken & (changed["step"] == 1) & (changed["seed"] == 1), "amax"] *= 64
    (violation,) = bands.judge(learned, changed, TIGHT, LAYOUT).violations
    assert (violation.variant, violation.site) == ("upcast", "transformer_blocks.0")
    assert (violation.branch, violation.step, violation.metric) == ("uncond", 0, "log2_amax")
    assert violation.magnitude == pytest.approx(6 - 0.5)
    assert violation.count == 4 + 4, "four cases at step 0, two branches of two cases at step 1"
    assert violation.expected == "2.50 to 3.50"
    assert violation.got == "5.00"


@pytest.mark.parametrize("metric", ["amax", "rms"])
def test_nan_is_never_inside(metric):
    table = fabricated.activations()
    changed = table.copy()
    changed.loc[5, metric] = np.nan
    found = bands.judge(bands.learn(table), changed, Margin(1e6, 1e6, 1e6), LAYOUT).violations
    assert [(v.metric, v.got, v.magnitude) for v in found] == [(f"log2_{metric}", "undefined", math.inf)]


@pytest.mark.parametrize("count", ["num_nan", "num_inf"])
def test_no_value_may_become_nonfinite(count):
    table = fabricated.activations()
    changed = table.copy()
    changed.loc[4, [count, "amax", "rms"]] = [1, 8.0, 1.0]
    (violation,) = bands.judge(bands.learn(table), changed, Margin(9, 9, 99), LAYOUT).violations
    assert (violation.kind, violation.metric, violation.expected, violation.got) == (
        "nonfinite",
        "num_nonfinite",
        "0",
        "1",
    )
    assert violation.site == table.loc[4, "site"]


@pytest.mark.parametrize(
    ("now", "passes"), [slow((10, True)), slow((20, True)), (40, True), (41, False), slow((4, False)), (0, False)]
)
def test_counts_that_the_baseline_had_are_compared_with_their_spread(now, passes):
    table = simple([1.0, 1.0], num_inf=[10, 20], amax=np.nan, rms=np.nan)
    changed = simple([1.0], num_inf=[now], amax=np.nan if now else 1.0, rms=np.nan if now else 1.0)
    found = bands.judge(bands.learn(table), changed, Margin(9, 9), LAYOUT).violations
    assert ("num_nonfinite" in {v.metric for v in found}) is not passes


def test_the_dtype_census():
    table = fabricated.activations()
    changed = table.copy()
    promoted = (changed["site"] == "img_in") & (changed["variant"] == "baseline") & (changed["step"] == 1)
    changed.loc[promoted, "dtype"] = "float32"
    (violation,) = bands.judge(bands.learn(table), changed, Margin(), LAYOUT).violations
    assert (violation.metric, violation.expected, violation.got) == ("dtype", "bfloat16", "float32")
    assert (violation.site, violation.step) == ("img_in", 1)


def test_a_site_gone_and_a_new_one():
    table = fabricated.activations()
    changed = table[(table["site"] != "proj_out") | (table["variant"] != "baseline")]
    learned = bands.learn(table)
    (gone,) = bands.judge(learned, changed, Margin(), LAYOUT).violations
    assert (gone.metric, gone.variant, gone.site, gone.step) == ("site gone", "baseline", "proj_out", 0)
    (new,) = bands.judge(bands.learn(changed), table, Margin(), LAYOUT).violations
    assert (new.metric, new.site, new.step, new.branch) == ("new site", "proj_out", 0, "cond")


def test_headroom_is_a_limit_of_its_own():
    learned = bands.learn(simple([2.0**-4, 2.0**8]))
    wide = Margin(bits=1, spread=3, headroom_bits=4)
    assert not bands.judge(learned, simple([2.0**11.9]), wide, LAYOUT).violations
    (violation,) = bands.judge(learned, simple([2.0**12.5]), wide, LAYOUT).violations
    assert (violation.kind, violation.metric) == ("headroom", "headroom_bits_float8_e5m2")
    assert violation.magnitude == pytest.approx(0.5)
    # the narrowest format that held it with four bits to spare: 57344 is 2^15.8
    assert violation.expected == f"at least {math.log2(57344) - 12:.2f}"


@pytest.mark.parametrize("learned_zero", [True, False])
def test_zeros(learned_zero):
    zero, one = simple([0.0, 0.0], rms=0.0), simple([1.0, 1.0])
    learned = bands.learn(zero if learned_zero else one)
    same, other = (zero, one) if learned_zero else (one, zero)
    assert not bands.judge(learned, same, TIGHT, LAYOUT).violations
    found = bands.judge(learned, other, Margin(99, 99), LAYOUT).violations
    assert {v.metric for v in found} == {"log2_amax", "log2_rms"}
    assert {v.expected for v in found if learned_zero} <= {"all zero"}
    assert {v.got for v in found if not learned_zero} <= {"all zero"}


def test_empty_arrays_and_rows_without_ranges_are_no_evidence():
    table = fabricated.activations()
    table["numel"] = table["numel"].where(table["site"] != "img_in", 0)
    table.loc[table["site"] == "img_in", ["amax", "rms"]] = np.nan
    other_probe = table.head(1).assign(site="elsewhere", num_nan=None, num_inf=None, amax=None)
    table = pd.concat([table, other_probe.astype(table.dtypes.to_dict() | {"num_nan": "Int64", "num_inf": "Int64"})])
    learned = bands.learn(table)
    assert "elsewhere" not in set(learned["site"])
    assert not bands.judge(learned, table, TIGHT, LAYOUT).violations


def test_records_are_strict_json_and_come_back():
    table = fabricated.activations(rng_seed=5)
    table.loc[3, ["amax", "num_nan"]] = [np.nan, 7]
    table.loc[table["site"] == "decoder", ["amax", "rms"]] = 0.0
    learned = bands.learn(table)
    records = json.loads(json.dumps(bands.to_records(learned, "transformer"), allow_nan=False))
    again = bands.from_records(records, "transformer")
    pd.testing.assert_frame_equal(again, learned, check_dtype=False, atol=5e-4, rtol=0)
    assert not bands.judge(again, table, Margin(bits=1e-3, spread=0), LAYOUT).violations


@pytest.mark.parametrize(
    "record", [{}, {"site": "a", "order": 0, "dtype": "x", "amax": [1], "rms": [0, 1]}, None, {"site": "a"}]
)
def test_records_of_another_form_are_refused(record):
    with pytest.raises(InputError, match="Learn the baseline again"):
        bands.from_records([record], "transformer")


def test_mistakes_are_named():
    with pytest.raises(InputError, match="no column rms"):
        bands.learn(fabricated.activations().drop(columns="rms"))
    for bits in (-1, math.nan, True, "1"):
        with pytest.raises(InputError, match="expected a number"):
            Margin(bits=bits)


@pytest.mark.parametrize("seed", thinned(range(4), keep=1))
def test_held_out_cases_of_the_same_spread_stay_inside(seed):
    learned = bands.learn(fabricated.activations(prompts=6, seeds=4, rng_seed=seed, spread=0.3))
    held_out = fabricated.activations(prompts=10, seeds=4, rng_seed=100 + seed, spread=0.3)
    assert not bands.judge(learned, held_out, Margin(), LAYOUT).violations
