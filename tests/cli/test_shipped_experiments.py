"""Every shipped experiment composes, names what exists, and makes a spec; every claim is judged by one of them."""

from functools import cache
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import OmegaConf

from precision_lab.analysis.factorial import designs
from precision_lab.cli.config import build_spec
from precision_lab.cli.culprits_schema import Culprits
from precision_lab.cli.literal import settled
from precision_lab.cli.probes import without_settings_of_absent
from precision_lab.cli.search_schema import Search
from precision_lab.errors import InputError
from precision_lab.lab.plan import plan
from tests.composing import configurations
from tests.spread import thinned

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "exp").glob("*.yaml"))


@cache
def composed(name):
    with configurations():
        return build_spec(compose("config", overrides=[f"+exp={name}"]), [])


@pytest.mark.parametrize("name", thinned(NAMES, keep=9))
def test_it_builds_and_its_claims_name_its_variants(name):
    spec = composed(name)
    assert spec.experiment == name
    variants = {variant.name for variant in spec.variants}
    for claim in spec.claims:
        noise = claim.get("noise") or []
        named = {claim["subject"], claim.get("against"), *([noise] if isinstance(noise, str) else noise)} - {None}
        assert named <= variants


@pytest.mark.parametrize(
    ("name", "command", "kind"),
    [
        ("findings", "search", Search),
        ("stream_growth", "culprits", Culprits),
        *(
            pytest.param(name, command, kind, marks=pytest.mark.slow)
            for name in NAMES
            for command, kind in (("search", Search), ("culprits", Culprits))
            if (name, command) not in (("findings", "search"), ("stream_growth", "culprits"))
        ),
    ],
)
def test_commands_that_record_no_ranges_take_it(name, command, kind):
    """An experiment may narrow the sites of a probe that the command does not compose."""
    with configurations():
        config = settled(compose(command, overrides=[f"+exp={name}"]))
    spec = build_spec(without_settings_of_absent(config), [], kind)
    assert "range" not in spec.probes
    assert len(spec.variants) >= 1


# experiments with techniques, adapters or claims of Qwen-Image 1.x: what they say of 2.1
BOUND_TO_1X = {
    "formats": "variants.q6_k: technique q6_k leaves all 224 linears .*expected a multiple of 256",
    "formats_256": "variants.q6_k: coded_weights: .*expected a multiple of 256",
    "fp16_minimal": "variants.fp16_minimal: technique fp16_minimal: Site pattern",
    "fp8_lightning": "reference: .* is of no linear of this model",
    "lora_on_quantised": "reference: .* is of no linear of this model",
    "recipes": "variants.fp8_skip_sensitive: technique fp8_skip_sensitive: Site pattern",
    "spared_layers": "variants.affine4_sglang_fp8: technique .*: Site pattern",
    "stream_growth": "Claim S4_txt: unknown stream 'txt' of this model.*Or leave the claim out",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_fits_the_other_architecture_or_says_what_does_not(name):
    with configurations():
        spec = build_spec(compose("config", overrides=[f"+exp={name}", "model=micro_21"]), [])
    if name not in BOUND_TO_1X:
        assert not plan(spec).errors
    else:
        with pytest.raises(InputError, match=f"^{BOUND_TO_1X[name]}") as caught:
            plan(spec)
        assert len(str(caught.value).splitlines()) <= 2


def test_a_probe_that_is_unknown_or_no_probe_is_refused_where_none_is_composed():
    for override in ("+probe.rnge.sites=[proj_out]", "+probe.range=3"):
        with configurations():
            config = settled(compose("culprits", overrides=[override]))
        with pytest.raises(InputError, match="expected a mapping with a _target_"):
            build_spec(without_settings_of_absent(config), [], Culprits)


@pytest.mark.slow
def test_every_claim_of_the_repository_is_judged_somewhere():
    judged = {claim["id"] for path in (CONF / "exp").glob("*.yaml") for claim in composed(path.stem).claims}
    with configurations():
        judged |= set(compose("device").claims)
        judged |= set(compose("survival", overrides=["claim@claims=[lora_survival]"]).claims)
    written = {name for path in (CONF / "claim").glob("*.yaml") for name in OmegaConf.load(path)}
    assert written == judged


def test_recipes_are_judged_on_enough_cases_and_against_a_noise_floor():
    spec = composed("recipes")
    assert len(spec.prompts) >= 4
    assert len(spec.seeds) >= 3
    recipes = [claim for claim in spec.claims if claim["id"].startswith(("R_", "F16_"))]
    assert len({claim["source"] for claim in recipes}) >= 10
    for claim in recipes:
        if claim["metric"] == "drift":
            assert claim.get("noise") or claim.get("bound"), claim["id"]


def test_the_factorial_is_whole():
    (design,) = designs(variant.name for variant in composed("factorial").variants)
    assert design.factors == ("fp32_residual", "fp32_modulation", "fp32_norms")
    assert len(design.runs) == 8
