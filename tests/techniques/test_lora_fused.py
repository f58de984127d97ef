"""Adapters added to weights: before and after quantisation, rounding to nearest and at random."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.model.coded import linear_weight
from precision_lab.model.codings.int8 import Int8
from precision_lab.techniques.base import Technique, applied
from precision_lab.techniques.coded_weights import CodedWeights
from precision_lab.techniques.float8_weights import Float8Weights
from precision_lab.techniques.lora import LoRA
from precision_lab.techniques.lora_fused import FusedLoRA
from precision_lab.techniques.parts.weight_storage import weight_storage
from precision_lab.techniques.quantized_weights import QuantizedWeights
from precision_lab.techniques.restricted import Restricted
from tests.spread import thinned
from tests.techniques.configured import named
from tests.techniques.small_model import components, forward, rel_l2, rewritten, site, small_model
from tests.techniques.test_lora import OF_WEIGHTS, QUERY, TARGETS, adapter, with_changes


def weight_of(model, *techniques, path=QUERY):
    """The weight at `path` with the techniques applied in this order, and its module."""
    with applied(components(model), {f"t{i}": t for i, t in enumerate(techniques)}):
        module = site(model, path).module
        return np.array(linear_weight(module)), module


def test_it_is_a_technique_that_changes_the_function():
    assert isinstance(FusedLoRA(), Technique)
    assert not FusedLoRA().preserves_function


def test_in_fp32_it_equals_the_changed_weights_and_the_live_adapters(tmp_path):
    model = small_model()
    (one, first), (two, second) = (adapter(model, tmp_path, seed) for seed in (1, 2))
    plain = forward(model)
    fused = rewritten(model, FusedLoRA([one, two], [0.7, -1.5]))
    assert rel_l2(fused, with_changes(model, (first, 0.7), (second, -1.5))) < 1e-5
    assert rel_l2(fused, rewritten(model, LoRA([one, two], [0.7, -1.5]))) < 1e-5
    assert rel_l2(rewritten(model, LoRA(one, 0.7), FusedLoRA(two, -1.5)), fused) < 1e-5
    np.testing.assert_array_equal(forward(model), plain)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_several_are_summed_in_fp32_and_rounded_once_to_the_dtype_of_the_weight(dtype, tmp_path):
    model = small_model()
    model.set_dtype(dtype)
    (one, first), (two, second) = (adapter(model, tmp_path, seed, spread=1e-3) for seed in (1, 2))
    base = np.array(site(model, QUERY).module.weight.astype(mx.float32))
    weight, module = weight_of(model, FusedLoRA([one, two]))
    assert module.weight.dtype == dtype
    exact = base.astype(np.float64) + first[QUERY] + second[QUERY]
    np.testing.assert_array_equal(weight, np.array(mx.array(exact.astype(np.float32)).astype(dtype).astype(mx.float32)))


@pytest.mark.parametrize("name", thinned(OF_WEIGHTS, keep=3))
def test_before_it_the_sum_is_quantised_and_after_it_the_decoded_weight_is_changed(name, tmp_path):
    model = small_model()
    path, changes = adapter(model, tmp_path)
    weights = Restricted(next(iter(named(name).values())), TARGETS)
    for target, change in changes.items():
        linear = site(model, target).module
        base = np.array(linear.weight)
        coded, kind = weight_of(model, weights, path=target)
        before, first = weight_of(model, FusedLoRA(path), weights, path=target)
        after, second = weight_of(model, weights, FusedLoRA(path), path=target)
        assert type(first) is type(second) is type(kind)
        for result, start in ((before, base), (after, coded)):
            linear.weight = mx.array(start) + mx.array(change)
            np.testing.assert_allclose(result, weight_of(model, weights, path=target)[0], atol=1e-6)
            linear.weight = mx.array(base)
        assert rel_l2(after, coded) > 1e-2


def test_the_storage_stays(tmp_path):
    model = small_model()
    path, _ = adapter(model, tmp_path)
    for weights in (QuantizedWeights([{"sites": list(TARGETS), "bits": 4}]), Float8Weights(TARGETS)):
        parts = components(model)
        with applied(parts, {"weights": weights}):
            expected = weight_storage(parts)
        with applied(parts, {"weights": weights, "lora": FusedLoRA(path)}):
            assert weight_storage(parts) == expected


@pytest.mark.parametrize("weights", [Float8Weights([QUERY], scale="none"), named("int8")["int8"]])
def test_a_change_below_a_step_arrives_on_average_by_chance(weights, tmp_path):
    model = small_model()
    path, changes = adapter(model, tmp_path, spread=1e-3)
    change, (coded, _) = changes[QUERY], weight_of(model, weights)

    def arrived(technique):
        return np.sum((weight_of(model, weights, technique)[0] - coded) * change) / np.sum(change**2)

    draws = [arrived(FusedLoRA(path, rounding="stochastic", seed=seed)) for seed in range(32)]
    # float16, in which ComfyUI rounds, knows 1/128 of a step
    assert abs(np.mean(draws) - 1) < 5 * np.std(draws) / 32**0.5 + 0.05


def test_a_change_below_a_step_is_lost_to_nearest(tmp_path):
    model, weights = small_model(), Float8Weights([QUERY], scale="none")
    path, _ = adapter(model, tmp_path, spread=1e-3)
    coded, to_nearest = (weight_of(model, weights, *more)[0] for more in ((), (FusedLoRA(path),)))
    assert np.mean(to_nearest != coded) < 0.05


def test_the_random_numbers_depend_on_seed_and_site(tmp_path):
    model = small_model()
    targets = (QUERY, "transformer_blocks.2.attn.to_q")
    path, _ = adapter(model, tmp_path, targets=targets, spread=0)
    one, other = (site(model, target).module for target in targets)
    other.weight = one.weight
    weights = CodedWeights(ThirdOff(), targets)

    def drawn(seed, where):
        return weight_of(model, weights, FusedLoRA(path, rounding="stochastic", seed=seed), path=where)[0]

    first = drawn(0, QUERY)
    np.testing.assert_array_equal(drawn(0, QUERY), first)
    for changed in (drawn(1, QUERY), drawn(0, targets[1])):
        assert 0.3 < np.mean(changed != first) < 0.6


@dataclass(frozen=True)
class ThirdOff(Int8):
    """Int8 whose decoded values are a third of a step above its codes, so that to encode them again takes a choice."""

    def decode(self, arrays):
        return super().decode(arrays) + arrays["scale"] / 3


def test_rounding_at_random_leaves_plain_weights_to_nearest_and_refuses_packed_ones(tmp_path):
    model = small_model()
    path, _ = adapter(model, tmp_path)
    np.testing.assert_array_equal(
        weight_of(model, FusedLoRA(path, rounding="stochastic"))[0], weight_of(model, FusedLoRA(path))[0]
    )
    with pytest.raises(InputError, match=rf"lora_fused: {QUERY}: affine weights have no stochastic rounding"):
        rewritten(model, QuantizedWeights([{"sites": QUERY, "bits": 4}]), FusedLoRA(path, rounding="stochastic"))
    with pytest.raises(InputError, match=r"lora_fused.rounding is 'stochastik'.*Did you mean stochastic"):
        FusedLoRA(path, rounding="stochastik")
    with pytest.raises(InputError, match=r"lora_fused.path is None"):
        rewritten(model, FusedLoRA())


def test_a_live_adapter_and_a_fused_one_meet_in_either_order(tmp_path):
    model = small_model()
    (one, _), (two, _) = (adapter(model, tmp_path, seed) for seed in (1, 2))
    weights = CodedWeights(named("int8")["int8"].coding, [QUERY])
    for first, second in ((LoRA(one), FusedLoRA(two)), (FusedLoRA(two), LoRA(one))):
        fused = [technique for technique in (first, second) if isinstance(technique, FusedLoRA)]
        expected, _ = weight_of(model, weights, *fused)
        with applied(components(model), {"weights": weights, "first": first, "second": second}):
            np.testing.assert_array_equal(np.array(linear_weight(site(model, QUERY).module.inner)), expected)
