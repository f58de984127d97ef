"""Every shipped experiment composes, names what exists, and makes a spec; every claim is judged by one of them."""

from pathlib import Path

import pytest
from hydra import compose
from omegaconf import OmegaConf

from precision_lab.analysis.factorial import designs
from precision_lab.cli.config import build_spec
from tests.composing import configurations

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "exp").glob("*.yaml")))
def test_it_builds_and_its_claims_name_its_variants(name):
    with configurations():
        spec = build_spec(compose("config", overrides=[f"+exp={name}"]), [])
    assert spec.experiment == name
    variants = {variant.name for variant in spec.variants}
    for claim in spec.claims:
        noise = claim.get("noise") or []
        named = {claim["subject"], claim.get("against"), *([noise] if isinstance(noise, str) else noise)} - {None}
        assert named <= variants


def composed(name):
    with configurations():
        return build_spec(compose("config", overrides=[f"+exp={name}"]), [])


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
