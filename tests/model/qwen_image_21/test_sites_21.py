"""Addresses of the transformer: the groups of conf/sites/qwen_image_21.yaml, and the ports of a block."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from omegaconf import OmegaConf

from precision_lab.instrument.sites import Components, select, walk
from precision_lab.instrument.tap import ports, tapped
from precision_lab.model.layers import LayerNorm, RMSNorm
from precision_lab.model.qwen_image_21.layout import layout
from precision_lab.model.qwen_image_21.transformer import ZeroCentredRMSNorm
from precision_lab.record.address import split_address
from tests.model.qwen_image_21.oracle import Shape, arrays_of, copy_of, random_inputs, random_transformer
from tests.techniques.configured import CONF, SITES

SHAPE = Shape(3)
_FILE = OmegaConf.create({"sites": OmegaConf.load(CONF / "sites" / "qwen_image_21.yaml")})
SITES_21 = OmegaConf.to_container(_FILE, resolve=True)["sites"]


def flat(patterns) -> list[str]:
    return [patterns] if isinstance(patterns, str) else [p for part in patterns for p in flat(part)]


@pytest.fixture(scope="module")
def components():
    return Components({"transformer": copy_of(random_transformer(0, SHAPE))}, layout(SHAPE.layers))


def test_groups_have_the_names_of_1x():
    assert SITES.keys() <= SITES_21.keys()


@pytest.mark.parametrize("name", SITES_21)
def test_every_pattern_names_something(name, components):
    sites = walk(components)
    for pattern in flat(SITES_21[name]):
        if split_address(pattern, "transformer")[0] == "transformer":
            assert select(pattern, sites), pattern


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("linears", nn.Linear), ("norms", (LayerNorm, RMSNorm, ZeroCentredRMSNorm))],
)
def test_a_group_of_a_kind_is_complete(name, kinds, components):
    sites = walk(components)
    expected = {str(site) for site in sites if isinstance(site.module, kinds)}
    assert {str(site) for site in select(SITES_21[name], sites)} == expected
    assert len(expected) > 10


def test_linears_are_those_of_the_blocks_and_those_outside(components):
    sites = walk(components)
    inside, outside = (set(select(SITES_21[name], sites)) for name in ("block_linears", "outer_linears"))
    assert not inside & outside
    assert inside | outside == set(select(SITES_21["linears"], sites))
    assert all(site.block is not None for site in inside)
    assert all(site.block is None for site in outside)


def test_a_block_returns_the_stream_and_in_a_pass_of_the_prefix_keys_and_values(components):
    transformer = components["transformer"]
    latents, timestep, text, grid, mask = arrays_of(random_inputs(np.random.default_rng(0), (3, 4), SHAPE, tokens=5))
    found = []

    def record(call):
        found.append([(port.name, port.stream, port.array.shape) for port in ports(call, ["out"])])

    width, heads, channels = 64, SHAPE.heads, sum(SHAPE.axes)
    with tapped(select("transformer_blocks.1", walk(components)), record):
        prefix = transformer.prefill(text, mask)
        mx.eval(transformer(latents, timestep, text, grid, mask, prefix))
        mx.eval(transformer(latents, timestep, text, grid, mask))
    kept = (1, 5, heads, channels)
    assert found == [
        [("out.0", "img", (1, 5, width)), ("out.1", "-", kept), ("out.2", "-", kept)],
        [("out", "img", (1, 12, width))],
        [("out", "img", (1, 17, width))],
    ]


def test_the_chunks_of_the_modulation_are_ports(components):
    transformer = components["transformer"]
    found = []
    with tapped(select("split_modulation", walk(components)), lambda call: found.extend(ports(call, ["out"]))):
        mx.eval(transformer(*arrays_of(random_inputs(np.random.default_rng(0), (3, 4), SHAPE, batch=2))))
    assert [(port.name, port.array.shape) for port in found] == [(f"out.{i}", (3, 64)) for i in range(4)]
