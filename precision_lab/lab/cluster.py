"""A Dask cluster: the connection to its scheduler, its workers, and functions carried out by one of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

PATIENCE = 10.0
"""Seconds to wait for the scheduler, and for another worker in the place of one that was lost."""

_LOOKS = 3
"""How many times in a row, a second apart, a scheduler under load must not list a worker that has left."""


class LeftError(Exception):
    """A worker left before its answer."""


def connected(cluster: Any) -> Any:
    """A client of the scheduler at an address, or of a Dask cluster. Raises OSError and ValueError as Dask does."""
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what is lost, the run says in one line
    return Client(cluster, timeout=PATIENCE, set_as_default=False)


def disconnect(client: Any) -> None:
    """Ends the connection, and the cluster unless it has an address."""
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


class Seat:
    """One worker, by its address."""

    def __init__(self, client: Any, address: str):
        self._client, self._address = client, address
        self._executor = client.get_executor(workers=[address], allow_other_workers=False, pure=False, retries=0)

    def answer(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the worker returns. Raises what the function raises there, and LeftError."""
        from concurrent.futures import CancelledError, wait

        from distributed import KilledWorker
        from distributed.comm import CommClosedError

        missing = 0
        try:
            future = self._executor.submit(function, *arguments)
            while not wait([future], 1.0).done:
                missing = 0 if self._address in addresses(self._client) else missing + 1
                if missing == _LOOKS:
                    future.cancel()
                    raise LeftError  # Dask may leave the future of a lost result without an end
            return future.result()
        except (CancelledError, KilledWorker, CommClosedError) as error:
            raise LeftError from error
        except Exception as error:
            raise error if is_running(self._client) else LeftError() from error

    def leave(self) -> None:
        """Gives up what the worker has not answered."""
        self._executor.shutdown(wait=False)
