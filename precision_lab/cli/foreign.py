"""`compare dump=FILE`: named arrays of another program against the same pass, and the first operation that is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from precision_lab.cli import schema
from precision_lab.cli.compare import checked_folder
from precision_lab.cli.config import build_spec
from precision_lab.cli.dump_inputs import UNUSED, USED, pass_of
from precision_lab.cli.literal import settled
from precision_lab.cli.terminal import open_console, print_table
from precision_lab.cli.unused import check_used
from precision_lab.device.environment import set_numeric_switches
from precision_lab.errors import InputError
from precision_lab.lab.foreign import compare
from precision_lab.lab.one_pass import read_inputs
from precision_lab.record.dump import Dump
from precision_lab.record.folders import user_path


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Prints the verdict on a dump, with the operations around the first that is wrong, and writes the page.

    Exit code 1 if an operation deviates by more than rounding explains.
    """
    set_numeric_switches()
    unused = (*(name for name in UNUSED if name != "out"), "runs", "devices")
    check_used(command, ("dump", "inputs", "out", *USED), unused, " with dump=")
    settings = schema.read(schema.CompareDump, settled(config))
    folder = checked_folder(settings.out)
    if not settings.dump:
        raise InputError("dump is empty, expected a safetensors file")
    dump = Dump.open(user_path(settings.dump))
    spec = build_spec(config, command, schema.CompareDump)
    if settings.inputs is None:
        one = pass_of(spec, settings)
    else:
        check_used(
            command,
            ("dump", "inputs", "model", "out"),
            ("prompts", "seeds", "sampler", "image", "case", "step"),
            " with inputs=",
        )
        one = read_inputs(spec.source, user_path(settings.inputs))
    found = compare(one, dump)
    from precision_lab.report import compared_dump

    console = open_console()
    verdict, *rest = compared_dump.answers(found)
    for line in rest:
        console.print(line, soft_wrap=True)
    title, rows = compared_dump.nearest_rows(found)
    cells = [compared_dump.cells(row) for row in rows]
    print_table(console, compared_dump.COLUMNS, cells, title, folding=("array", "judged with"))
    console.print(verdict, soft_wrap=True)
    about = {"file": dump.file.name, "model": one.source.checkpoint.name, "weights": one.source.checkpoint.weights}
    about |= {"prompt": one.case.prompt, "seed": str(one.case.seed), "step": str(one.step)}
    assert folder is not None  # a folder is claimed for every command that composes variants
    console.print(f"report: {compared_dump.write(found, about, folder)}", soft_wrap=True)
    return int(found.first_wrong is not None)
