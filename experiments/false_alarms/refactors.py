"""Honest refactors: rewrites that are equal in exact arithmetic and round as before; the gate must pass each of them.

    python -m experiments.false_alarms.refactors --to DIR [--only NAME]

Applies one rewrite at a time to a copy of the code and runs the gate against the baseline of the unchanged code.
Appends each result to DIR/refactors.jsonl immediately, with the largest deviation of a sketch and share of a limit,
so that an interrupted study can continue. Exits with 1 if the gate objected to one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.false_alarms.judging import deviations
from experiments.mutation.__main__ import SETTINGS
from experiments.mutation.trial import PASSED, Sandbox
from precision_lab.analysis.gate.baseline import choose, read
from precision_lab.analysis.gate.judge import Limits
from precision_lab.record.run import Run

ROOT = Path(__file__).resolve().parents[2]
_MODEL = "precision_lab/model"


@dataclass(frozen=True)
class Refactor:
    """A rewrite of `before`, which occurs once in `file`, as `after`."""

    name: str
    file: str
    before: str
    after: str

    def applied(self, text: str) -> str:
        assert text.count(self.before) == 1, f"{self.name}: {self.file} has changed"
        return text.replace(self.before, self.after)


def _of(file: str, *rewrites: tuple[str, str, str]) -> list[Refactor]:
    return [Refactor(name, f"{_MODEL}/{file}", before, after) for name, before, after in rewrites]


_PRODUCT = "y = x.astype(mx.float32) @ self.weight.astype(mx.float32).T"
_RMS_NORM = "return mx.fast.rms_norm(x, self.weight, self.eps)"
_SILU = "return nn.silu(x.astype(mx.float32)).astype(x.dtype)"
_ATTEND = "out = scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)"
_CONV = "return super().__call__(x.astype(mx.float32)).astype(x.dtype)"
_CHANNEL_NORM = "norm = mx.sqrt(mx.sum(y * y, axis=-1, keepdims=True))"

REFACTORS = [
    *_of(
        "layers.py",
        (
            "linear: the sum in two halves",
            _PRODUCT,
            (
                "half, w = x.shape[-1] // 2, self.weight.astype(mx.float32)\n"
                "        z = x.astype(mx.float32)\n"
                "        y = z[..., :half] @ w[:, :half].T + z[..., half:] @ w[:, half:].T"
            ),
        ),
        (
            "linear: channels in reverse",
            _PRODUCT,
            "y = x.astype(mx.float32)[..., ::-1] @ self.weight.astype(mx.float32)[:, ::-1].T",
        ),
        (
            "linear: the transposed product",
            _PRODUCT,
            (
                "y = (self.weight.astype(mx.float32) @ x.astype(mx.float32).reshape(-1, x.shape[-1]).T).T\n"
                "        y = y.reshape(*x.shape[:-1], -1)"
            ),
        ),
        (
            "linear: rows of the batch flattened",
            _PRODUCT,
            (
                "y = x.astype(mx.float32).reshape(-1, x.shape[-1]) @ self.weight.astype(mx.float32).T\n"
                "        y = y.reshape(*x.shape[:-1], -1)"
            ),
        ),
        (
            "linear: outputs in two halves",
            _PRODUCT,
            (
                "w = mx.split(self.weight.astype(mx.float32), 2)\n"
                "        y = mx.concatenate([x.astype(mx.float32) @ part.T for part in w], axis=-1)"
            ),
        ),
        ("silu: a quotient", _SILU, "y = x.astype(mx.float32)\n        return (y / (1 + mx.exp(-y))).astype(x.dtype)"),
        (
            "silu: the sigmoid by itself",
            _SILU,
            "y = x.astype(mx.float32)\n        return (y * mx.sigmoid(y)).astype(x.dtype)",
        ),
        (
            "gelu: the half inside",
            "return (0.5 * y * (1 + mx.tanh(inner))).astype(x.dtype)",
            "return (y * (0.5 * (1 + mx.tanh(inner)))).astype(x.dtype)",
        ),
        (
            "gelu: the polynomial in Horner's form",
            "inner = math.sqrt(2 / math.pi) * (y + 0.044715 * (y * y * y))",
            "inner = y * (math.sqrt(2 / math.pi) * (1 + 0.044715 * (y * y)))",
        ),
        (
            "layer norm: written out",
            "return mx.fast.layer_norm(x, None, None, self.eps)",
            (
                "y = x.astype(mx.float32)\n"
                "        y = y - mx.mean(y, axis=-1, keepdims=True)\n"
                "        return (y * mx.rsqrt(mx.mean(y * y, axis=-1, keepdims=True) + self.eps)).astype(x.dtype)"
            ),
        ),
        (
            "rms norm: written out",
            _RMS_NORM,
            (
                "y = x.astype(mx.float32)\n"
                "        y = y / mx.sqrt(mx.mean(y * y, axis=-1, keepdims=True) + self.eps)\n"
                "        return y.astype(x.dtype) * self.weight.astype(x.dtype)"
            ),
        ),
    ),
    *_of(
        "qwen_image/block.py",
        (
            "modulate: terms exchanged",
            "return x * (1 + scale[:, None]) + shift[:, None]",
            "return shift[:, None] + (scale[:, None] + 1) * x",
        ),
    ),
    *_of(
        "modulation.py",
        (
            "gated add: terms exchanged",
            "return residual + over_tokens(gate) * update",
            "return update * over_tokens(gate) + residual",
        ),
    ),
    *_of(
        "attention.py",
        (
            "attention: the queries in two halves",
            _ATTEND,
            (
                "out = mx.concatenate(\n"
                "            [scaled_dot_product_attention(part, k, v, scale=q.shape[-1] ** -0.5, mask=mask)\n"
                "             for part in mx.split(q, [q.shape[2] // 2], axis=2)], axis=2)"
            ),
        ),
        (
            "attention: written out in fp32",
            _ATTEND,
            (
                "a, b, c = (t.astype(mx.float32) for t in (q, k, v))\n"
                "        scores = a @ b.swapaxes(-1, -2) * q.shape[-1] ** -0.5\n"
                "        scores = scores if mask is None else mx.where(mask, scores, -mx.inf)\n"
                "        out = (mx.softmax(scores, axis=-1) @ c).astype(q.dtype)"
            ),
        ),
    ),
    *_of(
        "rotary.py",
        (
            "rotary: real arithmetic",
            "return (pairs * rotation[:, None, :]).view(mx.float32).astype(x.dtype)",
            (
                "a, b, turn = mx.real(pairs), mx.imag(pairs), rotation[:, None, :]\n"
                "        cos, sin = mx.real(turn), mx.imag(turn)\n"
                "        turned = mx.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)\n"
                "        return turned.reshape(x.shape).astype(x.dtype)"
            ),
        ),
    ),
    *_of(
        "language_body.py",
        (
            "rotary of halves: without the rotated copy",
            "return x * cos + mx.concatenate([-second, first], axis=-1) * sin",
            (
                "half = first.shape[-1]\n"
                "        cos, sin = cos[..., :half], sin[..., :half]\n"
                "        return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)"
            ),
        ),
    ),
    *_of(
        "vae_blocks.py",
        ("norm of the VAE: MLX's norm", _CHANNEL_NORM, "norm = mx.linalg.norm(y, axis=-1, keepdims=True)"),
        (
            "pixels repeated by broadcasting",
            "return mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)",
            (
                "b, h, w, c = x.shape\n"
                "        return mx.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)"
            ),
        ),
    ),
    *_of(
        "qwen_image/sampler.py",
        (
            "guidance: factors exchanged",
            "push = (scale * (cond - uncond).astype(mx.float32)).astype(cond.dtype)",
            "push = ((cond - uncond).astype(mx.float32) * scale).astype(cond.dtype)",
        ),
        (
            "norm of a token: written out",
            "return mx.linalg.norm(x.astype(mx.float32), axis=-1, keepdims=True).astype(x.dtype)",
            "return mx.sqrt(mx.sum(mx.square(x.astype(mx.float32)), axis=-1, keepdims=True)).astype(x.dtype)",
        ),
    ),
]
"""GELU as x times a sigmoid is not among them: it does not cancel for negative x, so a fifth of the 16-bit results
change, for the better. The gate is meant to see that."""


def used(sandbox: Sandbox) -> dict[str, Any]:
    """The largest deviation of a sketch in the sandbox's last run, and the largest share of a limit."""
    run = Run.open(sandbox.folder / "run")
    environment = run.manifest.environment
    entries = read(sandbox.folder / "baseline.json", environment.backend, run.manifest.experiment)
    entry = choose(entries, environment.machine, str(environment.mlx)).entry
    return deviations(entry, run.sketches, Limits().on(environment.backend), run.layout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--only", help="the name of one refactor")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for a gate")
    arguments = parser.parse_args()
    chosen = [refactor for refactor in REFACTORS if arguments.only in (None, refactor.name)]
    arguments.to.mkdir(parents=True, exist_ok=True)
    log = arguments.to / "refactors.jsonl"
    done: list[Mapping[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    todo = [refactor for refactor in chosen if refactor.name not in {record["name"] for record in done}]
    if todo:
        with tempfile.TemporaryDirectory(prefix="refactors-") as folder:
            sandbox = Sandbox(ROOT, Path(folder), SETTINGS, arguments.timeout, with_parity=False)
            print(f"the gate passes the unchanged code in {sandbox.learn():.0f} s", flush=True)
            for refactor in todo:
                verdict = sandbox.judge(refactor)
                record = {"name": refactor.name, "file": refactor.file, **verdict._asdict()}
                if verdict.by == PASSED:
                    record |= used(sandbox)
                with log.open("a") as stream:
                    stream.write(json.dumps(record) + "\n")
                print(record, flush=True)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    passed = [record for record in records if record["by"] == PASSED]
    print(f"{len(passed)} of {len(records)} refactors pass the gate")
    if passed:
        print(max((record["largest_share_of_limit"], record["name"], record["at"]) for record in passed))
    return int(len(passed) < len(records))


if __name__ == "__main__":
    sys.exit(main())
