"""The smallest cure for float16: the experiment has what `culprits` found, and no operation can be switched off."""

import json
from itertools import combinations
from pathlib import Path

import mlx.core as mx
import pytest
import yaml
from hydra import compose

from precision_lab.cli import main
from precision_lab.cli.config import build_spec
from precision_lab.cli.paths import checkpoints_dir
from precision_lab.instrument.sites import select, walk
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from tests.composing import configurations
from tests.techniques.configured import named

FOUND = Path(__file__).parents[2] / "results" / "reference" / "cpu" / "fp16_minimal"


@pytest.fixture(scope="module")
def sites():
    return walk(Checkpoint(checkpoints_dir() / "micro").pipeline(mx.bfloat16).components)


def built():
    with configurations():
        return build_spec(compose("config", overrides=["+exp=fp16_minimal"]), [])


def test_the_technique_is_what_culprits_found(sites):
    found = yaml.safe_load((FOUND / "fp16_minimal.yaml").read_text())["float16"]["sites"]
    assert select(named("fp16_minimal")["fp16_minimal"].sites, sites) == select(found, sites)


def test_each_variant_switches_off_one_operation_of_the_set(sites):
    """Together they are the set; none has a site of another or of the technique."""
    culprits = json.loads((FOUND / "culprits.json").read_text())["culprits"]
    recorded = {frozenset(map(str, select(each["sites"], sites))) for each in culprits}
    spec = built()
    narrowed = {
        variant.name: frozenset(map(str, select(variant.techniques["back"].sites, sites)))
        for variant in spec.variants
        if variant.name.startswith("without_")
    }
    assert set(narrowed.values()) == recorded
    assert len(narrowed) == len(recorded) == 11
    kept = frozenset(map(str, select(named("fp16_minimal")["fp16_minimal"].sites, sites)))
    assert not any(first & second for first, second in combinations([kept, *narrowed.values()], 2))
    claims = {claim["subject"]: claim["relation"] for claim in spec.claims}
    assert claims == {"fp16_minimal": "zero", "float16": "nonzero", **dict.fromkeys(narrowed, "nonzero")}


@pytest.mark.slow
def test_the_set_holds_and_without_any_one_operation_it_does_not(tmp_path):
    """On the embedded checkpoint, in the cases of the experiment."""
    summary = judged(tmp_path / "run")
    verdicts = {claim["id"]: claim["verdict"] for claim in summary["claims"]}
    assert verdicts == {claim["id"]: "supported" for claim in built().claims}


@pytest.mark.slow
def test_the_set_holds_on_a_prompt_and_a_seed_that_the_search_has_not_seen(tmp_path):
    """That each operation is needed holds for the prompt of the search: a feed-forward may stay in range in another."""
    given = ("prompts=['a green square on a red background']", "seeds=[3]", "only=[baseline,fp16_minimal,float16]")
    summary = judged(tmp_path / "run", *given)
    verdicts = {claim["id"]: claim["verdict"] for claim in summary["claims"]}
    assert verdicts == {"FM_float16": "supported", "FM_holds": "supported"}


def judged(out, *overrides):
    assert main(["run", "+exp=fp16_minimal", f"out={out}", *overrides]) == 0
    return json.loads((out / "summary.json").read_text())
