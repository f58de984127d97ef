"""The text encoder of Qwen-Image-2.1 against Qwen3VLForConditionalGeneration of transformers."""

import json
from collections import Counter
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLTextConfig, Qwen3VLTextModel

from precision_lab.errors import InputError
from precision_lab.model.language_body import rotation
from precision_lab.model.qwen_image_21.config import TextEncoderConfig
from precision_lab.model.qwen_image_21.text_encoder import TextEncoder
from tests.model.text_bodies import DTYPES, loaded, ours, padding, randomised, relative_l2
from tests.spread import thinned

VOCABULARY = 97


def random_sizes(seed) -> dict:
    """Sizes of a language body whose heads together need not be as wide as its stream."""
    rng = np.random.default_rng(seed)
    kv_heads = int(rng.integers(1, 4))
    return {
        "hidden_size": int(rng.integers(3, 20)) * 8,
        "intermediate_size": int(rng.integers(10, 200)),
        "num_hidden_layers": int(rng.integers(1, 5)),
        "num_attention_heads": kv_heads * int(rng.integers(1, 5)),
        "num_key_value_heads": kv_heads,
        "head_dim": int(rng.choice([8, 12, 16, 32, 64, 128])),
        "rms_norm_eps": float(rng.choice([1e-6, 1e-5])),
        "rope_theta": float(rng.choice([1e4, 5e5, 5e6])),
    }


def make_oracle(seed, tie=False, vocabulary=VOCABULARY, **sizes) -> Qwen3VLForConditionalGeneration:
    """A random model with a small vision tower; sizes that are not given are random."""
    sizes = random_sizes(seed) | sizes
    half = sizes["head_dim"] // 2
    rope = {
        "rope_type": "default",
        "rope_theta": sizes.pop("rope_theta"),
        "mrope_section": [half - 2 * (half // 3), half // 3, half // 3],
        "mrope_interleaved": True,
    }
    config = Qwen3VLConfig(
        text_config={"vocab_size": vocabulary, "rope_parameters": rope, "pad_token_id": 0, **sizes},
        vision_config={
            "depth": 1,
            "hidden_size": 8,
            "num_heads": 1,
            "intermediate_size": 8,
            "out_hidden_size": sizes["hidden_size"],
            "patch_size": 2,
            "num_position_embeddings": 4,
            "deepstack_visual_indexes": [0],
        },
        tie_word_embeddings=tie,
    )
    return randomised(Qwen3VLForConditionalGeneration(config), seed)


def load(model, folder: Path, dtype=mx.float32, **options) -> TextEncoder:
    encoder, _ = loaded(TextEncoder, TextEncoderConfig, model, folder, dtype, **options)
    return encoder


def hidden_states(model, ids, mask=None) -> np.ndarray:
    """The hidden states that QwenImage21Pipeline of diffusers uses, in float64: its call, with its hook."""
    ids = torch.tensor(ids)
    handle = model.model.language_model.norm.register_forward_hook(lambda module, args, output: args[0])
    with torch.no_grad():
        out = model(
            input_ids=ids,
            attention_mask=None if mask is None else torch.tensor(mask),
            mm_token_type_ids=torch.zeros_like(ids),
            output_hidden_states=True,
        )
    handle.remove()
    return out.hidden_states[-1].double().numpy()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> TextEncoder:
    return load(make_oracle(seed=0), tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("seed", thinned(range(12), keep=4))
def test_equals_transformers(tmp_path, seed):
    model = make_oracle(seed)
    encoder = load(model, tmp_path)
    rng = np.random.default_rng(seed)
    for _ in range(3):
        ids = rng.integers(0, VOCABULARY, (int(rng.integers(1, 4)), int(rng.integers(1, 80))))
        assert relative_l2(ours(encoder, ids), hidden_states(model, ids)) <= 1e-5


@pytest.mark.parametrize("seed", range(20, 26))
@pytest.mark.parametrize("side", ["left", "right"])
def test_equals_transformers_with_padding(tmp_path, side, seed):
    model = make_oracle(seed)
    encoder = load(model, tmp_path)
    rng = np.random.default_rng(seed)
    for batch in (2, 3):
        lengths = rng.integers(1, 50, batch)
        mask = padding(lengths, max(lengths) + int(rng.integers(0, 3)), side)
        ids = rng.integers(0, VOCABULARY, mask.shape)
        result, expected = ours(encoder, ids, mask), hidden_states(model, ids, mask)
        assert relative_l2(result[mask == 1], expected[mask == 1]) <= 1e-5
        assert np.isfinite(result).all()


def test_a_thousand_tokens_keep_their_positions(tmp_path):
    """There, the last bit of a frequency amounts to 6e-5 rad."""
    model = make_oracle(7, num_attention_heads=2, num_key_value_heads=1, head_dim=128, rope_theta=5e6)
    encoder = load(model, tmp_path)
    ids = np.random.default_rng(7).integers(0, VOCABULARY, (1, 1058))
    assert relative_l2(ours(encoder, ids), hidden_states(model, ids)) <= 1e-5


def test_positions_of_text_are_those_of_plain_rope():
    """With left padding too, the three axes of interleaved M-RoPE have the positions 0 .. L-1 of every row."""
    model = make_oracle(8, num_hidden_layers=1, head_dim=128, rope_theta=5e6)
    seen = []
    embedding = model.model.language_model.rotary_emb
    embedding.register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[1]), with_kwargs=True)
    embedding.register_forward_hook(lambda module, args, output: seen.append(output))
    mask = padding((40, 7), 43, "left")
    hidden_states(model, np.random.default_rng(8).integers(0, VOCABULARY, mask.shape), mask)
    positions, turns = seen
    np.testing.assert_array_equal(positions.numpy(), np.broadcast_to(np.arange(43), (3, 2, 43)))
    for theirs, plain in zip(turns, rotation(43, 128, 5e6), strict=True):
        np.testing.assert_allclose(theirs.numpy(), np.tile(np.array(plain), (2, 1, 2)), atol=2e-7)


def test_the_final_norm_is_not_applied(tmp_path):
    model = make_oracle(9)
    encoder = load(model, tmp_path)
    ids = np.random.default_rng(9).integers(0, VOCABULARY, (1, 20))
    plain = ours(encoder, ids)
    with torch.no_grad():
        normalised = model(input_ids=torch.tensor(ids), output_hidden_states=True).hidden_states[-1].double().numpy()
        model.model.language_model.norm.weight.fill_(1000)
    assert relative_l2(plain, normalised) > 0.1
    np.testing.assert_array_equal(ours(load(model, tmp_path / "other"), ids), plain)


@pytest.mark.parametrize("name", thinned(DTYPES, ["bfloat16"]))
def test_16_bit_error_is_that_of_torch(tmp_path, name):
    torch_dtype, mlx_dtype = DTYPES[name]
    ratios = []
    for seed in range(8):
        model = make_oracle(seed, hidden_size=96, head_dim=32).to(torch_dtype)
        encoder = load(model, tmp_path / str(seed), mlx_dtype)
        mask = padding((40, 25), 40, "left")
        ids = np.random.default_rng(seed).integers(0, VOCABULARY, mask.shape)
        torch_result = hidden_states(model, ids, mask)[mask == 1]
        exact = hidden_states(model.double(), ids, mask)[mask == 1]
        result = ours(encoder, ids, mask, dtype=mlx_dtype)[mask == 1]
        ratios.append(relative_l2(result, exact) / relative_l2(torch_result, exact))
    assert np.exp(np.mean(np.log(ratios))) <= 1.25, ratios


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_tokens_do_not_matter(encoder, side):
    rng = np.random.default_rng(9)
    mask = padding((31, 12), 31, side)
    ids = rng.integers(0, VOCABULARY, mask.shape)
    other = np.where(mask == 1, ids, rng.integers(0, VOCABULARY, mask.shape))
    np.testing.assert_array_equal(ours(encoder, ids, mask)[mask == 1], ours(encoder, other, mask)[mask == 1])
    alone = ours(encoder, ids[1:][mask[1:] == 1][None])[0]
    assert relative_l2(ours(encoder, ids, mask)[1][mask[1] == 1], alone) <= 1e-5


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


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("original_layout", [True, False])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_every_stored_name_is_accounted_for(tmp_path, shard, original_layout, tie):
    model = make_oracle(10, tie)
    options = {"save_original_format": original_layout, "max_shard_size": shard}
    encoder, ignored = loaded(TextEncoder, TextEncoderConfig, model, tmp_path, **options)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    vision = [f"model.visual.{name}" for name, _ in model.model.visual.named_parameters()]
    head = [] if tie else ["lm_head.weight"]
    assert ignored == sorted([*vision, *head, "model.language_model.norm.weight"])
    ids = np.random.default_rng(10).integers(0, VOCABULARY, (2, 9))
    assert relative_l2(ours(encoder, ids), hidden_states(model, ids)) <= 1e-5


def test_a_body_stored_alone_loads(tmp_path):
    body = make_oracle(11).model.language_model
    _, ignored = loaded(TextEncoder, TextEncoderConfig, body, tmp_path)
    assert ignored == ["norm.weight"]


def test_the_published_model_has_these_parameters():
    """Names and shapes of all of them, without their memory."""
    published = TextEncoderConfig()
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = {name: getattr(published, name) for name in (*names, "vocab_size", "head_dim")}
    with torch.device("meta"):
        model = Qwen3VLTextModel(Qwen3VLTextConfig(**sizes))
    theirs = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) == 7_568_405_504
    assert theirs.pop("norm.weight") == (4096,)
    assert {name: p.shape for name, p in tree_flatten(TextEncoder(published).parameters())} == theirs


def test_sanitize_keeps_unknown_names():
    names = ("model.language_model.novelty.weight", "model.language_model.layers.0.self_attn.q_norm.weight")
    renamed, ignored = TextEncoder.sanitize(dict.fromkeys(names, mx.ones((1,))))
    assert sorted(renamed) == ["layers.0.self_attn.q_norm.weight", "novelty.weight"]
    assert ignored == []


# --- configurations


def test_keys_left_out_take_the_defaults_of_the_class():
    config, _ = TextEncoderConfig.from_dict({"model_type": "qwen3_vl", "text_config": {"hidden_size": 256}})
    theirs = Qwen3VLTextConfig(hidden_size=256)
    theirs.rope_theta = theirs.rope_parameters["rope_theta"]
    names = [name for name in vars(config) if name != "attention_bias"]
    assert {name: getattr(config, name) for name in names} == {name: getattr(theirs, name) for name in names}


def test_flat_and_nested_files_are_the_same_configuration(tmp_path):
    model = make_oracle(12)
    model.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    nested, _ = TextEncoderConfig.from_dict(raw)
    body = dict(raw["text_config"])
    theta = body.pop("rope_parameters")["rope_theta"]
    sections = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
    flat, _ = TextEncoderConfig.from_dict({**body, "rope_theta": theta, "rope_scaling": sections})
    assert flat == nested


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model_type": "qwen2_5_vl"}, "model_type is qwen2_5_vl, expected qwen3_vl"),
        ({"architectures": ["Qwen3VLMoeForConditionalGeneration"]}, "architectures names Qwen3VLMoe"),
        ({"architectures": [["a"]]}, "architectures names"),
        ({"text_config": []}, None),
        ({"text_config": [1]}, "text_config is [1], expected an object"),
        ({"attention_bias": True}, "attention_bias is true, expected false"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
        ({"head_dim": 7}, "a head has 7 channels"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"head_dim": 1 << 20}, "at most 16777216 channels"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "num_key_value_heads 4 does not divide"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected at most 256"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.rope_type is 'yarn', expected default or mrope"),
        ({"rope_scaling": {"rope_theta": float("inf")}}, "rope_theta holds a number that is not finite"),
        ({"vocab_size": True}, "vocab_size is True"),
    ],
    ids=str,
)
def test_wrong_values_are_refused_by_name(values, named):
    raw = {"model_type": "qwen3_vl", **values}
    if named is None:
        assert TextEncoderConfig.from_dict(raw)
        return
    with pytest.raises(InputError) as caught:
        TextEncoderConfig.from_dict(raw)
    assert named in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_a_layer_at_full_width_equals_transformers(tmp_path):
    published = TextEncoderConfig()
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rope_theta")
    sizes = {name: getattr(published, name) for name in names}
    model = make_oracle(13, num_hidden_layers=1, **sizes)
    encoder = load(model, tmp_path)
    mask = padding((60, 41), 60, "left")
    ids = np.random.default_rng(13).integers(0, VOCABULARY, mask.shape)
    assert relative_l2(ours(encoder, ids, mask)[mask == 1], hidden_states(model, ids, mask)[mask == 1]) <= 1e-5
