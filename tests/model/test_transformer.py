"""The transformer against QwenImageTransformer2DModel of diffusers."""

import copy
from collections import Counter
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from precision_lab.errors import InputError
from precision_lab.instrument.arrays import to_numpy
from precision_lab.model.layers import Linear, scaled_dot_product_attention
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.streams import Streams
from precision_lab.model.rotary import Grid
from precision_lab.synthetic import PRESETS, make
from tests.model.oracle import TORCH, copy_of, ours, random_inputs, random_transformer, reference, relative_l2, rounded
from tests.spread import slow, thinned

FP32 = 1e-5
BELOW_FP16_LIMIT = 3e4


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_16_bit_linear_is_rounded_once(name):
    """Rounded after the bias; a few values differ because fp32 sums fall on the other side of a tie."""
    rng = np.random.default_rng(3)
    layer = Linear(96, 64)
    layer.set_dtype(getattr(mx, name))
    layer.bias = mx.array(rng.standard_normal(64)).astype(getattr(mx, name))
    x = mx.array(rng.standard_normal((200, 96))).astype(getattr(mx, name))
    wide = [to_numpy(array).astype(np.float64) for array in (x, layer.weight, layer.bias)]
    exact = (wide[0] @ wide[1].T + wide[2]).astype(to_numpy(x).dtype)
    assert np.mean(to_numpy(layer(x)) == exact) > 0.995


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_16_bit_attention_is_rounded_once_on_the_cpu(name):
    if mx.default_device().type != mx.DeviceType.cpu:
        pytest.skip("a GPU's fused kernel has its own routes")
    rng = np.random.default_rng(4)
    q, k, v = (mx.array(3 * rng.standard_normal((1, 2, 40, 16))).astype(getattr(mx, name)) for _ in range(3))
    wide = [to_numpy(array).astype(np.float64) for array in (q, k, v)]
    scores = np.exp(wide[0] @ wide[1].swapaxes(-1, -2) / 4)
    exact = (scores / scores.sum(axis=-1, keepdims=True) @ wide[2]).astype(to_numpy(q).dtype)
    assert np.mean(to_numpy(scaled_dot_product_attention(q, k, v, scale=0.25)) == exact) > 0.99


@pytest.mark.parametrize(
    ("seed", "layers", "heads", "axes", "text_width", "grids"),
    [
        (0, 1, 1, (8, 12, 12), 48, [(7, 9), (1, 1), (83, 3)]),
        (1, 2, 3, (4, 6, 6), 32, [(7, 9), (1, 13), (83, 3)]),
        (2, 4, 2, (8, 8, 8), 40, [(2, 5), (6, 4), (11, 1)]),
        (3, 1, 1, (16, 56, 56), 64, [(9, 7), (3, 3)]),
        (4, 3, 5, (2, 4, 10), 24, [(5, 5), (1, 1), (3, 83)]),
        slow((5, 8, 4, (4, 6, 6), 48, [(7, 9), (8, 8)])),
        (6, 2, 7, (8, 4, 4), 16, [(92, 2), (13, 3)]),
    ],
)
def test_fp32_equals_diffusers(seed, layers, heads, axes, text_width, grids):
    model = random_transformer(seed, layers, heads, axes, text_width)
    transformer = copy_of(model)
    rng = np.random.default_rng(seed)
    for grid in grids:
        tokens = int(rng.integers(2, 40))
        for batch, lengths in ((1, None), (2, None), (2, (tokens, tokens // 2)), (3, (1, tokens - 1, tokens))):
            inputs = random_inputs(rng, grid, batch, tokens, text_width, lengths=lengths)
            assert relative_l2(ours(transformer, inputs), reference(model, inputs)) <= FP32


def test_mask_may_have_holes():
    model = random_transformer(7, layers=3)
    transformer = copy_of(model)
    rng = np.random.default_rng(7)
    for _ in range(4):
        mask = (rng.random((2, 11)) < 0.5).astype(np.float32)
        inputs = random_inputs(rng, (5, 3), batch=2)._replace(mask=mask)
        assert relative_l2(ours(transformer, inputs), reference(model, inputs)) <= FP32


def test_masked_text_does_not_matter():
    transformer = copy_of(random_transformer(8, layers=3))
    rng = np.random.default_rng(8)
    inputs = random_inputs(rng, (3, 4), batch=2, lengths=(11, 4))
    other = np.where(inputs.mask[..., None] == 1, inputs.text, 100 * rng.standard_normal(inputs.text.shape))
    result = ours(transformer, inputs)
    np.testing.assert_array_equal(ours(transformer, inputs._replace(text=other.astype(np.float32))), result)
    alone = inputs._replace(
        latents=inputs.latents[1:], timestep=inputs.timestep[1:], text=inputs.text[1:, :4], mask=None
    )
    assert relative_l2(result[1:], ours(transformer, alone)) <= FP32


def test_observable_modules_are_called_once():
    """Each module is one site; a second call or none would make the recorded value ambiguous."""
    transformer = copy_of(random_transformer(9, layers=2))
    calls = Counter()
    originals = {kind: kind.__call__ for kind in {type(module) for module in transformer.modules()}}
    with pytest.MonkeyPatch.context() as patch:
        for kind, original in originals.items():

            def counted(self, *args, _original=original, **kwargs):
                calls[id(self)] += 1
                return _original(self, *args, **kwargs)

            patch.setattr(kind, "__call__", counted)
        ours(transformer, random_inputs(np.random.default_rng(9), (2, 3)))
    assert {name: calls[id(m)] for name, m in transformer.named_modules() if calls[id(m)] != 1} == {}


def test_fp32_equals_diffusers_over_60_growing_blocks(micro_synthetic):
    model = QwenImageTransformer2DModel.from_pretrained(
        micro_synthetic, subfolder="transformer", torch_dtype=torch.float32
    )
    transformer = Checkpoint(micro_synthetic).transformer(mx.float32)
    rng = np.random.default_rng(10)
    for grid, timestep, lengths in (
        ((7, 9), 1.0, None),
        ((1, 1), 0.75, (11, 5)),
        ((4, 6), 0.5, None),
        ((13, 3), 0.1, (3, 11)),
        ((7, 9), 0.02, None),
    ):
        inputs = random_inputs(rng, grid, batch=2, text_width=64, timestep=timestep, lengths=lengths)
        assert relative_l2(ours(transformer, inputs), reference(model, inputs)) <= FP32


@pytest.mark.slow
def test_fp32_equals_diffusers_over_60_growing_blocks_at_all_timesteps(micro_synthetic, tmp_path):
    folders = [micro_synthetic, tmp_path / "other"]
    make(PRESETS["micro"], folders[1], seed=1)
    for seed, folder in enumerate(folders):
        model = QwenImageTransformer2DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=torch.float32)
        transformer = Checkpoint(folder).transformer(mx.float32)
        rng = np.random.default_rng(seed)
        for timestep in np.linspace(0.02, 1, 25):
            inputs = random_inputs(rng, (5, 7), text_width=64, timestep=timestep)
            assert relative_l2(ours(transformer, inputs), reference(model, inputs)) <= FP32


@pytest.mark.slow
def test_fp32_equals_diffusers_at_full_width():
    model = random_transformer(11, layers=1, heads=24, axes=(16, 56, 56), text_width=3584)
    transformer = copy_of(model)
    inputs = random_inputs(np.random.default_rng(11), (3, 5), tokens=7, text_width=3584)
    assert relative_l2(ours(transformer, inputs), reference(model, inputs)) <= FP32


@pytest.mark.slow
def test_fp32_block_equals_diffusers_at_full_width_with_massive_channels():
    """Errors are relative to the size of each channel, and the block adds as much as its input."""
    width, massive = 3072, 4
    model = random_transformer(12, layers=1, heads=24, axes=(16, 56, 56), text_width=64)
    rng = np.random.default_rng(12)
    sizes = []
    for outputs in (("attn.to_out.0", "img_mlp.net.2"), ("attn.to_add_out", "txt_mlp.net.2")):
        size = 10 ** rng.uniform(2, 5, width)
        size[rng.permutation(width)[:massive]] = 1e7
        sizes.append(torch.from_numpy(size.astype(np.float32)))
        for name in outputs:
            linear = model.transformer_blocks[0].get_submodule(name)
            linear.weight.data *= sizes[-1][:, None]
            linear.bias.data *= sizes[-1]
    transformer = copy_of(model)

    grid, tokens = Grid(4, 3), 7
    streams = [torch.from_numpy(rng.standard_normal((1, n, width), dtype=np.float32)) for n in (12, tokens)]
    img, txt = (size * (3 * torch.sign(x) + x) for size, x in zip(sizes, streams, strict=True))
    temb = torch.from_numpy(rng.standard_normal((1, width), dtype=np.float32))
    with torch.no_grad():
        rotations = model.pos_embed([[(1, *grid)]], max_txt_seq_len=tokens, device=img.device)
        expected_txt, expected_img = model.transformer_blocks[0](img, txt, None, temb, rotations)
    result = transformer.transformer_blocks[0](
        Streams(img=mx.array(img.numpy()), txt=mx.array(txt.numpy())),
        mx.array(temb.numpy()),
        transformer.pos_embed(grid, tokens),
    )
    for actual, expected, before, size in zip(result, (expected_img, expected_txt), (img, txt), sizes, strict=True):
        added = ((expected - before) / size).numpy()
        assert added.std() > 0.3
        assert relative_l2(np.array(actual), expected.numpy()) <= FP32
        assert relative_l2(np.array(actual) / size.numpy(), (expected / size).numpy()) <= 1e-4


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize(
    ("seed", "layers", "heads", "axes"),
    thinned([(22, 5, 1, (16, 24, 24)), (20, 1, 2, (8, 12, 12)), (23, 8, 2, (8, 12, 12)), (21, 3, 4, (4, 6, 6))], 2),
)
def test_16_bit_error_is_that_of_torch(dtype, seed, layers, heads, axes):
    model = random_transformer(seed, layers, heads, axes).to(TORCH[dtype])
    exact, transformer = copy.deepcopy(model).double(), copy_of(model)
    rng = np.random.default_rng(seed)
    for timestep in (1, 0.75, 0.5, 0.25):
        inputs = rounded(random_inputs(rng, (7, 9), batch=2, timestep=timestep, lengths=(11, 6)), dtype)
        expected = reference(exact, inputs)
        error = relative_l2(ours(transformer, inputs, dtype), expected)
        assert error <= 1.25 * relative_l2(reference(model, inputs), expected)


def error_ratios(folder, dtype, draws, seed) -> list[float]:
    """Ratios of our error to torch's, both against float64, on random inputs."""
    model = QwenImageTransformer2DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=TORCH[dtype])
    exact, transformer = copy.deepcopy(model).double(), Checkpoint(folder).transformer(dtype)
    rng = np.random.default_rng(seed)
    ratios = []
    for i in range(draws):
        grid = ((7, 9), (4, 5), (3, 11), (6, 6))[i // 4 % 4]
        inputs = rounded(random_inputs(rng, grid, text_width=64, timestep=(1, 0.75, 0.5, 0.25)[i % 4]), dtype)
        expected = reference(exact, inputs)
        error = relative_l2(ours(transformer, inputs, dtype), expected)
        ratios.append(error / relative_l2(reference(model, inputs), expected))
    return ratios


def geometric_mean(values) -> float:
    return float(np.exp(np.mean(np.log(values))))


@pytest.mark.slow
def test_bfloat16_error_over_60_growing_blocks_is_that_of_torch(micro_synthetic):
    assert geometric_mean(error_ratios(micro_synthetic, mx.bfloat16, draws=4, seed=30)) <= 1.5


@pytest.mark.slow
def test_bfloat16_error_over_60_growing_blocks_is_that_of_torch_for_several_weights(micro_synthetic, tmp_path):
    folders = [micro_synthetic, tmp_path / "other"]
    make(PRESETS["micro"], folders[1], seed=1)
    ratios = [r for seed, folder in enumerate(folders) for r in error_ratios(folder, mx.bfloat16, draws=24, seed=seed)]
    assert geometric_mean(ratios) <= 1.5


@pytest.mark.slow
def test_float16_error_over_60_growing_blocks_is_that_of_torch(tmp_path):
    """Uses a growth that ends inside the range of float16."""
    growth = (BELOW_FP16_LIMIT / 16) ** (1 / 60)
    make(replace(PRESETS["micro"], growth=growth), tmp_path / "mild")
    assert geometric_mean(error_ratios(tmp_path / "mild", mx.float16, draws=32, seed=0)) <= 1.5


def test_float16_does_not_hide_overflow(micro_synthetic):
    """The plain model does not clip in float16, unlike diffusers."""
    transformer = Checkpoint(micro_synthetic).transformer(mx.float16)
    inputs = random_inputs(np.random.default_rng(31), (4, 4), text_width=64)
    assert not np.isfinite(ours(transformer, inputs, mx.float16)).all()


@pytest.mark.parametrize("key", ["guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"])
def test_other_members_of_the_family_are_rejected(key):
    with pytest.raises(InputError, match=key):
        TransformerConfig.from_dict({key: True})


def test_rope_axes_must_fill_a_head():
    for axes in ((16, 56, 54), (15, 57, 56)):
        with pytest.raises(InputError, match="axes_dims_rope"):
            TransformerConfig.from_dict({"axes_dims_rope": list(axes)})
