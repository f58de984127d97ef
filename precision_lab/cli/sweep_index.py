"""What a sweep leaves beside its runs: a table of all jobs, and a page with a Pareto plot and links to the reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from yaml import YAMLError

from precision_lab.errors import InputError, first_line
from precision_lab.record import manifest
from precision_lab.record.folders import user_path

TABLE = "sweep.csv"
_OUT = "out"
_BASIC = f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}"


def collect_sweep(jobs: Sequence[JobReturn], sweep: Path) -> None:
    """Prints the table of the jobs that left a run, and writes it and the page into the folder of the sweep.

    jobs: those that ended, none if the sweep itself was stopped; runs in its folder are found without them.
    """
    from precision_lab.cli.terminal import open_console

    folders = [folder for job in jobs if (folder := _folder(job)) and (folder / manifest.FILE).is_file()]
    elsewhere = [folder for folder in folders if folder.parent.resolve() != sweep.resolve()]
    if folders or any(sweep.glob(f"*/{manifest.FILE}")):
        from precision_lab.cli.compare import labels

        draw_index(sweep, open_console(), planned(sweep), dict(zip(labels(elsewhere), elsewhere, strict=True)))


def draw_index(
    sweep: Path,
    console: Console,
    planned: Mapping[str, Sequence[str]],
    elsewhere: Mapping[str, Path] | None = None,
    whole: bool = False,
    form: str = "html",
) -> None:
    """Writes `TABLE` and the page of a sweep, and prints the table and the paths.

    elsewhere: run folders outside that of the sweep, by name. whole: whether to look at all files of every run first.
    form: html, or md, which is printed and written alone.
    Raises InputError if there is no run, or a file cannot be read; nothing is written then.
    """
    from precision_lab.cli.compare_tables import print_collected
    from precision_lab.record import sweep as record
    from precision_lab.record.collection import of_job
    from precision_lab.record.files import write_text

    jobs = record.read(sweep, {} if elsewhere else planned, elsewhere)
    runs = {job.name: job.run for job in jobs if job.run is not None}
    for run in runs.values() if whole else ():
        run.whole()
    swept = dict(zip((job.name for job in jobs), record.differing([job.overrides for job in jobs]), strict=True))
    members = [of_job(job, swept[job.name]) for job in jobs]
    if form == "md":
        from precision_lab.cli.report_formats import leave_markdown
        from precision_lab.report import markdown
        from precision_lab.report.entries import collect

        text = markdown.of_index(collect(members, sweep), f"Sweep {sweep.resolve().name}: {len(jobs)} jobs")
        leave_markdown(text, sweep / markdown.INDEX)
        return
    from precision_lab.report.index import write

    if len(runs) > 1:
        table = print_collected(runs, swept, f"Sweep of {len(jobs)} jobs", console)
        write_text(sweep / TABLE, table.to_csv(index=False))
        console.print(f"table: {sweep / TABLE}", soft_wrap=True)
    page, _ = write(members, sweep)
    for job in jobs:
        if job.trouble:
            console.print(f"job {job.name}: {job.trouble}", soft_wrap=True)
    console.print(f"report: {page}", soft_wrap=True)


def planned(sweep: Path) -> dict[str, list[str]]:
    """By number, the overrides of every job that a sweep was to run, from its multirun.yaml.

    Empty if there is no such file, or if its sweeper chooses the jobs while it runs. Raises InputError if it cannot be
    read.
    """
    from precision_lab.record.sweep import PLAN

    path = sweep / PLAN
    if not path.is_file():
        return {}
    try:
        hydra: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        sweeper, task = hydra["hydra"]["sweeper"], hydra["hydra"]["overrides"]["task"]
        if sweeper["_target_"] != _BASIC:
            return {}
        given = [*(f"{name}={value}" for name, value in (sweeper.get("params") or {}).items()), *task]
        (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(given), None)
    except HydraException:  # a sweep over what the configuration holds, such as glob(*)
        return {}
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not the configuration of a sweep: {first_line(error)}") from error
    return {str(number): job for number, job in enumerate(jobs)}


def _folder(job: JobReturn) -> Path | None:
    """The folder that a job was to write into; None for a command without one."""
    if job.cfg is None or job.hydra_cfg is None or _OUT not in job.cfg:
        return None
    HydraConfig.instance().set_config(job.hydra_cfg)  # `out` may refer to the number of its job
    out = OmegaConf.select(job.cfg, _OUT)
    hydra = job.hydra_cfg.hydra
    return user_path(str(out)) if out else Path(str(hydra.sweep.dir)) / str(hydra.job.num)
