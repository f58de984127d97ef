"""The requested parts of files are dropped from the page cache, and only those."""

import ctypes
import os
import sys
import time

import numpy as np
import pytest

from precision_lab.device.page_cache import Extent, beside, forget, keeps, prefetch

PAGE = os.sysconf("SC_PAGE_SIZE")


def cached(file) -> np.ndarray:
    """A mask of the pages of a file that are in memory."""
    mapped = np.memmap(file, mode="r")
    resident = np.zeros(-(-len(mapped) // PAGE), np.uint8)
    libc = ctypes.CDLL(None)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    assert libc.mincore(mapped.ctypes.data, len(mapped), resident.ctypes.data) == 0
    return resident & 1 > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's posix_fadvise")
@pytest.mark.parametrize("pieces", [1, 1000], ids="in {} pieces".format)
def test_only_the_given_part_is_dropped(tmp_path, pieces):
    path, pages = tmp_path / "file", 10_000
    with path.open("wb") as file:
        file.write(os.urandom(pages * PAGE))
        os.fsync(file.fileno())
    if not cached(path).all():
        pytest.skip("this file system does not keep written pages in memory")
    begin, nbytes = 3000 * PAGE - 5, 4000 * PAGE // pieces
    forget(Extent(path, begin + i * nbytes, nbytes) for i in reversed(range(pieces)))
    remaining = cached(path)
    if pieces == 1 and remaining[5000]:
        pytest.skip("this file system ignores posix_fadvise")
    assert remaining[:3000].all()
    assert remaining[6999:].all()
    assert not remaining[3520:6480].any()  # groups of up to 512 pages that also hold other data are kept
    forget([Extent(path)])
    assert not cached(path).any()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's posix_fadvise")
@pytest.mark.parametrize("nbytes", [4000 * PAGE, 0], ids=["a part", "to the end"])
def test_only_the_given_part_is_prefetched(tmp_path, nbytes):
    path, pages = tmp_path / "file", 40_000
    with path.open("wb") as file:
        file.write(os.urandom(pages * PAGE))
        os.fsync(file.fileno())
    forget([Extent(path)])
    if cached(path).any():
        pytest.skip("this file system ignores posix_fadvise")
    begin, end = 30_000, 34_000 if nbytes else pages
    beside(prefetch, [Extent(path, begin * PAGE - 5, nbytes)]).result(timeout=60)
    deadline = time.monotonic() + 60
    while not (found := cached(path))[begin:end].all() and time.monotonic() < deadline:
        time.sleep(0.01)  # the system reads on after the request
    assert found[begin:end].all()
    assert not found[: begin - 4096].any(), "a page's neighbours are read with it"


def test_a_missing_file_is_no_error(tmp_path):
    forget([Extent(tmp_path / "gone", 0, 10)])
    prefetch([Extent(tmp_path / "gone", 0, 10)])


def test_the_limit_is_three_quarters_of_memory(monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}.__getitem__)
    assert keeps(30720)
    assert not keeps(30721)
