"""`models dump_inputs=FILE`: writes what another program needs to compute the same pass."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from precision_lab.cli import schema
from precision_lab.cli.config import build_spec
from precision_lab.cli.literal import settled
from precision_lab.cli.terminal import open_console, print_table
from precision_lab.cli.unused import check_used
from precision_lab.device.environment import set_numeric_switches
from precision_lab.errors import InputError, nearest, shown
from precision_lab.lab.one_pass import Pass
from precision_lab.lab.pinned import check_settings
from precision_lab.lab.spec import RunSpec
from precision_lab.lab.subject import Case
from precision_lab.record.folders import user_path

USED = ("model", "dump_inputs", "prompts", "seeds", "sampler", "image", "case", "step")
UNUSED = (
    *("inspect", "make", "from", "to", "seed", "technique", "probe", "variants", "baseline", "only", "reference"),
    *(
        "factorial",
        "learning",
        "drift",
        "latency",
        "claims",
        "workers",
        "engine",
        "out",
        "resume",
        "dtype",
        "experiment",
    ),
)
"""Settings of `models` and of a run that have no effect on one pass in fp32."""


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Writes the inputs of one pass, and prints what the file holds."""
    from precision_lab.lab.one_pass import write_inputs

    set_numeric_switches()
    check_used(command, USED, UNUSED, " with dump_inputs=")
    settings = schema.read(schema.DumpInputs, settled(config))
    one = pass_of(build_spec(config, command, schema.DumpInputs), settings)
    file = user_path(settings.dump_inputs)
    if not settings.dump_inputs:
        raise InputError("dump_inputs is empty, expected a file to write")
    if file.is_dir():
        raise InputError(f"dump_inputs={settings.dump_inputs} is a folder, expected a file to write")
    write_inputs(one, file)
    console = open_console()
    rows = [(name, " x ".join(map(str, array.shape))) for name, array in one.inputs().items()]
    print_table(console, ("input", "shape"), rows, f"{one.source.checkpoint.name}: {shown(one.case.prompt)}")
    model = "".join(f"{each} " for each in command[1:] if each.partition("=")[0].partition(".")[0] == "model")
    console.print(f"wrote {file}. Then: python -m precision_lab compare {model}dump=DUMP inputs={file}", soft_wrap=True)
    return 0


def pass_of(spec: RunSpec, settings: schema.OnePass) -> Pass:
    """The pass that the settings name: of the first prompt and seed, or of a pinned case."""
    check_settings(spec)  # of all pinned cases, as a run does
    if settings.case is None:
        return Pass(spec.source, spec.cases[0], settings.step)
    cases = spec.pinned.cases
    if settings.case not in cases:
        raise InputError(f"case: no pinned case {shown(settings.case)}. {nearest(settings.case, cases)}")
    case = cases[settings.case]
    if case.faint:
        raise InputError(f"case={settings.case} alters the inputs of norms, expected one that any program can compute")
    own = {**spec.settings, "steps": spec.pinned.steps, **case.settings}
    return Pass(spec.source, Case(0, case.prompt, case.seed, own), settings.step)
