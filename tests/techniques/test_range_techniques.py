"""fp32 placements, clipping and scaling: the dtypes that each keeps, the failures it cures, and compositions."""

from itertools import pairwise, permutations

import mlx.core as mx
import numpy as np
import pytest
from hydra import compose

from precision_lab.errors import InputError
from precision_lab.instrument.sites import select, walk
from precision_lab.instrument.tap import ports, tapped
from precision_lab.model.qwen_image.transformer import TimestepProjection
from precision_lab.model.rotary import Grid
from precision_lab.techniques.base import applied
from precision_lab.techniques.block_end_clip import BlockEndClip
from precision_lab.techniques.float32 import Float32
from precision_lab.techniques.narrow import Narrow
from precision_lab.techniques.parts.scaled_parts import at_block
from precision_lab.techniques.scaled_attention import ScaledAttention
from precision_lab.techniques.scaled_feed_forward import ScaledFeedForward
from tests.composing import configurations
from tests.spread import slow, thinned
from tests.subjects import source
from tests.techniques.configured import named
from tests.techniques.evaluation import Draw, draws, evaluate, pipelines

DRAW = draws(1)[0]
MODELS = ("qwen_image", "edit", "edit_2509", "2512")


@pytest.fixture(scope="module")
def beyond_float16(small_checkpoint):
    """The same function with streams 2^11 times as large, which exceed float16 within four blocks."""
    return pipelines(source(small_checkpoint, inflate=2.0**11))


@pytest.fixture(scope="module")
def micro():
    """The embedded default checkpoint: 60 blocks, trained."""
    return pipelines(source("package://micro"))


def observed(pipeline, patterns, techniques):
    """Returns outputs, and (site, stream, dtype, finite) for every real array that leaves the sites."""
    seen = []

    def note(call):
        arrays = [(port.stream, port.array) for port in ports(call, ("out",)) if port.array.dtype != mx.complex64]
        seen.extend((str(call.site), stream, x.dtype, mx.isfinite(x).all()) for stream, x in arrays)

    with applied(pipeline.components, techniques):
        sites = walk(pipeline.components)
        with tapped(select(patterns, sites) if patterns else sites, note):
            found = evaluate(pipeline, DRAW)
    mx.eval([finite for *_, finite in seen])
    return found, [(*labels, finite.item()) for *labels, finite in seen]


def dtypes(pipeline, pattern, techniques):
    return {dtype for _, _, dtype, _ in observed(pipeline, pattern, techniques)[1]}


def error(found, reference):
    return np.linalg.norm(found["velocity"] - reference["velocity"]) / np.linalg.norm(reference["velocity"])


# --- fp32 placements -------------------------------------------------------------------------------------------------

BRANCH = "transformer_blocks.*.{attn.{to_q,add_v_proj,attend,to_out.0},img_mlp.net.0,txt_mlp.net.2}"
OTHERS = ("fp32_norm_out", "fp32_modulation", "fp32_norms", "fp32_gates", "draw_things_2512", "ffn_scaling")


@pytest.mark.parametrize("names", [["fp32_residual"], *permutations(["fp32_residual", "fp32_norm_out"])], ids="-".join)
@pytest.mark.parametrize("dtype", [mx.float16, slow(mx.bfloat16)])
def test_the_residual_streams_are_fp32_and_the_branches_are_not(models, dtype, names):
    techniques = named(*names)
    assert dtypes(models(dtype), "transformer_blocks.*", techniques) == {mx.float32}
    assert dtypes(models(dtype), "transformer_blocks.*.{img,txt}_{add1,norm1,norm2}", techniques) == {mx.float32}
    assert dtypes(models(dtype), [BRANCH, "proj_out", "pipeline:euler_step"], techniques) == {dtype}


@pytest.mark.parametrize("other", thinned(OTHERS, keep=3))
@pytest.mark.parametrize("first", [True, False])
def test_they_stay_so_whatever_it_is_combined_with(models, other, first):
    names = ["fp32_residual", other] if first else [other, "fp32_residual"]
    techniques = named(*names)
    assert dtypes(models(mx.float16), "transformer_blocks.*", techniques) == {mx.float32}
    assert dtypes(models(mx.float16), ["transformer_blocks.*.attn.{to_q,attend}", "proj_out"], techniques) == {
        mx.float16
    }


@pytest.mark.parametrize("dtype", [slow(mx.float16), mx.bfloat16])
@pytest.mark.parametrize("others", [(), ("fp32_modulation",), ("fp32_norms", "fp32_gates")], ids="-".join)
def test_norm_out_in_fp32_rounds_once_wherever_the_stream_ends(models, dtype, others):
    """Its first input is fp32 where both apply; the result is due in the dtype of the computation in either order."""
    pairs = permutations(["fp32_residual", "fp32_norm_out"])
    runs = [observed(models(dtype), ["norm_out", "norm_out.norm"], named(*pair, *others)) for pair in pairs]
    for _, seen in runs:
        assert {(site, kind) for site, _, kind, _ in seen} == {("norm_out", dtype), ("norm_out.norm", mx.float32)}
    for name, array in runs[0][0].items():
        assert np.array_equal(array, runs[1][0][name]), name
    alone, seen = observed(models(dtype), ["norm_out", "norm_out.norm"], named("fp32_norm_out"))
    assert {kind for site, _, kind, _ in seen if site == "norm_out"} == {dtype}
    assert not np.array_equal(alone["velocity"], runs[0][0]["velocity"])


def test_fp32_modulation_keeps_the_vectors_wide_and_the_tokens_narrow(models):
    techniques = named("fp32_modulation")
    pipeline = models(mx.bfloat16)
    assert dtypes(pipeline, "transformer_blocks.*.{img,txt}_mod", techniques) == {mx.float32}
    assert dtypes(pipeline, "transformer_blocks.*.{img,txt}_{modulate1,add1,add2}", techniques) == {mx.bfloat16}
    assert dtypes(pipeline, "transformer_blocks.*", techniques) == {mx.bfloat16}


def test_fp32_vae_is_fp32_to_the_end(models):
    pattern = ["vae:{post_quant_conv,decoder}", "vae:decoder.{conv_in,mid_block,up_blocks.*,conv_out}"]
    assert dtypes(models(mx.float16), pattern, named("fp32_vae")) == {mx.float32}
    assert dtypes(models(mx.float16), pattern, {}) == {mx.float16}


@pytest.mark.parametrize(
    "name", ["fp32_guidance", "fp32_euler_step", "fp32_gates", "fp32_norms", "fp32_time_embedding"]
)
def test_the_others_round_to_the_dtype_of_the_computation(models, name):
    reference = evaluate(models(mx.float32), DRAW)
    plain, _ = observed(models(mx.bfloat16), "proj_out", {})
    found, seen = observed(
        models(mx.bfloat16), ["proj_out", "transformer_blocks.*", "pipeline:euler_step"], named(name)
    )
    assert {dtype for _, _, dtype, _ in seen} == {mx.bfloat16}
    distances = [np.abs(x["latents"] - reference["latents"]).mean() for x in (found, plain)]
    assert not np.array_equal(found["latents"], plain["latents"])
    assert distances[0] < 1.3 * distances[1]


def test_fp32_rope_is_what_the_model_does(models):
    plain, found = (evaluate(models(mx.bfloat16), DRAW, t) for t in ({}, named("fp32_rope")))
    assert np.array_equal(plain["velocity"], found["velocity"])


def test_the_exact_timestep_is_the_sigma_of_the_step(models):
    seen = {}

    def angle_of(techniques, dtype=mx.bfloat16):
        pipeline = models(dtype)
        with applied(pipeline.components, techniques):
            site = [s for s in walk(pipeline.components) if isinstance(s.module, TimestepProjection)]
            with tapped(site, lambda call: seen.update(t=call.args[0].astype(mx.float32).tolist())):
                evaluate(pipeline, DRAW)
        return seen["t"]

    sigma = np.float32(DRAW.levels[0])
    assert angle_of(named("fp32_timestep")) == [sigma]
    assert angle_of({}) != [sigma]
    assert abs(angle_of({})[0] - sigma) < 2**-8


def test_a_narrow_set_rounds_there_and_nowhere_else(models):
    techniques = named("comfyui_fp16_set")
    plain, found = (evaluate(models(mx.float32), DRAW, t) for t in ({}, techniques))
    assert 1e-6 < error(found, plain) < 1e-2
    assert dtypes(models(mx.float32), ["transformer_blocks.*.attn.{to_q,to_k,attend}", "proj_out"], techniques) == {
        mx.float32
    }


# --- float16 ---------------------------------------------------------------------------------------------------------


def test_plain_float16_overflows_and_clipping_does_not_cure_it(beyond_float16):
    """The add after attention overflows inside a block, so the next LayerNorm gives NaN before the clip at the end."""
    clip = named("block_end_clip")
    _, plain = observed(beyond_float16(mx.float16), None, {})
    found, clipped = observed(beyond_float16(mx.float16), None, clip)
    assert not all(finite for *_, finite in plain)
    bad = [site.rpartition("_")[2] for site, *_, finite in clipped if not finite]
    assert ("add1", "norm2") in pairwise(bad)
    assert not np.isfinite(found["velocity"]).all()


def test_clipping_is_lossy_where_nothing_overflows(beyond_float16):
    exact, clipped = (evaluate(beyond_float16(mx.float32), DRAW, t) for t in ({}, named("block_end_clip")))
    assert error(clipped, exact) > 0.1


def test_clipping_changes_nothing_within_the_limit(pipeline):
    plain = evaluate(pipeline, DRAW)
    assert error(evaluate(pipeline, DRAW, {"clip": BlockEndClip(limit=1e30)}), plain) == 0
    assert error(evaluate(pipeline, DRAW, {"clip": BlockEndClip(limit=4.0)}), plain) > 0.01


@pytest.fixture(scope="module")
def references(micro):
    """The default model on DRAW, in fp32 and in bfloat16."""
    return evaluate(micro(mx.float32), DRAW), evaluate(micro(mx.bfloat16), DRAW)


@pytest.mark.parametrize("recipe", [*thinned([f"draw_things_{model}" for model in MODELS], keep=1), "ggml_scales"])
def test_recipes_keep_float16_finite_where_it_overflows(micro, references, recipe):
    exact, bfloat16 = references
    found, seen = observed(micro(mx.float16), None, named(recipe))
    assert [(site, stream) for site, stream, _, finite in seen if not finite] == []
    assert error(found, exact) < error(bfloat16, exact)
    assert np.abs(found["pixels"] - exact["pixels"]).max() < 8


def test_plain_float16_fails_on_the_default_model_with_and_without_the_clip(micro):
    for names in ((), ("block_end_clip",)):
        techniques = named(*names) if names else {}
        assert not np.isfinite(evaluate(micro(mx.float16), DRAW, techniques)["velocity"]).all(), names


def test_streams_in_fp32_alone_do_not_carry_float16(micro):
    """A text feed-forward overflows at the first step, in block 38 without a prompt later with one."""
    draw = Draw(0, (1.0, 0.9), "a green square on a white background", Grid(8, 8))
    found = evaluate(micro(mx.float16), draw, named("fp32_residual"))
    assert not np.isfinite(found["velocity"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["draw_things_qwen_image", "draw_things_2512"])
def test_its_picture_is_that_of_fp32(micro, recipe):
    draw = Draw(3, (1.0, 0.9), "two red circles on a blue background, left", Grid(8, 8))
    reference = evaluate(micro(mx.float32), draw)["pixels"]
    found = evaluate(micro(mx.float16), draw, named(recipe))["pixels"]
    assert 10 * np.log10(255**2 / np.mean((found - reference) ** 2)) > 45


# --- composition -----------------------------------------------------------------------------------------------------


def test_a_recipe_is_its_parts_in_order():
    with configurations():
        composed = compose("config", overrides=["technique=[draw_things_2512]"]).technique
    assert (
        list(composed)
        == list(named("draw_things_2512"))
        == [
            "fp32_residual",
            "draw_things_attention",
            "draw_things_feed_forward",
            "draw_things_first_linear",
        ]
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ScaledAttention(), ScaledAttention()),
        (ScaledFeedForward(), ScaledFeedForward(2.0)),
        (*named("ggml_scales").values(), ScaledFeedForward())[1:],
        (Narrow(sites=("transformer_blocks.*.attn.to_q",)), ScaledAttention()),
    ],
    ids=["attention twice", "feed-forward twice", "ggml and Draw Things", "narrow and scaled"],
)
def test_rivals_at_one_site_are_refused(pipeline, first, second):
    with pytest.raises(InputError, match="both rewrite"), applied(pipeline.components, {"a": first, "b": second}):
        pass


def test_scaling_after_something_without_eps_or_bias_is_refused(pipeline):
    upcast = Float32(sites=("transformer_blocks.*.attn.to_q",))
    with pytest.raises(InputError, match="expected a linear: list"):
        evaluate(pipeline, DRAW, {"fp32": upcast, "scaled": ScaledAttention()})
    plain = evaluate(pipeline, DRAW)
    assert error(evaluate(pipeline, DRAW, {"scaled": ScaledAttention(), "fp32": upcast}), plain) == 0


@pytest.mark.parametrize(("block", "expected"), [(0, 2), (43, 2), (44, 16), (59, 16), (80, 16)])
def test_a_table_holds_from_one_block_to_the_next_and_the_last_goes_on(block, expected):
    class AtBlock:
        path = "transformer_blocks.N"

    site = AtBlock()
    site.block = block
    assert at_block({44: 16, 0: 2}, site) == expected
    assert at_block(8, site) == 8


@pytest.mark.parametrize("scale", [0, -2, 3, float("nan"), float("inf"), "8", {4: 2}])
def test_scales_that_are_no_powers_of_two_are_refused(pipeline, scale):
    with pytest.raises(InputError, match="scale"), applied(pipeline.components, {"s": ScaledAttention(qkv=scale)}):
        pass


def test_narrowing_a_module_with_modules_inside_is_refused(pipeline):
    with pytest.raises(InputError, match="holds other modules"):
        evaluate(pipeline, DRAW, {"n": Narrow(sites=("transformer_blocks.*.attn",))})
    with pytest.raises(InputError, match="Did you mean float16"):
        Narrow(sites=(), dtype="flaot16")
