"""A worker of a cluster, which keeps answering its scheduler while processes of its own carry out the tasks."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from precision_lab.lab.engine import introduce
from precision_lab.lab.local import Local
from precision_lab.lab.spec import ProcessSpec
from precision_lab.lab.tasks import Order, Task

_stations: dict[Order, tuple[Local, Any]] = {}
"""The processes of this worker for one run at a time, and the folder of its references where the run's is not seen."""


def sees(order: Order) -> bool:
    """Whether this worker sees the run folder."""
    return order.marker.exists()


def relay(order: Order, shares: bool, environment: Mapping[str, str], process: ProcessSpec, task: Task) -> Any:
    """The result of a task. Raises what `Local.perform` raises."""
    if order not in _stations:
        leave()
        with suppress(AssertionError):  # Dask may have forbidden this process to have children
            multiprocessing.current_process().daemon = False
        folder = None if shares else TemporaryDirectory(prefix="precision_lab-")
        own = replace(order, root=Path(folder.name)) if folder else order
        _stations[order] = Local(own, introduce(order), environment=environment), folder
    return _stations[order][0].perform(process, task)


def leave() -> None:
    """Ends the processes."""
    while _stations:
        _stations.popitem()[1][0].close()
