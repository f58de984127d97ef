"""The process retains freed memory if the setting is on, and returns it otherwise."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's allocator")

COUNT_PAGE_FAULTS = """
import resource
from precision_lab.device import allocator
allocator.keep_freed()
import mlx.core as mx
from precision_lab.device.environment import environment

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    mx.eval(mx.zeros((64 << 20,), mx.uint8))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults(), environment()["malloc"])
"""


@pytest.mark.parametrize("switch", ["", "off"])
def test_a_large_array_reuses_freed_memory(monkeypatch, switch):
    monkeypatch.setenv("PRECISION_LAB_MALLOC", switch)
    process = subprocess.run([sys.executable, "-c", COUNT_PAGE_FAULTS], check=True, stdout=subprocess.PIPE, text=True)
    faults, description = process.stdout.strip().split(" ", 1)
    pages = (64 << 20) // 4096
    if switch == "off":
        assert int(faults) > pages / 600  # pages are at most 2 MiB
        assert description == "None"
    else:
        assert int(faults) < pages / 1000
        assert "keeps" in description
