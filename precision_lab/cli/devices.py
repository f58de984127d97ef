"""`compare devices=[A,B]`: records of the command `device` beside each other, what differs first."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from omegaconf import DictConfig
from rich.console import Console

from precision_lab.analysis.devices import DIFFERS, GROUPS, OTHER, PARTLY, Devices, compare
from precision_lab.cli import schema
from precision_lab.cli.compare import checked_folder, labels
from precision_lab.cli.folders import claimed, stamped
from precision_lab.cli.terminal import open_console, print_table
from precision_lab.errors import InputError, shown
from precision_lab.record.device import FILE, DeviceRecord
from precision_lab.record.folders import user_path

_LISTED = 6


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Prints what differs between devices, and writes the page and summary.json."""
    settings = schema.read(schema.CompareDevices, config)
    if len(settings.devices) < 2 or not all(settings.devices):
        raise InputError(
            f"compare needs devices=[A,B], two or more {FILE} files or their folders; got {shown(settings.devices)}"
        )
    out = checked_folder(settings.out)
    paths = [user_path(entry) for entry in settings.devices]
    records = [DeviceRecord.read(path) for path in paths]
    named = labels([path.parent if path.name == FILE and len(path.parts) > 1 else path for path in paths])
    found = compare(dict(zip(named, records, strict=True)))
    console = open_console()
    _print(found, console)
    from precision_lab.report import compared_devices

    for line in compared_devices.answers(found):
        console.print(line, soft_wrap=True)
    with claimed(stamped("compare")) if out is None else nullcontext(out) as folder:
        console.print(f"report: {compared_devices.write(found, folder)}", soft_wrap=True)
    return 0


def _print(found: Devices, console: Console) -> None:
    """What differs, one table for each group of behaviours, then faults."""
    columns = ("what", *found.records)
    facts = [(name, *texts) for name, differs, texts in found.facts if differs]
    if facts:
        print_table(console, columns, facts, "Machine and software", folding=columns)
    groups = {group: found.of_group(group) for group in GROUPS} | {"Public faults of MLX": found.faults}
    for title, entries in groups.items():
        differing = [entry for entry in entries if entry.verdict in (DIFFERS, OTHER)]
        if differing:
            partly = sum(entry.verdict == PARTLY for entry in entries)
            rest = f", {partly} not measured by all" if partly else ""
            more = f", the first {_LISTED} are listed" if len(differing) > _LISTED else ""
            rows = [(entry.what, *(answer or "-" for answer in entry.answers)) for entry in differing[:_LISTED]]
            title = f"{title}: {len(differing)} of {len(entries)} differ{rest}{more}"
            print_table(console, columns, rows, title, folding=columns)
