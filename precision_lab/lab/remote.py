"""The slots of a cluster: each is one of its workers, or another in its place after it was lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from precision_lab.lab import cluster, station
from precision_lab.lab.bench import Advance
from precision_lab.lab.engine import Worker, WorkerLostError, introduce
from precision_lab.lab.spec import ProcessSpec
from precision_lab.lab.tasks import Order, Task, silent


class Remote:
    """A worker of a cluster. taken: addresses that all slots share.

    check: raises InputError for a worker that cannot take part in the run.
    """

    reports_steps, shares_references, name = False, False, ""
    worker: Worker
    environment: Mapping[str, str] = {}
    _seat: cluster.Seat

    def __init__(self, client: Any, order: Order, taken: dict[str, object], check: Callable[[Worker, str], None]):
        self._client, self._order, self._taken, self._check = client, order, taken, check

    def introduce(self) -> None:
        """Asks the worker what it is. Raises InputError or ImportError if it cannot take part in the run."""
        self.worker = self._answer(introduce, self._order)
        self._check(self.worker, self.name)

    def begin(self) -> None:
        self.shares_references = self._answer(station.sees, self._order)

    def perform(self, process: ProcessSpec, task: Task, advance: Advance = silent) -> Any:
        if not self.name:
            self.introduce()
            self.begin()
        return self._answer(station.relay, self._order, self.shares_references, self.environment, process, task)

    def close(self) -> None:
        with suppress(Exception):  # the scheduler may be gone
            self._seat.leave()
            self._client.run(station.leave, workers=[self.name], on_error="ignore")  # also while a task computes there
        self.name = ""
        for address in [address for address, slot in self._taken.items() if slot is self]:
            del self._taken[address]
        if not self._taken:
            cluster.disconnect(self._client)

    def _answer(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if not self.name:
            self.name = self._free()
            self._seat = cluster.Seat(self._client, self.name)
        try:
            return self._seat.answer(function, *arguments)
        except cluster.LeftError as error:
            name, self.name = self.name, ""
            raise WorkerLostError(f"worker {name} has left", is_gone=not cluster.is_running(self._client)) from error

    def _free(self) -> str:
        """The address of a worker that no other slot has. Raises WorkerLostError if none comes."""
        deadline = time.monotonic() + cluster.PATIENCE
        while time.monotonic() < deadline:
            for address in sorted(cluster.addresses(self._client) - self._taken.keys())[:1]:
                if self._taken.setdefault(address, self) is self:
                    return address
            time.sleep(0.2)
        raise WorkerLostError("no other worker has come", is_gone=True)
