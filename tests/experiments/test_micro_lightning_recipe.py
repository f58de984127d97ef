"""The recipe of the few-step adapter, on models of two blocks and a few steps."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file

from experiments.micro_checkpoint.data import TEXT_TOKENS
from experiments.micro_lightning import student, teacher, train
from experiments.micro_lightning.distances import with_adapter
from experiments.micro_lightning.student import GRID, TARGETS, Base, adapted, export, initial, row_norms, sample
from experiments.micro_lightning.teacher import LEVELS, trajectory
from experiments.micro_lightning.train import Trainer, Trajectories, gradients
from precision_lab.model.text_to_image.scheduler import QWEN_IMAGE, sigmas

TOKENS = GRID[0] * GRID[1]
FP32 = 2e-5
"""Bound on the relative L2 between two orders of the same sums, through two blocks."""


def small_model(seed: int = 0) -> QwenImageTransformer2DModel:
    torch.manual_seed(seed)
    return QwenImageTransformer2DModel(
        num_layers=2, num_attention_heads=2, attention_head_dim=32, axes_dims_rope=(8, 12, 12), joint_attention_dim=64
    ).eval()


def drawn(base: Base, seed: int) -> dict[str, torch.Tensor]:
    """An adapter that changes every linear by some per cent."""
    adapter = initial(base, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for target in TARGETS:
        adapter[f"{target}.B"].normal_(std=0.1, generator=generator)
    return adapter


def conditions(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise, text and its mask with texts of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(TEXT_TOKENS) < torch.randint(5, TEXT_TOKENS + 1, (count, 1), generator=generator)
    text = torch.randn(count, TEXT_TOKENS, 64, generator=generator) * mask[..., None]
    return torch.randn(count, TOKENS, 64, generator=generator), text, mask


def diffusers_velocity(model, latents, sigma, text, mask):
    with torch.no_grad():
        return model(
            latents,
            timestep=torch.full((len(latents),), sigma),
            encoder_hidden_states=text,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, *GRID)]] * len(latents),
        ).sample


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("seed", range(2))
def test_the_exported_adapter_does_in_diffusers_what_the_student_does(seed, tmp_path):
    model = small_model(seed)
    base = Base.of(model)
    latents, text, mask = conditions(3, seed)
    plain = base.velocity(latents, 0.75, text, mask)
    assert relative(plain, diffusers_velocity(model, latents, 0.75, text, mask)) < FP32
    adapter = drawn(base, seed)
    same = adapted(base, initial(base, seed), row_norms(base))
    assert torch.equal(base.velocity(latents, 0.75, text, mask, same), plain), "an untrained adapter changes nothing"
    ours = base.velocity(latents, 0.75, text, mask, adapted(base, adapter, row_norms(base)))
    assert export(base, adapter, tmp_path / "lora.safetensors") == 2 * len(TARGETS)
    model.load_lora_adapter(tmp_path, weight_name="lora.safetensors", prefix="transformer")
    theirs = diffusers_velocity(model, latents, 0.75, text, mask)
    assert relative(plain, theirs) > 0.01
    fused = with_adapter(base, load_file(tmp_path / "lora.safetensors"))
    assert relative(base.velocity(latents, 0.75, text, mask, fused), theirs) < FP32
    # the file is in bf16, so each factor of the change is off by up to 2^-9
    assert relative(ours, theirs) < 2**-7 * relative(plain, theirs)


def test_linears_without_effect_are_not_in_the_file(tmp_path):
    base = Base.of(small_model())
    adapter = drawn(base, 3)
    adapter["attn.to_add_out.B"][1] = 0
    assert export(base, adapter, tmp_path / "lora.safetensors") == 2 * len(TARGETS) - 1
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        names = set(file.keys())
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    assert "transformer.transformer_blocks.0.attn.to_add_out.lora_B.weight" in names
    assert not [name for name in names if name.startswith("transformer.transformer_blocks.1.attn.to_add_out.")]
    assert (config["transformer.r"], config["transformer.lora_alpha"]) == (student.RANK, student.RANK)


def test_the_teacher_s_states_are_on_euler_s_path(monkeypatch):
    base = Base.of(small_model())
    latents, text, mask = conditions(3, 5)

    def velocity(base, x, sigma, text, mask):
        return torch.sin(3 * x) + sigma

    monkeypatch.setattr(teacher, "guided", velocity)
    states = trajectory(base, latents, text, mask)
    np.testing.assert_allclose(LEVELS, [1, 0.9, 0.75, 0.5, 0], rtol=1e-6)
    assert torch.equal(states[0], latents)
    schedule = sigmas(QWEN_IMAGE, 20, TOKENS).tolist()
    path = [latents]
    for now, following in pairwise(schedule):
        path.append(path[-1] + (following - now) * velocity(base, path[-1], now, text, mask))
    assert relative(states[-1], path[-1]) < 1e-6
    for level, state in zip(LEVELS[1:-1], states[1:-1], strict=True):
        after = next(i for i, sigma in enumerate(schedule) if sigma <= level)
        now, following = schedule[after - 1], schedule[after]
        expected = path[after - 1] + (now - level) / (now - following) * (path[after] - path[after - 1])
        assert relative(state, expected) < 1e-5


@torch.no_grad()
def test_guidance_is_that_of_the_pipeline():
    base = Base.of(small_model())
    latents, text, mask = conditions(4, 6)
    positive = base.velocity(latents[:3], 0.6, text[:3], mask[:3])
    negative = base.velocity(latents[:3], 0.6, text[3:].expand(3, -1, -1), mask[3:].expand(3, -1))
    guided = teacher.guided(base, latents[:3], 0.6, text, mask)
    torch.testing.assert_close(guided.norm(dim=-1), positive.norm(dim=-1))
    direction = negative + 4 * (positive - negative)
    cosine = torch.nn.functional.cosine_similarity(guided, direction, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def trajectories(base: Base, count: int, seed: int) -> Trajectories:
    """Those of a student with another adapter, which this one can therefore learn."""
    latents, text, mask = conditions(count, seed)
    with torch.no_grad():
        goal = adapted(base, drawn(base, 40), row_norms(base))
        return Trajectories(torch.stack(sample(base, latents, LEVELS, text, mask, goal), 1), text, mask)


def test_gradients_are_those_of_the_whole_loss_with_detached_states():
    base = Base.of(small_model())
    batch, norms = trajectories(base, 4, 7), row_norms(base)
    adapter = {name: tensor.requires_grad_() for name, tensor in drawn(base, 8).items()}
    trainer = Trainer(base, adapter, batch.weight())
    losses, _ = trainer.step(batch, 0.0)
    found = {name: parameter.grad.clone() for name, parameter in adapter.items()}
    parameters = adapted(base, adapter, norms)
    latents, whole = batch.states[:, 0], []
    for k, (now, following) in enumerate(pairwise(LEVELS)):
        ahead = latents + (following - now) * base.velocity(latents, now, batch.text, batch.mask, parameters)
        whole.append(((ahead - batch.states[:, k + 1]).square() * batch.weight()).mean() / (now - following))
        latents = ahead.detach()
    torch.testing.assert_close(losses, torch.stack(whole).detach())
    expected = torch.autograd.grad(sum(whole), list(adapter.values()), allow_unused=True)
    norm = torch.cat([g.flatten() for g in expected if g is not None]).norm().item()
    for name, gradient in zip(adapter, expected, strict=True):
        torch.testing.assert_close(found[name] * max(1.0, norm), gradient, rtol=1e-3, atol=1e-5 * norm)
    assert set(
        gradients(
            base, {"blocks.img_mod.1.weight": base.parameters["blocks.img_mod.1.weight"]}, batch, batch.weight(), 4
        )[1]
    ) == {"blocks.img_mod.1.weight"}


@pytest.fixture
def trainer_of():
    """Makes trainers of the same small model, and its batch."""
    base = Base.of(small_model())
    batch = trajectories(base, 8, 9)
    return lambda adapter: Trainer(base, {n: t.requires_grad_() for n, t in adapter.items()}, batch.weight()), batch


@pytest.mark.slow
def test_training_learns(trainer_of):
    make, batch = trainer_of
    whole = make(initial(Base.of(small_model()), 1))
    before = train.distance(whole.base, batch, whole.channels)
    losses = [whole.step(batch, 5e-3)[0].sum().item() for _ in range(24)]
    assert losses[-1] < 0.3 * losses[0]
    rewritten = adapted(whole.base, whole.adapter, row_norms(whole.base))
    assert train.distance(whole.base, batch, whole.channels, rewritten) < 0.6 * before


def test_slices_of_any_length_give_the_same(trainer_of, tmp_path):
    make, batch = trainer_of
    first = make(initial(Base.of(small_model()), 1))
    for _ in range(2):
        first.step(batch, 5e-3)
    first.save(tmp_path / "adapter.safetensors", 2, 3)
    tensors, numbers = train.state.load(tmp_path / "adapter.safetensors")
    assert numbers == {"step": 2, "steps": 3}
    resumed = make({name: tensors[name] for name in first.adapter})
    resumed.load(tensors, 2)
    for trainer in (first, resumed):
        trainer.step(batch, 5e-3)
    for name, parameter in first.adapter.items():
        assert torch.equal(parameter, resumed.adapter[name]), name


def test_the_learning_rate_rises_and_falls_to_zero():
    rates = np.array([train.learning_rate(step, 200) for step in range(200)])
    assert rates.max() == train.LEARNING_RATE
    assert (np.diff(rates[: train.WARMUP]) > 0).all()
    assert rates[-1] < 0.02 * train.LEARNING_RATE
