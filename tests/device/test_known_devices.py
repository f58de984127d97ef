"""A device is recognised by what it does: every known set by a record made of it, and near misses by the difference."""

import json
from pathlib import Path

import pytest

from precision_lab.device.behaviour.known import UNKNOWN, known_devices, read_behaviour

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
SETS = {known.name: known for known in known_devices()}


def findings_of(known):
    """The findings of a device that does what a set says."""
    names = ("op", "dtype", "property", "answers")
    return [
        {
            **{name: entry[name] for name in names[:3]},
            "parameters": {key: value for key, value in entry.items() if key not in names},
            "answer": entry["answers"][0],
        }
        for entry in known.expect
    ]


@pytest.mark.parametrize("name", SETS)
def test_a_device_made_of_a_set_matches_it_alone(name):
    reading = read_behaviour(SETS[name].backend, findings_of(SETS[name]))
    assert reading["matches"] == [name]
    assert reading["text"].startswith(SETS[name].reading)
    assert ("reports of others" in reading["text"]) == (SETS[name].basis == "reported")


@pytest.mark.parametrize(("name", "at"), [(name, at) for name in SETS for at in range(len(SETS[name].expect))])
def test_a_near_miss_names_what_differs(name, at):
    findings = findings_of(SETS[name])
    findings[at]["answer"] = "something else"
    reading = read_behaviour(SETS[name].backend, findings)
    assert not reading["matches"]
    assert reading["text"].startswith(UNKNOWN)
    (own,) = [entry for entry in reading["compared"] if entry["name"] == name]
    assert len(own["differs"]) == 1
    assert "something else" in own["differs"][0]
    assert findings[at]["op"] in own["differs"][0]


def test_an_unknown_backend_and_a_device_without_measurements():
    assert read_behaviour("vulkan", findings_of(SETS["M5"]))["text"].endswith("Nothing is known of the backend vulkan")
    assert "nothing was measured" in read_behaviour("metal", [])["text"]


def test_what_was_not_measured_is_said():
    assert "1 behaviours were not measured" in read_behaviour("metal", findings_of(SETS["M1-M4"])[:-1])["text"]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("cpu/device", "Linux CPU"),
        ("cuda/device_tf32_off", "CUDA with TF32 off"),
        ("cuda/device_tf32_on", "CUDA with TF32 on"),
    ],
)
def test_measured_devices_are_recognised(folder, name):
    record = json.loads((REFERENCE / folder / "device.json").read_text())
    assert read_behaviour(record["environment"]["backend"], record["findings"])["matches"] == [name]


def test_every_set_has_sources_that_exist():
    for known in SETS.values():
        assert known.basis in ("measured", "reported")
        for source in known.sources:
            assert source.startswith("https://github.com/") or (REFERENCE.parents[1] / source).is_file()
