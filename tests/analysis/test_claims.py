"""Verdicts: what an interval says of a relation, and that claims rest on the tables alone."""

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.claims import Claim, judge, judge_operations
from precision_lab.analysis.measures import final_drift
from precision_lab.errors import InputError
from precision_lab.record.manifest import Storage, VariantEntry
from tests.fabricated import LANGUAGE_MODEL, PLAIN, QWEN_IMAGE, run_of

BASE = {"id": "C", "text": "t", "source": "s", "subject": "a", "against": "b"}


def tables(values, site="transformer_blocks.3.img_mlp", bad=0):
    """A run in which each variant has one amax, drift and latency a case or round."""
    return run_of(frames(values, site, bad), list(values))


def frames(values, site="transformer_blocks.3.img_mlp", bad=0):
    """The tables of such a run."""
    cases = [(prompt_id, 0) for prompt_id in range(4)]
    activations, drift, latency = [], [], []
    for variant, per_case in values.items():
        for (prompt_id, seed), value in zip(cases, per_case, strict=True):
            at = {"variant": variant, "prompt_id": prompt_id, "seed": seed}
            for step in (0, 1):
                activations.append(
                    {
                        **at,
                        "component": "transformer",
                        "site": site,
                        "port": "out",
                        "stream": "img",
                        "step": step,
                        "amax": value * (1 - 0.5 * step),
                        "num_nan": bad,
                        "num_inf": 0,
                    }
                )
                where = {"component": "pipeline", "site": "euler_step", "mode": "free", "step": step}
                drift.append({**at, **where, "rel_l2": value * (0.1 + step)})
        latency += [{"variant": variant, "what": "step", "round": r, "seconds": v} for r, v in enumerate(per_case)]
    named = {"activations": activations, "drift": drift, "latency": latency}
    return {name: pd.DataFrame(rows) for name, rows in named.items()}


@pytest.mark.parametrize("metric", ["amax", "drift", "latency"])
@pytest.mark.parametrize(("factor", "verdict"), [(2.0, "supported"), (1.0, "refuted"), (0.5, "refuted")])
def test_each_metric_sees_a_planted_factor(metric, factor, verdict):
    base = np.array([1.0, 3.0, 0.2, 7.0])
    sites = {"sites": "transformer_blocks.*.img_mlp"} if metric == "amax" else {}
    claim = Claim.from_dict({**BASE, "metric": metric, "relation": "larger", "margin": 0.05, **sites})
    result = judge(claim, tables({"a": factor * base * [1.01, 0.99, 1.0, 1.005], "b": base}))
    assert result.verdict == verdict
    assert result.effect == pytest.approx(factor, rel=0.02)
    assert result.lo <= result.effect <= result.hi


@pytest.mark.parametrize(
    ("sites", "found"), [("blocks.-1.mlp", True), ("blocks.{-2..-1}.*", True), ("blocks.-5.*", False)]
)
def test_sites_of_a_claim_count_from_the_last_block_recorded(sites, found):
    values = {"a": 2 * np.array([1.0, 3.0, 0.2, 7.0]), "b": np.array([1.0, 3.0, 0.2, 7.0])}
    claim = Claim.from_dict({**BASE, "metric": "amax", "relation": "larger", "sites": sites})
    assert (judge(claim, tables(values, site="blocks.3.mlp")).verdict == "supported") == found


@pytest.mark.parametrize("factor", [1.1, 1 / 1.1])
def test_a_difference_inside_the_noise_floor_is_no_finding_in_either_direction(factor):
    base = np.array([1.0, 3.0, 0.2, 7.0])
    values = {"a": factor * base * [1, 1.001, 1, 0.999], "b": base, "equivalent": base * [1.0, 0.8, 1.1, 1.0]}
    claim = {**BASE, "metric": "drift", "relation": "larger" if factor > 1 else "smaller"}
    assert judge(Claim.from_dict(claim), tables(values)).verdict == "supported"
    floored = judge(Claim.from_dict({**claim, "noise": "equivalent"}), tables(values))
    assert floored.verdict == "inconclusive"
    logs = np.log([0.8, 1.1])
    assert floored.noise_floor == pytest.approx(np.exp(np.sqrt((logs**2).sum() / 4)) - 1)


@pytest.mark.parametrize(
    ("stated", "verdict", "effect"),
    [
        ({"metric": "bits_per_weight", "relation": "smaller"}, "supported", 4.5 / 16),
        ({"metric": "weight_bytes", "relation": "smaller", "margin": 0.01}, "supported", 576 / 2048),
        ({"metric": "bits_per_weight", "relation": "larger"}, "refuted", 4.5 / 16),
        ({"metric": "bits_per_weight", "relation": "equal", "against": "c"}, "supported", 1.0),
        ({"metric": "bits_per_weight", "relation": "smaller", "against": None, "bound": 5.0}, "supported", 4.5),
    ],
)
def test_the_size_of_weights_is_known_without_an_interval(stated, verdict, effect):
    """One prompt is enough, and a claim on a run that did not record it is not judged."""
    four, half = Storage(1024, 576, 4.5), Storage(1024, 2048, 16.0)
    held = {"a": four, "b": half, "c": four}
    entries = {name: VariantEntry("bfloat16", weights={"transformer": stored}) for name, stored in held.items()}
    claim = Claim.from_dict({**BASE, **stated})
    found = judge(claim, run_of({}, entries))
    assert (found.verdict, found.effect, found.lo, found.hi) == (verdict, *[pytest.approx(effect)] * 3)
    assert judge(claim, run_of({}, "abc")).reason == "nothing was measured of variant a"


def test_of_several_equivalent_runs_the_furthest_is_the_floor():
    base = np.array([1.0, 3.0, 0.2, 7.0])
    values = {"a": 1.1 * base, "b": base, "near": base * 1.01, "far": base * [1.2, 1 / 1.2, 1.2, 1 / 1.2]}
    claim = {**BASE, "metric": "drift", "relation": "larger"}
    verdicts = {
        name: judge(Claim.from_dict({**claim, "noise": names}), tables(values))
        for name, names in (("near", "near"), ("both", ["near", "far"]))
    }
    assert verdicts["near"].verdict == "supported"
    assert verdicts["both"].verdict == "inconclusive"
    assert verdicts["both"].noise_floor == pytest.approx(0.2)
    with pytest.raises(InputError, match="noise is 3"):
        Claim.from_dict({**claim, "noise": 3})


def test_without_a_noise_floor_there_is_no_verdict():
    values = {"a": np.full(4, 1.5), "b": np.ones(4), "equivalent": [1.0, np.nan, 1.0, 1.0]}
    result = judge(
        Claim.from_dict({**BASE, "metric": "drift", "relation": "larger", "noise": "equivalent"}), tables(values)
    )
    assert (result.verdict, result.reason) == ("inconclusive", "the noise floor is undefined")


@pytest.mark.parametrize("relation", ["zero", "nonzero"])
def test_a_variant_that_failed_supports_nothing(relation):
    claim = {"id": "C", "text": "t", "source": "s", "subject": "a", "metric": "nonfinite", "relation": relation}
    failed = run_of(frames({"b": np.ones(4)}), "ab")
    assert judge(Claim.from_dict(claim), failed).verdict == "inconclusive"


def test_non_finite_values_are_never_a_verdict():
    claim = Claim.from_dict({**BASE, "metric": "amax", "relation": "not_larger", "sites": "**"})
    result = judge(claim, tables({"a": np.ones(4), "b": np.ones(4)}, bad=1))
    assert result.verdict == "inconclusive"
    assert "non-finite" in result.reason


@pytest.mark.parametrize("prompts", [1, 2, 3])
def test_fewer_than_three_prompts_have_no_interval_whatever_their_seeds(prompts):
    drift = frames({"a": np.full(4, 2.0), "b": np.ones(4)})["drift"].query(f"prompt_id < {prompts}")
    drift = pd.concat([drift.assign(seed=seed) for seed in range(6)])
    judged = judge(Claim.from_dict({**BASE, "metric": "drift", "relation": "larger"}), run_of({"drift": drift}, "ab"))
    assert judged.effect == pytest.approx(2)
    if prompts < 3:
        assert judged.verdict == "inconclusive"
        assert judged.reason == f"too few prompts: {prompts}, expected at least 3"
    else:
        assert (judged.verdict, judged.reason) == ("supported", "")


def test_seeds_of_a_prompt_are_no_new_prompts():
    """Three equal seeds of each prompt say as much as one; treated as independent they would halve the interval."""
    base = np.array([1.0, 3.0, 0.2, 7.0])
    once = frames({"a": base * [1.1, 1.4, 0.9, 1.2], "b": base})["drift"]
    thrice = pd.concat([once.assign(seed=seed) for seed in range(3)])
    claim = Claim.from_dict({**BASE, "metric": "drift", "relation": "larger"})
    one, three = (judge(claim, run_of({"drift": drift}, "ab")) for drift in (once, thrice))
    assert (three.effect, three.lo, three.hi) == pytest.approx((one.effect, one.lo, one.hi))
    assert one.verdict == "inconclusive"


def test_seeds_are_the_units_of_a_subject_that_takes_no_prompt():
    drift = frames({"a": np.full(4, 2.0), "b": np.ones(4)})["drift"]
    drift = drift.assign(seed=drift["prompt_id"], prompt_id=0)
    claim = Claim.from_dict({**BASE, "metric": "drift", "relation": "larger"})
    assert judge(claim, run_of({"drift": drift}, "ab", prompts=[""])).verdict == "supported"
    assert judge(claim, run_of({"drift": drift}, "ab", prompts=["text"])).reason.startswith("too few prompts: 1,")
    few = judge(claim, run_of({"drift": drift.query("seed < 2")}, "ab", prompts=[""]))
    assert few.reason == "too few seeds: 2, expected at least 3"


def test_prompts_with_more_seeds_weigh_no_more():
    base = np.ones(4)
    drift = frames({"a": [2.0, 1.0, 1.0, 1.0], "b": base, "c": [4.0, 1.0, 1.0, 1.0]})["drift"]
    more = pd.concat([drift, *(drift.query("prompt_id == 0").assign(seed=seed) for seed in (1, 2))])
    claim = Claim.from_dict({**BASE, "metric": "drift", "relation": "larger", "noise": "c"})
    judged = judge(claim, run_of({"drift": more}, "abc"))
    assert judged.effect == pytest.approx(2 ** (1 / 4))
    assert judged.noise_floor == pytest.approx(np.expm1(np.log(4) / 2))


def test_a_variant_that_was_not_run():
    result = judge(Claim.from_dict({**BASE, "metric": "drift", "relation": "equal"}), tables({"a": np.ones(4)}))
    assert (result.verdict, result.reason) == ("inconclusive", "variant b was not run")


def test_counts():
    claim = {"id": "C", "text": "t", "source": "s", "subject": "a", "metric": "nonfinite"}
    overflowing = tables({"a": np.ones(4)}, bad=3)
    assert judge(Claim.from_dict({**claim, "relation": "nonzero"}), overflowing).verdict == "supported"
    assert judge(Claim.from_dict({**claim, "relation": "zero"}), overflowing).verdict == "refuted"
    assert judge(Claim.from_dict({**claim, "relation": "zero"}), tables({"a": np.ones(4)})).verdict == "supported"


@pytest.mark.parametrize(
    "changes",
    [
        {"metric": "amx"},
        {"relation": "bigger"},
        {"relation": "nonzero"},
        {"metric": "narrow_operations"},
        {"metric": "amax"},
        {"against": ""},
        {"text": None},
        {"sight": "x"},
    ],
    ids=str,
)
def test_malformed_claims(changes):
    with pytest.raises(InputError, match="Claim C"):
        Claim.from_dict({**BASE, "metric": "drift", "relation": "larger", **changes})


def shares(largest):
    """A run of one variant with the given largest share a case, beside smaller ones and other branches."""
    rows = [
        {"variant": "a", "prompt_id": prompt, "seed": 0, "branch": branch, "step": step, "stream": stream}
        | {"component": "transformer", "site": "s", "port": "out", "final_share": value}
        for prompt, share in enumerate(largest)
        for step in (0, 1)
        for branch, stream, value in (
            ("cond", "img", share),
            ("cond", "img", 0.1),
            ("cond", "txt", 0.9),
            ("uncond", "img", 0.95),
            ("cond", "img", np.nan),
        )
    ]
    return run_of({"activations": pd.DataFrame(rows)}, "a")


@pytest.mark.parametrize(
    ("stream", "largest", "verdict"),
    [
        ("img", [0.2, 0.25, 0.22], "supported"),
        ("img", [0.7, 0.72, 0.8], "refuted"),
        ("img", [0.2, 0.9, 0.4], "inconclusive"),
        ("txt", [0.2, 0.25, 0.22], "refuted"),
        (None, [0.2, 0.25, 0.22], "supported"),
    ],
)
def test_a_share_is_judged_against_a_bound(stream, largest, verdict):
    claim = {"id": "S4", "text": "t", "source": "s", "subject": "a", "metric": "largest_share"}
    claim |= {"relation": "smaller", "bound": 0.5, "stream": stream}
    judged = judge(Claim.from_dict(claim), shares(largest))
    assert judged.verdict == verdict
    main = QWEN_IMAGE.main_stream
    expected = {main: np.exp(np.log(largest).mean()), "txt": 0.9}[stream or main]
    assert judged.effect == pytest.approx(expected)


def drift_rows(variant, site, component, errors, step):
    """Rows of one output, one a prompt."""
    at = {"variant": variant, "seed": 0, "component": component, "site": site, "mode": "free", "step": step}
    return [{**at, "prompt_id": prompt, "rel_l2": error} for prompt, error in enumerate(errors)]


def pictures(latents, pixels, variant="a"):
    """Tables with the latents of two steps, those of the first off by a half, and the pixels, which have no step."""
    rows = drift_rows(variant, "euler_step", "pipeline", np.full(len(latents), 0.5), 0)
    rows += drift_rows(variant, "euler_step", "pipeline", latents, 1)
    rows += drift_rows(variant, "to_pixels", "pipeline", pixels, pd.NA)
    rows += [{**row, "mode": "teacher", "rel_l2": 0.9} for row in rows]
    return pd.DataFrame(rows).astype({"step": "Int64"})


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        ((), [0.1, 0.2, 0.15]),
        ("pipeline:to_pixels", [0.3, 0.01, 0.2]),
        ("pipeline:{euler_step,to_pixels}", [0.3, 0.2, 0.2]),
        ("pipeline:guidance", None),
    ],
    ids=str,
)
def test_drift_is_that_of_the_last_step_at_the_named_outputs(sites, expected):
    drift = pictures([0.1, 0.2, 0.15], [0.3, 0.01, 0.2])
    claim = Claim.from_dict(
        {"id": "C", "text": "t", "source": "s", "subject": "a", "metric": "drift"}
        | {"relation": "smaller", "bound": 0.25, "sites": sites}
    )
    judged = judge(claim, run_of({"drift": drift}, "a"))
    if expected is None:
        assert judged.reason == "nothing was measured of variant a"
    else:
        assert judged.effect == pytest.approx(np.exp(np.log(expected).mean()))


@pytest.mark.parametrize(("metric", "expected"), [("drift", 0.5), ("base_drift", 2.0)])
def test_what_settings_of_its_own_change_is_in_the_base_drift_alone(metric, expected):
    """A variant without any is compared with one reference."""
    latents = np.array([0.1, 0.2, 0.15])
    own = pictures(latents / 2, latents, "a")
    base = own[own["mode"] == "free"].assign(mode="base", rel_l2=lambda rows: rows["rel_l2"] * 4)
    drift = pd.concat([own, base, pictures(latents, latents, "b")])
    claim = {"id": "C", "text": "t", "source": "s", "subject": "a", "against": "b", "relation": "smaller"}
    judged = judge(Claim.from_dict({**claim, "metric": metric}), run_of({"drift": drift}, ("a", "b")))
    assert judged.effect == pytest.approx(expected)


def test_a_bound_is_blurred_by_what_equals_the_subject():
    latents = np.array([0.22, 0.23, 0.22])
    drift = pd.concat([pictures(latents, latents), pictures(latents * [1.3, 1 / 1.3, 1.3], latents, "equivalent")])
    claim = {"id": "C", "text": "t", "source": "s", "subject": "a", "metric": "drift", "relation": "smaller"}
    sharp, blurred = (
        judge(
            Claim.from_dict({**claim, "bound": 0.25, "noise": noise}),
            run_of({"drift": drift}, ("a", "equivalent")),
        )
        for noise in ((), "equivalent")
    )
    assert sharp.verdict == "supported"
    assert sharp.lo < sharp.effect < sharp.hi < 0.25, "the quantity, not its ratio to the bound"
    assert blurred.verdict == "inconclusive"
    assert blurred.noise_floor == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("verdicts", "verdict", "effect"),
    [
        (["supported", "supported"], "supported", 0),
        (["supported", "refuted", "refuted"], "refuted", 2),
        (["refuted", "inconclusive"], "refuted", 1),
        (["supported", "inconclusive"], "inconclusive", 0),
        (["inconclusive"], "inconclusive", 0),
        ([], "inconclusive", np.nan),
    ],
    ids=str,
)
def test_a_device_is_judged_by_its_operations(verdicts, verdict, effect):
    claim = {"id": "S6", "text": "t", "source": "s", "metric": "narrow_operations", "relation": "zero"}
    judged = judge_operations(Claim.from_dict({**claim, "subject": "mlx"}), verdicts)
    assert judged.verdict == verdict
    assert judged.effect == pytest.approx(effect, nan_ok=True)


def test_runs_and_devices_measure_different_things():
    claim = {"id": "C", "text": "t", "source": "s", "subject": "a"}
    operations = Claim.from_dict({**claim, "metric": "narrow_operations", "relation": "zero"})
    values = Claim.from_dict({**claim, "metric": "nonfinite", "relation": "zero"})
    for judged in (judge(operations, tables({"a": np.ones(4)})), judge_operations(values, ["supported"])):
        assert (judged.verdict, judged.reason) == ("inconclusive", "nothing was measured of variant a")


# --- other layouts ---------------------------------------------------------------------------------------------------


def results(component, site, **columns):
    """Rows at the result of three prompts and two steps, and larger errors elsewhere; columns: a value a step."""
    rows = []
    for prompt in range(3):
        for step in (0, 1):
            place = {"variant": "a", "prompt_id": prompt, "seed": 0, "mode": "free", "step": step}
            errors = {name: (1 + prompt / 10) * values[step] for name, values in columns.items()}
            rows.append({**place, "component": component, "site": site, **errors})
            rows.append({**place, "component": component, "site": "elsewhere", **dict.fromkeys(columns, 9.0)})
    return pd.DataFrame(rows)


def test_drift_is_that_of_the_result_of_the_layout():
    run = run_of({"drift": results("net", "head", rel_l2=(0.7, 0.2))}, "a", layout=PLAIN)
    claim = {**BASE, "against": "", "metric": "drift", "relation": "smaller", "bound": 0.5}
    named = {**claim, "sites": "head"}
    for given in (claim, named, {**claim, "sites": "net:head"}):
        judged = judge(Claim.from_dict(given), run)
        assert judged.verdict == "supported"
        assert judged.effect == pytest.approx(np.exp(np.log([0.2, 0.22, 0.24]).mean()))


def test_without_streams_and_branches_all_shares_count():
    share = shares([0.2, 0.25, 0.22]).activations.query("branch == 'cond' and stream == 'img'")
    share = share.assign(branch=pd.Series(pd.NA, share.index, "string"), stream="-", component="net")
    claim = {**BASE, "against": "", "metric": "largest_share", "relation": "smaller", "bound": 0.5, "stream": "-"}
    judged = judge(Claim.from_dict(claim), run_of({"activations": share}, "a", layout=PLAIN))
    assert judged.effect == pytest.approx(np.exp(np.log([0.2, 0.25, 0.22]).mean()))


@pytest.mark.parametrize("layout", [LANGUAGE_MODEL, PLAIN], ids=["distribution", "plain"])
def test_divergence_is_the_mean_over_steps_of_a_result_that_holds_logits(layout):
    drift = results("model", ".", rel_l2=(0.1, 0.1), kl=(0.02, 0.04))
    claim = Claim.from_dict({**BASE, "against": "", "metric": "kl", "relation": "smaller", "bound": 0.1})
    judged = judge(claim, run_of({"drift": drift}, "a", layout=layout))
    if layout is PLAIN:
        assert judged.reason == "nothing was measured of variant a"
    else:
        assert judged.effect == pytest.approx(np.exp(np.log([0.03, 0.033, 0.036]).mean()))
        assert judged.verdict == "supported"


def test_an_undefined_divergence_is_no_verdict():
    drift = results("model", ".", rel_l2=(0.1, 0.1), kl=(0.02, 0.04))
    drift.loc[drift["prompt_id"] == 1, "kl"] = np.nan
    claim = Claim.from_dict({**BASE, "against": "", "metric": "kl", "relation": "smaller", "bound": 0.1})
    judged = judge(claim, run_of({"drift": drift}, "a", layout=LANGUAGE_MODEL))
    assert (judged.verdict, judged.reason) == ("inconclusive", "undefined or non-finite values")


def test_a_claim_has_an_opponent_or_a_bound():
    for wrong in ({"bound": 1.0}, {"against": "", "bound": None}, {"against": "", "bound": -1}):
        with pytest.raises(InputError, match="bound"):
            Claim.from_dict({**BASE, "metric": "drift", "relation": "larger", **wrong})


def test_the_last_step_is_that_of_each_case():
    """Texts of a language model have different numbers of tokens."""
    rows = [
        {"variant": "a", "mode": "free", "prompt_id": prompt, "seed": 0, "step": step, "component": "net"}
        | {"site": "head", "port": "out", "rel_l2": 0.1 * (prompt + 1) + step}
        for prompt, steps in enumerate((2, 5, 3))
        for step in range(steps)
    ]
    run = run_of({"drift": pd.DataFrame(rows)}, ("a",), layout=PLAIN)
    assert final_drift(run, "a").tolist() == pytest.approx([1.1, 4.2, 2.3])
