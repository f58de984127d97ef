"""The transformer against QwenImage21Transformer2DModel of diffusers, in one pass and with a prefix."""

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

from precision_lab.errors import InputError
from precision_lab.instrument.sites import walk
from precision_lab.instrument.tap import tapped
from precision_lab.model.modulation import GatedAdd
from precision_lab.model.qwen_image_21 import attention, rope, segments, transformer
from precision_lab.model.qwen_image_21.block import Float16Clip
from precision_lab.model.qwen_image_21.config import TransformerConfig
from precision_lab.model.rotary import centred, diagonal, rotation
from tests.model.oracle import TORCH, relative_l2
from tests.model.qwen_image_21.oracle import (
    Shape,
    arrays_of,
    composed,
    copy_of,
    in_dtype,
    new_cache,
    ours,
    random_inputs,
    random_shape,
    random_transformer,
    reference,
    rounded,
)
from tests.spread import thinned

FP32 = 1e-5
GRIDS = [(7, 8), (1, 4), (83, 4), (5, 12), (12, 3), (4, 9), (2, 2), (9, 20)]
"""Grids of odd sides among them; diffusers places the target in slots of four tokens."""


def deviations(model, own, inputs) -> list[float]:
    """Relative L2 to diffusers of one pass, and of a pass of the prefix and one of the target."""
    expected = reference(model, inputs)
    return [relative_l2(ours(own, inputs, cached=cached), expected) for cached in (False, True)]


@pytest.mark.parametrize("seed", thinned(range(10), (1, 8)))  # two and five blocks
def test_fp32_equals_diffusers(seed):
    rng = np.random.default_rng(seed)
    shape = random_shape(rng, layers=(1, 2, 3, 5, 8)[seed % 5])
    model = random_transformer(seed, shape, eps=(1e-6, 1e-5)[seed % 2])
    own = copy_of(model)
    for grid in rng.permutation(GRIDS)[:2].tolist():
        tokens = int(rng.integers(2, 40))
        for batch, lengths in ((1, None), (2, None), (2, (tokens, tokens // 2)), (3, (1, tokens - 1, tokens))):
            inputs = random_inputs(rng, grid, shape, batch, tokens, lengths=lengths)
            assert max(deviations(model, own, inputs)) <= FP32


def test_fp32_equals_diffusers_over_32_blocks():
    shape = Shape(32, heads=4, axes=(4, 6, 6))
    model = random_transformer(40, shape)
    own, rng = copy_of(model), np.random.default_rng(40)
    for grid, timestep, lengths in (((7, 8), 1.0, None), ((3, 4), 0.02, (11, 5)), ((9, 4), 0.5, (3, 11))):
        inputs = random_inputs(rng, grid, shape, 2, timestep=timestep, lengths=lengths)
        assert max(deviations(model, own, inputs)) <= FP32


@pytest.mark.slow
def test_fp32_equals_diffusers_at_full_width():
    shape = Shape(1, heads=32, axes=(16, 56, 56), text_width=4096)
    model = random_transformer(41, shape)
    inputs = random_inputs(np.random.default_rng(41), (3, 4), shape, tokens=7)
    assert max(deviations(model, copy_of(model), inputs)) <= FP32


@pytest.mark.parametrize("lengths", [None, (9, 4)])
def test_steps_with_a_prefix_equal_those_with_the_cache_of_diffusers(lengths):
    """diffusers fills its cache in the first step, which is one pass; here a pass of the prefix comes before it."""
    shape = Shape(4)
    model = random_transformer(42, shape)
    own, cache, rng = copy_of(model), new_cache(model), np.random.default_rng(42)
    first = random_inputs(rng, (3, 8), shape, 2, tokens=9, lengths=lengths)
    prefix = own.prefill(mx.array(first.text), None if lengths is None else mx.array(first.mask))
    for mode in ("extract", "cached", "cached"):
        inputs = random_inputs(rng, (3, 8), shape, 2, tokens=9)._replace(text=first.text, mask=first.mask)
        expected = reference(model, inputs, cache, mode)
        velocity = own(*arrays_of(inputs), prefix)
        assert relative_l2(np.array(velocity).astype(np.float64), expected) <= FP32
    for kept, layer in zip(prefix.blocks, cache.layer_caches, strict=True):
        for array, theirs in ((kept.keys, layer.k), (kept.values, layer.v)):
            assert array.shape == tuple(theirs.shape) == (2, prefix.num_tokens, shape.heads, sum(shape.axes))
            read = np.ones((2, 9), bool) if lengths is None else first.mask.astype(bool)  # nothing reads padding
            assert relative_l2(np.array(array)[read], theirs.numpy()[read]) <= FP32


def test_mask_may_have_holes():
    """Also at the beginning, where a query of diffusers reads no key at all."""
    shape = Shape(3)
    model = random_transformer(43, shape)
    own, rng = copy_of(model), np.random.default_rng(43)
    for first in (0, 1, 1):
        mask = (rng.random((2, 11)) < 0.5).astype(np.float32)
        mask[:, 0] = first
        inputs = random_inputs(rng, (5, 4), shape, 2)._replace(mask=mask)
        assert max(deviations(model, own, inputs)) <= FP32


@pytest.mark.parametrize("cached", [False, True])
def test_masked_text_does_not_matter(cached):
    shape = Shape(3)
    own, rng = copy_of(random_transformer(44, shape)), np.random.default_rng(44)
    inputs = random_inputs(rng, (3, 4), shape, 2, lengths=(11, 4))
    other = np.where(inputs.mask[..., None] == 1, inputs.text, 100 * rng.standard_normal(inputs.text.shape))
    result = ours(own, inputs, cached=cached)
    changed = inputs._replace(text=other.astype(np.float32))
    np.testing.assert_array_equal(ours(own, changed, cached=cached), result)


@pytest.mark.parametrize("cached", [False, True])
def test_an_odd_number_of_tokens_equals_the_modules_of_diffusers(cached):
    """The forward of diffusers places the target in slots of four tokens; its modules know no slots."""
    shape = Shape(2)
    model, rng = random_transformer(45, shape), np.random.default_rng(45)
    own = copy_of(model)
    for grid in ((3, 5), (1, 1), (7, 9)):
        inputs = random_inputs(rng, grid, shape, 2)
        assert relative_l2(ours(own, inputs, cached=cached), composed(model, inputs)) <= FP32


def test_a_prefix_kept_in_another_dtype_is_rounded_array_by_array():
    shape = Shape(3)
    own = copy_of(random_transformer(45, shape))
    prefix = own.prefill(mx.array(random_inputs(np.random.default_rng(45), (3, 4), shape, 2).text))
    for dtype, numpy_dtype in ((mx.float16, np.float16), (mx.float32, np.float32)):
        kept = prefix.kept_in(dtype)
        assert (len(kept.blocks), kept.num_tokens) == (len(prefix.blocks), prefix.num_tokens)
        for ours_of_block, of_block in zip(kept.blocks, prefix.blocks, strict=True):
            assert ours_of_block.keys.dtype == ours_of_block.values.dtype == dtype
            np.testing.assert_array_equal(ours_of_block.keys, np.array(of_block.keys).astype(numpy_dtype))
            np.testing.assert_array_equal(ours_of_block.values, np.array(of_block.values).astype(numpy_dtype))


@pytest.mark.parametrize("dtype", TORCH, ids=str)
def test_the_prefix_does_not_depend_on_the_step(dtype):
    """In one pass, everything that text tokens compute is the same in every bit whatever the latents and timestep."""
    shape = Shape(3)
    own, rng = copy_of(in_dtype(random_transformer(46, shape), TORCH[dtype])), np.random.default_rng(46)
    first = rounded(random_inputs(rng, (3, 4), shape, 2, tokens=9, lengths=(9, 5)), dtype)
    seen: list[dict[str, np.ndarray]] = []

    def record(call):
        output = call.output.img if hasattr(call.output, "img") else call.output
        seen[-1][call.site.path] = np.array(output[:, :9].astype(mx.float32))

    blocks = [site for site in walk({"transformer": own}) if site.path.startswith("transformer_blocks")]
    shared = [site for site in blocks if site.path.rpartition(".")[2] not in ("img_gate1", "img_gate2", "attend")]
    for timestep in (1.0, 0.3, 0.02):
        seen.append({})
        other = random_inputs(rng, (3, 4), shape, 2, tokens=9, timestep=timestep)
        with tapped(shared, record):
            ours(own, rounded(other._replace(text=first.text, mask=first.mask), dtype), dtype)
    assert len(seen[0]) == len(shared) > 40
    for step in seen[1:]:
        for path, values in seen[0].items():
            np.testing.assert_array_equal(step[path], values, err_msg=path)


def test_observable_modules_are_called_once():
    """Each module is one site; a second call would make the recorded value ambiguous."""
    shape = Shape(2)
    own = copy_of(random_transformer(47, shape))
    inputs = random_inputs(np.random.default_rng(47), (2, 4), shape)
    latents, timestep, text, grid, mask = arrays_of(inputs)
    paths, calls = {site.path for site in walk({"transformer": own})}, Counter()

    def called() -> set[str]:
        assert set(calls.values()) == {1}
        found = set(calls)
        calls.clear()
        return found

    with tapped(walk({"transformer": own}), lambda call: calls.update([call.site.path])):
        ours(own, inputs)
        assert called() == paths
        prefix = own.prefill(text, mask)
        of_prefix = called()
        own(latents, timestep, text, grid, mask, prefix)
        of_target = called()
    last = {path for path in paths if path.split(".")[0] in ("norm_out", "proj_out", "img_in")}
    assert of_prefix == paths - last - {path for path in paths if path.endswith(".attend")}
    text_only = {path for path in paths if path.startswith("txt_in") or path.endswith(".attend_prefix")}
    assert of_target == paths - text_only


def test_no_array_has_an_element_for_each_text_and_target_token():
    """Masks and rotations grow with T + L, and with T^2 for the text alone."""
    num_text, num_target = 30, 400
    mask = mx.array((np.arange(num_text) < np.array([[30], [7]])).astype(np.float32))
    text, target = segments.text_segment(num_text, mask), segments.target_segment(num_text, num_target, mask)
    assert text.mask.shape == (2, 1, num_text, num_text)
    assert target.mask.shape == (2, 1, 1, num_text + num_target)
    assert segments.target_segment(num_text, num_target, None).mask is None


@pytest.mark.parametrize("cached", [False, True], ids=["one pass", "with a prefix"])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("seed", thinned((50, 51, 52, 53), (52, 53)))  # one and three blocks
def test_16_bit_error_is_that_of_torch(seed, dtype, cached):
    rng = np.random.default_rng(seed)
    shape = random_shape(rng, layers=(1, 3, 5, 8)[seed % 4])
    model = in_dtype(random_transformer(seed, shape), TORCH[dtype])
    exact, own = in_dtype(model, torch.float64), copy_of(model)
    for timestep in (1, 0.75, 0.5, 0.25):
        inputs = rounded(random_inputs(rng, (7, 8), shape, batch=2, timestep=timestep, lengths=(11, 6)), dtype)
        expected = reference(exact, inputs)
        error = relative_l2(ours(own, inputs, dtype, cached), expected)
        assert error <= 1.25 * relative_l2(reference(model, inputs), expected)


def test_float16_is_clipped_as_in_diffusers():
    """The second feed-forward overflows: both clip its infinities, and the blocks after it go on."""
    shape = Shape(3)
    model = random_transformer(54, shape)
    model.transformer_blocks[1].img_mlp.out.weight.data *= 1e5
    inputs = rounded(random_inputs(np.random.default_rng(54), (3, 4), shape), mx.float16)
    half, wide = in_dtype(model, torch.float16), copy_of(model)
    own, clipped = copy_of(half), {}
    sites = [site for site in walk({"transformer": own}) if site.path == "transformer_blocks.1.img_clip"]
    with tapped(sites, lambda call: clipped.update(before=call.args[0], after=call.output)):
        result = ours(own, inputs, mx.float16)
    assert not mx.isfinite(clipped["before"]).all()
    assert mx.abs(clipped["after"]).max() == 65504
    assert relative_l2(result, reference(half, inputs)) <= 2e-2
    assert relative_l2(ours(wide, inputs), reference(model, inputs)) <= FP32, "fp32 is not clipped"


def test_clip_keeps_nan_and_other_dtypes():
    values = [float("nan"), float("inf"), -1e30, 3.0]
    result = np.array(Float16Clip()(mx.array(values).astype(mx.float16)).astype(mx.float32))
    np.testing.assert_array_equal(result, [np.nan, 65504, -65504, 3])
    for dtype in (mx.float32, mx.bfloat16):
        x = mx.array(values).astype(dtype)
        assert Float16Clip()(x) is x


def wrong_boundary(patch):
    """The last text token belongs to the target's segment."""
    text, target = segments.text_segment, segments.target_segment

    def shorter(num_text, mask):
        return text(num_text - 1, None if mask is None else mask[:, :-1])

    patch.setattr(transformer, "text_segment", shorter)
    patch.setattr(transformer, "target_segment", lambda *sizes: target(*sizes)._replace(start=sizes[0] - 1))


def bidirectional_text(patch):
    plain = segments.text_segment
    patch.setattr(transformer, "text_segment", lambda num_text, mask: plain(num_text, mask)._replace(mask=None))


def text_reads_the_target(patch):
    plain = attention.Attention._attended

    def attended(self, q, k, v, parts):
        _, target = plain(self, q, k, v, parts)
        return [self.attend_prefix(q[:, : parts.target.start], k, v), target]

    patch.setattr(attention.Attention, "_attended", attended)


def target_with_the_row_of_the_prefix(patch):
    plain = segments.Segments.over_tokens

    def swapped(self, rows):
        exchanged = mx.concatenate([mx.broadcast_to(rows[-1:], rows[:-1].shape), rows[-1:]])
        return plain(self, exchanged if self.prefix and self.target else rows)

    patch.setattr(segments.Segments, "over_tokens", swapped)


def text_with_the_row_of_the_target(patch):
    plain = segments.Segments.over_tokens

    def swapped(self, rows):
        exchanged = mx.concatenate([rows[:-1], rows[:1]])
        return plain(self, exchanged if self.prefix and self.target else rows)

    patch.setattr(segments.Segments, "over_tokens", swapped)


def gate_without_tanh(patch):
    patch.setattr("precision_lab.model.layers.Tanh.__call__", lambda self, x: x)


def norm_weight_without_one(patch):
    def norm(self, x):
        return mx.fast.rms_norm(x, self.weight, self.eps)

    patch.setattr(transformer.ZeroCentredRMSNorm, "__call__", norm)


def rope_centre_off_by_one(patch):
    def rotations(axes, num_text, grid):
        positions = diagonal(0, num_text)
        if grid is not None:
            image = centred(grid, frame=num_text) + np.array([0, 1, 1])
            positions = np.concatenate([positions, image])
        return rotation(positions, axes)

    patch.setattr(rope, "rotations", rotations)


def target_at_frame_zero(patch):
    def rotations(axes, num_text, grid):
        positions = [diagonal(0, num_text)] + ([] if grid is None else [centred(grid, frame=0)])
        return rotation(np.concatenate(positions), axes)

    patch.setattr(rope, "rotations", rotations)


def scales_and_gates_in_another_order(patch):
    def call(self, modulation):
        scale1, scale2, gate1, gate2 = mx.split(modulation, 4, axis=-1)
        return transformer.Modulation(scale1, gate1, scale2, gate2)

    patch.setattr(transformer.SplitModulation, "__call__", call)


def frequencies_before_the_factor(patch):
    def call(self, timestep):
        angles = timestep.astype(mx.float32)[:, None] * self._frequencies * 999.9
        return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)

    patch.setattr(transformer.TimestepProjection, "__call__", call)


def sines_first(patch):
    plain = transformer.TimestepProjection.__call__
    patch.setattr(
        transformer.TimestepProjection,
        "__call__",
        lambda self, timestep: mx.roll(plain(self, timestep), 128, axis=-1),
    )


def padding_is_read(patch):
    plain = segments.target_segment
    patch.setattr(transformer, "target_segment", lambda *sizes: plain(*sizes[:2], None))


def branches_exchanged_in_the_feed_forward(patch):
    def call(self, x):
        return self.out(self.multiply(self.activation_fn(self.proj(x)), self.gate_layer(x)))

    patch.setattr("precision_lab.model.qwen_image_21.block.FeedForward.__call__", call)


def update_without_gate(patch):
    patch.setattr(GatedAdd, "__call__", lambda self, residual, gate, update: residual + update)


PLANTS = [
    *(wrong_boundary, bidirectional_text, text_reads_the_target, padding_is_read),
    *(target_with_the_row_of_the_prefix, text_with_the_row_of_the_target, scales_and_gates_in_another_order),
    *(gate_without_tanh, update_without_gate, norm_weight_without_one, branches_exchanged_in_the_feed_forward),
    *(rope_centre_off_by_one, target_at_frame_zero, frequencies_before_the_factor, sines_first),
]


@pytest.fixture(scope="module")
def parity_case() -> tuple:
    shape = Shape(2)
    model = random_transformer(60, shape)
    inputs = random_inputs(np.random.default_rng(60), (3, 4), shape, 2, lengths=(11, 6))
    return copy_of(model), inputs, reference(model, inputs)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_parity_fails_with_a_planted_mistake(plant, parity_case, monkeypatch):
    own, inputs, expected = parity_case
    plant(monkeypatch)
    assert not relative_l2(ours(own, inputs), expected) <= 10 * FP32


def test_parity_holds_without_a_planted_mistake(parity_case):
    own, inputs, expected = parity_case
    assert relative_l2(ours(own, inputs), expected) <= FP32


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"causal_condition": False}, "causal_condition is false, expected true"),
        ({"patch_size": 2}, "patch_size is 2, expected 1"),
        ({"axes_dims_rope": [16, 56, 54]}, "attention_head_dim 128"),
        ({"axes_dims_rope": [15, 57, 56]}, "three even numbers"),
        ({"axes_dims_rope": [64, 64]}, "three even numbers"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"eps": 1}, "eps is 1.0"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0"),
        ({"mlp_ratio": 1 << 20}, "is 4294967296 channels, expected at most"),
        ({"num_layers": 1000}, "num_layers is 1000, expected at most 256"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"_class_name": "QwenImageTransformer2DModel"}, "transformer is QwenImage21Transformer2DModel"),
        ({"_class_name": ["x"] * 999}, "transformer is QwenImage21Transformer2DModel"),
    ],
)
def test_other_configurations_are_rejected(raw, message):
    with pytest.raises(InputError, match=message) as caught:
        TransformerConfig.from_dict(raw)
    assert len(str(caught.value)) < 250


def test_the_published_sizes_are_the_defaults():
    config, ignored = TransformerConfig.from_dict({"_class_name": "QwenImage21Transformer2DModel", "pooled": 1})
    assert (config.dim, config.hidden, config.velocity_channels, ignored) == (4096, 12288, 64, ("pooled",))
    assert TransformerConfig.from_dict({"out_channels": None, "in_channels": 8})[0].velocity_channels == 8


def test_published_parameters_are_counted():
    """7,115,124,736 parameters in 297 tensors, without allocating them: MLX arrays are lazy until evaluated."""
    parameters = tree_flatten(transformer.Transformer(TransformerConfig()).parameters())
    assert len(parameters) == 297
    assert sum(array.size for _, array in parameters) == 7_115_124_736
