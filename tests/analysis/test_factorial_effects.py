"""Effects of factorials on drifts that are constructed, so that effects and interactions are known in closed form."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.factorial import contrasts, designs, effects, records
from precision_lab.lab.factorial import label, treatments
from tests.fabricated import run_of

CASES = list(itertools.product((0, 1, 2, 3), (3, 5)))
FACTORS = ("a", "b", "c")
# log10 of the drift for the product of the factors' signs
TRUE = {("a",): -0.6, ("b",): 0.2, ("c",): 0.0, ("a", "b"): -0.1, ("a", "c"): 0.0, ("b", "c"): 0.0}
TRUE[("a", "b", "c")] = 0.03


def constructed(runs, coefficients, scatter=0.0, rng_seed=0):
    """Drifts whose logarithm is a level of the case plus half of each coefficient times its product of signs."""
    rng = np.random.default_rng(rng_seed)
    level = rng.normal(-2, 1, len(CASES))
    index = pd.MultiIndex.from_tuples(CASES, names=["prompt_id", "seed"])
    drifts = {}
    for on in runs:
        signs = {factors: np.prod([1 if name in on else -1 for name in factors]) for factors in coefficients}
        value = level + sum(0.5 * coefficients[factors] * sign for factors, sign in signs.items())
        drifts[label("base", on)] = pd.Series(10 ** (value + scatter * rng.standard_normal(len(CASES))), index)
    return drifts


def table(drifts):
    """The drifts as rows of a drift table, after the last of two steps."""
    rows = [
        {"variant": name, "prompt_id": prompt, "seed": seed, "mode": "free", "step": step}
        | {"component": "pipeline", "site": "euler_step", "rel_l2": value if step else 0.5}
        for name, values in drifts.items()
        for (prompt, seed), value in values.items()
        for step in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_effects_are_those_planted_whatever_the_level_of_a_case():
    drifts = constructed(treatments(FACTORS, {}), TRUE)
    (design,) = designs(drifts)
    assert (design.base, design.factors) == ("base", FACTORS)
    found = {effect.factors: effect for effect in effects(design, drifts)}
    assert found.keys() == TRUE.keys()
    for factors, exponent in TRUE.items():
        assert found[factors].ratio == pytest.approx(10**exponent, rel=1e-9)
        assert found[factors].lo == pytest.approx(10**exponent, rel=1e-6), "nothing differs between the cases"
        assert found[factors].aliases == ()


def test_two_factors_by_hand():
    """a halves the drift, b halves it, together they halve it: each main effect 1/sqrt(2), interaction sqrt(2)."""
    one = pd.Series([1.0, 2.0], pd.MultiIndex.from_tuples([(0, 0), (1, 0)], names=["prompt_id", "seed"]))
    drifts = {"base": one, "base+a": one / 2, "base+b": one / 2, "base+a+b": one / 2}
    (design,) = designs(drifts)
    found = {effect.factors: effect.ratio for effect in effects(design, drifts)}
    assert found == pytest.approx({("a",): 0.5**0.5, ("b",): 0.5**0.5, ("a", "b"): 2**0.5})


def test_intervals_cover_and_findings_respect_the_floor():
    covered, said = 0, {}
    for rng_seed in range(60):
        drifts = constructed(treatments(FACTORS, {}), TRUE, scatter=0.03, rng_seed=rng_seed)
        (design,) = designs(drifts)
        for effect in effects(design, drifts, floor=0.2):
            covered += effect.lo <= 10 ** TRUE[effect.factors] <= effect.hi
            said.setdefault(effect.factors, set()).add(effect.finding)
    assert covered / (60 * len(TRUE)) == pytest.approx(0.95, abs=0.03)
    assert said["a",] == {"less drift"}
    assert said["c",] == {"none above the noise"}
    assert "more drift" in said["b",]
    assert said["a", "b", "c"] <= {"none above the noise", "inconclusive"}


def test_without_a_floor_an_interval_around_one_says_nothing():
    drifts = constructed(treatments(FACTORS, {}), TRUE, scatter=0.05)
    (design,) = designs(drifts)
    findings = {effect.factors: effect.finding for effect in effects(design, drifts)}
    assert findings["a",] == "less drift"
    assert "none above the noise" not in findings.values()


def test_a_fraction_names_what_it_cannot_tell_apart():
    runs = treatments(("a", "b", "c", "d"), {"d": ["a", "b", "c"]})
    coefficients = {("a",): -0.3, ("a", "b"): 0.2, ("c", "d"): 0.1}
    drifts = constructed(runs, coefficients)
    (design,) = designs(drifts)
    found = {frozenset(effect.factors): effect for effect in effects(design, drifts)}
    assert found[frozenset("a")].ratio == pytest.approx(10**-0.3)
    pair = found.get(frozenset("ab")) or found[frozenset("cd")]
    assert pair.ratio == pytest.approx(10**0.3), "the sum of both"
    assert len(pair.aliases) == 1
    assert len(found) == 7


def test_an_alias_has_its_sign():
    (design,) = designs([label("base", on) for on in treatments(FACTORS, {"c": ["a", "b"]})])
    named = {"".join(sorted(factors)): aliases for factors, aliases in contrasts(design).items()}
    (alias,) = named["c"]
    assert alias in ("-a x b", "-b x a")


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["baseline", "reordered", "float16"], 0),
        (["base", "base+a", "base+b"], 0),
        (["base", "base+a"], 0),
        (["base+a", "base+b", "base+a+b"], 0),
        (["x", "base", "base+a", "base+b", "base+a+b", "base2"], 1),
        (["p", "p+a", "p+b", "p+a+b", "q", "q+a", "q+c", "q+a+c"], 2),
    ],
    ids=str,
)
def test_only_whole_factorials_are_found(names, count):
    assert len(designs(names)) == count


def test_records_are_strict_json_with_the_floor_of_the_base():
    drifts = constructed(treatments(FACTORS, {}), TRUE)
    rows = table({**drifts, "equivalent": drifts["base"] * 1.1})
    claim = {"id": "C", "text": "t", "source": "s", "metric": "drift", "relation": "larger", "subject": "base+a"}
    claims = [{**claim, "against": "base", "noise": "equivalent"}]
    (record,) = records(run_of({"drift": rows}, [*drifts, "equivalent"], claims=claims))
    assert record["noise_floor"] == pytest.approx(0.1)
    assert len(record["effects"]) == 7
    assert record["effects"][0]["effect"] == pytest.approx(10**-0.6)
    assert record["drift"]["base"] == pytest.approx(np.exp(np.log(drifts["base"]).mean()))
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("spoilt", [np.nan, 0.0, None])
def test_a_run_without_finite_drift_leaves_no_effects(spoilt):
    rows = table(constructed(treatments(("a", "b"), {}), {("a",): -0.3}))
    lost = rows["variant"] == "base+b"
    if spoilt is None:
        rows = rows[~lost]
    else:
        rows.loc[lost & (rows["seed"] == 5), "rel_l2"] = spoilt
    (record,) = records(run_of({"drift": rows}, ["base", "base+a", "base+b", "base+a+b"]))
    assert record["effects"] == []
    assert "base+b" in record["effects_reason"]
    assert record["noise_floor"] is None
