"""Dtypes by component: their canonical text, and what each component computes in."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.lab.compute import Compute
from precision_lab.lab.measures import LatencySpec, TeacherSpec
from precision_lab.lab.run import run
from precision_lab.lab.spec import RunSpec, Variant
from precision_lab.record.manifest import Manifest
from precision_lab.record.tables import read
from tests.lab.test_run import EVERYWHERE, Quiet
from tests.subjects import case, picture, settings, source

SETTINGS = settings(steps=2, guidance_scale=2.0, height=32, width=32)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("float16", "float16"),
        ({"transformer": "float16"}, "bfloat16+transformer=float16"),
        ({"vae": "float32", "transformer": "float16"}, "bfloat16+transformer=float16+vae=float32"),
        ({"default": "float16", "vae": "float32"}, "float16+vae=float32"),
        ({"default": "float16", "vae": "float16"}, "float16"),
        ({}, "bfloat16"),
    ],
)
def test_canonical_text(value, text):
    compute = Compute.read("dtype", value)
    assert str(compute) == text
    assert Compute.parse("dtype", text) == compute
    assert Variant("a", text).dtype == text


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("bf16", "dtype is 'bf16', expected one of float32, bfloat16, float16"),
        (16, "dtype is 16"),
        (None, "dtype is None"),
        ({"vae": "flaot32"}, "dtype.vae is 'flaot32'.*Did you mean float32"),
        ({"default": 3}, "dtype is 3"),
        ({"vae": {"a": "float32"}}, "dtype.vae is"),
        ({3: "float32"}, "dtype.3"),
    ],
)
def test_other_dtypes_are_refused(value, named):
    with pytest.raises(InputError, match=named):
        Compute.read("dtype", value)


def test_components_must_exist(small_checkpoint):
    one = source(small_checkpoint)
    for component, advice in (("transfomer", "Did you mean transformer"), ("pipeline", "Available: text_encoder")):
        with pytest.raises(InputError, match=rf"x\.{component}: no component .*{advice}"):
            Compute.read("x", {component: "float16"}).check("x", one)

    class Plain:
        pass

    with pytest.raises(InputError, match="All components of this model compute in one dtype"):
        Compute.read("x", {"vae": "float16"}).check("x", Plain())


@pytest.fixture(scope="module")
def made(small_checkpoint, tmp_path_factory):
    mixed = {"transformer": "float16", "vae": "float32"}
    spec = RunSpec(
        experiment="mixed",
        source=source(small_checkpoint),
        settings=SETTINGS,
        prompts=["a red circle"],
        seeds=[1],
        variants=[Variant("plain", "bfloat16"), Variant("mixed", str(Compute.read("dtype", mixed)))],
        baseline="plain",
        probes={"range": dataclasses.replace(EVERYWHERE, ports=("out",))},
        drift_sites=["pipeline:**"],
        teacher=TeacherSpec(["transformer_blocks.*", "vae:decoder.mid_block.*.*"], "full"),
        latency=LatencySpec(min_rounds=1, max_rounds=1),
        out=tmp_path_factory.mktemp("runs") / "mixed",
    )
    run(spec, Quiet())
    return spec


def test_each_component_computes_in_its_dtype(made):
    activations = read(made.out, "activations")
    rows = activations[activations["variant"] == "mixed"]
    seen = rows.groupby("component")["dtype"].agg(lambda names: sorted(set(names)))
    assert "bfloat16" in seen["text_encoder"]
    assert "float16" not in seen["text_encoder"]
    for site, dtype in (("img_in", "float16"), ("proj_out", "float16"), ("euler_step", "float16")):
        assert set(rows.loc[rows["site"] == site, "dtype"]) == {dtype}
    assert set(rows.loc[rows["site"] == "denormalize", "dtype"]) == {"float32"}
    assert set(seen["vae"]) == {"float32"}
    assert Manifest.read(made.out).variants["mixed"].dtype == "bfloat16+transformer=float16+vae=float32"
    drift = read(made.out, "drift")
    local = drift[(drift["variant"] == "mixed") & (drift["mode"] == "teacher")]
    assert local.loc[local["component"] == "transformer", "rel_l2"].min() > 0


def test_a_component_alone_is_that_of_a_plain_subject(small_checkpoint):
    """All components named alike are the plain subject, and the VAE in fp32 differs only in the picture."""
    one = source(small_checkpoint)
    named = {"transformer": mx.bfloat16, "text_encoder": mx.bfloat16, "vae": mx.bfloat16}
    plain = one.load(mx.bfloat16)
    assert one.load(mx.float32, named) is plain
    wide = one.load(mx.bfloat16, {"vae": mx.float32})
    assert wide.pipeline.transformer is plain.pipeline.transformer
    results = {}
    for name, subject in (("plain", plain), ("wide", wide)):
        results[name] = []
        own = case("a red circle", 3, **SETTINGS)
        pixels = picture(subject, own, lambda number, before, step, seen=results[name]: seen.append(step.result))
        results[name].append(pixels)
    for ours, theirs in zip(results["wide"][:-1], results["plain"][:-1], strict=True):
        assert mx.array_equal(ours, theirs)
    assert not np.array_equal(results["wide"][-1], results["plain"][-1])
