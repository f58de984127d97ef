"""Equality to the bit: digests, sketches, and the configuration that explains a difference."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.alike import Difference
from precision_lab.analysis.exactness import configuration, environment, outcomes, sketched
from precision_lab.numerics.sketch import SKETCH_COLUMNS, sketch
from precision_lab.record.manifest import PinnedCases
from tests.fabricated import run_of

PINNED = PinnedCases({}, {"wide": {}}, ["**"], False, "f1")
SITES = ("img_in", "txt_in", "proj_out")


def test_what_of_the_configuration_decides_a_variant():
    found = [
        Difference("checkpoint.fingerprint", "a", "b"),
        Difference("checkpoint.path", "x", "y"),
        Difference("case.steps", "2", "4"),
        Difference("variants.v.dtype", "bfloat16", "float16"),
        Difference("variants.v.techniques", "none", "four_bits"),
        Difference("variants.v.technique.four_bits.rules", "-", "bits 4"),
        Difference("variants.v.technique.clip.at", "1", "2"),
        Difference("variants.v.linear_weights.transformer.bytes", "9", "3"),
        Difference("variants.other.dtype", "float32", "float16"),
        Difference("environment.mlx", "0.32", "0.33"),
        Difference("probe.range.sites", "a", "b"),
    ]
    names = [each.what for each in configuration(found, "v")]
    assert names == ["checkpoint.fingerprint", "case.steps", "dtype", "techniques", "technique.clip.at"]
    assert [each.what for each in environment(found)] == ["mlx"]


def generations(*digests):
    rows = [
        {"variant": "v", "prompt_id": at, "seed": 0, "what": "picture", "digest": digest}
        for at, digest in enumerate(digests)
    ]
    return pd.DataFrame(rows).astype({"prompt_id": "Int64", "seed": "Int64"})


@pytest.mark.parametrize(
    ("other", "expected"), [(("a", "b"), (2, 2, None)), (("a", "c"), (2, 1, (1, 0))), (("a", None), (1, 1, None))]
)
def test_digests_of_results(other, expected):
    def run(*digests):
        return run_of({"generations": generations(*digests)}, prompts=("x", "y"), variants=("v",))

    found = outcomes(run("a", "b"), run(*other), "v")
    assert (found.compared, found.equal, found.first) == expected


def sketches(changed=()):
    rng = np.random.default_rng(5)
    rows = []
    for order, site in enumerate(SITES):
        x = rng.normal(size=(6, 8)).astype(np.float32)
        x = x * np.float32(1.001) if site in changed else x
        own = sketch(x)
        row = {"variant": "reference", "case": "wide", "branch": "cond", "step": 0, "component": "transformer"}
        row |= {"site": site, "port": "out", "order": order, "dtype": "float32", "shape": "6x8", "numel": 48}
        rows.append(row | {"rms": own.rms} | dict(zip(SKETCH_COLUMNS, own.projections, strict=True)))
    return run_of({"sketches": pd.DataFrame(rows)}, pinned=PINNED)


def test_sketches_say_where_equality_ends():
    assert sketched(sketches(), sketches()).first is None
    found = sketched(sketches(), sketches(changed=SITES[1:]))
    assert (found.compared, found.equal) == (3, 1)
    assert (found.first["site"], found.first["before"], found.first["case"]) == ("txt_in", "img_in", "wide")
    assert found.first["rel_l2"] == pytest.approx(1e-3, rel=0.6)


def test_sketches_of_other_cases_are_not_compared():
    one, other = sketches(), sketches()
    other = replace(other, manifest=replace(other.manifest, pinned=replace(PINNED, fingerprint="f2")))
    assert sketched(one, other) is None
    assert sketched(one, run_of({})) is None
