"""Growth and conditioning of generated transformers, measured with the model of diffusers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from precision_lab.model.qwen_image.prompt import PREFIX_TOKENS, TEMPLATE
from precision_lab.synthetic import PRESETS, make
from tests.spread import slow

GRIDS = ((8, 8), (7, 9))
TIMESTEPS = (1.0, 0.75, 0.5, 0.25, 0.05)
PROMPTS = ("two red circles on a blue background, left", "a small green triangle right of a yellow star", "cat")
FP16_MAX = 65504.0

Model = QwenImageTransformer2DModel


@dataclass(frozen=True)
class Generated:
    """A generated transformer, and prompts encoded by its text encoder."""

    model: Model
    prompts: list[torch.Tensor]


@dataclass(frozen=True)
class Measured:
    """Measurements of one forward pass: the largest magnitudes by block, and the tensors after the blocks."""

    timestep: float
    output: torch.Tensor
    img_in: float
    norm_out: float
    stream: list[torch.Tensor]
    text_amax: np.ndarray
    branch_amax: np.ndarray
    gate_amax: np.ndarray
    gate_mean: np.ndarray

    @property
    def amax(self) -> np.ndarray:
        return np.array([amax(x) for x in self.stream])


def amax(x: torch.Tensor) -> float:
    return x.abs().max().item()


def relative(x: torch.Tensor, y: torch.Tensor) -> float:
    return ((x.double() - y.double()).norm() / y.double().norm()).item()


def noise(grid: tuple[int, int], seed: int) -> torch.Tensor:
    generator = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(generator.standard_normal((1, grid[0] * grid[1], 64)).astype(np.float32))


@torch.no_grad()
def forward(model: Model, latents: torch.Tensor, text: torch.Tensor, t: float, grid: tuple[int, int]) -> torch.Tensor:
    return model(
        hidden_states=latents.to(model.dtype),
        encoder_hidden_states=text.to(model.dtype),
        timestep=torch.tensor([t], dtype=model.dtype),
        img_shapes=[[(1, *grid)]],
        return_dict=False,
    )[0]


def load(folder: Path) -> Generated:
    model = Model.from_pretrained(folder, subfolder="transformer").eval()
    encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, subfolder="text_encoder", dtype=torch.float32
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    embedded = []
    for prompt in PROMPTS:
        ids = tokenizer(TEMPLATE.format(prompt), return_tensors="pt").input_ids
        with torch.no_grad():
            hidden = encoder.model.language_model(input_ids=ids).last_hidden_state
        embedded.append(hidden[:, PREFIX_TOKENS:])
    return Generated(model, embedded)


@contextmanager
def recording(model: Model) -> Iterator[dict[str, object]]:
    """Collects the output of every module by its name, inside a `with` block."""
    outputs: dict[str, object] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: outputs.__setitem__(name, output)

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def measure(generated: Generated, grid: tuple[int, int], seed: int, t: float) -> Measured:
    with recording(generated.model) as outputs:
        output = forward(generated.model, noise(grid, seed), generated.prompts[seed % len(PROMPTS)], t, grid)
    blocks = [f"transformer_blocks.{i}" for i in range(len(generated.model.transformer_blocks))]
    branches = ("attn.to_out.0", "attn.to_add_out", "img_mlp", "txt_mlp")
    gates = [[outputs[f"{b}.{s}_mod"].chunk(6, -1)[j] for s in ("img", "txt") for j in (2, 5)] for b in blocks]
    return Measured(
        timestep=t,
        output=output,
        img_in=amax(outputs["img_in"]),
        norm_out=amax(outputs["norm_out"]),
        stream=[outputs[b][1] for b in blocks],
        text_amax=np.array([amax(outputs[b][0]) for b in blocks]),
        branch_amax=np.array([[amax(outputs[f"{b}.{branch}"]) for branch in branches] for b in blocks]),
        gate_amax=np.array([max(map(amax, row)) for row in gates]),
        gate_mean=np.array([row[0].mean().item() for row in gates]),
    )


@pytest.fixture(scope="module", params=[0, slow(1)], ids=["seed0", "seed1"])
def micro(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generated:
    folder = tmp_path_factory.mktemp("activations") / "micro"
    make(PRESETS["micro"], folder, seed=request.param)
    return load(folder)


@pytest.fixture(scope="module")
def runs(micro: Generated) -> list[Measured]:
    return [measure(micro, grid, seed, t) for seed, grid in enumerate(GRIDS) for t in TIMESTEPS]


def test_ends_of_the_network_have_the_published_ranges(runs: list[Measured]) -> None:
    for run in runs:
        assert 8 < run.img_in < 32
        assert 8 < run.norm_out < 32
        assert 2.2 < amax(run.output) < 8.8
        assert 0.5 < run.output.square().mean().sqrt() < 2


def test_text_embeddings_have_the_published_range(micro: Generated) -> None:
    for prompt in micro.prompts:
        assert 75 < amax(prompt) < 300


def test_both_streams_grow_log_linearly_to_the_published_size(runs: list[Measured]) -> None:
    depth = np.arange(60)
    for run in runs:
        for curve in (run.amax, run.text_amax):
            assert 2.5e7 < curve[-1] < 1e8
            assert (np.diff(curve) > 0).all()
            slope, offset = np.polyfit(depth, np.log(curve), 1)
            assert np.exp(slope) == pytest.approx(1.283, rel=0.02)
            assert np.abs(np.log(curve) - slope * depth - offset).max() < 0.35


def test_the_growth_is_in_two_channels_of_every_token(runs: list[Measured]) -> None:
    for run in runs:
        channels = {tuple(sorted(x[0].abs().mean(0).topk(2).indices.tolist())) for x in run.stream}
        assert len(channels) == 1
        massive = list(channels.pop())
        last = run.stream[-1][0]
        assert (last[:, massive].abs().amin(0) > 0.3 * amax(last)).all()
        bulk = np.delete(last.numpy(), massive, axis=1)
        assert 1 / 100 < bulk.std() / amax(last) < 1 / 30
        # the bulk distinguishes the tokens
        assert (bulk - bulk.mean(0)).std() > 0.7 * bulk.std()


def test_gates_and_growth_follow_the_timestep(runs: list[Measured]) -> None:
    early, late = (next(run for run in runs if run.timestep == t) for t in (1.0, 0.05))
    ratio = early.gate_mean / late.gate_mean
    assert (ratio > 1.15).all()
    assert (ratio < 2).all()
    assert early.amax[-1] > 1.1 * late.amax[-1]


def test_branches_overflow_fp16_only_late_and_stay_in_their_bounds(runs: list[Measured]) -> None:
    for run in runs:
        assert run.gate_amax.max() <= 4096
        assert run.branch_amax[:-1].max() <= 5e5
        assert run.branch_amax[-1].max() <= 8e6
        assert (run.branch_amax[:-1].max(1) > FP16_MAX).sum() >= 2
        assert run.branch_amax[:30].max() < FP16_MAX


def test_rounding_noise_is_not_amplified(micro: Generated) -> None:
    exact, coarse = copy.deepcopy(micro.model).double(), copy.deepcopy(micro.model).bfloat16()
    grid, text = GRIDS[0], micro.prompts[0]
    latents = noise(grid, 0)
    for t in (1.0, 0.25):
        output = forward(micro.model, latents, text, t, grid)
        assert relative(output, forward(exact, latents, text, t, grid)) < 3e-6
        assert 1e-2 < relative(forward(coarse, latents, text, t, grid), output) < 3e-1


def test_a_perturbation_passes_through_at_its_size(micro: Generated) -> None:
    grid, text = GRIDS[1], micro.prompts[0]
    latents, other = noise(grid, 0), noise(grid, 9)
    perturbed = latents + 1e-4 * other * (latents.norm() / other.norm())
    for t in (1.0, 0.25):
        output = forward(micro.model, latents, text, t, grid)
        assert 5e-5 < relative(forward(micro.model, perturbed, text, t, grid), output) < 1e-3


def test_the_output_depends_on_prompt_and_latents(micro: Generated) -> None:
    grid = GRIDS[0]
    output = forward(micro.model, noise(grid, 0), micro.prompts[0], 0.5, grid)
    for prompt in micro.prompts[1:]:
        assert relative(forward(micro.model, noise(grid, 0), prompt, 0.5, grid), output) > 1e-2
    assert relative(forward(micro.model, noise(grid, 1), micro.prompts[0], 0.5, grid), output) > 0.5
    assert (output - output.mean(1, keepdim=True)).norm() > 0.5 * output.norm()


def test_attention_is_neither_uniform_nor_saturated(micro: Generated, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.models.transformers import transformer_qwenimage as reference

    entropies = []
    dispatch = reference.dispatch_attention_fn

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **settings: object) -> torch.Tensor:
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        probabilities = scores.softmax(-1)
        entropies.append(-(probabilities * probabilities.log()).sum(-1).mean().item())
        return dispatch(q, k, v, **settings)

    monkeypatch.setattr(reference, "dispatch_attention_fn", spy)
    forward(micro.model, noise((8, 8), 0), micro.prompts[0], 0.5, (8, 8))
    uniform = np.log(64 + micro.prompts[0].shape[1])
    assert len(entropies) == 60
    assert all(1.5 < entropy < uniform - 0.1 for entropy in entropies)


def test_biases_of_the_mlps_count(micro: Generated) -> None:
    with recording(micro.model) as outputs:
        forward(micro.model, noise((8, 8), 0), micro.prompts[0], 0.5, (8, 8))
    for i in range(30, 60):
        first, second = (
            micro.model.transformer_blocks[i].img_mlp.net[0].proj,
            micro.model.transformer_blocks[i].img_mlp.net[2],
        )
        output = outputs[f"transformer_blocks.{i}.img_mlp"]
        bulk = torch.ones(64, dtype=torch.bool)
        bulk[output.abs().mean((0, 1)).topk(2).indices] = False
        assert 0.05 < second.bias[bulk].std() / output[..., bulk].std() < 0.5
        hidden = outputs[f"transformer_blocks.{i}.img_mlp.net.0.proj"]
        assert 0.1 < first.bias.std() / hidden.std() < 0.7


def test_scaling_the_mlps_input_is_another_function_and_grows_more(micro: Generated) -> None:
    model = copy.deepcopy(micro.model)
    plain = measure(Generated(model, micro.prompts), (8, 8), 0, 0.5)
    for block in model.transformer_blocks:
        block.img_mlp.register_forward_pre_hook(lambda module, args: (args[0] * 0.25, *args[1:]))
        block.img_mlp.register_forward_hook(lambda module, args, output: output * 4)
    scaled = measure(Generated(model, micro.prompts), (8, 8), 0, 0.5)
    assert relative(scaled.output, plain.output) > 0.1
    assert scaled.amax[-1] > plain.amax[-1]


@pytest.mark.parametrize(
    ("heads", "head_dim", "axes"), [(2, 32, (8, 12, 12)), (3, 16, (4, 6, 6)), (5, 48, (8, 20, 20))]
)
def test_growth_does_not_depend_on_depth_or_width(
    tmp_path: Path, heads: int, head_dim: int, axes: tuple[int, ...]
) -> None:
    base = PRESETS["micro"]
    transformer = replace(
        base.transformer, num_layers=4, num_attention_heads=heads, attention_head_dim=head_dim, axes_dims_rope=axes
    )
    make(replace(base, transformer=transformer), tmp_path / "generated", seed=3)
    run = measure(load(tmp_path / "generated"), (7, 9), 0, 0.5)
    expected = 16 * base.growth ** np.arange(1, 5)
    assert (np.abs(np.log2(run.amax / expected)) < 1).all()
    assert 8 < run.norm_out < 32
    assert 2.2 < amax(run.output) < 8.8


def test_the_growth_factor_is_a_choice(tmp_path: Path) -> None:
    base = PRESETS["micro"]
    shape = replace(base, growth=1.6, transformer=replace(base.transformer, num_layers=8))
    make(shape, tmp_path / "generated")
    run = measure(load(tmp_path / "generated"), (8, 8), 0, 0.5)
    assert abs(np.log2(run.amax[-1] / (16 * 1.6**8))) < 1


@pytest.mark.slow
def test_full_width_grows_as_micro_does(tmp_path: Path) -> None:
    base = PRESETS["micro"]
    transformer = replace(PRESETS["full"].transformer, num_layers=2, joint_attention_dim=64)
    make(replace(base, transformer=transformer), tmp_path / "generated")
    generated = load(tmp_path / "generated")
    for t in (1.0, 0.5, 0.05):
        run = measure(generated, (7, 9), 0, t)
        assert 8 < run.img_in < 32
        assert (np.abs(np.log2(run.amax / (16 * base.growth ** np.arange(1, 3)))) < 1).all()
        assert len(run.stream[-1][0].abs().mean(0).gt(0.3 * run.amax[-1]).nonzero()) == 4
        assert 8 < run.norm_out < 32
        assert 2.2 < amax(run.output) < 8.8
        assert 0.5 < run.output.square().mean().sqrt() < 2
