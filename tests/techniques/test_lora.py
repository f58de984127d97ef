"""Adapters beside linears: with every storage of weights, in both orders, several at once, and what they refuse."""

import pickle

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from precision_lab.errors import InputError
from precision_lab.instrument.sites import walk
from precision_lab.techniques.base import Technique, applied
from precision_lab.techniques.batch_layout import BatchLayout
from precision_lab.techniques.coded_weights import CodedWeights
from precision_lab.techniques.compiled_blocks import CompiledBlocks
from precision_lab.techniques.float8_weights import Float8Weights
from precision_lab.techniques.float32 import Float32
from precision_lab.techniques.lora import Adapted, LoRA
from precision_lab.techniques.narrow_accumulators import NarrowAccumulators
from precision_lab.techniques.other_weights import OtherWeights
from precision_lab.techniques.parts.weight_storage import model_storage, weight_storage
from precision_lab.techniques.quantized_weights import QuantizedWeights
from precision_lab.techniques.reordered_sums import ReorderedSums
from precision_lab.techniques.restricted import Restricted
from tests.spread import thinned
from tests.techniques.configured import NAMES, named
from tests.techniques.small_model import components, forward, rel_l2, rewritten, site, small_model

TARGETS = ("transformer_blocks.1.attn.to_q", "transformer_blocks.2.img_mlp.net.2", "transformer_blocks.0.img_mod.1")
QUERY = TARGETS[0]
OF_WEIGHTS = [
    name
    for name in NAMES
    if any(isinstance(t, QuantizedWeights | Float8Weights | CodedWeights) for t in named(name).values())
]
"""The shipped techniques that store weights in fewer bits."""


def adapter(model, folder, seed=0, rank=3, targets=TARGETS, spread=0.5):
    """A file of random factors for some linears of `model`, and the changes that it makes."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    tensors, changes = {}, {}
    for path in targets:
        outputs, channels = site(model, path).module.weight.shape
        down, up = (rng.standard_normal(shape, dtype=np.float32) for shape in ((rank, channels), (outputs, rank)))
        up *= spread / channels**0.5
        tensors |= {f"diffusion_model.{path}.lora_A.weight": down, f"diffusion_model.{path}.lora_B.weight": up}
        tensors[f"diffusion_model.{path}.alpha"] = np.array(2.0 * rank, np.float32)
        changes[path] = 2 * up @ down
    file = folder / f"lora{seed}.safetensors"
    save_file(tensors, file)
    return str(file), changes


def with_changes(model, *terms):
    """The output of `model` with changes added to its weights, times their strengths."""
    linears = {path: site(model, path).module for changes, _ in terms for path in changes}
    stored = {path: linear.weight for path, linear in linears.items()}
    for changes, strength in terms:
        for path, change in changes.items():
            linears[path].weight = linears[path].weight + strength * mx.array(change)
    try:
        return forward(model)
    finally:
        for path, linear in linears.items():
            linear.weight = stored[path]


def test_it_is_a_technique_that_changes_the_function():
    assert isinstance(LoRA(), Technique)
    assert not LoRA().preserves_function


def test_several_add_up_with_their_strengths_and_leave_the_weights_alone(tmp_path):
    model = small_model()
    (one, first), (two, second) = (adapter(model, tmp_path, seed) for seed in (1, 2))
    plain, weight = forward(model), np.array(site(model, QUERY).module.weight)
    expected = with_changes(model, (first, 0.7), (second, -1.5))
    assert rel_l2(expected, plain) > 0.01
    together = rewritten(model, LoRA([one, two], [0.7, -1.5]))
    assert rel_l2(together, expected) < 1e-5
    np.testing.assert_array_equal(rewritten(model, LoRA(one, 0.7), LoRA(two, -1.5)), together)
    np.testing.assert_array_equal(rewritten(model, LoRA(one, 0)), plain)
    np.testing.assert_array_equal(np.array(site(model, QUERY).module.weight), weight)
    np.testing.assert_array_equal(forward(model), plain)


@pytest.mark.parametrize("name", thinned(OF_WEIGHTS, keep=3))
def test_it_is_the_same_before_and_after_a_technique_of_weights(name, tmp_path):
    model = small_model()
    path, changes = adapter(model, tmp_path)
    weights = Restricted(next(iter(named(name).values())), TARGETS)
    for target in TARGETS:
        x = mx.random.normal((2, 5, changes[target].shape[1]), key=mx.random.key(0))
        results = []
        for techniques in ((weights, LoRA(path)), (LoRA(path), weights)):
            with applied(components(model), {f"t{i}": technique for i, technique in enumerate(techniques)}):
                adapted = site(model, target).module
                results.append((np.array(adapted(x)), np.array(adapted.inner(x))))
        np.testing.assert_array_equal(*results)
        difference = results[0][0] - results[0][1]
        np.testing.assert_allclose(difference, np.array(x) @ changes[target].T, atol=3e-5)


def test_it_is_inside_what_wraps_a_linear(tmp_path):
    model = small_model()
    path, changes = adapter(model, tmp_path)
    expected = with_changes(model, (changes, 1))
    for wrapping in (
        NarrowAccumulators([QUERY], accumulator="float32"),
        ReorderedSums([QUERY]),
        BatchLayout([QUERY]),
        Float32([QUERY]),
        Restricted(ReorderedSums([QUERY]), [QUERY]),
        next(iter(named("fast").values())),
        CompiledBlocks(),
    ):
        assert rel_l2(rewritten(model, LoRA(path), wrapping), expected) < 1e-5
    with pytest.raises(InputError, match=rf"lora: {QUERY} is _NarrowSums.*list lora before"):
        rewritten(model, NarrowAccumulators([QUERY]), LoRA(path))


@pytest.mark.parametrize("name", ["draw_things_qwen_image", "draw_things_2512", "ggml_scales", "fast"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_exact_scales_of_float16_reach_the_adapter_too(name, dtype, tmp_path):
    model = small_model()
    targets = [
        f"transformer_blocks.1.{path}"
        for path in (
            "attn.to_q",
            "attn.to_out.0",
            "attn.to_add_out",
            "img_mlp.net.0.proj",
            "img_mlp.net.2",
            "img_mod.1",
        )
    ]
    path, changes = adapter(model, tmp_path, targets=targets)
    expected = with_changes(model, (changes, 1))
    model.set_dtype(dtype)
    result = rewritten(model, LoRA(path), *named(name).values(), dtype=dtype)
    assert rel_l2(result, expected) < (1e-5 if dtype == mx.float32 else 1e-2)


def test_other_weights_replace_the_linear_and_keep_the_adapter(tmp_path):
    model, other = small_model(), small_model(seed=12)
    path, _ = adapter(model, tmp_path)

    class Source:
        layout = components(other).layout

        def __repr__(self):
            return "other"

        def load(self, dtype):
            return type("Subject", (), {"components": {"transformer": other}})

    expected = rewritten(model, OtherWeights(Source(), [QUERY]), LoRA(path))
    np.testing.assert_array_equal(rewritten(model, LoRA(path), OtherWeights(Source(), [QUERY])), expected)


def test_two_techniques_of_weights_still_conflict_around_an_adapter(tmp_path):
    model = small_model()
    path, _ = adapter(model, tmp_path)
    weights = QuantizedWeights([{"sites": QUERY, "bits": 8}])
    with pytest.raises(InputError, match="neither composes"):
        rewritten(model, weights, LoRA(path), QuantizedWeights([{"sites": QUERY, "bits": 4}]))


def test_its_arrays_count_as_bits_but_not_as_weights(tmp_path):
    model = small_model()
    path, changes = adapter(model, tmp_path, rank=3)
    parts = components(model)
    plain = weight_storage(parts)["transformer"], model_storage(parts)["transformer"]
    with applied(parts, {"lora": LoRA(path)}):
        adapted = weight_storage(parts)["transformer"], model_storage(parts)["transformer"]
        sites = {s.path for s in walk(parts) if isinstance(s.module, Adapted)}
    assert sites == set(TARGETS)
    bits = 32 * 3 * sum(sum(change.shape) for change in changes.values())
    for before, after in zip(plain, adapted, strict=True):
        assert after.weights == before.weights
        assert after.bits == before.bits + bits


def test_a_worker_reads_the_file_itself(tmp_path):
    model = small_model()
    path, _ = adapter(model, tmp_path)
    technique = LoRA(path, 0.5)
    expected = rewritten(model, technique)
    sent = pickle.dumps(technique)
    assert len(sent) < 1000
    np.testing.assert_array_equal(rewritten(model, pickle.loads(sent)), expected)


def test_sites_restrict_it(tmp_path):
    model = small_model()
    path, changes = adapter(model, tmp_path)
    restricted = rewritten(model, LoRA(path, sites=["transformer_blocks.1.**"]))
    assert rel_l2(restricted, with_changes(model, ({QUERY: changes[QUERY]}, 1))) < 1e-5
    with pytest.raises(InputError, match=r"sites is .* names no linear of .*lora0"):
        rewritten(model, LoRA(path, sites=["proj_out"]))


def test_in_16_bits_it_rounds_to_the_dtype_of_the_computation(tmp_path):
    model = small_model()
    model.set_dtype(mx.bfloat16)
    path, _ = adapter(model, tmp_path)
    with applied(components(model), {"lora": LoRA(path)}):
        assert site(model, QUERY).module(mx.ones((1, 2, 64), mx.bfloat16)).dtype == mx.bfloat16


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    model = small_model()
    plain = forward(model)
    other = small_model()
    path, _ = adapter(other, tmp_path, targets=("proj_out",))
    tensors = {"double_blocks.0.img_mod.lin.lora_A.weight": np.ones((2, 64), np.float32)}
    tensors["double_blocks.0.img_mod.lin.lora_B.weight"] = np.ones((64, 2), np.float32)
    save_file(tensors, tmp_path / "flux.safetensors")
    with pytest.raises(InputError, match=r"flux.safetensors: tensor double_blocks.*0 of 1"):
        rewritten(model, LoRA([path, str(tmp_path / "flux.safetensors")]))
    np.testing.assert_array_equal(forward(model), plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"lora.path is None, expected .*\+\+technique.lora.path=FILE"),
        ({"path": []}, "lora.path is"),
        ({"path": ["a", 3]}, "lora.path is"),
        ({"path": "a", "strength": float("nan")}, "lora.strength is nan"),
        ({"path": "a", "strength": [1, 2]}, "2 numbers for 1 adapters"),
        ({"path": ["a", "b"], "strength": [1, True]}, "lora.strength is"),
        ({"path": "nowhere.safetensors"}, "nowhere.safetensors"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        rewritten(small_model(), LoRA(**settings))
