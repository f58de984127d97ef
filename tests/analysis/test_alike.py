"""Every difference of two runs is named, and cases are matched by prompt, seed and settings."""

from dataclasses import replace

import pytest

from precision_lab.analysis.alike import difference_of_models, differences, facts, same_model, shared_cases
from precision_lab.record.manifest import Coverage, Storage, VariantEntry
from tests.fabricated import CHECKPOINT, ENVIRONMENT, LANGUAGE_MODEL, run_of

SETTINGS = {
    "probe": {"range": {"_target_": "x.Range", "sites": ["img_in", "**"], "ports": ["out"]}},
    "drift": {"sites": ["pipeline:euler_step"], "teacher": {"mode": "off"}},
    "variants": {"a": {"technique": {"scale": {"_target_": "x.Scale", "factor": 4}}}, "left_out": {"dtype": "float16"}},
    "model": {"_target_": "x.Model", "path": "there", "max_sequence_length": 512},
    "latency": {"max_rounds": 100},
    "claims": {"S1": {"text": "t", "metric": "drift"}},
    "workers": 2,
    "only": ["a"],
}
ENTRY = VariantEntry("bfloat16", ["scale"], linear_weights={"transformer": Storage(3, 100, 4.5)})


def run(**changed):
    return run_of({}, {"a": changed.pop("entry", ENTRY)}, **changed)


def changed_settings(path, value):
    """SETTINGS with one entry replaced."""
    if not path:
        return value
    copy = dict(SETTINGS if path is not None else {})
    at = copy
    for name in path[:-1]:
        at[name] = dict(at[name])
        at = at[name]
    at[path[-1]] = value
    return copy


def found(first, second, settings=SETTINGS):
    return {d.what: (d.first, d.second) for d in differences(facts(first, SETTINGS), facts(second, settings))}


def test_runs_that_differ_in_nothing_but_their_history_are_alike():
    again = run(started="later", finished="much later", command=["other"], claims=[])
    assert found(run(), again) == {}
    assert found(run(), run(), {**SETTINGS, "workers": 7, "only": None, "out": "elsewhere"}) == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"checkpoint": replace(CHECKPOINT, fingerprint="f2")}, {"checkpoint.fingerprint": ("f1", "f2")}),
        ({"checkpoint": replace(CHECKPOINT, name="large")}, {"checkpoint.name": ("micro", "large")}),
        (
            {"checkpoint": replace(CHECKPOINT, settings={"inflate": 8})},
            {"checkpoint.settings": ("none", "-"), "checkpoint.settings.inflate": ("-", "8")},
        ),
        ({"case": {"steps": 4}}, {"case.steps": ("2", "4")}),
        ({"case": {"steps": 2, "guidance_scale": 4.0}}, {"case.guidance_scale": ("-", "4.0")}),
        ({"prompts": ["a", "b"]}, {"prompts": ("none of its own (1)", "b")}),
        ({"prompts": ["b"]}, {"prompts": ("a", "b")}),
        ({"seeds": [1, 0]}, {"seeds": ("none of its own (1)", "1")}),
        ({"environment": replace(ENVIRONMENT, mlx="0.99")}, {"environment.mlx": ("0.32.4", "0.99")}),
        ({"environment": replace(ENVIRONMENT, device="a GPU")}, {"environment.device": ("a CPU", "a GPU")}),
        (
            {"environment": replace(ENVIRONMENT, packages={"numpy": "2.5"})},
            {"environment.packages": ("none", "-"), "environment.packages.numpy": ("-", "2.5")},
        ),
        ({"environment": replace(ENVIRONMENT, commit="c2")}, {"environment.commit": ("not set", "c2")}),
        ({"entry": replace(ENTRY, dtype="float16")}, {"variants.a.dtype": ("bfloat16", "float16")}),
        (
            {"entry": replace(ENTRY, techniques=["scale", "more"])},
            {"variants.a.techniques": ("none of its own (1)", "more")},
        ),
        ({"entry": replace(ENTRY, process={"tf32": True})}, {"variants.a.process.tf32": ("-", "true")}),
        ({"latency_margin": 0.01}, {"latency_margin": ("0.05", "0.01")}),
        ({"status": "interrupted"}, {"status": ("-", "interrupted")}),
        ({"errors": {"a": "boom"}}, {"errors.a": ("-", "boom")}),
        ({"sites": {"a": {"scale": Coverage(60, 60)}}}, {"sites.a": ("-", "scale.matched 60, scale.of 60")}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_manifest_states(changes, expected):
    expected = {name: values for name, values in expected.items() if values != ("none", "-")}
    assert found(run(), run(**changes)) == expected
    assert found(run(**changes), run()) == {name: values[::-1] for name, values in expected.items()}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("probe", "range", "sites"), ["img_in", "norm_out"], {"probe.range.sites": ("**", "norm_out")}),
        (("probe", "range", "sites"), ["**", "img_in"], {"probe.range.sites": ("img_in, **", "**, img_in")}),
        (("probe", "more"), {"_target_": "x.More", "sites": ["y"]}, {"probe.more": ("-", "_target_ x.More, sites y")}),
        (("drift", "teacher"), {"mode": "full"}, {"drift.teacher.mode": ("off", "full")}),
        (
            ("variants", "a", "technique", "scale"),
            {"_target_": "x.Scale", "factor": 8},
            {"variants.a.technique.scale.factor": ("4", "8")},
        ),
        (("variants", "left_out"), {"dtype": "float32"}, {}),
        (("model", "max_sequence_length"), 1024, {"model.max_sequence_length": ("512", "1024")}),
        (("latency",), {"max_rounds": 4}, {"latency.max_rounds": ("100", "4")}),
        (("claims", "S1"), {"text": "t", "metric": "amax"}, {"claims.S1.metric": ("drift", "amax")}),
        (("technique",), {"b": {"_target_": "x.B"}}, {"technique.b._target_": ("-", "x.B")}),
    ],
)
def test_what_only_the_configuration_states(path, value, expected):
    assert found(run(), run(), changed_settings(path, value)) == expected


def test_a_variant_of_one_run_alone_is_one_difference():
    more = run_of({}, {"a": ENTRY, "b": VariantEntry("float32", ["x"])})
    (name, (first, second)) = next(iter(found(run(), more).items()))
    assert (name, first) == ("variants.b", "-")
    assert "dtype float32" in second
    assert "techniques x" in second


def test_a_hash_is_shortened_and_a_path_is_not():
    digest, path = "sha256:" + "0123456789abcdef" * 4, "/a" * 60
    other = replace(CHECKPOINT, fingerprint=digest, path=path)
    assert found(run(), run(checkpoint=other)) == {
        "checkpoint.fingerprint": ("f1", "0123456789ab…"),
        "checkpoint.path": ("there", path),
    }


def test_different_models_are_named():
    first, second = run(), run(layout=LANGUAGE_MODEL, checkpoint=replace(CHECKPOINT, name="qwen3"))
    assert same_model(first, run())
    assert difference_of_models(first, run()) == ""
    assert not same_model(first, second)
    words = difference_of_models(first, second)
    assert words.startswith("micro and qwen3 (components ")
    assert "text_encoder" in words


def test_cases_are_matched_by_prompt_and_seed():
    first = run(prompts=["x", "y", "z"], seeds=[0, 1, 2])
    assert shared_cases(first, run(prompts=["z", "q", "x"], seeds=[2, 0, 5])) == {
        (0, 0): (2, 0),
        (0, 2): (2, 2),
        (2, 0): (0, 0),
        (2, 2): (0, 2),
    }
    assert shared_cases(first, run(prompts=["X"], seeds=[0])) == {}


def test_variants_with_settings_of_their_own_have_other_cases():
    own = run_of({}, {"few": replace(ENTRY, settings={"steps": 1}), "many": replace(ENTRY, settings={"steps": 2})})
    assert shared_cases(own, own, "few", "many") == {}
    assert shared_cases(own, own, "many", "reference") == {(0, 0): (0, 0)}, "the settings of the run, stated again"
    assert shared_cases(own, run(case={"steps": 1}), "few", "a") == {(0, 0): (0, 0)}


@pytest.mark.parametrize("case", [{"steps": 3}, {"steps": 2, "height": 128}])
def test_cases_with_other_settings_are_not_alike(case):
    assert shared_cases(run(), run()) == {(0, 0): (0, 0)}
    assert shared_cases(run(), run(case=case)) == {}
