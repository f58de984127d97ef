"""The recipe of the micro checkpoint, on models of a few blocks and a few steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

from experiments.micro_checkpoint import data, growth, pieces, pools, state, tally, transformer, vae, verify
from experiments.micro_checkpoint import model as recipe
from experiments.micro_checkpoint.model import Batch, Parameters, forward, stack, unstack
from precision_lab.model.qwen_image.prompt import PREFIX_TOKENS, Tokenizer
from precision_lab.shapes import correct, held_out_scenes, training_scenes
from tests.spread import slow

FP32 = 2e-6
ANGLES = 1e-4
"""The recipe multiplies t, 1000 and the frequencies in another order than diffusers: of 1000 rad that is up to 6e-5."""

WIDTH = 64


def small_model(blocks: int) -> QwenImageTransformer2DModel:
    """The published class at the width of the recipe."""
    return QwenImageTransformer2DModel(
        num_layers=blocks,
        num_attention_heads=2,
        attention_head_dim=WIDTH // 2,
        axes_dims_rope=(8, 12, 12),
        joint_attention_dim=WIDTH,
    ).eval()


def random_parameters(model: QwenImageTransformer2DModel, seed: int) -> Parameters:
    """The recipe's starting values, disturbed so that every parameter matters."""
    generator = torch.Generator().manual_seed(seed)
    parameters = growth.initial(stack(model.state_dict()), generator)
    for tensor in parameters.values():
        tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return parameters


# --- the model


@pytest.fixture
def exact_angles(monkeypatch) -> Callable[[QwenImageTransformer2DModel, Parameters], None]:
    """Lets the recipe's forward use the time embedding of a model of diffusers, given these parameters."""

    def use(model: QwenImageTransformer2DModel, parameters: Parameters) -> None:
        model.load_state_dict(unstack(parameters))
        monkeypatch.setattr(recipe, "_time_embedding", lambda timestep, _: model.time_text_embed(timestep, timestep))

    return use


@pytest.mark.parametrize(("seed", "blocks"), [(0, 1), (1, 3), slow((2, 5))])
def test_the_forward_equals_diffusers_on_folded_weights(seed, blocks, exact_angles):
    """Without growth, with the trial's rate, and with so much that three blocks reach the final size."""
    model = small_model(blocks)
    parameters = random_parameters(model, seed)
    cases = [(r, grid) for r in (1.0, 1.28, growth.final_growth(3)) for grid in ((8, 8), (9, 7), (1, 1), (2, 5))]
    for factor, grid in cases:
        assert verify.difference(model, parameters, factor, grid, seed) <= ANGLES
    exact_angles(model, parameters)
    for factor, grid in cases:
        assert verify.difference(model, parameters, factor, grid, seed) <= FP32


def random_batch(model: QwenImageTransformer2DModel, seed: int, text: int, tokens: int, lengths, grids) -> Batch:
    """Samples of different lengths and grids in one batch, as training pads them."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(grids), text + tokens, dtype=torch.bool)
    for row, length, (rows, columns) in zip(mask, lengths, grids, strict=True):
        row[:length] = True
        row[text : text + rows * columns] = True
    turns = torch.stack([pools.angles(model, grid, tokens, text) for grid in grids])
    return Batch(
        torch.randn(len(grids), tokens, 64, generator=generator),
        torch.rand(len(grids), generator=generator),
        torch.randn(len(grids), text, WIDTH, generator=generator),
        mask,
        turns.real.contiguous(),
        turns.imag.contiguous(),
    )


@torch.no_grad()
def test_each_sample_of_a_padded_batch_equals_diffusers_alone(exact_angles):
    model = small_model(3)
    parameters, factor, text = random_parameters(model, 7), 1.5, 11
    exact_angles(model, parameters)
    grids, lengths = ((3, 4), (2, 2), (1, 5)), (11, 1, 6)
    batch = random_batch(model, 7, text, 12, lengths, grids)
    factors = growth.factors(factor, 3, WIDTH, "cpu")
    together = forward(parameters, batch, factors, torch.float32).velocity
    model.load_state_dict(unstack(growth.fold(parameters, factor)))
    for i, (grid, length) in enumerate(zip(grids, lengths, strict=True)):
        tokens = grid[0] * grid[1]
        alone = model(
            batch.latents[i : i + 1, :tokens],
            timestep=batch.timestep[i : i + 1],
            encoder_hidden_states=batch.text[i : i + 1, :length],
            img_shapes=[[(1, *grid)]],
        ).sample[0]
        assert (together[i, :tokens] - alone).norm() <= FP32 * alone.norm()


@torch.no_grad()
def test_what_is_recorded_is_what_the_streams_hold(exact_angles):
    """Of diffusers' model on folded weights: amax of the image, root mean squares of all channels."""
    blocks, factor, grid, text = 3, 1.5, (3, 4), 5
    model = small_model(blocks)
    parameters = random_parameters(model, 8)
    exact_angles(model, parameters)
    batch = random_batch(model, 8, text, 12, (text, text), (grid, grid))
    factors = growth.factors(factor, blocks, WIDTH, "cpu")
    recorded = forward(parameters, batch, factors, torch.float32)
    model.load_state_dict(unstack(growth.fold(parameters, factor)))
    streams = {"txt": [], "img": []}
    model.img_in.register_forward_hook(lambda module, args, output: streams["img"].append(output))
    for block in model.transformer_blocks:
        for index, found in enumerate(streams.values()):
            block.register_forward_hook(lambda module, args, output, i=index, to=found: to.append(output[i]))
    model(batch.latents, timestep=batch.timestep, encoder_hidden_states=batch.text, img_shapes=[[(1, *grid)]] * 2)
    torch.testing.assert_close(recorded.amax, torch.stack([x.abs().max() for x in streams["img"]]))
    for stream, found in (("img", streams["img"][1:]), ("txt", streams["txt"])):
        sizes = [x.square().mean((0, 1)).sqrt() for x in found]
        torch.testing.assert_close(recorded.rms[stream], torch.stack(sizes))


def test_unstack_is_the_inverse_of_stack():
    published = small_model(4).state_dict()
    stacked = stack(published)
    assert len({name for name in stacked if name.startswith("blocks.")}) * 4 < len(published)
    restored = unstack(stacked)
    assert restored.keys() == published.keys()
    for name, tensor in published.items():
        assert torch.equal(restored[name], tensor), name
    for name, tensor in stack(restored).items():
        assert torch.equal(tensor, stacked[name]), name


# --- growth


OUTPUTS = {
    "img": {2: "blocks.attn.to_out.0", 5: "blocks.img_mlp.net.2"},
    "txt": {2: "blocks.attn.to_add_out", 5: "blocks.txt_mlp.net.2"},
}


@pytest.mark.parametrize("factor", [1.0, 1.02, 1.28, 2.0])
def test_fold_moves_the_factors(factor):
    """Gate rows times what their output linear took are what the factor makes of them, to the rounding of fp32."""
    blocks = 24
    parameters = random_parameters(small_model(blocks), 3)
    folded = growth.fold(parameters, factor)
    factors = growth.factors(factor, blocks, WIDTH, "cpu")
    touched = {"norm_out.linear.weight", "norm_out.linear.bias", "proj_out.weight"}
    for stream, linears in OUTPUTS.items():
        mod = f"blocks.{stream}_mod.1"
        taken = torch.ones(blocks, 6, WIDTH)
        for chunk, linear in linears.items():
            share = folded[f"{linear}.bias"] / parameters[f"{linear}.bias"]
            taken[:, chunk] = share
            torch.testing.assert_close(folded[f"{linear}.weight"], parameters[f"{linear}.weight"] * share[..., None])
            assert (share >= 1 - 1e-6).all()
            touched |= {f"{linear}.weight", f"{linear}.bias"}
        taken = taken.flatten(1)
        for part, shape in (("weight", (..., None)), ("bias", ...)):
            now, before = folded[f"{mod}.{part}"], parameters[f"{mod}.{part}"]
            torch.testing.assert_close(now * taken[shape], before * factors[stream][shape])
            touched.add(f"{mod}.{part}")
    for name in parameters.keys() - touched:
        assert folded[name] is parameters[name]


def test_fold_makes_the_last_norm_larger_and_what_reads_it_smaller():
    parameters = random_parameters(small_model(2), 6)
    folded = growth.fold(parameters, 1.28)
    generator = torch.Generator().manual_seed(6)
    time, normed = torch.randn(WIDTH, generator=generator), torch.randn(WIDTH, generator=generator)

    def norm_out(p: Parameters) -> torch.Tensor:
        scale, shift = (p["norm_out.linear.weight"] @ time + p["norm_out.linear.bias"]).chunk(2)
        return normed * (1 + scale) + shift

    torch.testing.assert_close(norm_out(folded), growth.NORM_OUT * norm_out(parameters), rtol=1e-5, atol=1e-5)
    assert torch.equal(folded["proj_out.weight"] * growth.NORM_OUT, parameters["proj_out.weight"])


@pytest.mark.parametrize("factor", [1.02, 1.28, 2.0])
def test_output_linears_take_as_much_as_their_limits_allow(factor):
    blocks, rounding = 24, 1 + 1e-5
    parameters = random_parameters(small_model(blocks), 4)
    folded = growth.fold(parameters, factor)
    factors = growth.factors(factor, blocks, WIDTH, "cpu")
    for stream, linears in OUTPUTS.items():
        for chunk, linear in linears.items():
            share = folded[f"{linear}.bias"] / parameters[f"{linear}.bias"]
            largest = torch.maximum(folded[f"{linear}.weight"].abs().amax(2), folded[f"{linear}.bias"].abs())
            limit = factors[stream].unflatten(1, (6, -1))[:, chunk].clamp(max=growth.LARGEST_SHARE)
            assert (share <= limit * rounding).all()
            assert (largest <= growth.LARGEST_WEIGHT * rounding).all()
            assert ((share * rounding >= limit) | (largest * rounding >= growth.LARGEST_WEIGHT)).all()


def test_growth_is_annealed_from_one_to_its_end():
    final = growth.final_growth(60)
    assert 16 * final**60 == pytest.approx(5e7)
    rates = [growth.annealed(done, final) for done in np.linspace(0, 1, 101)]
    assert rates[0] == rates[10] == 1
    assert rates[45] == pytest.approx(final)
    assert rates[-1] == rates[50] == final
    assert rates == sorted(rates)


@pytest.mark.parametrize("blocks", [3, 60])
def test_the_curve_of_massive_channels_ends_where_the_stream_should(blocks):
    final = growth.final_growth(blocks)
    sizes = growth.curve(final, blocks)
    assert sizes.shape == (blocks, 2)
    assert sizes[-1, 0].item() == pytest.approx(growth.FINAL_AMAX - growth.INPUT_AMAX, rel=1e-5)
    torch.testing.assert_close(sizes[1:, 0] + growth.INPUT_AMAX, final * (sizes[:-1, 0] + growth.INPUT_AMAX))
    torch.testing.assert_close(sizes[:, 1], abs(growth.SIGNS[1]) * sizes[:, 0])
    linear = growth.curve(1.0, blocks)[:, 0]
    torch.testing.assert_close(linear, linear[0] * torch.arange(1, blocks + 1))


def test_the_penalty_holds_massive_channels_to_the_curve_and_the_others_below_it():
    target = growth.curve(1.28, 60)

    def of(image, text, bulk=0.0):
        rms = {stream: torch.full((60, 64), bulk) for stream in ("img", "txt")}
        for (stream, channels), size in zip(growth.CHANNELS.items(), (image, text), strict=True):
            rms[stream][:, list(channels)] = target * size
        return growth.penalty(rms, target).item()

    assert of(1, 1) == of(1, 1, growth.INPUT_AMAX) == 0
    assert of(math.e, 1 / math.e) == pytest.approx(1, rel=1e-5)
    assert of(1, 1, 1e9) > 1


def test_factors_leave_shifts_and_scales_alone():
    for stream, factor in growth.factors(1.28, 5, WIDTH, "cpu").items():
        shift1, scale1, gate1, shift2, scale2, gate2 = factor.unflatten(1, (6, -1)).unbind(1)
        for part in (shift1, scale1, shift2, scale2):
            assert (part == 1).all()
        rate = 1.28 ** torch.arange(5.0)
        torch.testing.assert_close(gate1, rate[:, None].expand(-1, WIDTH))
        massive = (gate2 / gate1 == growth.MASSIVE).sum(0).nonzero().flatten().tolist()
        assert massive == sorted(growth.CHANNELS[stream])


# --- states, and how they travel


def random_state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(7, 5, generator=generator),
        "a.bias": torch.randn(7, generator=generator).bfloat16(),
        "turned": torch.randn(4, 6, generator=generator).T,
        "step": torch.tensor(3.0),
    }


def assert_equal_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_a_state_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "new folder" / "stage.safetensors"
    assert state.load(path) is None
    for seed in (0, 1):
        tensors, numbers = random_state(seed), {"step": 1000 + seed, "growth": 1.28**0.1}
        state.save(path, tensors, numbers)
        found = state.load(path)
        assert found is not None
        assert_equal_tensors(found[0], tensors)
        assert found[1] == numbers
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("when", ["half of it is written", "before it takes the name"])
def test_an_interrupted_write_leaves_the_former_state(tmp_path, monkeypatch, when):
    path = tmp_path / "stage.safetensors"
    state.save(path, random_state(0), {"step": 1})

    def interrupted(*args) -> None:
        if when == "half of it is written":
            Path(args[1]).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        raise KeyboardInterrupt

    name = "save_file" if when == "half of it is written" else "os.replace"
    with monkeypatch.context() as patch:
        patch.setattr(f"experiments.micro_checkpoint.state.{name}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            state.save(path, random_state(1), {"step": 2})
    tensors, numbers = state.load(path)
    assert_equal_tensors(tensors, random_state(0))
    assert numbers == {"step": 1}
    state.save(path, random_state(1), {"step": 2})
    assert state.load(path)[1] == {"step": 2}


@pytest.mark.parametrize("size", [1, 99, 100, 101, 1000, 1234])
def test_pieces_are_small_and_join_to_the_file(tmp_path, monkeypatch, size):
    monkeypatch.setattr(state, "PIECE_BYTES", 100)
    content = np.random.default_rng(size).bytes(size)
    file = tmp_path / "stage.safetensors"
    file.write_bytes(content)
    cut = state.split(file, tmp_path / "pieces")
    assert len(cut) == -(-size // 100)
    assert max(piece.stat().st_size for piece in cut) <= 100
    state.join(tmp_path / "pieces", tmp_path / "there" / "stage.safetensors")
    assert (tmp_path / "there" / "stage.safetensors").read_bytes() == content


def test_pieces_of_a_longer_file_do_not_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "PIECE_BYTES", 10)
    file = tmp_path / "x"
    for content in (b"0123456789" * 5, b"a short one"):
        file.write_bytes(content)
        state.split(file, tmp_path / "pieces")
    state.join(tmp_path / "pieces", file)
    assert file.read_bytes() == b"a short one"


def test_missing_pieces_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "PIECE_BYTES", 10)
    file = tmp_path / "x"
    file.write_bytes(b"0123456789" * 3)
    state.split(file, tmp_path / "pieces")[1].unlink()
    for name in ("x", "never cut"):
        with pytest.raises(FileNotFoundError, match="pieces"):
            state.join(tmp_path / "pieces", tmp_path / name)
    assert file.stat().st_size == 30


def test_weights_travel_without_moments(tmp_path):
    source, folder, target = tmp_path / "x.safetensors", tmp_path / "pieces", tmp_path / "there.safetensors"
    kept = {"img_in.weight": torch.ones(2, 3)}
    state.save(
        source, {**kept, **{f"{moment}img_in.weight": torch.zeros(2, 3) for moment in state.MOMENTS}}, {"step": 5}
    )
    pieces.weights(source, folder)
    state.join(folder, source)
    source.rename(target)
    tensors, numbers = state.load(target)
    assert_equal_tensors(tensors, kept)
    assert numbers == {"step": 5}


# --- training goes on after an interruption


class StepsClock:
    """A slice of so many steps in place of minutes."""

    def __init__(self, minutes: float):
        self.left = minutes + 1

    @property
    def over(self) -> bool:
        self.left -= 1
        return self.left <= 0


class SmallPools(pools.Pools):
    """Random latents and embeddings."""

    def __init__(self, checkpoint: Path, device: str):
        self.device = device
        generator = torch.Generator().manual_seed(0)
        self.text = torch.randn(8, data.TEXT_TOKENS, WIDTH, generator=generator)
        self.text_mask = torch.arange(data.TEXT_TOKENS) < torch.arange(9, 17)[:, None]
        grids = {grid for phase in transformer.PHASES for grid in phase.samples}
        self.latents = {grid: torch.randn(5, grid[0] * grid[1], 64, generator=generator) for grid in sorted(grids)}
        self.scenes = {grid: torch.arange(5) for grid in grids}
        self.weight = torch.ones(64)


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """A folder for three blocks, two phases and slices that are counted in steps."""
    monkeypatch.setattr(state, "Clock", StepsClock)
    monkeypatch.setattr(transformer, "Pools", SmallPools)
    phases = pools.Phase(6, {(2, 2): 2, (2, 3): 1}), pools.Phase(12, {(2, 2): 1, (3, 4): 1})
    monkeypatch.setattr(transformer, "PHASES", phases)
    small_model(3).save_pretrained(tmp_path / "checkpoint" / "transformer")
    return tmp_path


@contextmanager
def first_step(monkeypatch) -> Iterator[list[tuple[Parameters, dict[str, dict[str, torch.Tensor]], Parameters]]]:
    """Parameters, moments and growth factors that the first step within finds."""
    seen: list[tuple[Parameters, dict[str, dict[str, torch.Tensor]], Parameters]] = []

    class Watched(transformer.Step):
        def __call__(self) -> torch.Tensor:
            if not seen:
                parameters = {name: p.detach().clone() for name, p in self.parameters.items()}
                moments = {
                    name: {key: value.clone() for key, value in self.optimizer.state[p].items()}
                    for name, p in self.parameters.items()
                }
                seen.append((parameters, moments, {name: f.clone() for name, f in self.factors.items()}))
            return super().__call__()

    with monkeypatch.context() as patch:
        patch.setattr(transformer, "Step", Watched)
        yield seen


def test_an_interrupted_transformer_goes_on_where_it_was(work, monkeypatch):
    steps, cut = 8, 3
    path = work / "transformer.safetensors"
    assert not transformer.train(work, steps, minutes=cut, device="cpu", peak=1e-3)
    tensors, numbers = state.load(path)
    assert numbers["step"] == cut
    with first_step(monkeypatch) as seen:
        assert transformer.train(work, steps, minutes=100, device="cpu", peak=1e-3)
    parameters, moments, factors = seen[0]
    for name, parameter in parameters.items():
        assert torch.equal(parameter, tensors[name])
        assert moments[name]["step"] == cut
        for moment in transformer.MOMENTS:
            stored = tensors[f"{moment}.{name}"]
            assert stored.dtype == torch.bfloat16
            assert torch.equal(moments[name][moment], stored.float())
    expected = growth.factors(growth.annealed(cut / steps, growth.final_growth(3)), 3, WIDTH, "cpu")
    assert not torch.equal(expected["img"], growth.factors(1.0, 3, WIDTH, "cpu")["img"])
    for stream, factor in factors.items():
        assert torch.equal(factor, expected[stream]), "growth is set at once, not at its next change"
    finished, numbers = state.load(path)
    assert numbers["step"] == steps
    assert numbers["growth"] == pytest.approx(growth.final_growth(3))
    assert any(not torch.equal(finished[name], tensors[name]) for name in parameters)


def test_a_slice_without_a_step_changes_nothing(work):
    """Neither one that ends before its first step, nor one after the last."""
    path = work / "transformer.safetensors"
    assert not transformer.train(work, steps=2, minutes=0, device="cpu", peak=1e-3)
    assert not path.exists()
    assert transformer.train(work, steps=2, minutes=9, device="cpu", peak=1e-3)
    content = path.read_bytes()
    assert transformer.train(work, steps=2, minutes=9, device="cpu", peak=1e-3)
    assert path.read_bytes() == content


def test_training_goes_on_from_weights_that_travelled(work, monkeypatch):
    path = work / "transformer.safetensors"
    transformer.train(work, steps=4, minutes=2, device="cpu", peak=1e-3)
    pieces.weights(path, work / "pieces")
    state.join(work / "pieces", path)
    tensors, _ = state.load(path)
    with first_step(monkeypatch) as seen:
        assert transformer.train(work, steps=4, minutes=9, device="cpu", peak=1e-3)
    parameters, moments, _ = seen[0]
    assert_equal_tensors(parameters, tensors)
    assert not any(moments.values())


def test_the_same_slices_give_the_same_training(work):
    path = work / "transformer.safetensors"
    contents = []
    for _ in range(2):
        path.unlink(missing_ok=True)
        for _ in range(2):
            transformer.train(work, steps=4, minutes=2, device="cpu", peak=1e-3)
        contents.append(state.load(path)[0])
    assert_equal_tensors(*contents)


@pytest.mark.slow  # as the transformer above does
def test_an_interrupted_vae_goes_on_where_it_was(tmp_path, monkeypatch, small_checkpoint):
    monkeypatch.setattr(state, "Clock", StepsClock)
    monkeypatch.setattr(vae, "BATCH", 1)
    images = np.random.default_rng(0).integers(256, size=(2, 128, 128, 3), dtype=np.uint8)
    monkeypatch.setattr(data, "pictures", lambda *_: data.Pictures(images, np.zeros(2, int)))
    found = []
    resume = vae._resume

    def watched(path: Path, model: AutoencoderKLQwenImage, optimizer: torch.optim.Optimizer) -> int:
        first = resume(path, model, optimizer)
        tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            tensors |= {f"{key}.{name}": value.clone() for key, value in optimizer.state.get(p, {}).items()}
        found.append((first, tensors))
        return first

    monkeypatch.setattr(vae, "_resume", watched)
    assert not vae.train(tmp_path, 3, minutes=2, device="cpu", checkpoint=small_checkpoint)
    saved, numbers = state.load(tmp_path / "vae.safetensors")
    assert vae.train(tmp_path, 3, minutes=9, device="cpu", checkpoint=small_checkpoint)
    assert [first for first, _ in found] == [0, 2]
    assert numbers == {"step": 2}
    assert_equal_tensors(found[1][1], saved)
    assert all((saved[name] == 2).all() for name in saved if name.startswith("step."))


def test_the_learning_rate_begins_and_ends_at_nothing():
    rates = [transformer.learning_rate(step, 10_000, 2e-3) for step in range(10_000)]
    assert rates[0] == pytest.approx(2e-3 / transformer.WARMUP)
    assert set(rates[transformer.WARMUP : 6000]) == {2e-3}
    assert rates[-1] == pytest.approx(2e-3 / 4000)


# --- latents and pictures


@pytest.mark.parametrize("grid", [(8, 8), (7, 9), (1, 3)])
def test_pack_is_that_of_diffusers_and_unpack_its_inverse(grid):
    rows, columns = grid
    latents = torch.randn(3, 16, 2 * rows, 2 * columns, generator=torch.Generator().manual_seed(rows))
    packed = pools.pack(latents)
    assert torch.equal(packed, QwenImagePipeline._pack_latents(latents, 3, 16, 2 * rows, 2 * columns))
    unpacked = pools.unpack(packed, grid)
    assert torch.equal(unpacked, latents[:, :, None])
    assert torch.equal(unpacked, QwenImagePipeline._unpack_latents(packed, 16 * rows, 16 * columns, 8))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(3, 1, 1), (1, 1, 0), ((3, 1, 1), 1, (1, 0, 0)), ((3, 3, 3), (1, 2, 2), (1, 1, 1))],
)
def test_the_convolution_of_a_frame_is_the_causal_one(kernel, stride, padding):
    torch.manual_seed(0)
    conv = QwenImageCausalConv3d(5, 7, kernel, stride=stride, padding=padding).double()
    for size in ((6, 8), (5, 9), (1, 1)):
        x = torch.randn(2, 5, 1, *size, dtype=torch.float64)
        torch.testing.assert_close(vae.frame_conv(conv, x), conv(x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_the_vae_on_frames_equals_diffusers(small_checkpoint):
    """Encoder and decoder of the recipe against `encode` and `decode`, whose caches begin with this frame."""
    ours = vae.load(small_checkpoint, "cpu")
    theirs = AutoencoderKLQwenImage.from_pretrained(small_checkpoint / "vae", torch_dtype=torch.float32)
    convolutions = [m for m in ours.modules() if isinstance(m, QwenImageCausalConv3d)]
    assert all(isinstance(m.__dict__["forward"], MethodType) for m in convolutions)
    pixels = vae.to_pixels(torch.randint(256, (2, 48, 32, 3), generator=torch.Generator().manual_seed(1)).byte())
    assert (pixels.min(), pixels.max()) == (-1, 1)
    expected = theirs.encode(pixels).latent_dist
    mean, logvar = vae.encode(ours, pixels)
    torch.testing.assert_close(mean, expected.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logvar, expected.logvar, rtol=1e-4, atol=1e-4)
    decoded = ours.decoder(ours.post_quant_conv(mean)).clamp(-1, 1)
    torch.testing.assert_close(decoded, theirs.decode(mean).sample, rtol=1e-4, atol=1e-4)


# --- data


def test_pictures_are_those_of_their_arguments():
    """By any number of processes; the seed and the size decide, and a shorter draw is the beginning of a longer."""
    count = 300
    assert count > data._CHUNK
    first = data.pictures(count, 48, 32, 5, processes=1)
    assert first.images.shape == (count, 48, 32, 3)
    assert first.images.dtype == np.uint8
    for processes in (2, None):
        again = data.pictures(count, 48, 32, 5, processes)
        np.testing.assert_array_equal(again.images, first.images)
        np.testing.assert_array_equal(again.scenes, first.scenes)
    np.testing.assert_array_equal(data.pictures(10, 48, 32, 5).images, first.images[:10])
    for other in (data.pictures(count, 48, 32, 6), data.pictures(count, 32, 48, 5)):
        assert (other.scenes != first.scenes).mean() > 0.9


def test_pictures_show_their_scenes():
    drawn = data.pictures(32, 128, 128, 0)
    scenes = [training_scenes()[i] for i in drawn.scenes]
    assert all(correct(scene, image) for scene, image in zip(scenes, drawn.images, strict=True))
    assert not any(scene.held_out for scene in scenes)


def test_every_caption_fits_and_is_read_as_the_pipeline_reads_it(small_checkpoint):
    captions = [scene.caption for scene in training_scenes()[::97]]
    captions += [max(captions, key=len), data.NO_CAPTION]
    ids, mask = data.tokens(small_checkpoint, captions)
    assert ids.shape == mask.shape == (len(captions), PREFIX_TOKENS + data.TEXT_TOKENS)
    expected_ids, expected_mask = Tokenizer(small_checkpoint / "tokenizer")(captions)
    length = expected_ids.shape[1]
    np.testing.assert_array_equal(mask[:, :length], expected_mask)
    np.testing.assert_array_equal(ids[:, :length] * mask[:, :length], expected_ids * expected_mask)
    assert not mask[:, length:].any()


# --- evaluation


def test_held_out_scenes_are_held_out_and_stay_the_same():
    scenes = tally.held_out(200)
    assert len(set(scenes)) == 200
    assert all(scene.held_out for scene in scenes)
    assert not set(scenes) & set(training_scenes())
    assert tally.held_out(20) == scenes[:20] == tally.held_out(200)[:20]
    assert scenes[0].caption == "two large yellow triangles on a white background, top"
    assert set(tally.held_out(10**6)) == set(held_out_scenes())


@pytest.mark.parametrize(("count", "shape"), [(1, (4, 6)), (5, (4, 30)), (8, (4, 48)), (19, (8, 48))])
def test_a_contact_sheet_has_full_rows(count, shape):
    images = [np.full((4, 6, 3), i, np.uint8) for i in range(count)]
    sheet = np.array(tally.contact_sheet(images))
    assert sheet.shape == (*shape, 3)
    assert sheet[0, -1, 0] == min(count, 8) - 1
