"""Seeded damage to the files of a run folder: what disks, copies, other versions and editors do to them."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin


@dataclass(frozen=True)
class Damage:
    """What was done to which file; culprits: what a message may name instead of the file."""

    file: Path
    what: str
    culprits: Sequence[str]


ODD_VALUES: Sequence[Any] = (
    *(None, True, False, 0, -1, 7, 0.5, -0.0, 1e308, 2**31, 2**63, 10**40, 10**400),
    *("", "x", "1", "a\nb", "a\0b", "\ud800", "[red]x[/red]", "../../etc", "{0..3}", "**", "a" * 5000, "$\\frac{1$"),
    *([], {}, [[]], [None], {"a": None}, {"": 1}, ["x"], {"schema_version": 2}),
)
ODD_TEXT = ("NaN", "Infinity", "1e999", "-1e999", "[" * 3000 + "]" * 3000, "{", "tru", "'x'")


def damage(folder: Path, rng: random.Random) -> Damage:
    """Damages one file of `folder`, chosen at random by kind."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in OF_A_KIND | {".f32": ()})
    kinds = sorted({path.suffix for path in files})
    kind = rng.choice([*kinds, ".parquet", ".json"])
    file = rng.choice([path for path in files if path.suffix == kind])
    special = OF_A_KIND.get(file.suffix, ())
    action = rng.choice(special if special and rng.random() < 0.65 else ANY)
    culprits = action(file, rng)
    return Damage(file, f"{file.relative_to(folder)}: {action.__name__}", [file.name, *(culprits or ())])


Action = Callable[[Path, random.Random], "Sequence[str] | None"]


def truncated(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(max(file.stat().st_size, 1))])


def missing(file: Path, rng: random.Random) -> None:
    file.unlink()


def empty(file: Path, rng: random.Random) -> None:
    file.write_bytes(b"")


def a_folder(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


def a_loop(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.symlink_to(file.name)


def a_pipe(file: Path, rng: random.Random) -> None:
    file.unlink()
    os.mkfifo(file)


def flipped(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(rng.randrange(1, 9)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def random_bytes(file: Path, rng: random.Random) -> None:
    file.write_bytes(rng.randbytes(rng.randrange(1, 4000)))


def longer(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes() + rng.randbytes(rng.randrange(1, 200)))


def of_another_file(file: Path, rng: random.Random) -> None:
    others = [path for path in sorted(file.parent.rglob("*")) if path.is_file() and path != file]
    shutil.copyfile(rng.choice(others), file)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) below a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in list(items) for place in [(value, key), *_places(item)]]


def an_odd_value(file: Path, rng: random.Random) -> Sequence[str]:
    content = json.loads(file.read_text())
    holder, key = rng.choice(_places(content))
    holder[key] = rng.choice(ODD_VALUES)
    file.write_text(json.dumps(content))
    return [str(key)]


def odd_text(file: Path, rng: random.Random) -> Sequence[str]:
    content = json.loads(file.read_text())
    holder, key = rng.choice(_places(content))
    holder[key] = "PLACE"
    file.write_text(json.dumps(content).replace('"PLACE"', rng.choice(ODD_TEXT)))
    return [str(key)]


def a_missing_key(file: Path, rng: random.Random) -> Sequence[str]:
    content = json.loads(file.read_text())
    holder, key = rng.choice(_places(content))
    del holder[key]
    file.write_text(json.dumps(content))
    return [str(key)]


def another_schema(file: Path, rng: random.Random) -> None:
    content = json.loads(file.read_text())
    if isinstance(content, dict):
        content["schema_version"] = rng.choice([1, 3, 99, 2.0, "2", None, True, [2], 10**30])
    file.write_text(json.dumps(content))


def another_status(file: Path, rng: random.Random) -> Sequence[str]:
    content = json.loads(file.read_text())
    if isinstance(content, dict) and "status" in content:
        content["status"] = rng.choice(["running", "complete", "failed", "interrupted", "done", ""])
    file.write_text(json.dumps(content))
    return [
        "complete",
        "interrupted",
        "running",
        "failed",
    ]  # a run that is not, or is already, is refused by its folder


def a_column_less(file: Path, rng: random.Random) -> None:
    frame = pd.read_parquet(file)
    frame.drop(columns=rng.choice(list(frame.columns))).to_parquet(file)


def a_column_of_another_dtype(file: Path, rng: random.Random) -> None:
    frame = pd.read_parquet(file)
    name = rng.choice(list(frame.columns))
    values = rng.choice(
        [
            ["x"] * len(frame),
            [0.5] * len(frame),
            [b"\xff\xfe"] * len(frame),
            [[1, 2]] * len(frame),
            [True] * len(frame),
            pd.Timestamp("2026-01-01"),
            [{"a": 1}] * len(frame),
            [None] * len(frame),
            [str(value) for value in frame[name]],
            [10**18] * len(frame),
        ]
    )
    frame.assign(**{name: values}).to_parquet(file)


def text_that_is_none(file: Path, rng: random.Random) -> None:
    table = pq.read_table(file)
    texts = [i for i, field in enumerate(table.schema) if pa.types.is_string(field.type) or "string" in str(field.type)]
    at = rng.choice(texts)
    broken = pa.array([b"\xff\xfe"] * len(table), pa.binary()).view(pa.utf8())
    pq.write_table(table.set_column(at, table.schema.field(at).name, broken), file)


def an_odd_number(file: Path, rng: random.Random) -> None:
    frame = pd.read_parquet(file)
    name = rng.choice([name for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name])])
    if not len(frame):
        return
    values = frame[name].astype("float64")
    values.iloc[rng.randrange(len(frame))] = rng.choice(
        [-1.0, 0.5, np.nan, np.inf, -np.inf, 1e300, -1e300, 2.0**62, 1e9]
    )
    frame.assign(**{name: values}).to_parquet(file)


def an_odd_name(file: Path, rng: random.Random) -> None:
    frame = pd.read_parquet(file)
    name = rng.choice([name for name in frame.columns if pd.api.types.is_string_dtype(frame[name])])
    if not len(frame):
        return
    values = frame[name].astype(object)
    values.iloc[rng.randrange(len(frame))] = rng.choice(
        [None, "", "x", "[b]", "a\nb", "..", "float128", "1x-3", "out.x"]
    )
    frame.assign(**{name: values}).to_parquet(file)


def rows_twice(file: Path, rng: random.Random) -> None:
    frame = pd.read_parquet(file)
    pd.concat([frame, frame]).to_parquet(file)


def rows_less(file: Path, rng: random.Random) -> None:
    frame = pd.read_parquet(file)
    frame.sample(frac=rng.choice([0, 0.3, 0.9]), random_state=rng.randrange(2**31)).to_parquet(file)


def a_column_twice(file: Path, rng: random.Random) -> None:
    table = pq.read_table(file).replace_schema_metadata()
    at = rng.randrange(table.num_columns)
    pq.write_table(table.append_column(table.schema.field(at), table.column(at)), file)


def an_index(file: Path, rng: random.Random) -> None:
    frame = pd.read_parquet(file)
    frame.set_index(rng.choice(list(frame.columns))).to_parquet(file)


def another_picture(file: Path, rng: random.Random) -> None:
    mode = rng.choice(["L", "RGBA", "P", "1", "I;16", "RGB"])
    Image.new(mode, rng.choice([(1, 1), (7, 5), (48, 33), (200, 1)])).save(file, "PNG")


def another_format(file: Path, rng: random.Random) -> None:
    with Image.open(file) as image:
        image.load()
        image.save(file, rng.choice(["JPEG", "BMP", "GIF"]))


def odd_text_in_it(file: Path, rng: random.Random) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("num_nonfinite", rng.choice(["", "x", "-1", "1e9", "٣", "9" * 5000, "1.5", "3"]))
    with Image.open(file) as image:
        image.load()
        image.save(file, "PNG", pnginfo=about)


def huge(file: Path, rng: random.Random) -> None:
    """A header that states more pixels than memory holds."""
    content = bytearray(file.read_bytes())
    content[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    file.write_bytes(content)


def another_root(file: Path, rng: random.Random) -> Sequence[str]:
    code = "!!python/object/apply:os.system ['touch pwned']"
    file.write_text(rng.choice(["", "[]", "3", "a", "a: b: c", "\t- x", code, "a: ${b}", "&a [*a]"]))
    return ["Other settings"]  # than those of the baseline


def a_line_less(file: Path, rng: random.Random) -> Sequence[str]:
    lines = file.read_text().splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    file.write_text("".join(lines))
    return ["Other settings"]


ANY: Sequence[Action] = (
    *(truncated, missing, empty, a_folder, a_loop, a_pipe, flipped, random_bytes, longer, of_another_file),
)
OF_A_KIND: dict[str, Sequence[Action]] = {
    ".json": (an_odd_value, an_odd_value, an_odd_value, odd_text, a_missing_key, another_schema, another_status),
    ".parquet": (
        *(a_column_less, a_column_of_another_dtype, an_odd_number, an_odd_number, an_odd_name, rows_twice, rows_less),
        *(a_column_twice, an_index, text_that_is_none),
    ),
    ".png": (another_picture, another_format, odd_text_in_it, huge),
    ".yaml": (another_root, a_line_less, a_line_less),
}
