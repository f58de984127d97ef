"""Scale-equivalence: every claim of conf/technique is proven, and the causes of a changed function are located."""

from types import SimpleNamespace

import mlx.core as mx
import pytest

from precision_lab.lab.equivalence import attribute, draws_of, prove, split
from precision_lab.techniques.narrow import Narrow
from precision_lab.techniques.parts.ablation import HomogeneousActivation, WithoutBias
from precision_lab.techniques.reordered_sums import ReorderedSums
from precision_lab.techniques.scaled_attention import ScaledAttention
from precision_lab.techniques.scaled_feed_forward import ScaledFeedForward, ScaledFirstLinear
from tests.spread import thinned
from tests.subjects import source
from tests.techniques.configured import NAMES_1, SITES, named

DRAWS = draws_of(source("package://micro"), [], 2)
NOISE = {"reordered": ReorderedSums(SITES["reordered"])}
PARTS = {
    "biases": {"relu": HomogeneousActivation()},
    "gelu": {"no_bias": WithoutBias()},
    "neither": {"relu": HomogeneousActivation(), "no_bias": WithoutBias()},
}
"""What can be left of a feed-forward's inhomogeneity, and the parts to take out of the model to leave only that."""
DRAW_THINGS = [f"draw_things_{model}" for model in ("qwen_image", "edit", "edit_2509", "2512")]


def claims(name):
    return all(technique.preserves_function for technique in named(name).values())


@pytest.mark.parametrize("name", thinned([name for name in NAMES_1 if claims(name)], keep=8))
def test_what_claims_to_preserve_the_function_does(small, name):
    proof = prove(small, named(name), DRAWS[:1], NOISE)
    assert proof.holds, proof


@pytest.mark.parametrize("name", [*thinned(DRAW_THINGS, keep=1), "ffn_scaling_exact", "ggml_scales"])
def test_scaling_by_powers_of_two_is_exact_to_the_last_bit(small, name):
    assert prove(small, named(name), DRAWS, NOISE).identical


@pytest.mark.parametrize(("qkv", "out", "hidden", "first"), [(2, 4, 0.5, 16), (2**-6, 2**11, 1, 2**-3)])
def test_any_powers_of_two_and_tables_of_them_do(small, qkv, out, hidden, first):
    techniques = {
        "attention": ScaledAttention(qkv, {0: out, 2: out / 4}),
        "feed_forward": ScaledFeedForward({0: hidden, 3: 1024 * hidden}),
        "first": ScaledFirstLinear({0: 1, 1: first}),
    }
    assert prove(small, techniques, DRAWS, NOISE).identical


def test_ffn_scaling_changes_the_function_through_biases_and_through_gelu(small):
    parts = attribute(small, named("ffn_scaling"), DRAWS, PARTS)
    floor = prove(small, {}, DRAWS, NOISE).floors["output"]
    assert not prove(small, named("ffn_scaling"), DRAWS, NOISE).holds
    assert min(parts["all"], parts["biases"], parts["gelu"]) > 1e3 * floor
    assert parts["neither"] < 10 * floor


def test_the_two_sides_of_a_proof_are_the_same_without_techniques(small):
    proof = prove(small, {}, DRAWS, NOISE)
    assert proof.identical
    assert proof.holds
    assert all(0 < floor < 1e-5 for floor in proof.floors.values())


def only(technique, keeps):
    """The technique at some of its places."""
    sites = [pattern for pattern in technique.sites if keeps(pattern)]
    assert 0 < len(sites) < len(technique.sites)
    return SimpleNamespace(sites=sites, rewrite=technique.rewrite, preserves_function=True, composes=False)


def test_a_wrong_factor_is_found_out(small):
    """If only the gate scaled, or if eps stayed the same with small q and k."""
    gates_only = only(ScaledAttention(), lambda pattern: pattern.endswith("_add1"))
    assert not prove(small, {"wrong": gates_only}, DRAWS[:1], NOISE).holds
    no_eps = only(ScaledAttention(qkv=2.0**12), lambda pattern: "norm_q" not in pattern)
    assert not prove(small, {"wrong": no_eps}, DRAWS[:1], NOISE).holds


def test_the_drift_of_a_changed_function_is_told_from_rounding(small):
    changed = split(small, mx.bfloat16, named("ffn_scaling"), DRAWS)
    exact = split(small, mx.bfloat16, named("ffn_scaling_exact"), DRAWS)
    assert changed.function > 3 * changed.rounding
    assert changed.total == pytest.approx(changed.function, rel=0.3)
    assert exact.function == 0
    assert exact.total == exact.rounding
    assert 0.3 < exact.rounding / exact.plain_rounding < 3


def test_a_technique_that_rounds_on_purpose_is_proven_without(small):

    narrow = Narrow(sites=("transformer_blocks.*.attn.{to_k,to_v}",), dtype="float16")
    assert prove(small, {"narrow": narrow}, DRAWS[:1], NOISE).identical
    assert split(small, mx.float32, {"narrow": narrow}, DRAWS[:1]).function > 1e-5
