"""Candidates: a node in which the patterns are open; filled, it is that of a technique."""

import mlx.core as mx
import numpy as np
import pytest
from omegaconf import OmegaConf

from precision_lab.cli.building import build
from precision_lab.cli.candidates import TO_COME, build_candidates, make, refused
from precision_lab.errors import InputError
from precision_lab.instrument.sites import select, walk
from precision_lab.lab.candidates import Candidate
from precision_lab.techniques.base import Technique, applied
from tests.composing import CONF
from tests.spread import thinned
from tests.techniques.small_model import components, forward, small_model

NAMES = sorted(file.stem for file in (CONF / "candidate").glob("*.yaml"))
UNTOUCHED = ("as_stored",)
WITHOUT_CHANGE = (*UNTOUCHED, "float32")
WIDE = ("q4_k", "q5_k", "q6_k")
"""Those that keep a linear whose channels 256 does not divide, of the three below `to_q`."""


def candidate(name):
    node = OmegaConf.load(CONF / "candidate" / f"{name}.yaml")
    [found] = build_candidates(OmegaConf.create({"candidate": node}))
    return found


def narrow(template):
    return Candidate("narrow", {"_target_": "precision_lab.techniques.narrow.Narrow", **template}, make)


@pytest.mark.parametrize("name", thinned(NAMES, keep=16))
def test_each_shipped_candidate_changes_exactly_the_sites_that_it_is_filled_with(name):
    model = small_model()
    plain = forward(model)
    found = candidate(name)
    assert found.name == name
    patterns = ["transformer_blocks.{0,2}.img_mlp.net.2", "transformer_blocks.1.attn.to_q"]
    node = found.node(patterns)
    technique = build(OmegaConf.create(node), Technique, name)
    assert list(technique.sites) == patterns
    with applied(components(model), {name: technique}) as coverage:
        assert coverage[name].matched == (0 if name in UNTOUCHED else 2 if name in WIDE else 3)
        changed = forward(model)
    assert np.isfinite(changed).all()
    assert (changed == plain).all() == (name in WITHOUT_CHANGE)
    assert (forward(model) == plain).all()


def test_the_places_of_patterns():
    assert narrow({"sites": "SITES"}).node(["a", "b"])["sites"] == ["a", "b"]
    assert narrow({"sites": ["x", "SITES"]}).node(["a"])["sites"] == ["x", "a"]
    ruled = Candidate("q", {"_target_": "x.Y", "rules": [{"sites": "SITES", "bits": 4}, {"sites": "z"}]}, make)
    assert ruled.node(["a"])["rules"] == [{"sites": ["a"], "bits": 4}, {"sites": "z"}]
    assert ruled.template["rules"][0]["sites"] == "SITES"


def test_a_technique_at_one_site_is_that_site_alone():
    model = components(small_model())
    technique = narrow({"sites": "SITES", "dtype": "bfloat16"}).technique(["proj_out"])
    assert [site.path for site in select(technique.sites, walk(model))] == ["proj_out"]
    [site] = select("proj_out", walk(model))
    assert technique.rewrite(site)(mx.ones((1, 64))).dtype == mx.float32


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"a": {"_target_": "precision_lab.techniques.narrow.Narrow", "sites": ["img_in"]}}, "nothing in it is SITES"),
        ({"a": {"sites": "SITES"}}, "candidate.a: expected a mapping with a _target_"),
        ({"a": "SITES"}, "candidate.a: expected a mapping"),
        ({"a": {"_target_": "precision_lab.techniques.narrow.Narow", "sites": "SITES"}}, "Did you mean Narrow"),
        (
            {"a": {"_target_": "precision_lab.techniques.narrow.Narrow", "sites": "SITES", "dtpe": 1}},
            "candidate.a.dtpe",
        ),
        ({"a/b": {"_target_": "precision_lab.techniques.narrow.Narrow", "sites": "SITES"}}, "expected letters"),
    ],
)
def test_mistakes(node, message):
    with pytest.raises(InputError, match=message):
        build_candidates(OmegaConf.create({"candidate": node}))


def test_formats_to_come_are_refused_with_one_that_exists():
    assert {*TO_COME.values()} <= {*NAMES}
    assert not {*TO_COME} & {*NAMES}
    assert "nearest that can is nf4" in refused("fp4")
    assert refused("Q4_K_M").endswith(" is q4_k")
    assert refused("nunchaku-r32").endswith(" is svdquant")
    assert refused("affine4") is None
    assert refused("q4_k") is None
