"""`synthetic://PRESET` is generated once, completely, only in the cache, and never taken from another generator."""

import ast
import errno
import filecmp
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from precision_lab import synthetic
from precision_lab.errors import InputError
from precision_lab.record import files
from precision_lab.synthetic import PRESETS, cache, checkpoint, make, on_demand

MICRO = PRESETS["micro"]
SOURCES = sorted(Path(synthetic.__file__).parent.rglob("*.py"))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def assert_same(first: Path, second: Path) -> None:
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    assert filecmp.cmpfiles(first, second, names, shallow=False)[0] == names


def refusal(preset: str = "micro") -> str:
    with pytest.raises(InputError) as caught:
        on_demand(preset)
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def test_it_equals_the_output_of_make(micro_synthetic, tmp_path):
    make(MICRO, tmp_path / "generated")
    assert_same(micro_synthetic, tmp_path / "generated")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_model_reads_every_preset(preset):
    """The command `models` names it."""
    assert (Path(synthetic.__file__).parents[2] / "conf" / "model" / f"{preset}_synthetic.yaml").is_file()


def test_it_is_generated_once(home, monkeypatch):
    folder = on_demand("micro", seed=3)
    assert folder.parent == home / "precision_lab" / "synthetic"
    assert folder.name == f"micro-3-{cache.key(MICRO)}"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing temporary is left"
    monkeypatch.setattr(cache, "make", lambda *args: pytest.fail("generated again"))
    assert on_demand("micro", seed=3) == folder


def test_without_xdg_it_lies_under_home(tmp_path, monkeypatch):
    generated = []
    monkeypatch.setattr(cache, "make", lambda shape, folder, seed: generated.append(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    for relative in ("", "caches/relative"):  # a relative path is ignored
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        on_demand("micro")
    assert {folder.parent for folder in generated} == {tmp_path / ".cache" / "precision_lab" / "synthetic"}


def test_another_generator_is_another_folder(tmp_path, monkeypatch):
    """The key depends on every source of the package, the shape with its defaults, the template and NumPy."""
    copied = shutil.copytree(Path(synthetic.__file__).parent, tmp_path / "copied")
    copies = sorted(copied.rglob("*.py"))
    assert len(copies) == len(SOURCES)
    known = cache.key(MICRO, copies)
    assert known == cache.key(MICRO) == cache.key(MICRO, reversed(copies))
    for copy in copies:
        text = copy.read_text()
        copy.write_text(text + "\n")
        assert cache.key(MICRO, copies) != known, copy.name
        copy.write_text(text)
    assert cache.key(MICRO, copies) == known
    assert cache.key(replace(MICRO, growth=1.2)) != known
    assert cache.key(replace(MICRO, scheduler=replace(MICRO.scheduler, max_shift=1.0))) != known
    for owner, name, value in ((type(MICRO), "template", "{}"), (cache, "np", SimpleNamespace(__version__="0.0"))):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert cache.key(MICRO) != known, name


def test_the_key_covers_all_imports_of_the_generator():
    """It may import only configurations, which the shape's repr shows, and the template; extend the key for others."""
    imported = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("precision_lab."):
                imported |= {(node.module, name.name) for name in node.names}
            elif isinstance(node, ast.Import):
                assert not any(name.name.startswith("precision_lab") for name in node.names)
    others = {(module, name) for module, name in imported if not module.startswith("precision_lab.synthetic")}
    models = [f"precision_lab.model.{model}" for model in ("qwen_image", "qwen_image_21")]
    for model in models:
        assert {name for module, name in others if module == f"{model}.config"} == {
            f"{part}Config" for part in ("TextEncoder", "Transformer", "VAE")
        }
    assert {entry for entry in others if entry[0] not in [f"{model}.config" for model in models]} == {
        ("precision_lab.model.language_body_config", "LanguageBodyConfig"),
        ("precision_lab.model.text_to_image.scheduler", "QWEN_IMAGE"),
        ("precision_lab.model.text_to_image.scheduler", "SchedulerConfig"),
        ("precision_lab.device.cache", "user_cache"),
        ("precision_lab.errors", "InputError"),
        ("precision_lab.errors", "nearest"),
        ("precision_lab.model.qwen_image", "subject"),
        ("precision_lab.model.qwen_image.prompt", "TEMPLATE"),
        ("precision_lab.model.qwen_image_21", "subject"),
        ("precision_lab.model.qwen_image_21.prompt", "TEMPLATE"),
        ("precision_lab.model.text_to_image.source", "Source"),
        ("precision_lab.record.files", "replacing"),
    }


def test_two_processes_make_it_at_the_same_time(home, micro_synthetic):
    code = "from precision_lab.synthetic import on_demand; print(on_demand('micro'))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    folder = home / "precision_lab" / "synthetic" / micro_synthetic.name
    assert results == [(f"{folder}\n", "", 0)] * 2
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "the loser leaves nothing"
    assert_same(folder, micro_synthetic)


@pytest.mark.parametrize("moment", ["before", "at the end"])
def test_another_process_may_be_first(home, micro_synthetic, monkeypatch, moment):
    def overtaken(module, name):
        original = getattr(module, name)

        def call(*args):
            shutil.copytree(micro_synthetic, home / "precision_lab" / "synthetic" / micro_synthetic.name)
            return original(*args)

        return call

    if moment == "before":
        monkeypatch.setattr(cache, "make", overtaken(cache, "make"))
    else:
        monkeypatch.setattr(checkpoint.os, "replace", overtaken(os, "replace"))
    folder = on_demand("micro")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert_same(folder, micro_synthetic)


def test_presets_that_are_unknown_or_large(home):
    assert "Did you mean micro, micro_21?" in refusal("mirco")
    assert "unknown preset" in refusal("")
    assert "57.7 GB" in refusal("full")
    assert "models make=full to=DIR" in refusal("full")
    assert "models make=transformer_21 to=DIR" in refusal("transformer_21")
    assert not home.exists()


@pytest.mark.parametrize("place", ["/proc/nowhere", "{}/file", "{}/file/below", "/dev/null"])
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", place.format(tmp_path))
    message = refusal()
    assert message.startswith("model.path synthetic://micro cannot be kept")
    assert place.format(tmp_path) in message
    assert "XDG_CACHE_HOME" in message


def test_a_user_without_a_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert "no home folder" in refusal()


def test_a_full_disk(home, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shards, "fill", full)
        assert "No space left on device" in refusal()
        patch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        assert "0.00 GB free" in refusal()
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert on_demand("micro").is_dir()
