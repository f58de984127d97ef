"""`models`: a row for each option, whose sizes are those of real checkpoints and of the published totals."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from precision_lab import cli
from precision_lab.cli import listing
from precision_lab.cli.paths import option_files
from precision_lab.synthetic import PRESETS
from precision_lab.synthetic.checkpoint import make, weight_bytes
from precision_lab.synthetic.source import QwenImage, QwenImage21

MODELS = {"micro": QwenImage, "micro_21": QwenImage21}


@pytest.mark.parametrize("name", MODELS)
def test_the_memory_is_that_of_the_loaded_modules(name):
    source = MODELS[name](path=f"package://{name}", base=f"package://{name}")
    pipeline = source.opened.pipeline(mx.float32)
    parts = pipeline.transformer, pipeline.text_encoder, pipeline.vae
    loaded = sum(array.nbytes for part in parts for _, array in tree_flatten(part.parameters()))
    configs = listing.stated(source, listing._configs(PRESETS[source.preset], source))
    assert source.sizes(configs).resident == loaded


def test_the_files_that_are_written_are_as_large(tmp_path):
    make(PRESETS["micro_21"], tmp_path / "made")
    files = list((tmp_path / "made").rglob("*.safetensors"))
    headers = sum(8 + int.from_bytes(file.read_bytes()[:8], "little") for file in files)
    assert sum(file.stat().st_size for file in files) == headers + weight_bytes(PRESETS["micro_21"])


@pytest.mark.slow
def test_the_published_totals():
    """The parameters of the transformer and the language body, and the bytes of the files."""
    for preset, source, count in (("full", QwenImage, 20_430_401_088), ("full_21", QwenImage21, 7_115_124_736)):
        transformer = source.kind.modules["transformer"](PRESETS[preset].transformer)
        assert sum(array.size for _, array in tree_flatten(transformer.parameters())) == count
    language = QwenImage.kind.modules["text_encoder"](PRESETS["full"].text_encoder)
    assert sum(array.size for _, array in tree_flatten(language.parameters())) == 7_070_619_136
    assert weight_bytes(PRESETS["full"]) / 1e9 == pytest.approx(57.7, abs=0.05)
    vae_in_fp32 = 2 * 337_740_404
    assert (weight_bytes(PRESETS["full_21"]) + vae_in_fp32) / 1e9 == pytest.approx(33.1, abs=0.05)


@pytest.mark.parametrize(("name", "source"), [("micro_21", QwenImage21), ("blocks", QwenImage)])
def test_streaming_holds_two_blocks(name, source):
    needed = source.sizes(listing._configs(PRESETS[name], source))
    assert 0 < needed.streamed <= needed.resident


@pytest.mark.slow
def test_every_option_has_a_row_and_a_licence(capsys):
    assert cli.main(["models"]) == 0
    out = capsys.readouterr().out
    for name, file in option_files("model").items():
        assert f"model={name} " in out
        if name != "mlx_lm":
            assert "# Licence: " in file.read_text(), name
    for figure in ("57.7 GB", "33.1 GB", "55.1 GB", "2.6 GB", "Qwen Research License"):
        assert figure in " ".join(out.split())


def test_an_option_without_facts_is_unknown(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("# @package _global_\n# Mine.\nmodel:\n  _target_: nowhere.Source\n")
    assert listing._needs("own", file) == ("yours", "-", "-", "-", "-")
