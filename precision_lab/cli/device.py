"""`device`: how MLX computes on this machine, operation by operation and dtype by dtype, and the verdict on S6."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text

from precision_lab.cli.folders import claimed, stamped
from precision_lab.cli.literal import literal
from precision_lab.cli.progress import showing
from precision_lab.cli.terminal import open_console, print_table
from precision_lab.device.environment import set_numeric_switches
from precision_lab.device.tf32 import SWITCH
from precision_lab.errors import InputError
from precision_lab.record.device import FILE as RECORD
from precision_lab.record.device import SCHEMA_VERSION
from precision_lab.record.folders import given_folder

if TYPE_CHECKING:
    from precision_lab.analysis.claims import Claim

_LISTED = 6
_DTYPES = ("float32", "bfloat16", "float16")
# properties with a table or a figure of their own
_WIDTHS = ("input_bits", "accumulator_bits", "interior_bits", "error_growth")
_COLOURS = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}
# the setting of tf32 that this process has measured with: MLX reads it once
_measured: list[bool | None] = []


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Measures, then writes device.json and device.png into `out` and prints the findings."""
    from precision_lab.cli import schema

    config = literal(config)
    settings = schema.read(schema.Device, config)
    given = None if settings.out is None else _checked(settings.out)
    claims: Any = OmegaConf.to_container(config.claims)
    stated(claims)
    with claimed(stamped("device")) if given is None else nullcontext(given) as out:
        return _measure(out, settings.tf32, claims, command)


def _measure(out: Path, enable_tf32: bool | None, claims: Mapping[str, Any], command: Sequence[str]) -> int:
    _switch(enable_tf32)
    from precision_lab.device import tf32
    from precision_lab.device.behaviour.finding import Finding
    from precision_lab.device.behaviour.known import read_behaviour
    from precision_lab.device.behaviour.suite import PARTS, check_public_faults, measure
    from precision_lab.device.behaviour.verdict import judge
    from precision_lab.device.environment import environment
    from precision_lab.record.files import write_json
    from precision_lab.report.figures import device, device_errors, style

    console = open_console()
    findings: list[Finding] = []
    parts: dict[str, float] = {}
    started = last = time.monotonic()
    with showing(console) as progress:
        progress.start(PARTS + 2)
        for label, part in measure():
            findings += part
            parts[label], last = round(time.monotonic() - last, 2), time.monotonic()
            progress.advance(1, label)
        checks = list(check_public_faults())
        parts["public faults"] = round(time.monotonic() - last, 2)
        progress.advance(1, "public faults")
        recorded = [finding.record() for finding in findings]
        last = time.monotonic()
        tf32_entry = tf32.compare(recorded)
        parts["TF32"] = round(time.monotonic() - last, 2)
        progress.advance(1, "TF32")
    ops = judge(findings)
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "environment": environment(),
        "command": ["python", "-m", "precision_lab", *command],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "parts": parts,
        "claims": judge_claims(claims, ops),
        "s6": {"ops": ops},
        "findings": recorded,
        "checks": checks,
        "tf32": tf32_entry,
    }
    record["reading"] = read_behaviour(record["environment"]["backend"], record["findings"])
    write_json(out / RECORD, record)
    with style.theme():
        for drawing in (device.draw(record), device_errors.draw(record)):
            if drawing is not None:
                style.save(drawing, out)
    _print(record, console)
    console.print(record["tf32"]["text"], soft_wrap=True)
    for entry in record["tf32"]["changed"][:_LISTED]:
        console.print(
            f"  {entry['op']}, {entry['property']}: {entry['on']} with TF32, {entry['off']} without", soft_wrap=True
        )
    console.print(f"This device behaves {record['reading']['text']}", soft_wrap=True)
    console.print(f"record: {out / RECORD}", soft_wrap=True)
    return 0


def stated(claims: Mapping[str, Any]) -> list[Claim]:
    """The claims by their names. Raises InputError for one that is malformed."""
    from precision_lab.analysis.claims import Claim

    return [Claim.from_dict({"id": name, **claim}) for name, claim in claims.items()]


def judge_claims(claims: Mapping[str, Any], ops: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Claims about the precision that MLX computes in, judged by its operations, as summary.json has them."""
    from precision_lab.analysis.claims import judge_operations
    from precision_lab.analysis.summary import claim_entry
    from precision_lab.record.summary import to_json

    verdicts = [op["verdict"] for op in ops]
    return [to_json(claim_entry(claim, judge_operations(claim, verdicts))) for claim in stated(claims)]


def _checked(folder: str) -> Path:
    """The folder to write. Raises InputError if it is no path or holds another record."""
    out = given_folder(folder)
    if (out / RECORD).exists():
        raise InputError(f"out={out} already holds {RECORD}. Give another folder")
    return out


def _switch(tf32: bool | None) -> None:
    """Sets TF32 before MLX's first operation; None leaves it as the environment has it."""
    if _measured and _measured[0] != tf32:
        raise InputError("MLX reads TF32 once a process: measure with each setting in a process of its own, not by -m")
    _measured[:] = [tf32]
    found = os.environ.pop(SWITCH, None)
    set_numeric_switches()  # for its capacities: on CUDA this is many small graphs too
    del os.environ[SWITCH]
    wanted = found if tf32 is None else str(int(tf32))
    if wanted is not None:
        os.environ[SWITCH] = wanted


def _print(record: dict[str, Any], console: Console) -> None:
    environment, s6 = record["environment"], record["s6"]
    _print_widths(s6, f"{environment['device']} ({environment['backend']}), MLX {environment['mlx']}", console)
    _print_answers(record["findings"], console)
    _print_checks(record["checks"], console)
    counts = {name: sum(op["verdict"] == name for op in s6["ops"]) for name in _COLOURS}
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    for claim in record["claims"]:
        line = f'{claim["id"]} "{claim["text"]}": {claim["verdict"]} ({listed})'
        console.print(line, soft_wrap=True)


def _print_widths(s6: dict[str, Any], title: str, console: Console) -> None:
    rows = []
    for op in s6["ops"]:
        bits = (f"{op['bits'][name]:.3g}" if name in op["bits"] else "-" for name in _DTYPES)
        rows.append((op["op"], *bits, Text(op["verdict"], style=_COLOURS[op["verdict"]]), op["evidence"]))
    columns = ("operation", *_DTYPES, "S6", "the narrowest")
    print_table(console, columns, rows, f"Effective bits, {title}", folding=("the narrowest",))


def _print_answers(findings: Sequence[dict[str, Any]], console: Console) -> None:
    """One row an operation and property; sizes that agree are one row."""
    answers: dict[tuple[str, str], dict[str, list[str]]] = {}
    for finding in findings:
        if finding["property"] not in _WIDTHS:
            cell = answers.setdefault((finding["op"], finding["property"]), {}).setdefault(finding["dtype"], [])
            if finding["answer"] not in cell:
                cell.append(finding["answer"])
    rows = [
        (op, about.replace("_", " "), *(" | ".join(row.get(name, ["-"])) for name in _DTYPES))
        for (op, about), row in answers.items()
    ]
    print_table(console, ("operation", "property", *_DTYPES), rows, "Behaviour", folding=_DTYPES, keys=2)


def _print_checks(checks: Sequence[dict[str, Any]], console: Console) -> None:
    """One row for each public fault, with its first report."""
    colours = {"absent": "green", "present": "red"}
    rows = [
        (
            check["name"],
            Text(check["verdict"], style=colours.get(check["verdict"], "yellow")),
            check["title"],
            check["measured"],
            check["links"][0],
        )
        for check in checks
    ]
    print_table(
        console,
        ("check", "fault", "reported", "measured", "link"),
        rows,
        "Public faults of MLX",
        ("reported", "measured"),
    )
