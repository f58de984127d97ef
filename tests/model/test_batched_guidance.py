"""Both branches of a guided step in one batch: the same function, and every weight read once a step."""

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.instrument.scope import current_scope
from precision_lab.instrument.sites import select, walk
from precision_lab.instrument.tap import tapped
from precision_lab.lab.subject import Case
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image_21.settings import Settings as Settings21
from precision_lab.model.text_to_image.subject import TextToImage
from precision_lab.techniques.base import applied
from precision_lab.techniques.fast import matrices
from precision_lab.techniques.fast.technique import FusedBlocks
from precision_lab.techniques.quantized_weights import QuantizedWeights
from tests.model.oracle import relative_l2

PROMPT, NEGATIVE, STEPS = "several small stars above the sea, xyzzy", "grain", 2
LINEARS = "transformer_blocks.*.{attn.{to_{q,k,v,out.0,add_out},add_{q,k,v}_proj},{img,txt}_{mod.1,mlp.net.{0.proj,2}}}"
PACKED = QuantizedWeights([{"sites": [LINEARS], "bits": 4, "group_size": 32}])


def _case(batched, guidance_scale=4.0):
    settings = {
        "steps": STEPS,
        "guidance_scale": guidance_scale,
        "negative_prompt": NEGATIVE,
        "height": 64,
        "width": 96,
    }
    return Case(0, PROMPT, 3, {**settings, "batched_guidance": True} if batched else settings)


def _latents(subject, *args):
    state = subject.start(_case(*args))
    for number in range(STEPS):
        state = subject.step(state, number).state
    return np.array(state.latents)


@pytest.fixture(scope="module")
def subject(small_checkpoint):
    return TextToImage(Checkpoint(small_checkpoint).pipeline(mx.float32))


def test_it_is_the_function_of_two_forwards_with_texts_of_different_lengths(subject):
    apart, together = _latents(subject, False), _latents(subject, True)
    assert relative_l2(together, apart) <= 1e-5
    assert relative_l2(_latents(subject, False, 1.0), apart) > 1e-3
    np.testing.assert_array_equal(_latents(subject, True, 1.0), _latents(subject, False, 1.0))


def test_a_linear_is_called_once_a_step_and_belongs_to_no_branch(subject):
    with applied(subject.components, {"packed": PACKED}):
        sites = select("transformer_blocks.*.{attn.to_q,img_mlp.net.2}", walk(subject.components))
        calls = {}
        for batched in (False, True):
            seen: Counter = Counter()
            with tapped(sites, lambda call, seen=seen: seen.update([(str(call.site), current_scope().get("branch"))])):
                _latents(subject, batched)
            calls[batched] = seen
    assert set(calls[False].values()) == set(calls[True].values()) == {STEPS}
    assert {branch for _, branch in calls[False]} == {"cond", "uncond"}
    assert {branch for _, branch in calls[True]} == {None}


def test_fused_blocks_decode_every_matrix_once_a_step(subject, monkeypatch):
    counts = []
    decoded = matrices.decoded
    monkeypatch.setattr(matrices, "decoded", lambda *args: counts.append(1) or decoded(*args))
    mx.disable_compile()
    try:
        with applied(subject.components, {"packed": PACKED, "fast": FusedBlocks(decode_from=0)}):
            apart = _latents(subject, False)
            twice = len(counts)
            together = _latents(subject, True)
    finally:
        mx.enable_compile()
    assert len(counts) - twice == twice / 2 > 0
    assert relative_l2(together, apart) <= 1e-5


def test_a_model_whose_image_is_placed_after_the_padding_refuses_it():
    with pytest.raises(InputError, match=r"sampler.batched_guidance: in .* padding moves the image, .* Leave it out"):
        Settings21(guidance_scale=4.0, batched_guidance=True)
