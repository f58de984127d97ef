"""Clusters that a run starts for itself: batch systems, and any class of Dask's."""

from __future__ import annotations

import importlib
import shutil
from typing import Any

QUEUES = {
    "slurm": "dask_jobqueue.SLURMCluster",
    "pbs": "dask_jobqueue.PBSCluster",
    "sge": "dask_jobqueue.SGECluster",
    "lsf": "dask_jobqueue.LSFCluster",
}
"""Batch systems by the class that starts workers there, with the settings of Dask's own configuration."""


def started(name: str, workers: int) -> Any:
    """A cluster of the named class (`package.Class`) that starts so many workers, when its queue pleases.

    Raises ImportError, AttributeError and ValueError where there is no such class or batch system.
    """
    module, _, kind = name.rpartition(".")
    cluster = getattr(importlib.import_module(module), kind)()
    submit = getattr(getattr(cluster, "job_cls", None), "submit_command", "")
    if submit and shutil.which(submit.split()[0]) is None:  # Dask would wait for ever
        cluster.close()
        raise ValueError(f"there is no {submit.split()[0]} on this machine, which submits jobs")
    cluster.scale(workers)
    return cluster
