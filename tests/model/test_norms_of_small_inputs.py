"""Every norm of a built model against the norm of the same name in diffusers or transformers, where eps decides."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageRMS_norm
from diffusers.models.autoencoders.autoencoder_kl_qwenimage21 import QwenImage21RMS_norm

from precision_lab.model.layers import LayerNorm, RMSNorm
from precision_lab.model.qwen_image_21.transformer import ZeroCentredRMSNorm
from precision_lab.model.vae_blocks import ChannelNorm
from tests.model import test_text_encoder, test_vae
from tests.model.oracle import copy_of, random_transformer
from tests.model.qwen_image_21 import oracle as oracle_21
from tests.model.qwen_image_21 import test_text_encoder_21, test_vae_21

NORMS = (LayerNorm, RMSNorm, ZeroCentredRMSNorm, ChannelNorm)


def transformer(folder):
    model = random_transformer(0, layers=2)
    return copy_of(model), model


def transformer_21(folder):
    model = oracle_21.random_transformer(0, oracle_21.Shape(layers=2))
    return oracle_21.copy_of(model), model


def text_encoder(folder):
    model = test_text_encoder.make_oracle(0)
    return test_text_encoder.load(model, folder), model.model.language_model


def vae(folder):
    model = test_vae.make_oracle(0)
    return test_vae.load(model, folder), model


def text_encoder_21(folder):
    model = test_text_encoder_21.make_oracle(0, num_hidden_layers=2)
    return test_text_encoder_21.load(model, folder), model.model.language_model


def vae_21(folder):
    model = test_vae_21.make_oracle(0, test_vae_21.PUBLISHED)
    return test_vae_21.load(model, folder), model


def norms_of(model):
    """(path, module) of each norm, and the size of its channels."""
    for path, module in model.named_modules():
        if isinstance(module, NORMS):
            scale = module.get("weight", module.get("gamma"))
            yield path, module, 24 if scale is None else scale.size


def published(norm, x):
    """The result of a norm of torch, in float64, for x (1, L, C)."""
    with torch.no_grad():
        if isinstance(norm, torch.nn.LayerNorm):
            return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=norm.eps).double().numpy()
        if isinstance(norm, QwenImageRMS_norm | QwenImage21RMS_norm):  # channels first, pixels in a row
            pixels = x.mT.reshape(1, x.shape[-1], *[1] * (norm.gamma.ndim - 2), -1)
            return norm(pixels).reshape(x.mT.shape).mT.double().numpy()
        return norm(x).double().numpy()


def wrong_norms(ours, theirs, size):
    """The norms that differ for inputs with an rms of `size`, and the number of norms."""
    rng = np.random.default_rng(1)
    wrong, count = [], 0
    for path, module, channels in norms_of(ours):
        count += 1
        x = (size * rng.standard_normal((1, 5, channels))).astype(np.float32)
        expected = published(theirs.get_submodule(path), torch.from_numpy(x))
        result = np.array(module(mx.array(x))).astype(np.float64)
        if not np.linalg.norm(result - expected) <= 1e-5 * np.linalg.norm(expected):
            wrong.append(path)
    return wrong, count


@pytest.mark.parametrize(
    ("component", "size", "least"),
    [
        (transformer, 1e-3, 18),
        (text_encoder, 1e-3, 5),
        (vae, 1e-13, 20),
        (transformer_21, 1e-3, 10),
        (text_encoder_21, 1e-3, 8),
        (vae_21, 1e-13, 60),
    ],
)
def test_norms_of_small_inputs_equal_the_published_ones(component, size, least, tmp_path):
    ours, theirs = component(tmp_path)
    wrong, count = wrong_norms(ours, theirs, size)
    assert wrong == []
    assert count >= least


@pytest.mark.parametrize(
    "path", ["transformer_blocks.1.attn.norm_added_k", "transformer_blocks.0.txt_norm2", "txt_norm"]
)
def test_another_eps_of_one_norm_is_named(path, tmp_path):
    ours, theirs = transformer(tmp_path)
    dict(ours.named_modules())[path].eps = 1e-5
    assert wrong_norms(ours, theirs, 1e-3)[0] == [path]
