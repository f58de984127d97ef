"""Altered passes from recorded states: those of other models too are the whole passes, bit for bit."""

from dataclasses import asdict

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.instrument.replica import replica
from precision_lab.instrument.swap import swapped
from precision_lab.instrument.tap import tapped
from precision_lab.lab.forced import Forced
from precision_lab.lab.subject import Case, components_of
from precision_lab.model.qwen_image_21.settings import Settings as Settings21
from precision_lab.synthetic.source import QwenImage21
from precision_lab.techniques.base import applied
from precision_lab.techniques.narrow import Narrow
from tests.foreign.denoiser import Source as Foreign
from tests.subjects import settings, source

STEPS = (0, 2)
SMALL = {"steps": 3, "height": 32, "width": 64}
PROMPT = "two red circles"


def qwen_image(small_checkpoint, small_checkpoint_21, folder):
    return source(small_checkpoint), settings(**SMALL)


def qwen_image_unguided(small_checkpoint, small_checkpoint_21, folder):
    return source(small_checkpoint), settings(**SMALL, guidance_scale=1.0)


def qwen_image_paged(small_checkpoint, small_checkpoint_21, folder):
    return source(small_checkpoint, stream=True), settings(**SMALL)


def qwen_image_21(small_checkpoint, small_checkpoint_21, folder):
    return QwenImage21("small", str(small_checkpoint_21)), asdict(Settings21(**SMALL))


def qwen_image_21_one_pass(small_checkpoint, small_checkpoint_21, folder):
    return QwenImage21("small", str(small_checkpoint_21)), asdict(Settings21(**SMALL, prefix_cache="none"))


def micro(small_checkpoint, small_checkpoint_21, folder):
    return source("package://micro"), settings(**SMALL)


def micro_21(small_checkpoint, small_checkpoint_21, folder):
    return QwenImage21("micro_21", "package://micro_21"), asdict(Settings21(**SMALL, prefix_cache="none"))


def foreign(small_checkpoint, small_checkpoint_21, folder):
    return Foreign("denoiser"), {"steps": 3, "width": 8}


def mlx_lm(small_checkpoint, small_checkpoint_21, folder):
    pytest.importorskip("mlx_lm")
    from precision_lab.model.mlx_lm.subject import LanguageModel
    from tests.model.test_mlx_lm import write as language_model

    return LanguageModel("lm", str(language_model(folder / "lm"))), {"steps": 3}


MODELS = [
    (qwen_image, ("img_in", "transformer_blocks.2.attn.to_k", "transformer_blocks.3.txt_mlp.net.2", "proj_out"), 4),
    (qwen_image, ("text_encoder:layers.1.mlp.down_proj",), 0),
    (qwen_image_unguided, ("transformer_blocks.0.img_mod.1", "norm_out.linear"), 4),
    (qwen_image_paged, ("transformer_blocks.2.img_mlp.net.0.proj",), 2),
    (qwen_image_21, ("modulation.1", "transformer_blocks.1.attn.to_k", "transformer_blocks.3.img_mlp.out"), 0),
    (qwen_image_21_one_pass, ("txt_in.in_layer", "transformer_blocks.2.img_mlp.gate_layer"), 2),
    pytest.param(
        micro, ("transformer_blocks.58.attn.to_v", "transformer_blocks.31.txt_mod.1"), 31, marks=pytest.mark.slow
    ),
    pytest.param(micro_21, ("modulation.1", "transformer_blocks.20.attn.to_out.0"), 20, marks=pytest.mark.slow),
    (foreign, ("stages.0", "stages.2"), 2),
    (mlx_lm, ("model.layers.1.self_attn.v_proj",), 0),
]
"""Of each model, sites, and how many blocks are recalled for the last of them in a step."""


@pytest.mark.parametrize(("model", "paths", "spared"), MODELS)
def test_a_replayed_pass_is_the_whole_pass(model, paths, spared, small_checkpoint, small_checkpoint_21, tmp_path):
    made, given = model(small_checkpoint, small_checkpoint_21, tmp_path)
    subject, case = made.load(mx.float32), Case(0, PROMPT, 1, given)
    forced = Forced(subject, made.layout, case, STEPS)
    forced.record(3)
    for path in paths:
        site = forced.sites[path]
        technique = Narrow([path], "bfloat16")
        replacement = technique.rewrite(site)
        for step in STEPS:
            plain = forced.run(step, [site])
            assert mx.array_equal(plain, forced.outputs[step])
            with forced.altering([site]), swapped(forced.components, {site: replacement}):
                replayed = forced.run(step, [site])
                mx.eval(replayed)
            expected = whole(subject, made.layout, case, technique, forced.states[step], step)
            assert np.array_equal(replayed, expected), (path, step)
            assert not np.array_equal(replayed, plain) or path == "transformer_blocks.3.txt_mlp.net.2"
    recalled = forced.recording.before([forced.sites[paths[-1]]])
    assert sum(any(phase.step == 2 for phase in phases) for phases in recalled.values()) == spared


def whole(plain, layout, case, technique, state, number):
    """The output of a technique in the main branch of a whole step, from a state with its own conditioning."""
    subject = replica(plain)
    with applied(components_of(subject, layout), {"t": technique}):
        if hasattr(state, "cond"):
            state = state._replace(cond=subject.start(case).cond)
        if hasattr(state, "uncond"):
            state = state._replace(uncond=None)  # without guidance, the output is that of the main branch
        return np.array(subject.step(state, number).output)


def test_the_pass_ends_at_the_main_branch(small_checkpoint):
    made = source(small_checkpoint)
    subject, case = made.load(mx.float32), Case(0, PROMPT, 1, settings(**SMALL))
    forced = Forced(subject, made.layout, case, STEPS)
    forced.record(3)
    built = []
    with tapped([forced.sites["img_in"], forced.sites["pipeline:guidance"]], lambda call: built.append(call.site.path)):
        forced.run(0, [])
        assert built == ["img_in"]
        subject.step(forced.states[0], 0)
    assert built == ["img_in", "img_in", "img_in", "guidance"]


def test_recording_changes_nothing(small_checkpoint):
    made = source(small_checkpoint)
    subject, case = made.load(mx.float32), Case(0, PROMPT, 1, settings(**SMALL))
    state = subject.start(case)
    for number in range(3):
        state = subject.step(state, number).state
    forced = Forced(subject, made.layout, case, STEPS)
    forced.record(3)
    assert mx.array_equal(forced.result, state.latents)
