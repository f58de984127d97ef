"""What mlx-lm and mflux 0.24.0 save of both architectures: whole folders and the transformer alone.

Where mflux is installed (`pip install --no-deps --target DIR mflux==0.24.0 toml piexif platformdirs`, with DIR on
PYTHONPATH), its own modules, mapping, predicate and writer make the files. Elsewhere the names are those of the two
mappings that `precision_lab.model.mflux` cites.
"""

import importlib
import importlib.util
import json
import re
import shutil

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.utils
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from precision_lab.model.stored.reading import open_weights
from precision_lab.synthetic.source import QwenImage, QwenImage21
from tests.model.qwen_image_21.test_stored_21 import generated
from tests.model.test_quantized_checkpoints import img_mod_at_8, mflux_name, write_mflux

SPARED = ("modulation", "time_text_embed", "norm_out")


def parameters(model):
    return dict(tree_flatten(model.parameters()))


def all_linears(path, module):
    """The predicate of text to image in 2.1."""
    return hasattr(module, "to_quantized")


def spared(path, module):
    """That of its edit command."""
    return hasattr(module, "to_quantized") and not any(name in path for name in SPARED)


def name_21(name):
    return re.sub(r"^modulation\.1\.", "modulation.layers.1.", name)


def written_here(folder, model, bits, predicate, name):
    nn.quantize(model, bits=bits, class_predicate=predicate)
    write_mflux(folder, {name(key): array for key, array in parameters(model).items()}, bits)


@pytest.mark.parametrize(("bits", "predicate"), [(8, all_linears), (4, spared)])
def test_a_whole_folder_of_2_1(small_checkpoint_21, tmp_path, bits, predicate):
    """mflux saves no configurations. Its text encoder may have the names of either command."""
    base = QwenImage21(path=str(small_checkpoint_21)).opened
    model, saved = base.transformer(mx.bfloat16), tmp_path / "saved"
    saved.mkdir()
    written_here(saved / "transformer", model, bits, predicate, name_21)
    encoder = parameters(base.text_encoder(mx.bfloat16))
    before = "" if predicate is all_linears else "language_model."
    named = {f"{before}{name}": array for name, array in encoder.items()} | {f"{before}norm.weight": mx.ones((64,))}
    named |= {"lm_head.weight": mx.ones((4, 64)), "visual.merger.norm.weight": mx.ones((8,))} if before else {}
    write_mflux(saved / "text_encoder", named, bits)
    shutil.copytree(small_checkpoint_21 / "vae", saved / "vae")
    given = {"path": str(saved), "base": str(small_checkpoint_21)}
    source = QwenImage21(**given)
    pipeline = source.load(mx.bfloat16).pipeline
    loaded = parameters(pipeline.transformer)
    assert loaded.keys() == parameters(model).keys()
    assert all(mx.array_equal(loaded[name], array) for name, array in parameters(model).items())
    assert all(mx.array_equal(parameters(pipeline.text_encoder)[name], array) for name, array in encoder.items())
    streamed = QwenImage21(**given, stream=True).load(mx.bfloat16).pipeline
    np.testing.assert_array_equal(generated(streamed), generated(pipeline))


@pytest.mark.parametrize("alone", [True, False])
def test_the_transformer_of_1_x_alone_or_whole(small_checkpoint, tmp_path, alone):
    model = QwenImage(path=str(small_checkpoint)).opened.transformer(mx.bfloat16)
    (tmp_path / "saved").mkdir()
    written_here(tmp_path / "saved" / "transformer", model, 4, img_mod_at_8, mflux_name)
    path = tmp_path / "saved" / "transformer" if alone else tmp_path / "saved"
    loaded = QwenImage(path=str(path), base=str(small_checkpoint)).opened.transformer(mx.bfloat16)
    assert {name for name in parameters(loaded) if "img_mod" in name}
    assert all(mx.array_equal(parameters(loaded)[name], array) for name, array in parameters(model).items())


@pytest.mark.skipif(importlib.util.find_spec("mflux") is None, reason="mflux is not installed")
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("architecture", ["1.x", "2.1", "2.1 edit"])
def test_mflux_s_own_writer(request, tmp_path, monkeypatch, architecture, shards):
    base = request.getfixturevalue("small_checkpoint" if architecture == "1.x" else "small_checkpoint_21")
    kind = QwenImage if architecture == "1.x" else QwenImage21
    model = kind(path=str(base)).opened.transformer(mx.bfloat16)
    config, stored = kind(path=str(base)).opened.transformer_config(), parameters(model)
    theirs, mapped, predicate = mflux_model(architecture, config, stored)
    theirs.update(mapped)
    nn.quantize(theirs, group_size=64, bits=4, class_predicate=predicate)
    saver = importlib.import_module("mflux.models.common.weights.saving.model_saver").ModelSaver
    split = [dict(list(parameters(theirs).items())[i::shards]) for i in range(shards)]
    monkeypatch.setattr(saver, "_split_weights", staticmethod(lambda weights: split))
    saver._save_weights(str(tmp_path), 4, theirs, "transformer")
    folder = tmp_path / "transformer"
    assert len(open_weights(folder).files) == shards
    ours = {"1.x": img_mod_at_8, "2.1": all_linears, "2.1 edit": spared}[architecture]
    nn.quantize(model, bits=4, class_predicate=ours)
    for path in (folder, tmp_path):
        loaded = parameters(kind(path=str(path), base=str(base)).opened.transformer(mx.bfloat16))
        assert loaded.keys() == parameters(model).keys()
        assert all(mx.array_equal(loaded[name], array) for name, array in parameters(model).items())


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(("kind", "mode"), [(QwenImage, "affine"), (QwenImage21, "nvfp4")])
def test_mlx_lm_s_own_writer(request, tmp_path, monkeypatch, kind, mode, alone):
    """Sharded; with a layer of other bits in the affine mode."""
    base = request.getfixturevalue("small_checkpoint" if kind is QwenImage else "small_checkpoint_21")
    folder = tmp_path / "transformer"
    if not alone:
        shutil.copytree(base, tmp_path, dirs_exist_ok=True)
        shutil.rmtree(folder)
    model = kind(path=str(base)).opened.transformer(mx.bfloat16)
    config = json.loads((base / "transformer" / "config.json").read_text())
    wide = {"group_size": 64, "bits": 8, "mode": "affine"}

    def predicate(path, module):
        return wide if mode == "affine" and path.endswith("attn.to_q") else "img_in" not in path

    model, config = mlx_lm.utils.quantize_model(model, config, None, None, mode, quant_predicate=predicate)
    named = list(parameters(model).items())
    monkeypatch.setattr(mlx_lm.utils, "make_shards", lambda weights: [dict(named[::2]), dict(named[1::2])])
    mlx_lm.utils.save_model(folder, model)
    mlx_lm.utils.save_config(config, folder / "config.json")
    loaded = kind(path=str(folder if alone else tmp_path), base=str(base)).opened
    assert len(open_weights(folder).files) == 2
    read = parameters(loaded.transformer(mx.bfloat16))
    assert read.keys() == dict(named).keys()
    assert all(mx.array_equal(read[name], array) for name, array in named)


def mflux_model(architecture, config, stored):
    """mflux's transformer of a configuration, `stored` under its names, and what it quantises."""

    def theirs(name):
        return importlib.import_module(f"mflux.models.{name}")

    if architecture == "1.x":
        model = theirs("qwen.model.qwen_transformer.qwen_transformer").QwenTransformer(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_layers=config.num_layers,
            attention_head_dim=config.attention_head_dim,
            num_attention_heads=config.num_attention_heads,
            joint_attention_dim=config.joint_attention_dim,
        )
        mapping = theirs("qwen.weights.qwen_weight_mapping").QwenWeightMapping.get_transformer_mapping()
        definition = theirs("qwen.weights.qwen_weight_definition").QwenWeightDefinition
        mapped = theirs("common.weights.mapping.weight_mapper").WeightMapper.apply_mapping(
            stored, mapping, num_blocks=config.num_layers
        )
        return model, mapped, lambda path, module: definition.quantization_predicate(path, module, 4)
    settings = {name: getattr(config, name) for name in ("in_channels", "num_layers", "attention_head_dim")}
    settings |= {"out_channels": config.velocity_channels, "axes_dims_rope": config.axes_dims_rope}
    settings |= {name: getattr(config, name) for name in ("num_attention_heads", "context_in_dim", "mlp_ratio")}
    model = theirs("qwen21.model.qwen21_transformer.qwen_image21_transformer").QwenImage21Transformer(settings)
    if architecture == "2.1 edit":  # it loads published names, and has a list in place of a Sequential's dictionary
        definition = theirs("qwen21.weights.qwen_image21_weight_definition").QwenImage21WeightDefinition
        named = {name_21(name): array for name, array in stored.items()}
        return model, tree_unflatten(list(named.items())), definition.quantization_predicate
    mapping = theirs("qwen21.weights.qwen21_weight_mapping").Qwen21WeightMapping.get_transformer_mapping()
    mapped = theirs("common.weights.mapping.weight_mapper").WeightMapper.apply_mapping(stored, mapping)
    definition = theirs("qwen21.weights.qwen21_weight_definition").Qwen21WeightDefinition
    return model, mapped, definition.quantization_predicate
