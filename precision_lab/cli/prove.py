"""`prove technique=[a,b]`: whether techniques preserve the function of the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from omegaconf import DictConfig
from rich.console import Console

from precision_lab.cli import schema
from precision_lab.cli.config import build_spec
from precision_lab.cli.literal import settled
from precision_lab.cli.progress import showing
from precision_lab.cli.terminal import open_console, print_table
from precision_lab.device.environment import set_numeric_switches
from precision_lab.errors import InputError
from precision_lab.techniques.base import Technique


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Compares every technique with the plain model in fp32, then those of a single variant together.

    Exit code 1 if a technique that claims to preserve the function does not.
    """
    set_numeric_switches()
    config = settled(config)
    settings = schema.read(schema.Prove, config)
    count, seed = settings.draws, settings.draw_seed
    if not settings.noise:
        raise InputError("noise is [], expected patterns of linears, noise=[PATTERN]")
    spec = build_spec(config, command, schema.Prove)
    techniques: dict[str, Technique] = {}
    for variant in spec.variants:
        for name, technique in variant.techniques.items():
            if techniques.setdefault(name, technique) != technique:
                raise InputError(
                    f"Technique {name} has different settings in two variants. only=[{variant.name}] proves one of them"
                )
    if not techniques:
        raise InputError("prove needs techniques: technique=[NAME], or +exp=NAME for those of an experiment")
    if not spec.has_plain_reference:
        raise InputError("prove compares with the plain model in fp32, expected no other reference")
    from precision_lab.lab import pinned
    from precision_lab.lab.equivalence import EVALUATIONS, Proof, check, draws_of, prove
    from precision_lab.lab.outline import Estimating, counted, weights
    from precision_lab.techniques.reordered_sums import ReorderedSums

    for case in spec.cases:  # a proof draws its own cases, but a setting that fits none is a mistake here too
        spec.source.steps(case)
    pinned.check_settings(spec)
    inputs = draws_of(spec.source, spec.cases, count, seed)
    noise: dict[str, Technique] = {"reordered_sums": ReorderedSums(sites=settings.noise)}
    groups = {name: {name: technique} for name, technique in techniques.items()}
    if len(techniques) > 1 and len(spec.variants) == 1:
        groups["together"] = techniques
    for group in (noise, *groups.values()):
        check(spec.source, group)
    rows, broken = [], 0
    proofs: dict[str, Proof] = {}
    console = open_console()
    with showing(console) as shown:
        progress = Estimating(shown, unit="evaluation", whole="this proof")
        evaluations = EVALUATIONS * len(inputs) * len(groups)
        progress.note(
            f"prove: {', '.join(groups)}: {counted(len(inputs), 'draw')} of one step each, plain, rewritten and with "
            f"other rounding, in float32: {counted(evaluations, 'evaluation')}. Nothing is written"
        )
        progress.note(weights(spec.source.checkpoint))
        progress.start(evaluations)
        for name, group in groups.items():
            proofs[name] = prove(spec.source, group, inputs, noise, partial(progress.advance, 1, name))
    for name, group in groups.items():
        proof = proofs[name]
        claims = all(technique.preserves_function for technique in group.values())
        broken += claims and not proof.holds
        found = "identical" if proof.identical else "holds" if proof.holds else "another function"
        worst = max(proof.changes, key=lambda output: proof.changes[output] / (proof.floors[output] or 1))
        rows.append((name, claims, found, worst, proof.changes[worst], proof.floors[worst]))
    _print(rows, f"{spec.source.checkpoint.name}, {counted(count, 'draw')}, fp32", console)
    for name, claims, found, *_ in rows:
        if claims and found == "another function":
            console.print(f"exit code 1: {name} claims the same function and is another", soft_wrap=True)
    return int(broken > 0)


def _print(rows: Sequence[tuple[str, bool, str, str, float, float]], title: str, console: Console) -> None:
    columns = ("technique", "claims the same function", "found", "worst output", "rel. L2 change", "noise floor")
    cells = [
        (name, "yes" if claims else "no", found, worst, f"{change:.3g}", f"{floor:.3g}")
        for name, claims, found, worst, change, floor in rows
    ]
    print_table(console, columns, cells, title, folding=("worst output",))
