"""The VAE of Qwen-Image-2.1 against AutoencoderKLQwenImage21 of diffusers."""

from collections import Counter, defaultdict
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage21
from diffusers.models.autoencoders import autoencoder_kl_qwenimage21 as theirs
from mlx.utils import tree_flatten

from precision_lab.errors import InputError
from precision_lab.model.qwen_image_21.config import Stage, VAEConfig
from precision_lab.model.qwen_image_21.vae import VAE
from precision_lab.model.qwen_image_21.vae_stages import AverageDown, DuplicateUp, ResidualDownBlock, ResidualUpBlock
from precision_lab.numerics import float64
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

PUBLISHED = {"base_dim": 6, "decoder_base_dim": 9, "z_dim": 64, "dim_mult": [1, 2, 4, 8, 8]}


def random_options(rng) -> dict:
    """Sizes whose shortcuts may be impossible; widths, stages, patches and channels vary."""
    stages = int(rng.integers(2, 5))
    z_dim, patch = int(rng.integers(1, 20)), rng.choice([None, 1, 2, 3], p=[0.4, 0.2, 0.2, 0.2])
    return {
        "base_dim": int(rng.integers(2, 9)),
        "decoder_base_dim": rng.choice([None, int(rng.integers(2, 9))]),
        "z_dim": z_dim,
        "dim_mult": rng.integers(1, 5, stages).tolist(),
        "num_res_blocks": int(rng.integers(1, 3)),
        "temperal_downsample": [bool(b) for b in rng.integers(0, 2, stages - 1)],
        "in_channels": int(rng.integers(1, 5)) * (patch or 1) ** 2,
        "out_channels": int(rng.integers(1, 5)) * (patch or 1) ** 2,
        "patch_size": patch,
        "latents_mean": rng.standard_normal(z_dim).tolist(),
        "latents_std": rng.uniform(0.5, 4, z_dim).tolist(),
    }


def accepted_options(seed) -> dict:
    rng = np.random.default_rng(seed)
    while True:
        options = random_options(rng)
        try:
            VAEConfig.from_dict(options)
        except InputError:
            continue
        return options


def make_oracle(seed, options=None) -> AutoencoderKLQwenImage21:
    return randomised(AutoencoderKLQwenImage21(**(accepted_options(seed) if options is None else options)), seed)


def load(model, folder: Path, dtype=mx.float32) -> VAE:
    vae, _ = loaded(VAE, VAEConfig, model, folder, dtype)
    return vae


def random_latents(rng, vae, batch, height, width) -> np.ndarray:
    return rng.standard_normal((batch, height, width, vae.config.z_dim))


def random_pixels(rng, vae, batch, height, width) -> np.ndarray:
    config = vae.config
    scale, channels = config.scale_factor, config.in_channels // config.patch**2
    return rng.uniform(-1, 1, (batch, height * scale, width * scale, channels))


def assert_equal(vae, model, rng, shape):
    latents, pixels = random_latents(rng, vae, *shape), random_pixels(rng, vae, *shape)
    expected = torch_decode(model, latents)
    assert np.mean(np.abs(expected) < 1) > 0.5
    assert relative_l2(to_numpy(vae.decode(mx.array(latents, mx.float32))), expected) <= 1e-5
    moments = vae.encode(mx.array(pixels, mx.float32))
    for result, moment in zip(moments, torch_encode(model, pixels), strict=True):
        assert relative_l2(to_numpy(result), moment) <= 1e-5


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> VAE:
    return load(make_oracle(0, PUBLISHED), tmp_path_factory.mktemp("vae"))


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 3, 1)])
def test_equals_diffusers_in_the_published_form(tmp_path, shape):
    model = make_oracle(1, PUBLISHED)
    vae = load(model, tmp_path)
    assert vae.config.scale_factor == 16
    assert_equal(vae, model, np.random.default_rng(1), shape)


@pytest.mark.parametrize("seed", thinned(range(16), keep=4))
def test_equals_diffusers(tmp_path, seed):
    model = make_oracle(seed)
    vae = load(model, tmp_path)
    rng = np.random.default_rng(seed)
    for _ in range(2):
        assert_equal(vae, model, rng, (int(rng.integers(1, 3)), *(int(n) for n in rng.integers(1, 6, 2))))


def test_the_log_variance_is_clamped(tmp_path):
    model = make_oracle(2, PUBLISHED)
    with torch.no_grad():
        model.quant_conv.bias[-2:] += torch.tensor([50.0, -50.0])
    vae = load(model, tmp_path)
    pixels = random_pixels(np.random.default_rng(2), vae, 1, 2, 2)
    logvar = to_numpy(vae.encode(mx.array(pixels, mx.float32)).logvar)[..., -2:]
    np.testing.assert_array_equal(logvar, torch_encode(model, pixels)[1][..., -2:])
    assert (logvar.max(), logvar.min()) == (20, -30)


@pytest.mark.parametrize("name", thinned(DTYPES, ["bfloat16"]))
def test_16_bit_error_is_that_of_torch(tmp_path, name):
    torch_dtype, mlx_dtype = DTYPES[name]
    ratios = defaultdict(list)
    for seed in range(6):
        model = make_oracle(seed, PUBLISHED if seed < 2 else None).to(torch_dtype)
        vae = load(model, tmp_path / str(seed), mlx_dtype)
        rng = np.random.default_rng(seed)
        latents, pixels = random_latents(rng, vae, 1, 4, 3), random_pixels(rng, vae, 1, 4, 3)
        for key, ratio in errors_to_float64(vae, model, latents, pixels, torch_dtype, mlx_dtype).items():
            ratios[key].append(ratio)
    for key, values in ratios.items():
        assert np.exp(np.mean(np.log(values))) <= 1.25, (key, values)


def test_narrow_weights_are_upcast_exactly(tmp_path):
    model = make_oracle(3, PUBLISHED).to(torch.bfloat16)
    narrow, wide = load(model, tmp_path, mx.bfloat16), load(model, tmp_path)
    latents = mx.array(random_latents(np.random.default_rng(3), narrow, 1, 2, 3), mx.float32)
    assert narrow.decode(latents).dtype == mx.float32
    np.testing.assert_array_equal(to_numpy(narrow.decode(latents)), to_numpy(wide.decode(latents)))


@pytest.mark.parametrize("seed", range(10))
def test_shortcuts_equal_diffusers(seed):
    rng = np.random.default_rng(seed)
    space, time = (int(n) for n in rng.integers(1, 3, 2))
    size = space**2 * time
    narrow = int(rng.integers(1, 9))
    wide = narrow * int(rng.choice([n for n in range(1, size + 1) if size % n == 0]))
    batch, rows, columns = (int(n) for n in rng.integers(1, 4, 3))
    x = rng.standard_normal((batch, rows * space, columns * space, narrow)).astype(np.float32)
    frames = torch.from_numpy(x.transpose(0, 3, 1, 2)[:, :, None].copy())
    for source, target in ((narrow, wide), (narrow, 1)):
        expected = theirs.QwenImage21AvgDown3D(source, target, time, space)(frames)[:, :, 0].numpy()
        result = AverageDown(Stage(source, target, space, time))(mx.array(x))
        np.testing.assert_allclose(np.array(result).transpose(0, 3, 1, 2), expected, rtol=2e-6, atol=1e-6)
        expected = theirs.QwenImage21DupUp3D(source, target * narrow, time, space)(frames, first_chunk=True)
        result = DuplicateUp(Stage(source, target * narrow, space, time))(mx.array(x))
        np.testing.assert_array_equal(np.array(result).transpose(0, 3, 1, 2), expected[:, :, 0].numpy())


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_a_mean_of_16_bit_values_is_rounded_once(dtype):
    """Groups of six: MLX rounds the sum of a 16-bit mean, which no group of a power of two shows."""
    x = mx.array(np.random.default_rng(0).standard_normal((2, 16, 16, 48))).astype(dtype)
    exact = float64.average_down(np.array(x.astype(mx.float32), np.float64), 32, 2, 1)
    result = AverageDown(Stage(48, 32, 2, 1))(x)
    assert result.dtype == dtype
    # a mean that fp32 moves over a tie is rare
    assert mx.mean(result != mx.array(exact, mx.float32).astype(dtype)).item() < 1e-3


@pytest.mark.parametrize("patch", [{}, {"patch_size": 2, "in_channels": 16, "out_channels": 16}], ids=str)
def test_each_module_is_called_once(tmp_path, monkeypatch, patch):
    vae = load(make_oracle(0, PUBLISHED | patch), tmp_path)
    calls = Counter()
    for kind in {type(module) for module in vae.modules()} - {VAE}:
        original = kind.__call__

        def counted(self, *args, _original=original, **kwargs):
            calls[id(self)] += 1
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__call__", counted)
    scale = vae.config.scale_factor
    vae.decode(vae.encode(mx.zeros((1, 2 * scale, scale, 4))).mean)
    modules = [(name, module) for name, module in vae.named_modules() if module is not vae]
    assert {name: calls[id(module)] for name, module in modules if calls[id(module)] != 1} == {}


# --- files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shard", ["5GB", "50KB"])
def test_every_stored_name_is_accounted_for(tmp_path, shard, dtype):
    model = make_oracle(4, PUBLISHED).to(dtype)
    vae, ignored = loaded(VAE, VAEConfig, model, tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "50KB")
    assert ignored == sorted(name for name in model.state_dict() if ".time_conv." in name)
    assert len(ignored) == 12
    assert len(tree_flatten(vae.parameters())) + len(ignored) == len(model.state_dict())


def test_the_published_model_has_these_parameters():
    """Names and shapes of all of them, without their memory."""
    with torch.device("meta"):
        model = AutoencoderKLQwenImage21()
    kept = {n: tuple(p.shape) for n, p in model.state_dict().items() if ".time_conv." not in n}
    as_stored = {  # convolutions have channels last here
        name: (p.shape[0], p.shape[3], *p.shape[1:3]) if p.ndim == 4 else p.shape
        for name, p in tree_flatten(VAE(VAEConfig()).parameters())
    }
    gammas = {n: (s[0],) if n.endswith("gamma") else s for n, s in kept.items()}
    assert as_stored == gammas
    assert len(model.state_dict()) == 238
    assert sum(p.numel() for p in model.state_dict().values()) == 337_740_404


# --- configurations


def test_defaults_are_those_of_diffusers():
    with torch.device("meta"):
        published = dict(AutoencoderKLQwenImage21().config)
    config, ignored = VAEConfig.from_dict(published)
    assert config == VAEConfig() == VAEConfig.from_dict({})[0]
    assert ignored == ("attn_scales", "dropout", "scale_factor_spatial", "scale_factor_temporal")


def error_of(make, *kinds) -> str:
    """The message of an error of these kinds; empty if `make` raises none."""
    try:
        make()
    except kinds as error:
        return str(error) or type(error).__name__
    return ""


def test_shortcuts_are_refused_where_diffusers_refuses_them():
    rng = np.random.default_rng(5)
    refusals = []
    for _ in range(120):
        options = random_options(rng)
        published = error_of(lambda options=options: AutoencoderKLQwenImage21(**options), ValueError, AssertionError)
        refusals.append(error_of(lambda options=options: VAEConfig.from_dict(options), InputError))
        assert bool(refusals[-1]) == bool(published), options
    assert 10 < sum(map(bool, refusals)) < 110
    assert all("dim_mult is" in message for message in refusals if message)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (
            {"_class_name": "AutoencoderKLQwenImage"},
            "_class_name is AutoencoderKLQwenImage; the only supported class of a vae is AutoencoderKLQwenImage21",
        ),
        ({"is_residual": False}, "is_residual is false, expected true"),
        ({"decoder_base_dim": 1 << 24}, "decoder_base_dim 16777216 and dim_mult"),
        ({"base_dim": 1 << 22}, "base_dim 4194304 and dim_mult"),
        ({"decoder_base_dim": 0}, "decoder_base_dim is 0"),
        ({"dim_mult": [1] * 9, "temperal_downsample": [True] * 8}, "9 stages"),
        ({"dim_mult": [1, 2]}, "temperal_downsample has 4 entries and dim_mult 2, expected one fewer"),
        ({"dim_mult": []}, "dim_mult 0"),
        ({"dim_mult": [1, 1, 8, 8, 8]}, "cannot repeat 1152 channels to 144"),
        ({"dim_mult": [3, 7, 1, 1, 1]}, "cannot average"),
        ({"patch_size": 3}, "in_channels is 4, expected a multiple of patch_size 3 squared"),
        ({"patch_size": -1}, "patch_size is -1"),
        ({"patch_size": 1 << 23}, "in_channels is 4"),
        ({"latents_std": [1.0] * 63 + [0.0]}, "latents_std holds 0.0"),
        ({"latents_std": [1.0] * 63}, "latents_std has 63 entries, expected z_dim 64"),
        ({"latents_mean": [float("nan")] * 64}, "latents_mean holds a number that is not finite"),
        ({"num_res_blocks": 1 << 40}, "num_res_blocks is"),
        ({"z_dim": "64"}, "z_dim is '64'"),
    ],
    ids=str,
)
def test_wrong_values_are_refused_by_name(values, named):
    with pytest.raises(InputError) as caught:
        VAEConfig.from_dict(values)
    assert named in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_a_stage_at_full_width_equals_diffusers(stage):
    """The first and the widest stage of the decoder, and the same of the encoder."""
    config = VAEConfig()
    rng = np.random.default_rng(stage)
    down, up = config.down_stages()[stage], config.up_stages()[stage]
    pairs = (
        (
            ResidualDownBlock(down, 2),
            theirs.QwenImage21ResidualDownBlock(down.in_dim, down.out_dim, 0.0, 2, down.time > 1, True),
            down,
        ),
        (
            ResidualUpBlock(up, 3),
            theirs.QwenImage21ResidualUpBlock(up.in_dim, up.out_dim, 2, 0.0, up.time > 1, True),
            up,
        ),
    )
    for ours, published, sizes in pairs:
        randomised(published, stage)
        weights, _ = VAE.sanitize({n: mx.array(p.numpy()) for n, p in published.state_dict().items()})
        ours.load_weights(list(weights.items()), strict=True)
        x = rng.standard_normal((1, 6, 4, sizes.in_dim)).astype(np.float32)
        frames = torch.from_numpy(x.transpose(0, 3, 1, 2)[:, :, None].copy())
        options = {"first_chunk": True} if ours is pairs[1][0] else {}
        with torch.no_grad():
            expected = published(frames, **options)[:, :, 0].numpy().transpose(0, 2, 3, 1)
        assert relative_l2(np.array(ours(mx.array(x))), expected) <= 1e-5
