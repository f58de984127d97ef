"""Workers of this machine: processes of `concurrent.futures`, one for each set of numeric switches."""

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from precision_lab.device import startup
from precision_lab.device.environment import numeric_switches
from precision_lab.lab.bench import Advance, Bench
from precision_lab.lab.engine import Worker, WorkerLostError
from precision_lab.lab.spec import HERE, ProcessSpec
from precision_lab.lab.tasks import Order, Task, perform, silent


class Local:
    """A slot of this machine: a pool of one process for each set of switches, so that a task that ends its process is
    the only one to fail. bench: carries out tasks of this process's switches here. environment: of the processes."""

    name, shares_references = "this machine", True

    def __init__(self, order: Order, worker: Worker, bench: Bench | None = None, environment: Mapping[str, str] = {}):
        self.worker, self.reports_steps = worker, bench is not None
        self._order, self._bench, self._environment = order, bench, environment
        self._pools: dict[ProcessSpec, tuple[ProcessPoolExecutor, Connection]] = {}

    def begin(self) -> None:
        pass

    def perform(self, process: ProcessSpec, task: Task, advance: Advance = silent) -> Any:
        for reference in task.references:
            if not reference.is_kept(self._order.root):
                self._carry_out(HERE, reference, silent)
        return self._carry_out(process, task, advance)

    def close(self) -> None:
        while self._pools:
            pool, lifeline = self._pools.popitem()[1]
            lifeline.close()
            pool.shutdown(cancel_futures=True)

    def _carry_out(self, process: ProcessSpec, task: Task, advance: Advance) -> Any:
        if self._bench is not None and process == HERE:
            return task(self._bench, advance)
        if process not in self._pools:
            context = multiprocessing.get_context("spawn")
            reader, lifeline = context.Pipe(duplex=False)
            settings = reader, {**self._environment, **numeric_switches(process.tf32)}
            self._pools[process] = ProcessPoolExecutor(1, context, startup.begin, settings), lifeline
        try:
            return self._pools[process][0].submit(perform, self._order, task).result()
        except BrokenExecutor as error:
            self._pools.pop(process, None)
            raise WorkerLostError("its process ended") from error
