"""A pass that is replayed from an altered module on is the whole pass, bit for bit."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from precision_lab.instrument.replay import Phase, Recording, mutable_value, replayed
from precision_lab.instrument.scope import scope
from precision_lab.instrument.sites import Components, select, walk
from precision_lab.instrument.swap import swapped
from precision_lab.instrument.tap import tapped
from precision_lab.record.layout import Layout
from tests.techniques.small_model import components, forward, small_model


class Doubled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __call__(self, *args):
        return self.inner(*args) * 1.5


def blocks_of(sites):
    return [site for site in sites if site.layout.is_block(site.component, site.path)]


def recorded(parts, call, sites=None):
    recording = Recording(blocks_of(walk(parts)), (0,), "cond")
    with recording.of(sites or walk(parts)), scope(step=0, branch="cond"):
        call()
    mx.eval(recording.arrays)
    return recording


@pytest.mark.parametrize(
    ("path", "spared"),
    [
        ("img_in", 0),
        ("time_text_embed.timestep_embedder.linear_1", 0),
        ("transformer_blocks.0.img_mod.1", 0),
        ("transformer_blocks.1.attn.to_k", 1),
        ("transformer_blocks.2.txt_mlp.net.2", 2),
        ("transformer_blocks.2.img_mlp.net.2", 2),
        ("norm_out.linear", 3),
        ("proj_out", 3),
    ],
)
def test_it_begins_at_the_first_altered_module(path, spared):
    model = small_model()
    parts = components(model)
    recording = recorded(parts, lambda: forward(model))
    [site] = select(path, walk(parts))
    with swapped(parts, {site: Doubled(site.module)}):
        whole = forward(model)
    called = []
    with replayed(parts, recording, [site]) as number, swapped(parts, {site: Doubled(site.module)}):
        blocks = blocks_of(walk(parts))
        with scope(step=0, branch="cond"), tapped(blocks, lambda call: called.append(call.site.path)):
            again = forward(model)
    assert number == spared
    assert len(called) == 3
    assert (again == whole).all()
    plain = forward(model)
    with scope(step=1, branch="cond"), replayed(parts, recording, [site]):  # a phase that was not recorded
        assert (forward(model) == plain).all()


def test_recalled_blocks_are_not_computed():
    model = small_model()
    parts = components(model)
    recording = recorded(parts, lambda: forward(model))
    computed = []
    [site, watched] = select(["transformer_blocks.1.attn.to_k", "transformer_blocks.0.attn.to_q"], walk(parts))[::-1]
    with replayed(parts, recording, [site]), tapped([watched], lambda call: computed.append(call.site.path)):
        with scope(step=0, branch="cond"):
            forward(model)
        assert computed == []
        with scope(step=0, branch="uncond"):
            forward(model)
        assert computed == ["transformer_blocks.0.attn.to_q"]


def test_several_sites_begin_at_the_first_and_one_that_holds_blocks_recalls_none():
    model = small_model()
    parts = components(model)
    recording = recorded(parts, lambda: forward(model))
    several = select("transformer_blocks.{1,2}.attn.to_q", walk(parts))
    assert [site.path for site in recording.before(several)] == ["transformer_blocks.0"]
    [block] = select("transformer_blocks.1", walk(parts))
    assert [site.path for site in recording.before([block])] == ["transformer_blocks.0"]
    assert recording.phases(block) == [Phase(0, "cond")]


class Holder(nn.Module):
    """Blocks inside another module, a block that is called twice, and one that changes its argument."""

    def __init__(self, repeats=1, keeps=False):
        super().__init__()
        self.body = nn.Sequential()
        self.blocks = [nn.Linear(4, 4), nn.Linear(4, 4)]
        self.repeats, self.keeps = repeats, keeps

    def __call__(self, x):
        for _ in range(self.repeats):
            x = self.blocks[0](x)
        return self.blocks[1](x)


class Caching(nn.Linear):
    def __call__(self, x, cache):
        cache.append(x)
        return super().__call__(x)


def parts_of(model):
    return Components({"net": model}, Layout.of(["net"]))


def test_a_block_that_is_called_twice_is_computed():
    model = Holder(repeats=2)
    parts = parts_of(model)
    recording = recorded(parts, lambda: model(mx.ones((1, 4))))
    [second] = select("blocks.1", walk(parts))
    assert recording.before([second]) == {}
    [(site, reason)] = recording.unfit.items()
    assert (site.path, "twice" in reason) == ("blocks.0", True)


def test_a_block_with_an_argument_that_it_may_change_is_computed():
    model = Holder()
    model.blocks[0] = Caching(4, 4)
    parts = parts_of(model)
    seen = []
    recording = recorded(parts, lambda: model.blocks[1](model.blocks[0](mx.ones((1, 4)), Cache(seen))))
    [second] = select("blocks.1", walk(parts))
    assert recording.before([second]) == {}
    assert "Cache" in next(iter(recording.unfit.values()))


class Cache:
    def __init__(self, kept):
        self.append = kept.append


def test_what_is_mutable():
    [site] = select("proj_out", walk(components(small_model())))
    calls = []
    with tapped([site], calls.append):
        site.module(mx.ones((1, 64)))
    assert mutable_value(calls[0]) is None
    assert mutable_value(calls[0]._replace(kwargs={"cache": [Cache([])]})) is not None
