"""The scheduler of a Dask cluster: connecting to it, and the workers that it has."""

from __future__ import annotations

import importlib
import logging
import shutil
from contextlib import suppress
from typing import Any

PATIENCE = 10.0
"""Seconds to wait for the scheduler, and for another worker in the place of one that was lost."""


def connected(engine: str, workers: int | None) -> Any:
    """A client of the scheduler at an address, or of a cluster that the named class starts with so many workers.

    Raises ImportError, OSError and ValueError as Dask does.
    """
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what is lost, the run says in one line
    if "://" in engine:
        return Client(engine, timeout=PATIENCE, set_as_default=False)
    module, _, name = engine.rpartition(".")
    cluster = getattr(importlib.import_module(module), name)()
    submit = getattr(getattr(cluster, "job_cls", None), "submit_command", "")
    if submit and shutil.which(submit.split()[0]) is None:  # Dask would wait for ever
        cluster.close()
        raise ValueError(f"there is no {submit.split()[0]} on this machine, which submits jobs")
    cluster.scale(workers or 1)
    client = Client(cluster, set_as_default=False)
    client.wait_for_workers(workers or 1)  # which a queue starts when it pleases
    return client


def disconnect(client: Any) -> None:
    """Ends the connection, and the cluster if `connected` started it."""
    cluster = client.cluster
    client.close()
    if cluster is not None:
        cluster.close()


def is_running(client: Any) -> bool:
    """Whether the scheduler still answers."""
    return bool(client.status == "running")


def addresses(client: Any) -> set[str]:
    """The workers that are there now; none if the scheduler no longer answers."""
    with suppress(OSError):  # the connection is being closed
        return set(client.scheduler_info(n_workers=-1)["workers"]) if is_running(client) else set()
    return set()
