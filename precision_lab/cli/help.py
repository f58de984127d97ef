"""The text of --help. It reads only file names, so that it appears immediately."""

from __future__ import annotations

from precision_lab import __version__
from precision_lab.cli.paths import options

_TEXT = """\
precision_lab {version}: numerical precision of models on MLX, first of all Qwen-Image

  python -m precision_lab +exp=ffn_scaling [overrides]    run an experiment and write its report
  python -m precision_lab gate [+exp=NAME | run=DIR]      run it (or take a run) and compare with its baseline
  python -m precision_lab report run=DIR                  figures and page again, from the tables
  python -m precision_lab -m dtype=bfloat16,float16       a sweep: a job for each value, and an index page of all
  python -m precision_lab report sweep=DIR                the index page of a sweep again
  python -m precision_lab compare runs=[A,B]              one run against another; reference=RUN:VARIANT; runs=[SWEEP/*]
  python -m precision_lab compare dump=FILE inputs=FILE   another program's arrays against this model, by operation
  python -m precision_lab prove technique=[a,b]           whether techniques preserve the model's function
  python -m precision_lab sensitivity candidate=[a,b]     what each candidate does at each group of sites alone
  python -m precision_lab culprits criterion=finite       the smallest set of sites that must be spared, and why
  python -m precision_lab survival adapter=PATH           what arrives of a LoRA in each format; other=DIR  rms=0.1
  python -m precision_lab search budget.bits=5            the recipe of least drift within a budget, with its evidence
  python -m precision_lab device                          the precision of MLX on this machine; tf32=true|false  out=DIR
  python -m precision_lab models                          list models; make=PRESET to=DIR writes a synthetic one
  python -m precision_lab models dump_inputs=FILE         the inputs of one pass, for another program
  python -m precision_lab recipe technique=[a] to=mflux   a recipe for another program; from=mflux file=F reads one
  python -m precision_lab search strategy=scales          scales for float16, tried on held-out cases; fp8_scales

Experiments: {exp}
Techniques:  {technique}
Candidates:  {candidate}
Models:      {model}
Samplers:    {sampler}

Overrides (Hydra's grammar; defaults in conf/config.yaml):
  model=NAME  model.path=DIR_OR_HUB_ID  model.weights_dtype=DTYPE  dtype=bfloat16|float16|float32
  model.inflate=4096 (residual streams times a power of two: another range, the same function)
  model.stream=true (blocks are read when they are called: a model larger than memory)
  sampler.steps=6  image.height=128  image.width=128  prompts=[...] or @FILE  seeds=[0,1]
  only=[variant,...]  technique=[a,b]  probe.range.sites=[...]  drift.sites=[...]  latency.max_seconds=20
  gate.update=true  gate.baseline=PATH  gate.margin_bits=1 (the gate; more in conf/gate.yaml)
  pinned.record=true (a run that `gate run=DIR` can judge)
  out=DIR  resume=true  --multirun  --config-dir DIR (your own techniques, probes, experiments)  --cfg job

Exit codes: 0 done; 1 a variant failed or broke its expectation, a gated claim was refuted, or a gate found a
deviation; 2 a mistake in the input; 3 a fault of this program, its traceback is in a file; 130 interrupted.
PRECISION_LAB_DEBUG=1 shows tracebacks."""


def text() -> str:
    """The help page, with the names of the options in the configuration folder."""
    names = {group: ", ".join(options(group)) for group in ("exp", "technique", "candidate", "model", "sampler")}
    return _TEXT.format(version=__version__, **names)
