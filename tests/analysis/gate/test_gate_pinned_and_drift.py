import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.gate import cost, drift, sketches
from precision_lab.analysis.gate.bands import Margin
from precision_lab.errors import InputError
from tests.analysis.gate import fabricated_gate as fabricated

LAYOUT = fabricated.LAYOUT
MARGIN = Margin(bits=1, spread=0)


def stored(table):
    records = json.loads(json.dumps(sketches.to_records(sketches.learn(table, LAYOUT), "transformer"), allow_nan=False))
    return sketches.from_records(records, "transformer")


def judged(change, tolerance=1e-3, factor=4.0, noise=1e-5):
    learned = stored(fabricated.sketches(noise=noise))
    return sketches.judge(learned, fabricated.sketches(change), tolerance, factor, LAYOUT)


def test_what_it_learned_from_passes_with_the_rounding_of_the_file():
    found = judged(None, tolerance=3e-5, factor=0)
    assert found.violations == []
    assert found.checks["sketches"] == len(stored(fabricated.sketches()))


@pytest.mark.parametrize(("relative", "outside"), [(3e-4, False), (5e-3, True), (1.0, True)])
def test_a_deviation_of_one_array(relative, outside):
    rng = np.random.default_rng(0)

    def change(case, position, x):
        if case == "odd" and position["site"] == "img_in" and position["step"] == 1 and position["branch"] == "cond":
            noise = rng.standard_normal(x.shape)
            return (x + relative * np.linalg.norm(x) / np.linalg.norm(noise) * noise).astype(np.float32)
        return x

    found = judged(change).violations
    assert bool(found) is outside
    for violation in found:
        assert (violation.site, violation.step, violation.case, violation.metric) == ("img_in", 1, "odd", "rel_l2")
        assert violation.pinned
        assert violation.magnitude == pytest.approx(math.log2(relative / 1e-3), abs=1.5)


def test_a_change_of_the_norm_alone_is_seen_exactly():
    found = judged(lambda case, position, x: x * np.float32(1.002) if position["site"] == "proj_out" else x).violations
    assert {v.site for v in found} == {"proj_out"}
    assert 0.002 <= float(found[0].got) <= 0.006, "never less than the norms say"
    assert found[0].order == min(p["order"] for p in fabricated.positions() if p["site"] == "proj_out")


def test_the_noise_floor_of_a_site_widens_its_tolerance():
    def change(case, position, x):
        return x * np.float32(1.01) if position["site"] == "norm" else x

    assert judged(change, noise=1e-5).violations
    assert judged(change, noise=0).violations
    assert not judged(change, noise=5e-3).violations
    assert judged(change, noise=5e-3, factor=1).violations


def test_inside_blocks_the_unconditional_branch_is_not_kept():
    kept = stored(fabricated.sketches())
    assert set(kept.loc[kept["site"] == "transformer_blocks.0", "branch"]) == {"cond"}
    assert set(kept.loc[kept["site"] == "img_in", "branch"]) == {"cond", "uncond"}


def test_without_branches_everything_inside_blocks_is_kept():
    table = fabricated.sketches()
    kept = sketches.learn(table, replace(LAYOUT, branches={}))
    assert set(kept.loc[kept["site"] == "transformer_blocks.0", "branch"]) == {"cond", "uncond"}


def test_records_leave_out_the_default_component_alone():
    learned = sketches.learn(fabricated.sketches(), LAYOUT)
    for default in ("transformer", "vae"):
        records = sketches.to_records(learned, default)
        named = {record["site"]: record.get("component") for record in records}
        assert named["decoder"] == (None if default == "vae" else "vae")
        assert named["img_in"] == (None if default == "transformer" else "transformer")
        again = sketches.from_records(records, default)
        assert set(zip(again["component"], again["site"], strict=True)) == {
            (p["component"], p["site"]) for p in fabricated.positions()
        }


def test_nonfinite_dtype_and_shape():
    def change(case, position, x):
        if position["site"] == "img_in":
            return np.where(np.arange(x.size).reshape(x.shape) == 7, np.nan, x.astype(np.float64))
        return x[:5] if position["site"] == "norm" else x

    found = {(v.site, v.metric): v for v in judged(change).violations}
    assert set(found) == {("img_in", "num_nonfinite"), ("img_in", "dtype"), ("norm", "shape")}
    assert found["norm", "shape"].got == "5x8"
    assert found["img_in", "num_nonfinite"].expected == "0"


def test_nan_in_the_table_never_passes():
    table = fabricated.sketches()
    table.loc[3, "sketch_4"] = np.nan
    (violation,) = sketches.judge(stored(fabricated.sketches()), table, 1e9, 1e9, LAYOUT).violations
    assert violation.got == "undefined"


def test_sites_gone_and_new():
    table = fabricated.sketches()
    without = table[table["site"] != "transformer_blocks.0"]
    (gone,) = sketches.judge(stored(table), without, 1e-3, 4, LAYOUT).violations
    assert (gone.metric, gone.site, gone.step, gone.variant) == ("site gone", "transformer_blocks.0", 0, "reference")
    (new,) = sketches.judge(stored(without), table, 1e-3, 4, LAYOUT).violations
    assert (new.metric, new.site) == ("new site", "transformer_blocks.0")


def test_a_reference_that_is_not_finite_is_no_baseline():
    with pytest.raises(InputError, match=r"square is not finite at vae:decoder"):
        sketches.learn(
            fabricated.sketches(lambda case, p, x: x * np.nan if (case, p["site"]) == ("square", "decoder") else x),
            LAYOUT,
        )


@pytest.mark.parametrize("records", [[{"site": "a"}], [{"site": "a", "dtype": "x", "arrays": [[1, 2]]}], [3]])
def test_sketches_of_another_form_are_refused(records):
    with pytest.raises(InputError, match="Learn the baseline again"):
        sketches.from_records(records, "transformer")


# --- drift -----------------------------------------------------------------------------------------------------------


def drifts(table):
    records = json.loads(json.dumps(drift.to_records(drift.learn(table, {}), "transformer"), allow_nan=False))
    return drift.from_records(records, "transformer")


def test_drift_bands_by_hand():
    table = fabricated.drift(prompts=1, seeds=2).query("variant == 'baseline' and site == 'img_in'")
    table = table.assign(rel_l2=[2.0**-8, 2.0**-7, 2.0**-3, 2.0**-2, 2.0**-9, 2.0**-7, 2.0**-4, 2.0**-4])
    (band,) = drifts(table).to_dict("records")
    assert [band[k] for k in ("least_min", "least_max", "largest_min", "largest_max")] == [-9, -8, -4, -2]
    assert not drift.judge(drifts(table), table.assign(rel_l2=2 * table["rel_l2"]), MARGIN, {}, LAYOUT).violations
    worse = drift.judge(drifts(table), table.assign(rel_l2=4.1 * table["rel_l2"]), MARGIN, {}, LAYOUT).violations
    assert {v.metric for v in worse} == {"log2_rel_l2 least", "log2_rel_l2 largest"}
    (least,) = [v for v in worse if v.metric.endswith("least")]
    assert (least.expected, least.step, least.branch) == ("-10.00 to -7.00", 0, "cond")


def test_an_error_that_is_worse_everywhere_names_the_first_site():
    table = fabricated.drift()
    worse = table.copy()
    worse.loc[worse["site"].isin(["transformer_blocks.0", "proj_out", "decoder"]), "rel_l2"] *= 16
    found = drift.judge(drifts(table), worse, MARGIN, {}, LAYOUT).violations
    first = min(found, key=lambda v: (v.step is None, v.step, v.order))
    assert first.site == "transformer_blocks.0"
    assert drift.judge(drifts(table), table, MARGIN, {}, LAYOUT).checks == {
        "drift": 2 * len(table.groupby(["variant", "site", "prompt_id", "seed"]))
    }


@pytest.mark.parametrize(("value", "said"), [(math.nan, "undefined"), (0.0, "identical to the reference")])
def test_undefined_and_vanished_drift(value, said):
    table = fabricated.drift()
    changed = table.copy()
    changed.loc[changed.index[3], "rel_l2"] = value
    found = drift.judge(drifts(table), changed, Margin(99, 99), {}, LAYOUT).violations
    assert {v.got for v in found} == {said}
    assert not drift.judge(drifts(changed), changed, Margin(0.01, 0), {}, LAYOUT).violations


def test_drift_below_the_noise_floor_is_as_large_as_the_floor():
    table = fabricated.drift()
    tiny = table.assign(rel_l2=1e-7 * np.random.default_rng(0).random(len(table)))
    floors = dict.fromkeys(zip(table["component"], table["site"], strict=True), 1e-6)
    learned = drift.learn(tiny, floors)
    assert not drift.judge(learned, tiny.assign(rel_l2=9e-7), Margin(0, 0), floors, LAYOUT).violations
    assert drift.judge(learned, tiny.assign(rel_l2=9e-6), Margin(0, 0), floors, LAYOUT).violations


def test_a_module_has_the_largest_floor_of_what_it_holds():
    table = pd.DataFrame({"component": "t", "site": ["b.0.x", "b.0.y", "b.1.x"], "noise": [1.0, 3.0, 2.0]})
    floors = drift.noise_floors(table)
    assert (floors["t", "b.0"], floors["t", "b.1"], floors["t", "b"], floors["t", "b.0.x"]) == (3, 2, 3, 1)


def test_drift_gone_and_new():
    table = fabricated.drift()
    without = table[table["site"] != "img_in"]
    assert {v.metric for v in drift.judge(drifts(table), without, MARGIN, {}, LAYOUT).violations} == {"drift gone"}
    assert {v.metric for v in drift.judge(drifts(without), table, MARGIN, {}, LAYOUT).violations} == {"new drift"}


# --- time and memory -------------------------------------------------------------------------------------------------

MARGINS = {cost.LATENCY: 1.0, cost.RATIO: 0.5, cost.MEMORY: 0.25}


def costs(change=lambda table: table):
    learned = json.loads(json.dumps(cost.measured(fabricated.latency(), "baseline"), allow_nan=False))
    return cost.judge(learned, change(fabricated.latency(rng_seed=8)), "baseline", MARGINS)


def test_times_of_the_same_machine():
    found = costs()
    assert not found.violations
    assert found.checks == {"latency": 3, "memory": 2}


def test_a_machine_that_is_slower_throughout_is_allowed_its_margin():
    assert not costs(lambda t: t.assign(seconds=1.9 * t["seconds"])).violations
    assert {v.metric for v in costs(lambda t: t.assign(seconds=2.2 * t["seconds"])).violations} == {"step_seconds"}


def test_times_are_scaled_by_the_yardsticks_of_both_machines():
    """A machine of the same name that is three times as slow, and a step that is slower than that explains."""

    def judged(step, yardstick, before=2e-3):
        learned = cost.measured(fabricated.latency().assign(yardstick_seconds=before), "baseline")
        now = fabricated.latency(seconds=step, rng_seed=8).assign(yardstick_seconds=yardstick)
        return {v.metric for v in cost.judge(learned, now, "baseline", MARGINS).violations}

    assert not judged(3.4, 3.4 * 2e-3)
    assert not judged(3.4 * 1.9, 3.4 * 2e-3)
    assert judged(3.4 * 2.2, 3.4 * 2e-3) == {"step_seconds"}
    assert judged(1.0, 2e-3 / 3) == {"step_seconds"}, "the machine is faster, the step is not"
    assert judged(3.4, math.nan) == judged(3.4, 2e-3, before=math.nan) == {"step_seconds"}, "as without a yardstick"


@pytest.mark.parametrize("yardstick", [0, "1", None, [1]])
def test_a_yardstick_that_no_baseline_has(yardstick):
    table = fabricated.latency().assign(yardstick_seconds=2e-3)
    learned = cost.measured(table, "baseline")
    learned["upcast"]["yardstick_seconds"] = yardstick
    with pytest.raises(InputError, match=r"of upcast cannot be read. Learn the baseline again"):
        cost.judge(learned, table, "baseline", MARGINS)


def test_a_variant_that_is_slower_beside_the_others():
    found = costs(lambda t: t.assign(seconds=np.where(t["variant"] == "upcast", 1.8, 1) * t["seconds"])).violations
    assert [(v.variant, v.metric) for v in found] == [("upcast", "step_ratio")]


def test_one_slow_round_is_no_slower_machine():
    assert not costs(lambda t: t.assign(seconds=np.where(t["round"] == 3, 50, 1) * t["seconds"])).violations


def test_a_model_of_a_few_kilobytes_is_not_judged_by_its_noise():
    """A step of 0.1 ms whose process was interrupted once, and a few arrays that were freed later."""
    small = fabricated.latency(seconds=1e-4).assign(peak_memory_bytes=1010)
    learned = cost.measured(small, "baseline")

    def judged(**changes):
        return {v.metric for v in cost.judge(learned, small.assign(**changes), "baseline", MARGINS).violations}

    slower = np.where(small["variant"] == "upcast", 4, 1)
    assert not judged(peak_memory_bytes=1778, seconds=slower * small["seconds"])
    assert judged(peak_memory_bytes=80_000) == {"peak_memory_bytes"}
    assert judged(seconds=20 * slower * small["seconds"]) == {"step_seconds", "step_ratio"}


def test_memory_and_undefined_times():
    (memory, *_) = costs(lambda t: t.assign(peak_memory_bytes=1_300_000)).violations
    assert (memory.kind, memory.expected, memory.got) == ("memory", "at most 1.25e+06", "1.3e+06")
    assert costs(lambda t: t.assign(seconds=math.nan)).violations
