"""Every shipped experiment composes, names what exists, and makes a spec."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from precision_lab.cli.config import build_spec

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "exp").glob("*.yaml")))
def test_it_builds_and_its_claims_name_its_variants(name):
    with initialize_config_dir(str(CONF), version_base=None):
        spec = build_spec(compose("config", overrides=[f"+exp={name}"]), [])
    assert spec.experiment == name
    variants = {variant.name for variant in spec.variants}
    for claim in spec.claims:
        noise = claim.get("noise") or []
        named = {claim["subject"], claim.get("against"), *([noise] if isinstance(noise, str) else noise)} - {None}
        assert named <= variants
