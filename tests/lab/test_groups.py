"""Groups of sites: each site is in exactly one, and the sites of a group agree in what it was formed by."""

import mlx.core as mx
import pytest

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components, walk
from precision_lab.lab.groups import KEYS, groups_of
from tests.foreign.denoiser import Denoiser
from tests.foreign.denoiser import Source as ForeignSource
from tests.techniques.small_model import components, small_model


@pytest.fixture(scope="module")
def small():
    return components(small_model())


def by_name(groups):
    return {group.name: group for group in groups}


def test_by_default_each_operation_of_each_block_is_a_group_as_is_each_module_outside(small):
    groups = by_name(groups_of(small))
    assert len(groups) == 3 * 14 + 6
    q = groups["transformer_blocks.1.attn.to_q"]
    assert (q.component, q.block, q.operation, q.stream) == ("transformer", 1, "attn.to_q", "img")
    assert q.sites == ("transformer_blocks.1.attn.to_q",)
    outer = groups["time_text_embed.timestep_embedder.linear_1"]
    assert (outer.block, outer.operation) == (None, "time_text_embed.timestep_embedder.linear_1")


@pytest.mark.parametrize(
    ("by", "number", "name", "sites"),
    [
        (["site"], 48, "transformer_blocks.0.img_mod.1", 1),
        (["operation"], 14 + 6, "transformer_blocks.*.attn.to_out.0", 3),
        (["block"], 3 + 6, "transformer_blocks.2.**", 14),
        (["stream"], 3, "txt", 3 * 7 + 1),
        (["component"], 1, "**", 48),
        (["stream", "block"], 2 * 3 + 6, "transformer_blocks.1.** img", 7),
        (["block", "operation"], 48, "proj_out", 1),
    ],
)
def test_coarser_and_finer_groups(small, by, number, name, sites):
    groups = by_name(groups_of(small, by=by))
    assert len(groups) == number
    assert len(groups[name].sites) == sites


@pytest.mark.parametrize("by", [*([key] for key in KEYS), ["operation", "block"], ["stream", "operation"]])
def test_every_site_is_in_one_group_and_names_are_unlike(small, by):
    groups = groups_of(small, "**", by)
    every = [address for group in groups for address in group.sites]
    assert sorted(every) == sorted(str(site) for site in walk(small))
    assert len({group.name for group in groups}) == len(groups)


def test_patterns_choose_the_sites(small):
    groups = groups_of(small, ["transformer_blocks.{0,2}.img_mlp.net.2", "proj_out"])
    assert [group.name for group in groups] == [
        "transformer_blocks.0.img_mlp.net.2",
        "transformer_blocks.2.img_mlp.net.2",
        "proj_out",
    ]


def test_of_a_model_that_states_only_where_its_blocks_are():
    mx.random.seed(0)
    groups = groups_of(Components({"net": Denoiser(8, 3)}, ForeignSource("denoiser").layout))
    assert [(group.name, group.block, group.operation, group.stream) for group in groups] == [
        (f"stages.{i}", i, "", "-") for i in range(3)
    ]


@pytest.mark.parametrize(
    ("patterns", "by", "message"),
    [
        (None, ["blocks"], "unknown key 'blocks', expected one of site, operation, block, stream, component. Did you"),
        (None, [], r"by is \[\], expected some of"),
        (None, ["block", "block"], "expected each key once"),
        (["transformer_blocks.*.attn.to_qq"], ["block"], "matches nothing. Did you mean"),
        ([], ["block"], "expected patterns of sites"),
    ],
)
def test_mistakes(small, patterns, by, message):
    with pytest.raises(InputError, match=message):
        groups_of(small, patterns, by)
