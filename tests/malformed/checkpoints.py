"""Seeded mutations of a valid checkpoint folder: JSON files, weight files, indices, tokenizer, and what is no file.

A mutation replaces files by new ones and never writes into an old one, because the copies share the original's files.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

CONFIGS = (
    "model_index.json",
    "transformer/config.json",
    "text_encoder/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
)
TOKENIZER = ("tokenizer_config.json", "vocab.json", "merges.txt")
WEIGHTS = (
    "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)
VALUES: tuple[Any, ...] = (
    *("x", "", "\0", "é" * 3000, "../..", [], {}, [[]], {"a": {"b": None}}, None, True, False),
    *(-1, 0, 1, 2, 7, 1.5, -0.0, 10**6, 10**9, 10**12, -(10**12), 1 << 62, 10**400, 1e308, 1e-308),
    *(float("nan"), float("inf"), [1, "a"], [10**12] * 3, ["x"] * 3, list(range(5000)), [None], [-1, -1, -1]),
)
DTYPES: tuple[Any, ...] = ("F64", "I8", "I64", "BOOL", "F8_E4M3", "U32", "BF17", "", 3, None, ["F32"])


class Mutation(NamedTuple):
    """What was changed: words, and what a refusal may name, of which one is enough; and whether it must be refused."""

    words: str
    culprits: tuple[str, ...]
    fatal: bool = False


def copied(original: Path, folder: Path) -> Path:
    """A copy that shares the files of the original."""
    return Path(shutil.copytree(original, folder, copy_function=os.link))


def mutate(folder: Path, seed: int) -> Mutation:
    """Changes one thing in the checkpoint `folder`. The same seed makes the same change."""
    random = Random(seed)
    return random.choice(_KINDS)(folder, random)


def replace(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def _tokenizer(folder: Path) -> tuple[str, ...]:
    """The files of the tokenizer, which lies in a folder of its own or in that of the processor."""
    place = "processor" if (folder / "processor").is_dir() else "tokenizer"
    return tuple(f"{place}/{name}" for name in TOKENIZER)


def _part(name: str) -> str:
    """What a message names of a component: its folder."""
    return name.rpartition("/")[0] or name


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _key(folder: Path, random: Random) -> Mutation:
    """One key of a JSON file with another value, without it, or under another name."""
    name = random.choice(CONFIGS + _tokenizer(folder)[:1])
    config = json.loads((folder / name).read_text())
    place, key = config, random.choice(list(config))
    while isinstance(place[key], dict) and place[key] and random.random() < 0.6:
        place = place[key]
        key = random.choice(list(place))
    how = random.randrange(8)
    if how == 0:
        del place[key]
    elif how == 1:
        place[key + "_"] = place.pop(key)
    else:
        place[key] = random.choice(VALUES)
    replace(folder / name, _json(config))
    return Mutation(f"{name}: {key} {'gone' if how < 2 else repr(place[key])[:40]}", (key, name, _part(name)))


def _content(folder: Path, random: Random) -> Mutation:
    """A JSON or text file with other content."""
    name = random.choice(CONFIGS + _tokenizer(folder))
    whole = (folder / name).read_bytes()
    contents = {
        "empty": b"",
        "cut": whole[: random.randrange(1, max(2, len(whole) - 2))],
        "a list": b"[1, 2]",
        "a number": b"3",
        "null": b"null",
        "bytes": random.randbytes(300),
        "UTF-16": whole[:300].decode(errors="replace").encode("utf-16"),
        "deep": b'{"a":' * 50_000,
        "twice": whole + whole,
        "NUL": whole[:20] + b"\0" + whole[20:],
    }
    what = random.choice(list(contents))
    replace(folder / name, contents[what])
    return Mutation(f"{name}: {what}", (name, _part(name)), name in CONFIGS)


def _node(folder: Path, random: Random) -> Mutation:
    """Something else in place of a file, or of the folder of a component."""
    tokenizer = _tokenizer(folder)
    folders = ("transformer", "vae", "text_encoder", _part(tokenizer[0]), "scheduler")
    name = random.choice((*CONFIGS, *tokenizer, *WEIGHTS, *folders))
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    what = random.choice(("nothing", "a folder", "a link to nothing", "a loop", "a pipe", "a link out", "a device"))
    targets = {
        "a link to nothing": "nowhere",
        "a loop": path.name,
        "a link out": "/etc/hostname",
        "a device": "/dev/zero",
    }
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    elif what != "nothing":
        path.symlink_to(targets[what])
    required = name not in tokenizer or what != "nothing"
    culprits = (name, _part(name), folder.name) if name == "model_index.json" else (name, _part(name))
    return Mutation(f"{name}: {what}", culprits, required and name != tokenizer[0])


def _header(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _tensor(folder: Path, random: Random) -> Mutation:
    """One entry in the header of a weight file, or its name."""
    name = random.choice(WEIGHTS)
    header, data = _header(folder / name)
    tensor = random.choice([key for key in header if key != "__metadata__"])
    entry = header[tensor]
    begin, end = entry["data_offsets"]
    changes: Mapping[str, Callable[[], object]] = {
        "dtype": lambda: entry.update(dtype=random.choice(DTYPES)),
        "shape": lambda: entry.update(shape=random.choice(([], [1], [-1], [1 << 40], [0], ["a"], 3, None, [2.0] * 9))),
        "offsets": lambda: entry.update(
            data_offsets=random.choice(
                ([0, end], [begin, end - 1], [begin, 1 << 60], [end, begin], [-8, 8], [begin], "x", None, [0.5, 2])
            )
        ),
        "no dtype": lambda: entry.pop("dtype"),
        "no shape": lambda: entry.pop("shape"),
        "removed": lambda: header.pop(tensor),
        "renamed": lambda: header.update({tensor + "_": header.pop(tensor)}),
        "null": lambda: header.update({tensor: None}),
        "added": lambda: header.update({f"other.{tensor}": dict(entry)}),
        "marker": lambda: header.update({"__index_timestep_zero__": {**entry}}),
        "packed": lambda: header.update({f"{tensor}.absmax": {**entry}}),
        "other metadata": lambda: header.update({"__metadata__": random.choice((3, [1], {"a": 3}, {"format": None}))}),
    }
    what = random.choice(list(changes))
    changes[what]()
    text = _json(header)
    replace(folder / name, struct.pack("<Q", len(text)) + text + data)
    return Mutation(
        f"{name}: {tensor} {what}", (name, _part(name)), what not in ("other metadata", "offsets", "removed")
    )


def _bytes(folder: Path, random: Random) -> Mutation:
    """A weight file that is cut, empty, of another kind, or with another length of its header."""
    name = random.choice(WEIGHTS)
    content = (folder / name).read_bytes()
    contents = {
        "cut": content[: random.randrange(len(content))],
        "empty": b"",
        "zeros": bytes(4096),
        "random": random.randbytes(4096),
        "GGUF": b"GGUF" + content,
        "pickle": b"\x80\x02}q\0." * 99,
        "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        "huge header": struct.pack("<Q", 1 << 60) + content[8:],
        "longer header": struct.pack("<Q", struct.unpack("<Q", content[:8])[0] + 7) + content[8:],
        "no header": struct.pack("<Q", 0) + content[8:],
    }
    what = random.choice(list(contents))
    replace(folder / name, contents[what])
    return Mutation(f"{name}: {what}", (name, _part(name)), True)


def _index(folder: Path, random: Random) -> Mutation:
    """An index beside a weight file that is not that of the file."""
    name = random.choice(WEIGHTS)
    header, _ = _header(folder / name)
    file, names = Path(name).name, [key for key in header if key != "__metadata__"]
    maps: Mapping[str, Any] = {
        "absent shard": dict.fromkeys(names, "absent.safetensors"),
        "outside": dict.fromkeys(names, f"../{name}"),
        "absolute": dict.fromkeys(names, str(folder / name)),
        "empty": {},
        "a list": names,
        "not text": dict.fromkeys(names, 3),
        "long": dict.fromkeys(names, "x" * 5000 + ".safetensors"),
        "NUL": dict.fromkeys(names, "a\0b.safetensors"),
        "pickle": dict.fromkeys(names, "model.bin"),
        "missing entry": dict.fromkeys(names[1:], file),
        "null": None,
    }
    what = random.choice(list(maps))
    path = folder / f"{name}.index.json"
    path.write_bytes(_json({"metadata": random.choice(({}, None, 3, {"total_size": "x"})), "weight_map": maps[what]}))
    return Mutation(f"{name} index: {what}", (path.name, name, _part(name)), what != "missing entry")


def _vocabulary(folder: Path, random: Random) -> Mutation:
    """A tokenizer whose files contradict each other, or a tokenizer.json that is none."""
    place = folder / _part(_tokenizer(folder)[0])
    vocab = json.loads((place / "vocab.json").read_text())
    token = random.choice(list(vocab))
    what = random.choice(("huge id", "negative id", "text id", "missing token", "same id", "tokenizer.json", "merge"))
    if what == "tokenizer.json":
        content = random.choice(
            (b"{}", b"[]", b"", b'{"model": {"type": "BPE"}}', b'{"version": 3}', random.randbytes(99))
        )
        (place / "tokenizer.json").write_bytes(content)
    elif what == "merge":
        replace(place / "merges.txt", random.choice((b"a", b"a b c", b"\xff\xfe", b"qq zz\n", b"#version: 9\n")))
    else:
        values = {"huge id": 10**9, "negative id": -1, "text id": "7", "same id": 0}
        vocab.pop(token) if what == "missing token" else vocab.update({token: values[what]})
        replace(place / "vocab.json", _json(vocab))
    return Mutation(f"tokenizer: {what}", (place.name, "tokens", "vocab_size"))


_KINDS: Sequence[Callable[[Path, Random], Mutation]] = (
    *(_key, _key, _key, _key, _content, _node, _tensor, _tensor, _bytes, _index, _vocabulary),
)
