"""The requested parts of files are dropped from the page cache, and only those."""

import ctypes
import os
import sys

import numpy as np
import pytest

from precision_lab.device.page_cache import Extent, forget, keeps

PAGE = os.sysconf("SC_PAGE_SIZE")


def cached(file) -> np.ndarray:
    """A mask of the pages of a file that are in memory."""
    mapped = np.memmap(file, mode="r")
    resident = np.zeros(-(-len(mapped) // PAGE), np.uint8)
    libc = ctypes.CDLL(None)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    assert libc.mincore(mapped.ctypes.data, len(mapped), resident.ctypes.data) == 0
    return resident & 1 > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="advice that Linux takes")
@pytest.mark.parametrize("pieces", [1, 1000], ids="in {} pieces".format)
def test_a_part_is_dropped_and_what_is_around_it_stays(tmp_path, pieces):
    file, pages = tmp_path / "file", 10_000
    with file.open("wb") as stream:
        stream.write(os.urandom(pages * PAGE))
        os.fsync(stream.fileno())
    if not cached(file).all():
        pytest.skip("not all that is written here stays in memory")
    begin, nbytes = 3000 * PAGE - 5, 4000 * PAGE // pieces
    forget(Extent(file, begin + i * nbytes, nbytes) for i in reversed(range(pieces)))
    left = cached(file)
    if pieces == 1 and left[5000]:
        pytest.skip("this file system takes no such advice")
    assert left[:3000].all()
    assert left[6999:].all()
    assert not left[3520:6480].any()  # groups of pages, of up to 512, that hold other data too stay
    forget([Extent(file)])
    assert not cached(file).any()


def test_a_file_that_is_gone_is_no_error(tmp_path):
    forget([Extent(tmp_path / "gone", 0, 10)])


def test_what_fits_is_what_memory_holds(monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}.__getitem__)
    assert keeps(40960)
    assert not keeps(40961)
