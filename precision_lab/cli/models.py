"""The command `models`: lists models, inspects weights, and writes synthetic checkpoints and quantised copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omegaconf import DictConfig
from rich.console import Console

from precision_lab.cli import inspecting, listing
from precision_lab.cli.building import build
from precision_lab.cli.config import build_source
from precision_lab.cli.literal import literal
from precision_lab.cli.progress import showing
from precision_lab.cli.terminal import open_console
from precision_lab.cli.unused import OF_CASES, check_used
from precision_lab.errors import InputError, nearest
from precision_lab.record.folders import user_path

USED = ("model", "inspect", "make", "from", "technique", "dtype", "to", "seed")


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Lists the models, inspects weights, or writes to the folder `to`.

    What is written is the preset `make`, or `from` in `dtype`, with `technique` applied.
    """
    from precision_lab.cli import schema

    config = literal(config)
    schema.read(schema.Models, config)
    check_used(command, USED, (*OF_CASES, "sites"))
    if not config["from"]:
        check_used(command, [name for name in USED if name != "model"], ["model"], " without from=")
    console = open_console()
    if config.inspect is not None:
        check_used(command, ["inspect"], [name for name in USED if name != "inspect"], " with inspect=")
        inspecting.show(config.inspect, console)
        return 0
    if config.make is not None and (config.technique or config["from"] or config.dtype):
        raise InputError("make= and technique= or from= are two tasks, expected one: make the checkpoint first")
    if config.make is not None:
        _make(config.make, config.to, int(config.seed), console)
    elif config.technique or config["from"] or config.dtype:
        _convert(config, next((f"{each} " for each in command[1:] if each.startswith("model=")), ""), console)
    else:
        check_used(command, USED, ["to", "seed"], " without make= and from=")
        listing.show(console)
    return 0


def _make(preset: str, to: str | None, seed: int, console: Console) -> None:
    from precision_lab.synthetic import PRESETS, make

    if preset not in PRESETS:
        raise InputError(f"make={preset}: unknown preset. {nearest(preset, PRESETS)}")
    if not to:
        raise InputError(f"make={preset} needs to=DIR, the folder to write")
    reader = f"model={preset}_synthetic "
    _write(lambda on_bytes: make(PRESETS[preset], user_path(to), seed, on_bytes), reader, to, console)


def _convert(config: DictConfig, reader: str, console: Console) -> None:
    import mlx.core as mx

    from precision_lab.lab.quantized_checkpoint import Quantizable, write
    from precision_lab.techniques.base import Technique
    from precision_lab.techniques.quantized_weights import QuantizedWeights

    source, to = config["from"], config.to
    for name in ("technique", "from", "to"):
        if not config[name] and (name != "technique" or config.dtype is None):
            raise InputError(
                f"{name}= is missing: a checkpoint takes technique=[NAME] or dtype=bfloat16, from=PATH_OR_HUB_ID to=DIR"
            )
    techniques = {str(name): build(node, Technique, f"technique.{name}") for name, node in config.technique.items()}
    for name, technique in techniques.items():
        if not isinstance(technique, QuantizedWeights):
            raise InputError(
                f"technique {name} is {type(technique).__name__}, expected QuantizedWeights: a checkpoint stores "
                "quantised weights, nothing else that a technique does"
            )
    original = build_source(DictConfig({**config.model, "name": str(source), "path": str(source)}))
    if not isinstance(original, Quantizable):
        raise InputError(f"model={config.model.name}: its checkpoints cannot be written quantised")
    dtype = None if config.dtype is None else getattr(mx, config.dtype)
    out = user_path(str(to))
    _write(lambda on_bytes: write(original, techniques, out, on_bytes, dtype=dtype), reader, to, console)


def _write(write: Callable[[Callable[[int, int], None]], None], reader: str, to: str, console: Console) -> None:
    """Runs `write`, which reports the bytes written and the total, with a progress bar.

    reader: the override that selects the kind of model, or empty for the default.
    """
    with showing(console) as progress:
        before = 0

        def on_bytes(done: int, total: int) -> None:
            nonlocal before
            if not before:
                progress.start(total)
            progress.advance(done - before, "writing")
            before = done

        write(on_bytes)
        progress.note(f"wrote {to}: {reader}model.path={to} uses it")
