"""The VAE against AutoencoderKLQwenImage of diffusers."""

from collections import Counter
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageRMS_norm

from precision_lab.instrument.arrays import to_numpy as as_stored
from precision_lab.model.qwen_image.config import VAEConfig
from precision_lab.model.qwen_image.vae import VAE
from precision_lab.model.vae_blocks import ChannelNorm, Conv2d
from tests.model.vaes import (
    DTYPES,
    errors_to_float64,
    loaded,
    randomised,
    relative_l2,
    to_numpy,
    torch_decode,
    torch_encode,
)
from tests.spread import thinned

PUBLISHED = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
CONFIGS = {
    "published": PUBLISHED,
    "four_channels": PUBLISHED | {"base_dim": 12, "num_res_blocks": 1, "input_channels": 4},
    "narrow_latents": PUBLISHED | {"z_dim": 3, "dim_mult": [1, 1, 3, 2], "num_res_blocks": 1},
    "two_stages": PUBLISHED | {"base_dim": 16, "dim_mult": [2, 3], "temperal_downsample": [True]},
    "attention": PUBLISHED | {"num_res_blocks": 1, "attn_scales": [0.5, 0.125]},
}


def make_oracle(seed, options=PUBLISHED) -> AutoencoderKLQwenImage:
    z_dim = options["z_dim"]
    model = AutoencoderKLQwenImage(**options, latents_mean=[0.0] * z_dim, latents_std=[1.0] * z_dim)
    return randomised(model, seed)


def load(model, folder: Path, dtype=mx.float32) -> VAE:
    """Our VAE with the weights as written by diffusers."""
    vae, ignored = loaded(VAE, VAEConfig, model, folder, dtype)
    assert all(".time_conv." in name for name in ignored)
    return vae


def random_latents(rng, vae, batch, height, width) -> np.ndarray:
    return rng.standard_normal((batch, height, width, vae.config.z_dim))


def random_pixels(rng, vae, batch, height, width) -> np.ndarray:
    scale = vae.config.scale_factor
    return rng.uniform(-1, 1, (batch, height * scale, width * scale, vae.config.input_channels))


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> VAE:
    return load(make_oracle(seed=0), tmp_path_factory.mktemp("vae"))


@pytest.mark.parametrize("name", CONFIGS)
def test_decode_equals_diffusers(tmp_path, name):
    model = make_oracle(1, CONFIGS[name])
    vae = load(model, tmp_path)
    rng = np.random.default_rng(1)
    for shape in ((1, 4, 4), (2, 5, 3), (1, 1, 7)):
        latents = random_latents(rng, vae, *shape)
        expected = torch_decode(model, latents)
        assert np.mean(np.abs(expected) < 1) > 0.5
        assert relative_l2(to_numpy(vae.decode(mx.array(latents, mx.float32))), expected) <= 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_encode_equals_diffusers(tmp_path, name):
    model = make_oracle(2, CONFIGS[name])
    with torch.no_grad():
        model.quant_conv.bias[-2:] += torch.tensor([50.0, -50.0])
    vae = load(model, tmp_path)
    rng = np.random.default_rng(2)
    for shape in ((1, 3, 3), (2, 2, 5)):
        pixels = random_pixels(rng, vae, *shape)
        moments = vae.encode(mx.array(pixels, mx.float32))
        mean, logvar = torch_encode(model, pixels)
        assert logvar.max() == 20
        assert logvar.min() == -30
        assert relative_l2(to_numpy(moments.mean), mean) <= 1e-5
        # in a norm, the two clamped channels would dominate the others
        assert relative_l2(to_numpy(moments.logvar)[..., :-2], logvar[..., :-2]) <= 1e-5
        np.testing.assert_array_equal(to_numpy(moments.logvar)[..., -2:], logvar[..., -2:])


@pytest.mark.parametrize("name", DTYPES)
def test_a_16_bit_convolution_is_rounded_once_on_the_cpu(name):
    """Rounded after the bias; a GPU also rounds before it."""
    if mx.default_device().type != mx.DeviceType.cpu:
        pytest.skip("a GPU rounds before the bias")
    dtype = DTYPES[name][1]
    rng = np.random.default_rng(3)
    layer = Conv2d(48, 32, 1)
    layer.set_dtype(dtype)
    layer.bias = mx.array(rng.standard_normal(32)).astype(dtype)
    x = mx.array(rng.standard_normal((1, 20, 20, 48))).astype(dtype)
    wide = [as_stored(array).astype(np.float64) for array in (x, layer.weight[:, 0, 0], layer.bias)]
    exact = (wide[0] @ wide[1].T + wide[2]).astype(as_stored(x).dtype)
    assert np.mean(as_stored(layer(x)) == exact) > 0.995


@pytest.mark.parametrize("name", thinned(DTYPES, ["float16"]))
def test_16_bit_error_is_that_of_torch(tmp_path, name):
    torch_dtype, mlx_dtype = DTYPES[name]
    ratios = {"decode": [], "mean": [], "logvar": []}
    for seed in range(5):
        model = make_oracle(seed).to(torch_dtype)
        vae = load(model, tmp_path / str(seed), mlx_dtype)
        rng = np.random.default_rng(seed)
        latents, pixels = random_latents(rng, vae, 1, 4, 3), random_pixels(rng, vae, 1, 4, 3)
        for key, ratio in errors_to_float64(vae, model, latents, pixels, torch_dtype, mlx_dtype).items():
            ratios[key].append(ratio)
    for key, values in ratios.items():
        assert np.exp(np.mean(np.log(values))) <= 1.25, (key, values)


def test_narrow_weights_are_upcast_exactly(tmp_path):
    model = make_oracle(seed=3).to(torch.bfloat16)
    narrow = load(model, tmp_path, mx.bfloat16)
    wide = load(model, tmp_path, mx.float32)
    latents = mx.array(random_latents(np.random.default_rng(3), narrow, 1, 4, 5), mx.float32)
    assert narrow.decode(latents).dtype == mx.float32
    np.testing.assert_array_equal(to_numpy(narrow.decode(latents)), to_numpy(wide.decode(latents)))


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("dim", [12, 96, 384])
def test_norm_rounds_where_diffusers_does(name, dim):
    """Rounding the factor sqrt(dim) to bf16 would change most values."""
    torch_dtype, mlx_dtype = DTYPES[name]
    rng = np.random.default_rng(dim)
    x, gamma = rng.standard_normal((2, 6, 5, dim)), rng.uniform(0.5, 2, dim)
    theirs = QwenImageRMS_norm(dim).to(torch_dtype)
    ours = ChannelNorm(dim)
    with torch.no_grad():
        theirs.gamma.copy_(torch.tensor(gamma)[:, None, None])
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2)).to(torch_dtype)).double().numpy()
    ours.gamma = mx.array(gamma, mlx_dtype)
    result = to_numpy(ours(mx.array(x, mlx_dtype)))
    assert np.mean(result == expected.transpose(0, 2, 3, 1)) > 0.99


def test_each_module_is_called_once(vae, monkeypatch):
    calls = Counter()
    for kind in {type(module) for module in vae.modules()} - {VAE}:
        original = kind.__call__

        def counted(self, *args, _original=original, **kwargs):
            calls[id(self)] += 1
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__call__", counted)
    vae.decode(vae.encode(mx.zeros((1, 16, 8, 3))).mean)
    modules = [(name, module) for name, module in vae.named_modules() if module is not vae]
    assert {name: calls[id(module)] for name, module in modules if calls[id(module)] != 1} == {}


def test_sanitize_returns_unknown_tensors_unchanged():
    shapes = {
        "encoder.conv_in.weight": (4, 3, 3, 5, 7),
        "decoder.up_blocks.0.upsamplers.0.resample.1.weight": (2, 4, 3, 5),
        "decoder.norm_out.gamma": (4, 1, 1, 1),
        "decoder.mid_block.attentions.0.norm.gamma": (4, 1, 1),
        "decoder.conv_in.bias": (4,),
        "decoder.up_blocks.0.upsamplers.0.time_conv.weight": (8, 4, 3, 1, 1),
        "strange.gamma": (4, 2),
        "scalar.gamma": (),
        "strange.weight": (1, 2, 3, 4, 5, 6),
        "scalar.weight": (),
    }
    weights = {name: mx.random.normal(shape, key=mx.random.key(0)) for name, shape in shapes.items()}
    converted, ignored = VAE.sanitize(weights)
    assert ignored == ["decoder.up_blocks.0.upsamplers.0.time_conv.weight"]
    assert converted["encoder.conv_in.weight"].shape == (4, 5, 7, 3)
    assert mx.array_equal(
        converted["encoder.conv_in.weight"][1, 2, 3], weights["encoder.conv_in.weight"][1, :, -1, 2, 3]
    )
    assert converted["decoder.up_blocks.0.upsamplers.0.resample.1.weight"].shape == (2, 3, 5, 4)
    assert (
        converted["decoder.norm_out.gamma"].shape
        == converted["decoder.mid_block.attentions.0.norm.gamma"].shape
        == (4,)
    )
    for name in ("decoder.conv_in.bias", "strange.gamma", "scalar.gamma", "strange.weight", "scalar.weight"):
        assert converted[name] is weights[name]
