"""Scales chosen from ranges, and what they do in cases that they were not chosen from."""

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.scales.choice import Goal, Parameter, beyond, choose, divisors
from precision_lab.analysis.scales.drift import compared
from precision_lab.analysis.scales.evidence import case_words, failed_cases, place_words
from precision_lab.analysis.scales.heldout import by_margin, failures, measured, predicted
from precision_lab.analysis.scales.ranges import ranges_of, stored_in, without_containers
from precision_lab.errors import InputError
from precision_lab.model.qwen_image.layout import layout
from precision_lab.numerics.formats import FORMATS
from precision_lab.numerics.scales import Division
from tests.fabricated import run_of

BLOCKS = 4
LAYOUT = layout(BLOCKS)
FLOAT16 = FORMATS["float16"]
MAX = FLOAT16.max
V, END, HIDDEN = (
    "transformer_blocks.{}.attn.to_v",
    "transformer_blocks.{}.attn.to_add_out",
    "transformer_blocks.{}.txt_mlp.net.2",
)
QKV = Parameter("attention", "qkv", ("transformer_blocks.*.attn.{to_v,to_add_out}",))
OUT = Parameter("attention", "out", ("transformer_blocks.*.attn.to_add_out",))
FEED = Parameter("feed_forward", "hidden", ("transformer_blocks.*.txt_mlp.net.2",))
ALL = (QKV, OUT, FEED)


def ranges(amax, set_="coverage", prompt=0, seed=0, rms=1.0, variant="reference"):
    """Ranges of one case. amax: by site, a number or one a block."""
    rows = []
    for site, values in amax.items():
        for block, value in enumerate(np.broadcast_to(values, BLOCKS) if "{}" in site else [values]):
            path = site.format(block)
            rows.append(
                {
                    "set": set_,
                    "variant": variant,
                    "prompt_id": prompt,
                    "seed": seed,
                    "component": "transformer",
                    "site": path,
                    "port": "out",
                    "stream": "txt",
                    "block": block if "{}" in site else None,
                    "dtype": "float32",
                    "amax": float(value),
                    "branch": "cond",
                    "step": 1,
                    "rms": rms,
                    "num_nonfinite": 0,
                    "order": len(rows),
                }
            )
    return pd.DataFrame(rows).astype({"block": "Int64"})


def plain(**changed):
    return ranges({V: 10.0, END: 10.0, HIDDEN: 10.0, **{globals()[key]: value for key, value in changed.items()}})


def scales(choice, parameter):
    own = choice.scales[choice.scales["parameter"] == parameter.name]
    return own.sort_values("block")["scale"].tolist()


def test_a_parameter_takes_what_the_ones_before_it_leave():
    found = choose(plain(V=[MAX, 4 * MAX, 1, 1], END=[1, 64 * MAX, 8 * MAX, 1]), ALL, Goal(FLOAT16, 0), LAYOUT)
    assert scales(found, QKV) == [1, 4, 1, 1]
    assert scales(found, OUT) == [1, 16, 8, 1]
    assert scales(found, FEED) == [1, 1, 1, 1]
    assert found.tables() == {"attention": {"qkv": {0: 1, 1: 4, 2: 1}, "out": {0: 1, 1: 16, 2: 8, 3: 1}}}
    row = found.scales[(found.scales["parameter"] == "out") & (found.scales["block"] == 1)].iloc[0]
    assert (row["divisor"], row["headroom_bits"], row["site"]) == (64, 0, END.format(1))


def test_every_margin_is_kept_and_no_scale_is_larger_than_needed():
    rng = np.random.default_rng(5)
    for margin in (0, 0.5, 1, 3):
        table = plain(
            V=2.0 ** rng.uniform(0, 30, 4), END=2.0 ** rng.uniform(0, 40, 4), HIDDEN=2.0 ** rng.uniform(0, 30, 4)
        )
        goal = Goal(FLOAT16, margin)
        found = choose(table, ALL, goal, LAYOUT)
        assert beyond(table, found.divisions, (), goal, LAYOUT).empty
        for at in found.scales[found.scales["scale"] > 1].index:
            smaller = found.scales.copy()
            smaller.loc[at, "scale"] /= 2
            halved = type(found)(goal, found.parameters, smaller)
            assert not beyond(table, halved.divisions, (), goal, LAYOUT).empty


def test_the_largest_of_all_cases_decides_and_is_named():
    both = pd.concat(
        [plain(), ranges({V: 1.0, END: 1.0, HIDDEN: [1, 1, 6 * MAX, 1]}, prompt=3, seed=9)], ignore_index=True
    )
    found = choose(both, ALL, Goal(FLOAT16, 1), LAYOUT)
    assert scales(found, FEED) == [1, 1, 16, 1]
    row = found.scales[(found.scales["parameter"] == "hidden") & (found.scales["block"] == 2)].iloc[0]
    assert (row["prompt_id"], row["seed"], row["step"], row["amax"]) == (3, 9, 1, 6 * MAX)


def test_underflow_is_stated_beside_the_headroom():
    small = ranges({V: 1.0, END: 1.0, HIDDEN: 1024 * MAX}, rms=2.0**-6)
    found = choose(small, ALL, Goal(FLOAT16, 0), LAYOUT).scales.set_index("parameter")
    assert (found.loc["hidden", "scale"] == 1024).all()
    assert (found.loc["hidden", "normal_bits"] == -6 - 10 + 14).all()  # 2^-6 / 2^10 under 2^-14
    assert (found.loc["qkv", "normal_bits"] == 8).all()


def test_places_that_nothing_scales_are_named_the_worst_first():
    table = pd.concat(
        [plain(HIDDEN=4 * MAX), ranges({"txt_in": 3 * MAX, "img_in": MAX, "transformer_blocks.{}.img_add1": 9 * MAX})]
    )
    goal = Goal(FLOAT16, 0)
    found = choose(table, ALL, goal, LAYOUT)
    left = beyond(table, found.divisions, (), goal, LAYOUT)
    assert left["site"].tolist() == [*(f"transformer_blocks.{block}.img_add1" for block in range(4)), "txt_in"]
    wide = beyond(table, found.divisions, ["transformer_blocks.*.img_add1"], goal, LAYOUT)
    assert wide["site"].tolist() == ["txt_in"]
    assert wide["headroom_bits"].item() == pytest.approx(-np.log2(3))


def test_a_container_counts_only_where_nothing_inside_was_recorded():
    table = ranges({"transformer_blocks.{}.attn": 1.0, V: 1.0, "txt_mlp": 1.0})
    assert set(without_containers(table)["site"]) == {*(V.format(block) for block in range(4)), "txt_mlp"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.assign(amax=t["amax"].where(t.index != 3, np.inf)),
            r"to_v is not finite in reference, set coverage",
        ),
        (
            lambda t: t[t["block"] != 2],
            "attention.qkv: nothing that it divides was recorded in 1 of 4 blocks, first in block 2",
        ),
        (lambda t: t[t["site"] == "x"], "No scale divides anything that was recorded"),
    ],
)
def test_ranges_that_no_scale_can_be_chosen_from(change, message):
    with pytest.raises(InputError, match=message):
        choose(change(plain()), ALL, Goal(FLOAT16, 1), LAYOUT)


@pytest.mark.parametrize("margin", [-1, 30, float("nan")])
def test_margins_that_no_scale_can_keep(margin):
    with pytest.raises(InputError, match=r"margin.bits is .* expected a number from 0 to 30"):
        Goal(FLOAT16, margin)


def test_divisors_are_the_products_of_the_scales_at_a_place():
    table = plain()
    divided = divisors(table, [Division(8, QKV.places), Division({0: 2, 2: 16}, OUT.places)], LAYOUT)
    by_site = dict(zip(table["site"], divided, strict=True))
    assert [by_site[V.format(b)] for b in range(4)] == [8] * 4
    assert [by_site[END.format(b)] for b in range(4)] == [16, 16, 128, 128]
    assert by_site[HIDDEN.format(0)] == 1


def test_a_massive_activation_that_the_coverage_set_lacks_is_named():
    """Planted in one held-out case and one place; with a margin that holds it, nothing fails."""
    rng = np.random.default_rng(2)
    for _ in range(3):
        block, prompt = int(rng.integers(4)), int(rng.integers(5))
        site = [V, END, HIDDEN][rng.integers(3)]
        needed = 2.0 ** rng.uniform(0, 6)
        coverage = plain(V=MAX * needed, END=MAX * needed**2, HIDDEN=MAX * needed)
        cases = [ranges({V: MAX * needed, END: MAX * needed**2, HIDDEN: MAX * needed}, "heldout", p) for p in range(5)]
        at = (cases[prompt]["site"] == site.format(block)).to_numpy()
        cases[prompt].loc[at, "amax"] *= 8.5
        heldout = pd.concat(cases, ignore_index=True)
        for margin, fails in ((1, True), (2, True), (4, False)):
            found = choose(coverage, ALL, Goal(FLOAT16, margin), LAYOUT)
            failed = failures(predicted(heldout, found.divisions, (), FLOAT16, LAYOUT))
            assert len(failed) == fails
            if fails:
                row = failed.iloc[0]
                assert (row["site"], row["prompt_id"], row["places"]) == (site.format(block), prompt, 1)
        margins = by_margin(coverage, heldout, ALL, FLOAT16, LAYOUT, (1, 4)).set_index("margin_bits")
        assert margins.loc[1, "failed"] == 1
        assert margins.loc[1, "site"] == site.format(block)
        assert margins.loc[4, "failed"] == 0
        assert margins["cases"].eq(5).all()


def test_measured_headroom_is_that_of_places_that_the_variant_stores_in_the_format():
    expected = predicted(plain(V=4 * MAX), [Division(8, QKV.places)], (), FLOAT16, LAYOUT)
    own = plain(V=MAX / 2, END=10 / 8, HIDDEN=10).assign(variant="scales", dtype="float16")
    own.loc[own["site"] == HIDDEN.format(0), "dtype"] = "float32"
    own.loc[own["site"] == HIDDEN.format(1), "amax"] = np.inf
    found = measured(expected, own, FLOAT16).set_index("site")
    assert HIDDEN.format(0) not in found.index
    assert np.isnan(found.loc[HIDDEN.format(1), "measured_bits"])
    rest = found.drop(HIDDEN.format(1))
    assert rest["measured_bits"].to_numpy() == pytest.approx(rest["headroom_bits"].to_numpy())
    assert found.loc[V.format(0), "measured_bits"] == 1


def activations(rows):
    columns = ("variant", "site", "port", "step", "amax", "rms", "num_nan", "dtype")
    table = pd.DataFrame([dict(zip(columns, row, strict=True)) for row in rows])
    given = {"prompt_id": 0, "seed": 0, "component": "transformer", "branch": "cond", "stream": "img", "block": 1}
    return table.assign(**given, amin_nonzero=0.1, num_inf=0, order=range(len(table)))


def test_ranges_of_a_run_are_the_extremes_over_steps():
    table = activations(
        [
            ("reference", "a", "out", 0, 3.0, 2.0, 0, "float32"),
            ("reference", "a", "out", 1, 9.0, 0.5, 0, "float32"),
            ("reference", "a", "out", 2, 1.0, 0.0, 0, "float32"),
            ("reference", "a", "in.0", 1, 99.0, 1.0, 0, "float32"),
            ("reference", "b", "out", 0, 3.0, 1.0, 2, "float32"),
            ("baseline", "a", "out", 0, 4.0, 1.0, 0, "bfloat16"),
            ("baseline", "b", "out", 0, 4.0, 1.0, 0, "float32"),
        ]
    )
    run = run_of({"activations": table})
    found = ranges_of({"c": run}).set_index(["variant", "site"])
    assert found.loc[("reference", "a"), ["amax", "step", "rms", "num_nonfinite"]].tolist() == [9, 1, 0.5, 0]
    assert found.loc[("reference", "b"), ["amax", "num_nonfinite"]].tolist() == [np.inf, 2]
    assert set(found["set"]) == {"c"}
    assert stored_in(found.reset_index(), "baseline", "bfloat16") == {("transformer", "a", "out")}
    assert set(ranges_of({"c": run}, ["baseline"])["variant"]) == {"baseline"}
    with pytest.raises(InputError, match="no activations of the variant x, but of reference, baseline"):
        ranges_of({"c": run}, ["x"])
    with pytest.raises(InputError, match="have no amax, amin_nonzero, rms"):
        ranges_of({"c": run_of({"activations": table[["variant", "site", "port"]]})})


def drift_run(drifts, prompts):
    """drifts: by variant, one a prompt."""
    rows = [
        {"variant": variant, "reference": "reference", "mode": "free", "prompt_id": number, "seed": 0, "step": 1}
        | {"component": "pipeline", "site": "euler_step", "port": "out", "rel_l2": value}
        for variant, values in drifts.items()
        for number, value in enumerate(values)
    ]
    return run_of({"drift": pd.DataFrame(rows)}, ["baseline", "again", "scales", "other"], prompts=prompts)


def test_drift_over_several_runs_is_judged_over_prompts():
    prompts = ["a", "b", "c", "d"]
    base = np.array([1.0, 1.1, 0.9, 1.05])
    runs = {
        name: drift_run({"baseline": base, "again": base * 1.01, "scales": base * ratio, "other": base * 1.5}, prompts)
        for name, ratio in (("x", 0.4), ("y", 0.9))
    }
    found = compared(runs, "scales", ["baseline", "other"], "again").set_index("against")
    assert found.loc["baseline", "ratio"] == pytest.approx(0.6)
    assert found.loc["baseline", ["cases", "finite", "verdict"]].tolist() == [8, 8, "supported"]
    assert found.loc["baseline", "floor"] == pytest.approx(0.01)
    assert compared(runs, "other", ["scales"]).iloc[0]["verdict"] == "refuted"
    broken = {"x": drift_run({"baseline": base, "again": base, "scales": base, "other": [np.nan, *base[1:]]}, prompts)}
    row = compared(broken, "scales", ["other"]).iloc[0]
    assert (row["verdict"], row["finite"], row["reason"]) == ("no comparison", 3, "1 cases of other are not finite")
    few = {"x": drift_run(dict.fromkeys(("baseline", "again", "scales", "other"), base[:2]), prompts[:2])}
    row = compared(few, "scales", ["other"]).iloc[0]
    assert (row["verdict"], row["reason"]) == ("inconclusive", "too few prompts: 2, expected at least 3")


def test_failed_cases_and_their_words():
    generations = pd.DataFrame({"variant": "scales", "prompt_id": [0, 1], "seed": 4, "num_nonfinite": [0, 7]})
    arose = pd.DataFrame(
        {"variant": ["scales"], "prompt_id": [1], "seed": [4], "component": ["transformer"], "site": [V.format(2)]}
        | {"port": ["out"], "branch": ["cond"], "step": [3]}
    )
    made = {"generations": generations, "nonfinite": arose}
    runs = {
        name: run_of(made, ["scales"], prompts=["p", "q"], seeds=[4], case={"steps": steps, "height": 64})
        for name, steps in (("one", 5), ("two", 9))
    }
    found = failed_cases(runs, "scales")
    assert found["set"].tolist() == ["one", "two"]
    assert case_words(found.iloc[1], runs) == "'q', seed 4, steps=9"
    assert place_words(found.iloc[1], LAYOUT) == "transformer_blocks.2.attn.to_v, step 3, cond"
