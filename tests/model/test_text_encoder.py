"""The text encoder against Qwen2_5_VLForConditionalGeneration of transformers."""

from collections import Counter
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from precision_lab.model.qwen_image.config import TextEncoderConfig
from precision_lab.model.qwen_image.text_encoder import TextEncoder
from tests.model.text_bodies import DTYPES, loaded, ours, padding, randomised, relative_l2
from tests.spread import slow

VOCABULARY = 97


def make_oracle(seed, layers=2, heads=4, kv_heads=2, head_dim=16) -> Qwen2_5_VLForConditionalGeneration:
    width = heads * head_dim
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [head_dim // 2 - 2 * (head_dim // 6), head_dim // 6, head_dim // 6],
            },
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
        },
        vision_config={
            "depth": 1,
            "hidden_size": 8,
            "num_heads": 1,
            "intermediate_size": 8,
            "out_hidden_size": width,
            "patch_size": 2,
            "fullatt_block_indexes": [0],
        },
    )
    return randomised(Qwen2_5_VLForConditionalGeneration(config), seed)


def load(model, folder: Path, dtype=mx.float32, **options) -> TextEncoder:
    """Our encoder with the weights as written by transformers."""
    encoder, _ = loaded(TextEncoder, TextEncoderConfig, model, folder, dtype, **options)
    return encoder


def hidden_states(model, ids, mask=None) -> np.ndarray:
    """The hidden states that QwenImagePipeline of diffusers uses, in float64."""
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(ids),
            attention_mask=None if mask is None else torch.tensor(mask),
            output_hidden_states=True,
        )
    return out.hidden_states[-1].double().numpy()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> TextEncoder:
    return load(make_oracle(seed=0), tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("original_layout", [True, slow(False)])
@pytest.mark.parametrize(
    ("seed", "layers", "heads", "kv_heads", "head_dim"),
    [(1, 2, 4, 4, 16), (2, 3, 4, 2, 12), (3, 1, 6, 1, 32), (4, 2, 7, 1, 8), (5, 2, 2, 2, 128)],
)
def test_equals_transformers(tmp_path, original_layout, seed, layers, heads, kv_heads, head_dim):
    model = make_oracle(seed, layers, heads, kv_heads, head_dim)
    encoder = load(model, tmp_path, save_original_format=original_layout)
    rng = np.random.default_rng(seed)
    for _ in range(3):
        batch, tokens = int(rng.integers(1, 4)), int(rng.integers(1, 80))
        ids = rng.integers(0, VOCABULARY, (batch, tokens))
        assert relative_l2(ours(encoder, ids), hidden_states(model, ids)) <= 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_equals_transformers_with_padding(tmp_path, side):
    model = make_oracle(seed=6)
    encoder = load(model, tmp_path)
    rng = np.random.default_rng(6)
    for lengths in ((40, 23), (1, 17), (30, 30)):
        mask = padding(lengths, max(lengths) + 2, side)
        ids = rng.integers(0, VOCABULARY, mask.shape)
        result, expected = ours(encoder, ids, mask), hidden_states(model, ids, mask)
        assert relative_l2(result[mask == 1], expected[mask == 1]) <= 1e-5
        assert np.isfinite(result).all()


def test_a_thousand_tokens_keep_their_positions(tmp_path):
    """The longest prompt has 1058 tokens; there, the last bit of a frequency amounts to 6e-5 rad."""
    model = make_oracle(seed=7, heads=2, kv_heads=1, head_dim=128)
    encoder = load(model, tmp_path)
    ids = np.random.default_rng(7).integers(0, VOCABULARY, (1, 1058))
    assert relative_l2(ours(encoder, ids), hidden_states(model, ids)) <= 1e-5


@pytest.mark.parametrize("name", DTYPES)
def test_16_bit_error_is_that_of_torch(tmp_path, name):
    torch_dtype, mlx_dtype = DTYPES[name]
    ratios = []
    for seed in range(6):
        model = make_oracle(seed).to(torch_dtype)
        encoder = load(model, tmp_path / str(seed), mlx_dtype)
        ids = np.random.default_rng(seed).integers(0, VOCABULARY, (2, 40))
        torch_result = hidden_states(model, ids)
        exact = hidden_states(model.double(), ids)
        ratios.append(relative_l2(ours(encoder, ids, dtype=mlx_dtype), exact) / relative_l2(torch_result, exact))
    assert np.exp(np.mean(np.log(ratios))) <= 1.25, ratios


def test_narrow_weights_are_upcast_exactly(tmp_path):
    model = make_oracle(seed=8).to(torch.bfloat16)
    narrow = load(model, tmp_path, mx.bfloat16)
    wide = load(model, tmp_path, mx.float32)
    ids = np.random.default_rng(8).integers(0, VOCABULARY, (2, 33))
    mask = padding((33, 20), 33, "right")
    np.testing.assert_array_equal(ours(narrow, ids, mask), ours(wide, ids, mask))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_tokens_do_not_matter(encoder, side):
    rng = np.random.default_rng(9)
    mask = padding((31, 12), 31, side)
    ids = rng.integers(0, VOCABULARY, mask.shape)
    other = np.where(mask == 1, ids, rng.integers(0, VOCABULARY, mask.shape))
    np.testing.assert_array_equal(ours(encoder, ids, mask)[mask == 1], ours(encoder, other, mask)[mask == 1])
    alone = ours(encoder, ids[1:][mask[1:] == 1][None])[0]
    assert relative_l2(ours(encoder, ids, mask)[1][mask[1] == 1], alone) <= 1e-5


def test_later_tokens_do_not_matter(encoder):
    ids = np.random.default_rng(10).integers(0, VOCABULARY, (1, 24))
    longer = ours(encoder, ids)[:, :15]
    assert relative_l2(ours(encoder, ids[:, :15]), longer) <= 1e-6


def test_each_module_is_called_once(encoder, monkeypatch):
    calls = Counter()
    for kind in {type(module) for module in encoder.modules()}:
        original = kind.__call__

        def counted(self, *args, _original=original, **kwargs):
            calls[id(self)] += 1
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__call__", counted)
    encoder(mx.array([[1, 2, 3]]), None, mx.float32)
    assert {name: calls[id(module)] for name, module in encoder.named_modules() if calls[id(module)] != 1} == {}


def test_sanitize_leaves_out_weights_that_text_to_image_does_not_use():
    one = mx.ones((1,))
    old = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight", "visual.merger.ln_q.weight"]
    new = ["model.language_model.norm.weight", "model.visual.merger.ln_q.weight", "novelty.weight"]
    renamed, ignored = TextEncoder.sanitize(dict.fromkeys(old, one))
    assert sorted(renamed) == ["layers.0.mlp.up_proj.weight", "norm.weight"]
    assert ignored == ["lm_head.weight", "visual.merger.ln_q.weight"]
    renamed, ignored = TextEncoder.sanitize(dict.fromkeys(new, one))
    assert sorted(renamed) == ["norm.weight", "novelty.weight"]
    assert ignored == ["model.visual.merger.ln_q.weight"]
