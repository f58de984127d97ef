"""A baseline of schema 1 and its conversion, replayed in both directions; the committed baselines are read."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.migrations.schema_2 import new, old
from precision_lab.analysis.gate import bands, baseline, drift
from precision_lab.analysis.gate.entry import Entry

ROOT = Path(__file__).parents[3]
CONVERTED = Path(__file__).parent / "schema_2.json"
"""The first sites of each list of the baseline that 79bd69c had converted for CUDA."""

BEFORE = "122bdbd1bcde3a2014745d31f52c31a9b9d410f9ccb8d400f135c632afad2206"
"""SHA-256 of the same sites in the file before its conversion."""


@pytest.fixture
def committed():
    """Text of a converted baseline."""
    return CONVERTED.read_text(encoding="utf-8")


def test_undone_it_is_the_file_of_schema_1_and_converted_again_the_same(committed):
    before = old(committed)
    assert hashlib.sha256(before.encode()).hexdigest() == BEFORE
    assert new(before) == committed


def test_no_line_of_a_site_is_touched(committed):
    text = committed
    before, after = (version.splitlines() for version in (old(text), text))
    kept = [line for line in after if not line.startswith('"component": ')]
    assert len(kept) == len(before)
    changed = [then for then, now in zip(before, kept, strict=True) if then != now]
    assert {line.partition(": ")[0] for line in changed} == {'"schema_version"', '"settings"'}


def test_settings_keep_every_value(committed):
    def leaves(value, path=()):
        if isinstance(value, dict):
            return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
        return [(path[-1], json.dumps(value))]

    text = committed
    (then,), (now,) = (json.loads(version)["entries"] for version in (old(text), text))
    assert sorted(leaves(now["settings"])) == sorted(leaves(then["settings"]))


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_the_gate_reads_the_records_that_were_written(backend):
    (raw,) = baseline.read(ROOT / "results" / "baselines" / backend / "gate.json", backend, "gate")
    entry = Entry.from_json(raw)
    for sites in (entry.bands, entry.sketches):
        assert set(sites["component"]) == {"transformer", "text_encoder", "vae", "pipeline"}
    assert bands.to_records(entry.bands, entry.component) == raw["bands"]
    assert drift.to_records(entry.drift, entry.component) == raw["drift"]


@pytest.mark.parametrize(("convert", "found"), [(new, 2), (old, 1)])
def test_files_of_another_schema_are_refused(convert, found):
    with pytest.raises(ValueError, match=f"schema_version is {found}"):
        convert(json.dumps({"schema_version": found}))


def test_the_command_line(committed, tmp_path):
    text = committed
    before, after = tmp_path / "old.json", tmp_path / "new.json"
    before.write_text(old(text), encoding="utf-8")

    def run(*arguments):
        command = [sys.executable, "-m", "experiments.migrations.schema_2", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert run(before, after).returncode == 0
    assert after.read_text(encoding="utf-8") == text
    assert run("--undo", after, before).returncode == 0
    refused = run(after, before)
    assert refused.returncode == 2
    assert "expected 1" in refused.stderr
    assert before.read_text(encoding="utf-8") == old(text)
