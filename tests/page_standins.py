"""What the commands of the pages are given in a test: small stand-ins under the printed names, and quick settings."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from precision_lab.cli import main
from tests.page_blocks import ROOT

CASE = ("sampler.steps=1", "image.height=32", "image.width=32")
PICTURES = (*CASE, "prompts=[a,b]", "seeds=[0]")
RUN = (*PICTURES, "latency.min_rounds=0", "latency.max_rounds=0")
SCALES = (*CASE, "pinned.cases=null", "workers=1", "holdout.settings=[{}]")
ONE_LINEAR = 'of=["transformer_blocks.{0,1}.attn.to_q"]'

# settings that replace those of a command, so that it takes a second
QUICK: Mapping[str, Sequence[str]] = {
    "run": RUN,
    "gate": (*PICTURES, "latency.min_rounds=3", "latency.max_rounds=3"),
    "prove": ("draws=1",),
    "sensitivity": (*CASE, "prompts=[a]", ONE_LINEAR, "confirm=0", "candidate=[affine4]"),
    "culprits": (*CASE, "prompts=[a,b]", "checks=1"),
    "search": (*CASE, "prompts=[a,b]", "trials.cases=1", "trials.sizes=1", "trials.evaluations=2"),
    "search strategy=scales": (*SCALES, "coverage.settings=[{}]"),
    "search strategy=fp8_scales": SCALES,
    "models dump_inputs": CASE,
    "survival": (ONE_LINEAR, "candidate=[affine4]"),
}
# commands that generate with a model, for which a small checkpoint stands in
WITH_A_MODEL = {"run", "compare dump", "gate", "prove", "sensitivity", "culprits", "search", "survival"}
# settings that must stay as they are printed, if they are
KEPT = ("of", "candidate", "prompts", "seeds")


def quick(command: str, task: str, words: Sequence[str], model: Callable[[str], Path]) -> list[str]:
    """The words of a command with its quick settings; `model` gives the stand-in of a family, 1.x or 21."""
    settings = dict(word.split("=", 1) for word in QUICK.get(task, QUICK.get(command, ())))
    keys = [word.partition("=")[0].lstrip("+~") for word in words]
    settings = {key: value for key, value in settings.items() if key not in keys or key not in KEPT}
    kept = [word for word, key in zip(words, keys, strict=True) if key not in settings]
    if {command, task} & {*WITH_A_MODEL, "models dump_inputs"} and "model.path" not in keys and "run" not in keys:
        name = next((word.partition("=")[2] for word in words if word.startswith("model=")), "")
        if not name or name.startswith(("micro", "qwen_image")):
            of_21 = any("21" in word.partition("=")[2] for word in words if word.startswith(("model=", "+exp=")))
            settings["model.path"] = str(model("21" if of_21 else "1.x"))
    if "model=mlx_lm" in words:  # its cases have no pictures
        settings = {key: value for key, value in settings.items() if not key.startswith("image.")}
    return [*kept, *(f"{key}={value}" for key, value in settings.items())]


class StandIns:
    """Makes what a page names: checkpoints, runs, files. Each kind is made once and copied to the printed name."""

    def __init__(self, folder: Path, checkpoint: Path, checkpoint_21: Path):
        self.folder = folder
        self._models = {"1.x": checkpoint, "21": checkpoint_21}

    def model(self, family: str) -> Path:
        return self._models[family]

    def place(self, kind: str, target: Path) -> None:
        """Copies the stand-in of a kind to `target`. KeyError: no such kind."""
        made = getattr(self, f"_{kind}")()
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)
        if made.is_dir():
            shutil.copytree(made, target)
        else:
            shutil.copy(made, target)

    @classmethod
    def kinds(cls) -> set[str]:
        return {name[1:] for name in vars(cls) if name.startswith("_") and not name.startswith(("__", "_run_"))}

    def _checkpoint(self) -> Path:
        return self._models["1.x"]

    def _checkpoint_21(self) -> Path:
        return self._models["21"]

    def _other_checkpoint(self) -> Path:
        """The checkpoint with the linears of its first shard of the transformer changed."""
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        folder = self.folder / "other_checkpoint"
        if not folder.is_dir():
            shutil.copytree(self._models["1.x"], folder)
            shard = min((folder / "transformer").glob("*.safetensors"))
            with safe_open(shard, "pt") as opened:
                metadata = opened.metadata()
            save_file({name: 1.125 * tensor for name, tensor in load_file(shard).items()}, shard, metadata)
        return folder

    def _run(self) -> Path:
        return self._run_once("run", "technique=[ffn_scaling]", "+variants.bf16={dtype: bfloat16, technique: {}}")

    def _pinned_run(self) -> Path:
        return self._run_once("pinned_run", "+exp=gate", command=("run",), quick=(*CASE, "prompts=[a]"))

    def _sweep(self) -> Path:
        return self._run_once("sweep", "-m", "dtype=bfloat16,float16", into="hydra.sweep.dir")

    def _sensitivity(self) -> Path:
        return self._run_once("sensitivity", command=("sensitivity",), quick=QUICK["sensitivity"])

    def _gguf(self) -> Path:
        from safetensors.torch import load_file

        from tests.model.stored_files import write_gguf

        file = self.folder / "transformer.gguf"
        if not file.is_file():
            shards = sorted((self._models["1.x"] / "transformer").glob("*.safetensors"))
            write_gguf(file, {name: tensor for shard in shards for name, tensor in load_file(shard).items()})
        return file

    def _device(self) -> Path:
        folder = self.folder / "device"
        folder.mkdir(exist_ok=True)
        shutil.copy(ROOT / "results" / "reference" / "cpu" / "device" / "device.json", folder)
        return folder

    def _dump(self) -> Path:
        """What the port of `models dump_inputs=inputs.safetensors` in the working folder saves; it is right."""
        import mlx.core as mx

        from precision_lab.lab.one_pass import read_inputs
        from precision_lab.synthetic.source import QwenImage
        from tests.lab.foreign_ports import dump_of_lab

        one = read_inputs(QwenImage("micro", str(self._models["1.x"])), Path("inputs.safetensors"))
        return dump_of_lab(one, mx.bfloat16, self.folder / "dump.safetensors")

    def _adapter(self) -> Path:
        import numpy as np
        from safetensors.numpy import save_file

        file, rng = self.folder / "adapter.safetensors", np.random.default_rng(0)
        factors = {"lora_A": (2, 64), "lora_B": (64, 2)}
        save_file(
            {
                f"transformer.transformer_blocks.{block}.attn.to_q.{name}.weight": rng.normal(0, 0.1, shape).astype(
                    "f4"
                )
                for block in (0, 1)
                for name, shape in factors.items()
            },
            file,
        )
        return file

    def _language_model(self) -> Path:
        from tests.model.test_mlx_lm import write

        folder = self.folder / "language_model"
        if not folder.is_dir():
            write(folder)
        return folder

    def _history(self) -> Path:
        from tests.cli.test_report_history import recorded

        return recorded(self.folder)

    def _run_once(
        self, name: str, *words: str, command: Sequence[str] = (), quick: Sequence[str] = RUN, into: str = "out"
    ) -> Path:
        folder = self.folder / name
        if not folder.is_dir():
            assert main([*command, *words, *quick, f"model.path={self._models['1.x']}", f"{into}={folder}"]) == 0
        return folder
