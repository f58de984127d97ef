"""The table of a sweep (`--multirun`): what differs between its jobs, and the headline numbers of every variant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

TABLE = "sweep.csv"
_OUT = "out"
_PLACES = (_OUT, "hydra.sweep.dir")


def jobs_of(results: object) -> list[JobReturn]:
    """The jobs in a sweeper's result, which may be nested arbitrarily."""
    if isinstance(results, JobReturn):
        return [results]
    return [job for item in results for job in jobs_of(item)] if isinstance(results, list | tuple) else []


def collect_sweep(jobs: Sequence[JobReturn], sweep: Path) -> None:
    """Prints the table of the jobs that left a run, and writes it to `TABLE` in the folder of the sweep."""
    from precision_lab.record import manifest

    folders = {folder: job for job in jobs if (folder := _folder(job)) and (folder / manifest.FILE).is_file()}
    if len(folders) < 2:
        return
    from precision_lab.cli.compare import labels, print_collected
    from precision_lab.cli.terminal import open_console
    from precision_lab.record.files import write_text
    from precision_lab.record.run import Run

    console = open_console()
    names = labels(list(folders))
    swept = dict(zip(names, _swept(list(folders.values())), strict=True))
    runs = {name: Run.open(folder) for name, folder in zip(names, folders, strict=True)}
    table = print_collected(runs, swept, f"Sweep of {len(jobs)} jobs", console)
    path = sweep / TABLE
    write_text(path, table.to_csv(index=False))
    console.print(f"table: {path}", soft_wrap=True)


def _folder(job: JobReturn) -> Path | None:
    """The folder that a job was to write into; None for a command without one."""
    if job.cfg is None or job.hydra_cfg is None or _OUT not in job.cfg:
        return None
    HydraConfig.instance().set_config(job.hydra_cfg)  # `out` may refer to the number of its job
    out = OmegaConf.select(job.cfg, _OUT)
    hydra = job.hydra_cfg.hydra
    return Path(str(out)).expanduser() if out else Path(str(hydra.sweep.dir)) / str(hydra.job.num)


def _swept(jobs: Iterable[JobReturn]) -> list[dict[str, str]]:
    """The overrides of each job that are not the same in all jobs, by name."""
    every = [_by_name(job.overrides or ()) for job in jobs]
    names = dict.fromkeys(name for overrides in every for name in overrides if name not in _PLACES)
    differing = [name for name in names if len({overrides.get(name) for overrides in every}) > 1]
    return [{name: overrides.get(name, "") for name in differing} for overrides in every]


def _by_name(overrides: Iterable[str]) -> dict[str, str]:
    pairs = (str(override).partition("=") for override in overrides)
    return {name.lstrip("+~"): value for name, _, value in pairs}
