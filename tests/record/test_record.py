"""Manifests and summaries are read as they were written, and nothing else is read as one."""

import ast
import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import precision_lab
from precision_lab.errors import InputError
from precision_lab.record.files import number_or_reason, read_json, write_atomically, write_json
from precision_lab.record.manifest import SCHEMA_VERSION, Coverage, Manifest, PinnedCases
from precision_lab.record.run import Run, Tables
from precision_lab.record.summary import ClaimEntry, Dtypes, Latency, NearMisses, Quantity, Summary, VariantSummary
from precision_lab.record.tables import LEADING, empty, read, write_part
from tests import fabricated

VARIANT = VariantSummary(
    dtype=Dtypes("as stored", "bfloat16"),
    techniques=["a"],
    error=None,
    expect="any",
    expectation_met=True,
    amax_final=Quantity(5.3e7),
    latent_rel_l2=Quantity(None, "non-finite latents"),
    psnr_db=Quantity(None, "identical"),
    ssim=Quantity(1.0),
    num_nonfinite=Quantity(3),
    first_nonfinite=None,
    near_misses=NearMisses(0),
    latency=Latency(0.5, 1.0, "baseline", (0.9, 1.1)),
    peak_memory_bytes=Quantity(12),
    metrics={"kl": Quantity(0.25), "other": Quantity(None, "not measured")},
)
CLAIM = ClaimEntry(
    "c", "text", "source", "inconclusive", "drift", "smaller", "a", "b", None, Quantity(2.0), Quantity(None, "none")
)


def test_a_manifest_comes_back(tmp_path):
    written = fabricated.manifest(
        sites={"baseline": {"t": Coverage(2, 3)}},
        pinned=PinnedCases({"steps": 2}, {"a": {"prompt": "x", "seed": 1}}, ["**"], True, "f"),
        claims=[{"id": "x", "sites": ["a"]}],
    )
    written.write(tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    found = Manifest.read(tmp_path)
    assert found.layout.block_of("transformer", "transformer_blocks.3.attn") == 3
    found.write(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == text
    assert json.loads((tmp_path / "manifest.json").read_text())["schema_version"] == SCHEMA_VERSION


def test_a_summary_comes_back_and_reasons_are_beside_their_numbers(tmp_path):
    written = Summary("e", "reference", {"baseline": VARIANT}, [CLAIM], weights="trained")
    written.write(tmp_path)
    raw = json.loads((tmp_path / "summary.json").read_text())
    baseline = raw["variants"]["baseline"]
    assert (baseline["psnr_db"], baseline["psnr_db_reason"], baseline["ssim"]) == (None, "identical", 1.0)
    assert "ssim_reason" not in baseline
    assert baseline["metrics"] == {"kl": 0.25, "other": None, "other_reason": "not measured"}
    assert (raw["claims"][0]["noise_floor"], raw["claims"][0]["noise_floor_reason"]) == (None, "none")
    text = (tmp_path / "summary.json").read_text()
    found = Summary.read(tmp_path)
    assert found is not None
    assert found.variants["baseline"].metrics == VARIANT.metrics
    found.write(tmp_path)
    assert (tmp_path / "summary.json").read_text() == text
    assert Summary.read(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not strict JSON"),
        ("[]", "schema_version None, expected 2"),
        ('{"schema_version": 1}', "schema_version 1, expected 2. Run the experiment again"),
        ('{"schema_version": 99}', "schema_version 99, expected 2. Use the version of precision_lab that wrote it"),
        ('{"schema_version": 2}', "status: Field required"),
        ('{"schema_version": NaN}', "it holds NaN"),
    ],
)
def test_what_is_no_manifest(tmp_path, content, message):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError) as caught:
        Run.open(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / "manifest.json") in str(caught.value)


@pytest.mark.parametrize("entry", ["seeds", "layout", "variants", "latency_margin"])
def test_an_edited_entry_is_named(tmp_path, entry):
    fabricated.manifest().write(tmp_path)
    raw = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(raw | {entry: "nonsense"}))
    with pytest.raises(InputError, match=entry):
        Manifest.read(tmp_path)


def test_folders_that_hold_no_run(tmp_path):
    (tmp_path / "run_1").mkdir()
    with pytest.raises(InputError, match=r"no manifest\.json in it"):
        Run.open(tmp_path / "run_1")
    with pytest.raises(InputError, match=r"no such folder\. Did you mean run_1"):
        Run.open(tmp_path / "run_2")


def test_a_run_that_is_not_complete_is_refused_where_it_must_be():
    run = fabricated.run_of({})
    assert run.completed() is run
    running = replace(run, manifest=replace(run.manifest, status="interrupted"))
    with pytest.raises(InputError, match="is interrupted, expected a complete one"):
        running.completed()


def test_a_table_is_read_once_and_when_it_is_asked_for():
    asked = []

    def read(name):
        asked.append(name)
        return empty(name)

    tables = Tables(read)
    assert asked == []
    assert tables["drift"] is tables["drift"]
    assert asked == ["drift"]


@pytest.mark.parametrize("table", LEADING)
def test_a_damaged_table_is_named(tmp_path, table):
    write_part(tmp_path, table, "a", empty(table).reindex([0]))
    (part,) = (tmp_path / table).iterdir()
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(InputError, match=part.name):
        read(tmp_path, table)
    part.unlink()
    pd.DataFrame({"nonsense": [1]}).to_parquet(tmp_path / f"{table}.parquet")
    with pytest.raises(InputError, match="has no column 'variant'"):
        read(tmp_path, table)


def test_tables_of_earlier_runs_are_read(tmp_path):
    """With the columns that this schema_version began with: a column that is new may not be asked for."""
    row = {"variant": "baseline", "round": 0, "order": 1, "what": "step", "seconds": 0.5, "peak_memory_bytes": 7}
    pd.DataFrame([row]).to_parquet(tmp_path / "latency.parquet")
    place = {"prompt_id": 0, "seed": 0, "branch": "cond", "step": 0, "component": "transformer", "site": "a"}
    place |= {"port": "out", "stream": "img", "block": 0, "mode": "free", "variant": "baseline", "order": 0}
    errors = {"rel_l2": 0.1, "sqnr_db": 20.0, "cosine": 1.0, "max_abs_err": 0.1, "mean_signed_rel_err": 0.0}
    drift = place | errors | {"reference": "reference", "num_nonfinite": 0}
    pd.DataFrame([drift]).to_parquet(tmp_path / "drift.parquet")
    assert read(tmp_path, "latency").to_dict("records") == [row]
    assert read(tmp_path, "drift")["rel_l2"].tolist() == [0.1]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def fails(temporary):
        temporary.write_text("half")
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        write_atomically(path, fails)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_is_strict(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", {"x": value})
    assert not list(tmp_path.iterdir())
    assert number_or_reason("x", value, "why") == {"x": None, "x_reason": "why"}
    (tmp_path / "loose.json").write_text('{"x": Infinity}')
    with pytest.raises(InputError, match="it holds Infinity"):
        read_json(tmp_path / "loose.json")


def test_no_key_of_a_manifest_or_a_summary_is_read_by_string():
    """Outside of the record, code has `run.manifest.seeds`."""
    package = Path(precision_lab.__file__).parent
    wrong = []
    for file in sorted(package.rglob("*.py")):
        if file.relative_to(package).parts[0] == "record":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                holder, key = node.value, node.slice.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
                holder, key = node.func.value, node.args[0] if node.args else None
            else:
                continue
            name = ast.unparse(holder).rpartition(".")[2]
            if name in ("manifest", "checkpoint", "layout") and isinstance(key, str | ast.Constant):
                wrong.append(f"{file.relative_to(package)}: {ast.unparse(node)}")
    assert not wrong
