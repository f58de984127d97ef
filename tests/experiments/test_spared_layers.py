"""Searched sets beside those that published files spare: the experiment builds, and each has a rival of its size."""

from pathlib import Path

import pytest
from hydra import compose

from experiments.spared_layers.figure import FORMATS, SETS, judged
from precision_lab.cli.config import build_spec
from tests.composing import configurations

CONF = Path(__file__).parents[2] / "experiments" / "spared_layers" / "conf"


@pytest.fixture(scope="module")
def spec():
    with configurations():
        overrides = ["+exp=spared_layers_searched", f"hydra.searchpath=[file://{CONF}]"]
        return build_spec(compose("config", overrides=overrides), [])


def test_every_set_is_a_variant_in_every_format_where_it_is_one_of_its_own(spec):
    names = {variant.name for variant in spec.variants}
    wanted = {f"{form}_{name}" for form in FORMATS for name in SETS}
    assert wanted - names == {"affine4_nunchaku", "fp8_mflux"}


def test_each_published_set_is_judged_against_every_linear_and_against_a_searched_set(spec):
    names = {variant.name for variant in spec.variants}
    published = {f"{form}_{name}" for form in FORMATS for name in SETS} & names
    for prefix in ("SL", "SS"):
        own = {claim["subject"]: claim for claim in spec.claims if claim["id"].startswith(f"{prefix}_")}
        assert published <= own.keys(), prefix
    rivals = {claim["subject"]: claim["against"] for claim in spec.claims if claim["id"].startswith("SS_")}
    for name in published:
        form = name.partition("_")[0]
        assert rivals[name].startswith(f"{form}_searched_")
        assert rivals[name] in names


def test_sets_after_exchange_are_beside_the_published_ones_of_their_size():
    with configurations():
        overrides = ["+exp=spared_layers_exchanged", f"hydra.searchpath=[file://{CONF}]"]
        spec = build_spec(compose("config", overrides=overrides), [])
    names = {variant.name for variant in spec.variants}
    judged_again = [claim for claim in spec.claims if claim["id"].startswith("SE_")]
    assert judged_again
    for claim in judged_again:
        form, _, name = claim["subject"].partition("_")
        assert claim["against"] == f"{form}_exchanged_{name}"
        assert {claim["subject"], claim["against"]} <= names


@pytest.mark.parametrize(
    ("verdict", "interval", "word"),
    [
        ("refuted", (1.2, 1.4), "dominated"),
        ("supported", (0.7, 0.9), "better"),
        ("supported", (0.9, 1.01), "tie"),
        ("inconclusive", (0.8, 1.4), "undecided"),
        ("inconclusive", (1.01, 1.4), "undecided"),
    ],
)
def test_a_set_is_dominated_only_if_its_claim_is_refuted(verdict, interval, word):
    variant = {"bits_per_weight": 5.0, "latent_rel_l2": 0.2}
    claim = {"id": "SS_x", "subject": "fp8_nf4", "against": "a", "ci95": interval, "verdict": verdict, "effect": 1.0}
    found = judged({"variants": {"fp8_nf4": variant, "a": variant}, "claims": [claim]})
    assert found["nf4"]["fp8"]["word"] == word
    assert found["nf4"]["nvfp4"]["word"] is None
