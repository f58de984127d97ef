"""Forward passes of diffusers on torch, eager and compiled block by block, interleaved in one process."""

from __future__ import annotations

import torch

from experiments.benchmarks.gpu import diffusers_model
from experiments.benchmarks.gpu.diffusers_model import Forward, Inputs, seconds_of
from experiments.benchmarks.gpu.part import Job
from experiments.benchmarks.gpu.rounds import Arm, measure, record_error

TIMESTEP = 0.5


def run(job: Job) -> None:
    eager = diffusers_model.made(job.shape, torch.bfloat16)
    inputs = [diffusers_model.made_inputs(job.shape, side, torch.bfloat16) for side in job.shape.forward_sides]
    models = {"diffusers eager": eager, "diffusers compiled": diffusers_model.compiled_copy(job.shape, eager)}
    forwards = diffusers_model.forwards(job.shape, models, eager)
    for name, forward in forwards.items():
        for one in inputs:
            tags = {"arm": name, "side": one.side}
            try:
                peak = diffusers_model.peak_gigabytes(forward, one, TIMESTEP)
            except Exception as error:
                record_error(job.writer, {**tags, "what": "memory"}, error)
                continue
            if peak is not None:
                job.writer.add("memory", **tags, peak_gb=peak)
    arms = [_arm(name, forward, one) for name, forward in forwards.items() for one in inputs]
    measure(job.writer, arms, job.deadline, job.shape.min_rounds, seed=job.process)


def _arm(name: str, forward: Forward, inputs: Inputs) -> Arm:
    return Arm({"arm": name, "side": inputs.side}, lambda: {"seconds": seconds_of(forward, inputs, TIMESTEP)})
