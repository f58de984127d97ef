"""`compare dump=FILE`: named arrays of another program against the same pass, and the first operation that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from precision_lab.cli import schema
from precision_lab.cli.config import build_spec
from precision_lab.cli.dump_inputs import UNUSED, USED, pass_of
from precision_lab.cli.literal import settled
from precision_lab.cli.terminal import open_console, print_table
from precision_lab.cli.unused import check_used
from precision_lab.device.environment import set_numeric_switches
from precision_lab.errors import InputError, inline
from precision_lab.lab.foreign import Comparison, Judged, compare
from precision_lab.lab.one_pass import read_inputs
from precision_lab.record.dump import Dump

_AROUND = 5
_LISTED = 3


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Prints the verdict on a dump, with the operations around the first that is wrong.

    Exit code 1 if an operation deviates by more than rounding explains.
    """
    set_numeric_switches()
    check_used(command, ("dump", "inputs", *USED), (*UNUSED, "runs"), " with dump=")
    settings = schema.read(schema.CompareDump, settled(config))
    if not settings.dump:
        raise InputError("dump is empty, expected a safetensors file")
    dump = Dump.open(Path(settings.dump).expanduser())
    spec = build_spec(config, command, schema.CompareDump)
    if settings.inputs is None:
        one = pass_of(spec, settings)
    else:
        check_used(
            command,
            ("dump", "inputs", "model"),
            ("prompts", "seeds", "sampler", "image", "case", "step"),
            " with inputs=",
        )
        one = read_inputs(spec.source, Path(settings.inputs).expanduser())
    found = compare(one, dump)
    console = open_console()
    _print(found, dump, console)
    return int(found.first_wrong is not None)


def _print(found: Comparison, dump: Dump, console: Console) -> None:
    console.print(
        f"{len(found.rows)} of {len(dump.names)} arrays compared, in {found.format}; the dump holds the output of "
        f"{found.covered} of {found.operations} operations",
        soft_wrap=True,
    )
    if found.unknown:
        listed = [f"{inline(name)} ({hint})" for name, hint in list(found.unknown.items())[:_LISTED]]
        more = f", and {len(found.unknown) - _LISTED} more" if len(found.unknown) > _LISTED else ""
        console.print(f"not in this pass: {', '.join(listed)}{more}", soft_wrap=True)
    first = found.first_wrong
    rows = list(found.rows)
    if first is None:
        shown = sorted(range(len(rows)), key=lambda at: -rows[at].share)[: 2 * _AROUND]
        title = "The arrays nearest to what rounding explains"
    else:
        shown = list(range(max(0, first - _AROUND), min(len(rows), first + _AROUND + 1)))
        title = "The arrays before and after the first that is wrong, in order of execution"
    columns = ("array", "format", "rel. L2 error", "rounding", "share of the limit", "judged with", "verdict")
    print_table(console, columns, [_cells(rows[at]) for at in sorted(shown)], title, folding=("array", "judged with"))
    wrong = sum(row.wrong for row in rows)
    if first is None:
        how = "right in fp32" if found.format == "float32" else f"right within {_short(found.format)} rounding"
        console.print(how)
        return
    row = rows[first]
    where = "in the largest 1 % of its errors " if row.tail else ""
    console.print(
        f"wrong from {named(row)} on: {row.address} deviates by {row.error:.3g}, {where}by {row.share:.3g} times "
        f"the limit that the rounding of {row.format} sets; {wrong} of {len(rows)} arrays are wrong",
        soft_wrap=True,
    )


def named(row: Judged) -> str:
    """The operation that an array judges, or those among which the wrong one is."""
    if not row.operations:
        return f"the arrangement of {row.address}"
    if row.local:
        return row.operations[0]
    return f"one of {', '.join(row.operations)}"


def _cells(row: Judged) -> tuple[str, ...]:
    if row.local:
        judged = row.operations[0] if row.operations else "an array of the dump"
    else:
        judged = f"accumulated over {len(row.operations)} operations: {', '.join(row.operations)}"
    numbers = (f"{row.error:.3g}", f"{row.explained:.3g}", f"{row.share:.3g}")
    return (row.address, row.format, *numbers, judged, "WRONG" if row.wrong else "right")


def _short(fmt: str) -> str:
    return {"bfloat16": "bf16", "float16": "fp16"}[fmt]
