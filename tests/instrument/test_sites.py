"""Addresses and the glob grammar."""

import mlx.nn as nn
import pytest

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components, Wrapper, select, walk
from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.layout import layout
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.record.glob import compile_glob

CONFIG = TransformerConfig(
    num_layers=12, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8, axes_dims_rope=(4, 2, 2)
)


@pytest.fixture(scope="module")
def sites():
    modules = {"transformer": Transformer(CONFIG), "vae": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))}
    return walk(Components(modules, layout(CONFIG.num_layers)))


def paths(pattern, sites):
    return [site.path for site in select(pattern, sites)]


@pytest.mark.parametrize(
    ("glob", "matching", "other"),
    [
        ("a.*", ["a.b", "a.0"], ["a", "a.b.c", "b.a"]),
        ("a.**", ["a.b", "a.b.c"], ["a", "b"]),
        ("**.c", ["c", "a.c", "a.b.c"], ["a.cc", "c.a"]),
        ("a.**.c", ["a.c", "a.b.c", "a.b.b.c"], ["a", "ac", "b.a.c"]),
        ("**", ["a", "a.b.c"], []),
        ("*_mlp", ["img_mlp", "_mlp"], ["img_mlp.net", "a.img_mlp"]),
        ("{a,b.c}", ["a", "b.c"], ["b", "a.c"]),
        ("x.{8..10}.y", ["x.8.y", "x.9.y", "x.10.y"], ["x.7.y", "x.11.y", "x.1.y"]),
        ("{a,b}.{c,d}", ["a.c", "a.d", "b.c", "b.d"], ["a.b"]),
        ("{a.{b,c},d}", ["a.b", "a.c", "d"], ["a.d", "b"]),
        ("a+(b)", ["a+(b)"], ["aab"]),
    ],
)
def test_glob(glob, matching, other):
    expression = compile_glob(glob)
    assert all(expression.fullmatch(path) for path in matching)
    assert not any(expression.fullmatch(path) for path in other)


@pytest.mark.parametrize("glob", ["a..b", "", "a.{b", "a}", "a.b**", "a.***", "a.{3..2}", "a.{-1..-2}"])
def test_malformed_glob(glob):
    with pytest.raises(InputError):
        compile_glob(glob)


def test_one_star_takes_one_segment(sites):
    assert paths("transformer_blocks.*", sites) == [f"transformer_blocks.{i}" for i in range(12)]
    assert paths("transformer_blocks.{3..5}.attn.to_q", sites) == [
        f"transformer_blocks.{i}.attn.to_q" for i in (3, 4, 5)
    ]


@pytest.mark.parametrize(
    ("pattern", "same"),
    [
        ("transformer_blocks.-1", "transformer_blocks.11"),
        ("transformer_blocks.-12.**", "transformer_blocks.0.**"),
        ("transformer_blocks.{-2..-1}.attn.*", "transformer_blocks.{10..11}.attn.*"),
        ("transformer_blocks.{0,-1}.img_mlp", "transformer_blocks.{0,11}.img_mlp"),
        ("transformer_blocks.{-1..0}", "transformer_blocks.{0,11}"),
        ("**.net.-1", "transformer_blocks.*.{img,txt}_mlp.net.2"),
        ("transformer_blocks.-1.img_mlp.net.-3.proj", "transformer_blocks.11.img_mlp.net.0.proj"),
        ("vae:layers.-1", "vae:layers.1"),
    ],
)
def test_negative_numbers_count_from_the_end_of_their_list(sites, pattern, same):
    assert paths(pattern, sites) == paths(same, sites) != []


def test_the_last_of_a_list_is_its_last_though_it_has_another_address():
    shared = nn.Linear(2, 2)
    sites = walk({"m": nn.Sequential(shared, nn.ReLU(), shared)})
    assert paths("m:layers.-2", sites) == ["layers.1"]
    with pytest.raises(InputError, match="matches nothing"):
        select("m:layers.-1", sites)


def test_several_patterns_are_a_union_in_order_of_definition(sites):
    assert paths(["proj_out", "img_in", "*_in"], sites) == ["img_in", "txt_in", "proj_out"]


def test_components(sites):
    assert [str(site) for site in select("vae:layers.*", sites)] == ["vae:layers.0", "vae:layers.1"]
    assert [str(site) for site in select("transformer:norm_out", sites)] == ["norm_out"]


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("transformer_blocks.*.img_mpl", "transformer_blocks.*.img_mlp"),
        ("transformer_blocks.17.attn.to_q", "transformer_blocks.*.attn.to_q"),
        ("transformer_block.*", "transformer_blocks"),
        ("norm_ot", "norm_out"),
        ("vea:layers.0", "vae"),
        ("transformer_blocks.-13.attn.to_q", "transformer_blocks.*.attn.to_q"),
        ("transformer_blocks.{-20..-13}.img_mlp", "transformer_blocks.*.img_mlp"),
        ("transformer_blocks.-0.img_mlp", "transformer_blocks.*.img_mlp"),
    ],
)
def test_no_match_names_the_nearest(sites, pattern, hint):
    with pytest.raises(InputError, match=r"matches nothing|unknown component") as error:
        select(pattern, sites)
    assert pattern in str(error.value)
    assert hint in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


def test_every_operation_of_a_block_has_an_address(sites):
    block = {p.removeprefix("transformer_blocks.0.") for p in paths("transformer_blocks.0.**", sites)}
    expected = {
        *("img_mod", "img_mod.0", "img_mod.1", "img_norm1", "img_modulate1", "img_add1", "txt_add2"),
        *("attn", "attn.to_q", "attn.norm_q", "attn.rotary_q", "attn.attend", "attn.to_out.0", "attn.to_add_out"),
        *("img_mlp", "img_mlp.net.0.proj", "img_mlp.net.0.gelu", "img_mlp.net.2"),
    }
    assert expected <= block


def test_block_and_stream(sites):
    by_path = {site.path: site for site in sites if site.component == "transformer"}
    assert by_path["transformer_blocks.11.attn.to_q"].block == 11
    assert by_path["norm_out"].block is None
    streams = {
        "img_in": "img",
        "txt_norm": "txt",
        "transformer_blocks.0.attn.add_k_proj": "txt",
        "transformer_blocks.0.attn.norm_added_q": "txt",
        "transformer_blocks.0.attn.to_out.0": "img",
        "transformer_blocks.0.attn.attend": "joint",
        "transformer_blocks.0.txt_mlp.net.2": "txt",
        "proj_out": "img",
        "time_text_embed": "-",
    }
    assert {path: by_path[path].stream for path in streams} == streams


def test_a_wrapper_takes_over_the_address_and_leaves_the_children_theirs():
    model = nn.Sequential(nn.Linear(2, 2))
    before = [site.path for site in walk({"m": model})]
    model.layers[0] = Wrapper(Wrapper(nn.Sequential(model.layers[0])))
    after = walk({"m": model})
    assert before == ["layers.0"]
    assert [site.path for site in after] == ["layers.0", "layers.0.layers.0"]
    assert isinstance(after[0].module, Wrapper)


def test_a_shared_module_has_one_address():
    shared = nn.Linear(2, 2)
    assert [site.path for site in walk({"m": nn.Sequential(shared, shared)})] == ["layers.0"]
