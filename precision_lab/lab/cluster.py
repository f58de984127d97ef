"""Workers of a Dask cluster. Each keeps answering its scheduler while processes of its own carry out the tasks."""

import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from precision_lab.lab.bench import Advance
from precision_lab.lab.engine import Worker, WorkerLostError, introduce
from precision_lab.lab.local import Local
from precision_lab.lab.scheduler import PATIENCE, addresses, disconnect, is_running
from precision_lab.lab.spec import ProcessSpec
from precision_lab.lab.tasks import Order, Task, silent

_LOOKS = 3
"""How many times in a row, a second apart, a scheduler under load must not list a worker that has left."""


class Remote:
    """One worker of a cluster, or another in its place after it was lost. taken: addresses that all slots share.
    check: raises InputError for a worker that cannot take part in the run."""

    reports_steps, shares_references, name = False, False, ""
    worker: Worker
    environment: Mapping[str, str] = {}

    def __init__(self, client: Any, order: Order, taken: dict[str, object], check: Callable[[Worker, str], None]):
        self._client, self._order, self._taken, self._check = client, order, taken, check

    def introduce(self) -> None:
        """Asks the worker what it is. Raises InputError or ImportError if it cannot take part in the run."""
        self.worker = self._answer(introduce, self._order)
        self._check(self.worker, self.name)

    def begin(self) -> None:
        self.shares_references = self._answer(_sees, self._order)

    def perform(self, process: ProcessSpec, task: Task, advance: Advance = silent) -> Any:
        if not self.name:
            self.introduce()
            self.begin()
        return self._answer(_relay, self._order, self.shares_references, self.environment, process, task)

    def close(self) -> None:
        with suppress(Exception):  # the scheduler may be gone
            self._executor.shutdown(wait=False)
            self._client.run(_leave, workers=[self.name], on_error="ignore")  # also while a task computes there
        self.name = ""
        for address in [address for address, slot in self._taken.items() if slot is self]:
            del self._taken[address]
        if not self._taken:
            disconnect(self._client)

    def _answer(self, function: Any, *arguments: Any) -> Any:
        from distributed import KilledWorker
        from distributed.comm import CommClosedError

        executor, missing = self._sit(), 0
        try:
            future = executor.submit(function, *arguments)
            while not wait([future], 1.0).done:
                missing = 0 if self.name in addresses(self._client) else missing + 1
                if missing == _LOOKS:
                    future.cancel()
                    raise CancelledError  # Dask may leave the future of a lost result without an end
            return future.result()
        except Exception as error:
            if not isinstance(error, CancelledError | KilledWorker | CommClosedError) and is_running(self._client):
                raise
            name, self.name = self.name, ""
            raise WorkerLostError(f"worker {name} has left", is_gone=not is_running(self._client)) from error

    def _sit(self) -> Any:
        """The executor of this worker, or of one that is free. Raises WorkerLostError if none comes."""
        deadline = time.monotonic() + PATIENCE
        while not self.name:
            if time.monotonic() > deadline:
                raise WorkerLostError("no other worker has come", is_gone=True)
            free = sorted(addresses(self._client) - self._taken.keys())
            if free and self._taken.setdefault(free[0], self) is self:
                self.name, where = free[0], {"workers": free[:1], "allow_other_workers": False}
                self._executor = self._client.get_executor(**where, pure=False, retries=0)
            time.sleep(0.0 if self.name else 0.2)
        return self._executor


_stations: dict[Order, tuple[Local, Any]] = {}
"""The processes of this worker for one run at a time, and the folder of its references where the run's is not seen."""


def _sees(order: Order) -> bool:
    return order.marker.exists()


def _relay(order: Order, shares: bool, environment: Mapping[str, str], process: ProcessSpec, task: Task) -> Any:
    if order not in _stations:
        _leave()
        with suppress(AssertionError):  # Dask may have forbidden this process to have children
            multiprocessing.current_process().daemon = False
        folder = None if shares else TemporaryDirectory(prefix="precision_lab-")
        own = replace(order, root=Path(folder.name)) if folder else order
        _stations[order] = Local(own, introduce(order), environment=environment), folder
    return _stations[order][0].perform(process, task)


def _leave() -> None:
    while _stations:
        _stations.popitem()[1][0].close()
