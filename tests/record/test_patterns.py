"""Patterns made from sites name exactly these sites, and are as short as a person would write them."""

import numpy as np
import pytest

from precision_lab.record.glob import compile_glob, named_sites
from precision_lab.record.patterns import patterns_of

LINEARS = ("img_mod.1", "txt_mod.1", "attn.to_q", "attn.to_k", "attn.add_k_proj", "attn.to_out.0", "img_mlp.net.2")
BLOCKS = [("transformer", f"transformer_blocks.{i}.{name}") for i in range(12) for name in LINEARS]
OUTER = [("transformer", path) for path in ("img_in", "txt_in", "norm_out.linear", "proj_out", "transformer_blocks.3")]
OTHER = [("vae", f"decoder.up_blocks.{i}.resnets.{j}.conv{k}") for i in range(3) for j in range(2) for k in (1, 2)]
SITES = [*OUTER, *BLOCKS, *OTHER]


def named(patterns, sites=SITES):
    return set(named_sites(patterns, sites, "transformer"))


@pytest.mark.parametrize("seed", range(40))
def test_they_name_exactly_the_chosen_sites(seed):
    rng = np.random.default_rng(seed)
    share = rng.choice([0.02, 0.2, 0.5, 0.9, 1.0])
    chosen = [site for site in SITES if rng.random() < share]
    if rng.random() < 0.5:  # as a search chooses: whole operations or whole blocks
        kept = rng.choice(LINEARS, 3) if rng.random() < 0.5 else [f".{i}." for i in rng.choice(12, 4)]
        chosen = [site for site in SITES if any(part in site[1] for part in kept)]
    patterns = patterns_of(chosen, SITES, "transformer")
    assert named(patterns) == set(chosen)
    assert len(patterns) <= len(chosen)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([f"transformer_blocks.{i}.attn.to_q" for i in range(12)], ["transformer_blocks.*.attn.to_q"]),
        (
            [f"transformer_blocks.{i}.attn.to_{q}" for i in (0, 3, 4, 5, 6, 9) for q in "qk"],
            ["transformer_blocks.{0,3..6,9}.attn.to_{k,q}"],
        ),
        ([f"transformer_blocks.{i}.img_mod.1" for i in (0, 11)], ["transformer_blocks.{0,11}.img_mod.1"]),
        ([f"transformer_blocks.2.{m}_mod.1" for m in ("img", "txt")], ["transformer_blocks.2.{img,txt}_mod.1"]),
        (["img_in", "proj_out"], ["{img_in,proj_out}"]),
        ([], []),
    ],
)
def test_they_are_what_a_person_would_write(paths, expected):
    chosen = [("transformer", path) for path in paths]
    found = patterns_of(chosen, SITES, "transformer")
    assert named(found) == set(chosen)
    assert found == expected


def test_other_components_are_named():
    assert patterns_of([("transformer", "img_in"), *OTHER[:1], *OTHER[4:5]], SITES, "transformer") == [
        "img_in",
        "vae:decoder.up_blocks.{0,1}.resnets.0.conv1",
    ]
    assert patterns_of(OTHER, SITES, "transformer") == ["vae:**"]


@pytest.mark.slow
def test_a_choice_without_structure_stays_within_the_bounds_of_the_grammar():
    sites = [("net", f"layers.{i}.part_{j}.linear_{k}") for i in range(50) for j in range(12) for k in range(12)]
    rng = np.random.default_rng(1)
    chosen = [site for site in sites if rng.random() < 0.01]
    patterns = patterns_of(chosen, sites, "net")
    assert set(named_sites(patterns, sites, "net")) == set(chosen)
    whole = [site for site in sites if site[1].startswith("layers.") and int(site[1].split(".")[1]) < 49]
    patterns = patterns_of(whole, sites, "net")
    assert set(named_sites(patterns, sites, "net")) == set(whole)


def test_a_range_may_be_one_of_several_alternatives():
    glob = compile_glob("blocks.{0,4..6,head}.x")
    assert [n for n in ("0", "3", "4", "5", "6", "7", "head") if glob.fullmatch(f"blocks.{n}.x")] == [
        "0",
        "4",
        "5",
        "6",
        "head",
    ]
