"""The lock of a run folder: one holder at a time, named to others, ended by the end of its processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from precision_lab.errors import InputError
from precision_lab.record.lock import FILE, FolderLock, check_free, holder_of

HOLDING = """
import os, subprocess, sys, time
from pathlib import Path
from precision_lab.record.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
if len(sys.argv) > 2:
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({sys.argv[2]})"], pass_fds=lock.descriptors)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holding(tmp_path):
    """Starts another process that holds the lock of tmp_path, with a child that lives for `child` seconds."""
    started = []

    def start(*child):
        command = [sys.executable, "-c", HOLDING, str(tmp_path), *map(str, child)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "held\n"
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_another_process_and_its_host_are_named_in_one_line(tmp_path, holding):
    other = holding()
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        FolderLock(tmp_path).acquire()
    assert time.monotonic() - started < 1, "a living holder is not waited for"
    said = str(caught.value)
    assert f"{tmp_path} is being written by process {other.pid} on {socket.gethostname()}." in said
    assert len(said.splitlines()) == 1
    with pytest.raises(InputError, match=f"process {other.pid}"):
        check_free(tmp_path)
    assert holder_of(tmp_path).process == other.pid


def test_a_killed_holder_blocks_nothing_and_the_file_goes_with_the_next(tmp_path, holding):
    other = holding()
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / FILE).exists()
    assert holder_of(tmp_path) is None
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert json.loads((tmp_path / FILE).read_text()) == {"process": os.getpid(), "host": socket.gethostname()}
    lock.release()
    assert list(tmp_path.iterdir()) == []
    lock.release()


def test_the_children_of_a_killed_holder_are_waited_for(tmp_path, holding):
    other = holding(0.7)
    other.send_signal(signal.SIGKILL)
    other.wait()
    started = time.monotonic()
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert time.monotonic() - started > 0.2
    lock.release()


def test_a_child_that_goes_on_for_long_keeps_the_folder(tmp_path, holding, monkeypatch):
    monkeypatch.setattr("precision_lab.record.lock._PATIENCE", 0.3)
    other = holding(3)
    other.send_signal(signal.SIGKILL)
    other.wait()
    with pytest.raises(InputError, match=f"is being written by process {other.pid}"):
        FolderLock(tmp_path).acquire()


def test_many_at_once_have_it_one_after_the_other(tmp_path):
    """Removing the file must not let two in: each holds the lock for a moment, over and over."""
    inside, most, taken = 0, 0, 0
    count = threading.Lock()

    def work():
        nonlocal inside, most, taken
        for _ in range(30):
            lock = FolderLock(tmp_path)
            try:
                lock.acquire()
            except InputError as error:
                assert str(os.getpid()) in str(error) or "another process" in str(error)  # noqa: PT017
                continue
            with count:
                inside, taken = inside + 1, taken + 1
                most = max(most, inside)
            time.sleep(0.001)
            with count:
                inside -= 1
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert taken > 8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"process": "x", "host": 3}', '{"process": -1, "host": "a"}', "\0" * 9]
)
def test_an_edited_lock_file_is_still_a_lock(tmp_path, holding, monkeypatch, content):
    monkeypatch.setattr("precision_lab.record.lock._PATIENCE", 0.1)
    holding()
    (tmp_path / FILE).write_text(content)
    with pytest.raises(InputError, match="is being written by another process"):
        FolderLock(tmp_path).acquire()


def test_a_file_system_without_locks_is_noted(tmp_path, monkeypatch):
    def refuses(descriptor, blocking):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("filelock.lock_descriptor", refuses)
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert not lock.has_effect
    assert holder_of(tmp_path) is None
    lock.release()
    assert list(tmp_path.iterdir()) == []
