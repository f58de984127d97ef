"""What a layout says of addresses: blocks, streams, the default component."""

import re

import pytest

from precision_lab.model.qwen_image.layout import layout as qwen_image
from precision_lab.model.qwen_image_21.layout import layout as qwen_image_21
from precision_lab.record.address import join_address, split_port, with_port
from precision_lab.record.layout import Layout, Result, Stream

QWEN = qwen_image(60)
QWEN_21 = qwen_image_21(32)


@pytest.mark.parametrize(
    ("component", "path", "block", "stream"),
    [
        ("transformer", "transformer_blocks.11.attn.to_q", 11, "img"),
        ("transformer", "transformer_blocks.11.attn.to_out.0", 11, "img"),
        ("transformer", "transformer_blocks.0.txt_mlp.net.0.proj", 0, "txt"),
        ("transformer", "transformer_blocks.0.attn.attend", 0, "joint"),
        ("transformer", "norm_out.linear", None, "img"),
        ("transformer", "time_text_embed.timestep_embedder", None, "-"),
        ("text_encoder", "layers.3.self_attn.q_proj", 3, "-"),
        ("text_encoder", "txt_norm", None, "-"),
        ("vae", "decoder.up_blocks.1.resnets.0", None, "-"),
        ("pipeline", "euler_step", None, "-"),
    ],
)
def test_block_and_stream(component, path, block, stream):
    assert (QWEN.block_of(component, path), QWEN.stream_of(component, path)) == (block, stream)


@pytest.mark.parametrize(
    ("path", "block", "stream"),
    [
        ("transformer_blocks.11", 11, "-"),  # its result is labelled by the field of its output
        ("transformer_blocks.11.attn.attend_prefix", 11, "img"),
        ("transformer_blocks.0.img_mlp.multiply", 0, "img"),
        ("transformer_blocks.31.img_clip", 31, "img"),
        ("txt_in.text_norm", None, "img"),
        ("norm_out.linear", None, "img"),
        ("modulation.1", None, "-"),
        ("split_modulation", None, "-"),
        ("time_text_embed.timestep_embedder", None, "-"),
        ("pos_embed", None, "-"),
    ],
)
def test_block_and_stream_of_a_model_of_one_stream(path, block, stream):
    assert (QWEN_21.block_of("transformer", path), QWEN_21.stream_of("transformer", path)) == (block, stream)


def test_adds_and_the_last_block_of_a_model_of_one_stream():
    assert QWEN_21.is_add("transformer", "transformer_blocks.3.img_add2")
    assert not QWEN_21.is_add("transformer", "transformer_blocks.3.img_gate2")
    assert (QWEN_21.main_stream, QWEN_21.last_block) == ("img", "transformer_blocks.31")


# as the laboratory had them before layouts: the rules that the patterns must agree with
_BLOCK = re.compile(r"^(?:\w+\.)*?(?:transformer_blocks|layers|blocks|h|stages)\.(\d+)(?:\.|$)")
_STREAMS = (
    ("joint", r"(^|\.)(attend|pos_embed)$"),
    ("txt", r"(^|\.)(txt_\w+|add_[qkv]_proj|(norm|rotary)_added_[qk]|to_add_out)(\.|$)"),
    ("img", r"(^|\.)(img_\w+|to_[qkv]|(norm|rotary)_[qk]|to_out|norm_out|proj_out)(\.|$)"),
)


def test_every_address_of_the_model_is_labelled_as_by_the_rules_of_schema_1(small_checkpoint):
    import mlx.core as mx

    from precision_lab.instrument.sites import walk
    from precision_lab.model.qwen_image.checkpoint import Checkpoint

    sites = walk(Checkpoint(small_checkpoint).pipeline(mx.float32).components)
    assert len(sites) > 400
    for site in sites:
        found = _BLOCK.match(site.path)
        named = next((name for name, rule in _STREAMS if re.search(rule, site.path)), "-")
        assert site.block == (int(found[1]) if found else None), site
        assert site.stream == (named if site.component == "transformer" else "-"), site


@pytest.mark.parametrize(
    ("path", "block"),
    [("model.layers.7.mlp", 7), ("transformer.h.0", 0), ("stages.1.blocks.4", 1), ("head.0", None), ("layers", None)],
)
def test_blocks_are_guessed_where_a_model_does_not_say(path, block):
    layout = Layout.of(["model"])
    assert layout.block_of("model", path) == block
    assert layout.stream_of("model", path) == "-"
    assert not layout.is_block("model", f"{path}.inside")
    assert layout.is_block("model", path) == (path == "transformer.h.0")


def test_the_last_block_and_the_first_branch():
    assert QWEN.last_block == "transformer_blocks.59"
    assert (QWEN.main_branch, QWEN.other_branches, QWEN.main_stream) == ("cond", ("uncond",), "img")
    plain = Layout(("net",), "net", Result("net:head"))
    assert (plain.main_branch, plain.other_branches, plain.main_stream, plain.last_block) == (None, (), None, None)


def test_the_default_component_is_left_out_of_an_address():
    assert QWEN.address("transformer", "norm_out") == "norm_out"
    assert QWEN.address("vae", "decoder") == "vae:decoder"
    assert join_address("vae", "decoder", "out.1", "transformer") == "vae:decoder (out.1)"


@pytest.mark.parametrize("port", ["out", "out.1", "in", "in.3"])
def test_ports_are_read_as_they_are_written(port):
    assert split_port(with_port("a.b.3", port)) == ("a.b.3", port)


def test_streams_need_no_pattern():
    layout = Layout(("net",), "net", Result("net:head"), streams={"only": Stream("stream", sites="")})
    assert layout.stream_of("net", "a.b") == "-"
