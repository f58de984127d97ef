"""Runs variants in child processes: a switch that MLX reads once per process cannot differ within a process.

The parent runs the reference and iterates over cases and timing rounds as usual. For a variant of another process, it
sends a request to that process, waits, and forwards the reported progress. A child is the same program on the same run
folder: it reads config.yaml there and writes its own parts. Except for helpers that only generate
(`precision_lab.lab.crew`), one process computes at a time, so that times are comparable; each holds its own weights.
Requests go to the child's stdin and replies to its stdout, one JSON object per line. A child ends with its parent
(`precision_lab.lab.requests`) and holds the lock of the run folder until then.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from precision_lab.device.environment import environment, numeric_switches
from precision_lab.errors import InputError
from precision_lab.lab.bench import Advance, Bench
from precision_lab.lab.failure import Failure, is_of_the_disk
from precision_lab.lab.latency import Sample
from precision_lab.lab.spec import ProcessSpec, RunSpec, Variant
from precision_lab.lab.subject import Case
from precision_lab.record.lock import FolderLock

_PATIENCE = 10.0


class ChildError(Exception):
    """An error in a child, with what the child kept of it."""

    def __init__(self, failure: Failure):
        super().__init__(failure.message)
        self.failure = failure


class Child:
    """A child process for the variants that share `process`.

    command: the command that starts it, to which the run folder and `process` as JSON are appended. lock: of the run
    folder, which the child inherits. The child starts at the first request, and again if it has ended. An exception in
    a variant is raised as ChildError, but an OSError, such as a full disk, as OSError.
    """

    def __init__(self, command: Sequence[str], out: Path, process: ProcessSpec, lock: FolderLock):
        self._lock = lock
        self._command = [*command, str(out), json.dumps(asdict(process))]
        self._switches = numeric_switches(process.tf32)
        self._running: subprocess.Popen[str] | None = None
        self._busy = False

    def make(self, variant: Variant, case: Case, advance: Advance) -> None:
        """Runs one generation in the child; see `Bench.make`."""
        self._ask({"make": variant.name, "prompt_id": case.prompt_id, "seed": case.seed}, advance)

    def time_step(self, variant: Variant) -> Sample:
        """Times one step in the child; see `Bench.time_step`."""
        return Sample(*self._ask({"time": variant.name}, lambda amount, label: None))

    def close(self) -> None:
        """Ends the process, even during a generation, since parts of an incomplete generation are never written."""
        if self._running is None:
            return
        child, self._running = self._running, None
        assert child.stdin is not None
        if self._busy:
            child.terminate()
        try:
            child.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()

    def _ask(self, request: dict[str, Any], advance: Advance) -> Any:
        if self._running is None:
            self._running = self._start()
            self._check(self._answer(advance))
        self._send(request)
        return self._answer(advance)

    def _start(self) -> subprocess.Popen[str]:
        paths = os.pathsep.join(path for path in sys.path if path)  # the child can import the same modules
        self._busy = True
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **self._switches, "PYTHONPATH": paths},
            pass_fds=self._lock.descriptors,
        )

    def _check(self, switches: Any) -> None:
        assert switches == self._switches, f"the child computes with {switches}, expected {self._switches}"

    def _send(self, request: dict[str, Any]) -> None:
        assert self._running is not None
        assert self._running.stdin is not None
        self._busy = True
        try:
            self._running.stdin.write(json.dumps(request) + "\n")
            self._running.stdin.flush()
        except BrokenPipeError:
            pass  # the child ended between requests; `_answer` raises the error

    def _answer(self, advance: Advance) -> Any:
        """Waits for the answer to the last request, and forwards the progress that the child reports until then."""
        assert self._running is not None
        assert self._running.stdout is not None
        for line in self._running.stdout:
            reply = json.loads(line)
            if "advance" in reply:
                advance(*reply["advance"])
                continue
            self._busy = False
            if "input_error" in reply:
                raise InputError(reply["input_error"])
            if "os_error" in reply:
                raise OSError(*reply["os_error"])
            if "raised" in reply:
                raise ChildError(Failure(*reply["raised"]))
            return reply["answer"]
        code = self._running.wait()
        self._busy = False
        self.close()
        message = f"its process ended with exit code {code}"
        raise ChildError(Failure(message, f"{message}\n"))


def serve(spec: RunSpec, process: ProcessSpec, requests: Iterable[str], replies: IO[str]) -> None:
    """Runs the child: answers requests for the variants of `spec` that belong to `process` until `requests` ends."""

    def reply(**message: Any) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    own = {variant.name: variant for variant in spec.variants if variant.process == process}
    cases = {(case.prompt_id, case.seed): case for case in spec.cases}
    bench = Bench(spec)
    reply(answer=environment()["switches"])
    for line in requests:
        request = json.loads(line)
        try:
            if "time" in request:
                reply(answer=list(bench.time_step(own[request["time"]])))
            else:
                case = cases[request["prompt_id"], request["seed"]]
                bench.make(own[request["make"]], case, [], lambda amount, label: reply(advance=[amount, label]))
                reply(answer=None)
        except BrokenPipeError:
            raise
        except InputError as error:
            reply(input_error=str(error))
        except (Exception, SystemExit) as error:
            if isinstance(error, OSError) and is_of_the_disk(error, spec.out):
                reply(os_error=[error.errno, error.strerror, error.filename])
            else:
                reply(raised=list(Failure.of(error, bench.layout)))
