"""device.json: versions 1 and 2 are read, others and damaged ones are refused in one line."""

import json
from pathlib import Path

import pytest

from precision_lab.errors import InputError
from precision_lab.record.device import FILE, DeviceRecord

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.mark.parametrize("folder", ["cpu/device", "cuda/device_tf32_on"])
def test_committed_records_are_read(folder):
    record = DeviceRecord.read(REFERENCE / folder)
    assert record.findings
    assert record.environment["mlx"]


def test_a_record_of_version_1_has_no_checks():
    assert DeviceRecord.read(REFERENCE / "cuda/device_tf32_off" / FILE).checks == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 3}, "schema_version 3, expected 1 or 2"),
        ({"findings": [{"op": "matmul"}]}, "findings.0.dtype"),
        ({"checks": [3]}, "checks.0 is no mapping"),
        ({"environment": None}, "environment is missing"),
    ],
)
def test_a_damaged_record(change, said, tmp_path):
    content = json.loads((REFERENCE / "cpu/device" / FILE).read_text()) | change
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        DeviceRecord.read(tmp_path)
