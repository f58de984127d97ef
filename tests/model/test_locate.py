"""Locating a checkpoint in a folder or a Hub repository. No test uses the network."""

import fnmatch
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import mlx.core as mx
import pytest

from precision_lab.errors import InputError
from precision_lab.model.qwen_image.checkpoint import Checkpoint, locate
from precision_lab.synthetic.source import QwenImage21


def refusal(action) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def test_folder_is_found(small_checkpoint, monkeypatch):
    assert locate(str(small_checkpoint)) == small_checkpoint
    monkeypatch.chdir(small_checkpoint.parent.parent)
    assert locate("/".join(small_checkpoint.parts[-2:])).samefile(small_checkpoint)
    monkeypatch.setenv("HOME", str(small_checkpoint.parent))
    assert locate("~/small") == small_checkpoint


@pytest.mark.parametrize("content", [None, "", "[]", "{"])
def test_folder_that_is_no_checkpoint_is_rejected(tmp_path, content):
    if content is not None:
        (tmp_path / "model_index.json").write_text(content)
    assert "model_index.json" in refusal(lambda: Checkpoint(locate(str(tmp_path))))


def test_paths_that_are_no_folder_are_rejected(small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    for source in (
        str(small_checkpoint / "model_index.json"),
        str(small_checkpoint / "transformer/diffusion_pytorch_model.safetensors"),
        str(tmp_path / "absent"),
        "absent",
        "file",
        "./absent/folder",
        "../a/b/c",
        "~nobody-of-this-name/checkpoint",
        "https://huggingface.co/Qwen/Qwen-Image",
        "Qwen/Qwen Image",
        "Qwen/",
        "名/前",
        300 * "x",
        "null\0byte",
    ):
        assert repr(source) in refusal(lambda s=source: locate(s))


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("qwen_image_bf16.safetensors", b"\x02\0\0\0\0\0\0\0{}", "a single safetensors file"),
        ("qwen-image-Q4_K_M.gguf", b"GGUF\x03\0\0\0", "a GGUF file"),
        ("GGUF of another name.safetensors", b"GGUF\x03\0\0\0", "a GGUF file"),
        ("model.ckpt", b"\x80\x02}q\0.", "a pickle"),
        ("model.pt", b"PK\x03\x04", "a pickle"),
    ],
)
def test_a_file_is_named_for_what_it_is(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    message = refusal(lambda: locate(str(tmp_path / name)))
    assert repr(str(tmp_path / name)) in message
    assert kind in message
    assert kind in refusal(lambda: locate(str(tmp_path))), "and so is the folder that holds it"


def test_a_folder_of_one_component_is_named_for_what_it_is(small_checkpoint, tmp_path):
    message = refusal(lambda: locate(str(small_checkpoint / "transformer")))
    assert f"component of a checkpoint: give {small_checkpoint}" in message
    (tmp_path / "config.json").write_text("{}")
    assert "like a single model" in refusal(lambda: locate(str(tmp_path)))


# files of Qwen/Qwen-Image, and further files in other repositories of this kind
NEEDED_FILES = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"text_encoder/{name}" for name in ("config.json", "model.safetensors.index.json")),
    *(f"text_encoder/model-{i:05d}-of-00004.safetensors" for i in range(1, 5)),
    *(f"tokenizer/{name}" for name in ("added_tokens.json", "chat_template.jinja", "merges.txt", "vocab.json")),
    *(f"tokenizer/{name}" for name in ("special_tokens_map.json", "tokenizer_config.json", "tokenizer.json")),
    *(f"transformer/{name}" for name in ("config.json", "diffusion_pytorch_model.safetensors.index.json")),
    *(f"transformer/diffusion_pytorch_model-{i:05d}-of-00009.safetensors" for i in range(1, 10)),
    *(f"vae/{name}" for name in ("config.json", "diffusion_pytorch_model.safetensors")),
]
OTHER_FILES = [
    ".gitattributes",
    "LICENSE",
    "README.md",
    "assets/teaser.png",
    "qwen_image_fp8.safetensors",
    "processor/preprocessor_config.json",
    "processor/tokenizer.json",
    "text_encoder/generation_config.json",
    "text_encoder/pytorch_model.bin",
    "transformer/diffusion_pytorch_model.bin",
    "transformer/modeling.py",
    "vae/diffusion_pytorch_model.ckpt",
]


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_only_needed_files_are_downloaded(small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []

    def snapshot_download(repo, **options):
        calls.append((repo, options))
        return str(small_checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert locate("Qwen/Qwen-Image", revision="abc") == small_checkpoint
    ((repo, options),) = calls
    assert repo == "Qwen/Qwen-Image"
    assert options["revision"] == "abc"
    selected = [
        file
        for file in NEEDED_FILES + OTHER_FILES
        if any(fnmatch.fnmatch(file, pattern) for pattern in options["allow_patterns"])
    ]
    assert selected == NEEDED_FILES


def test_a_checkpoint_of_2_1_needs_its_processor(small_checkpoint_21, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    patterns = []

    def snapshot_download(repo, **options):
        patterns.extend(options["allow_patterns"])
        return str(small_checkpoint_21)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    opened = QwenImage21(path="Qwen/Qwen-Image-2.1").opened
    assert opened.tokenizer().dropped == 12
    processor = [file.replace("tokenizer/", "processor/", 1) for file in NEEDED_FILES if file.startswith("tokenizer/")]
    needed = [file for file in NEEDED_FILES if not file.startswith("tokenizer/")] + processor
    unneeded = [file for file in OTHER_FILES if not file.startswith("processor/")] + ["tokenizer/vocab.json"]
    assert [f for f in needed + unneeded if any(fnmatch.fnmatch(f, pattern) for pattern in patterns)] == needed


def test_offline_without_a_cached_copy_is_rejected(empty_cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal(lambda: locate("Qwen/Qwen-Image"))
    assert "Qwen/Qwen-Image" in message
    assert "local cache" in message


def test_unreachable_hub_is_rejected(empty_cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    message = refusal(lambda: locate("Qwen/Qwen-Image"))
    assert "Qwen/Qwen-Image" in message
    assert "network" in message


@pytest.mark.parametrize("revision", [None, "0123456789abcdef0123456789abcdef01234567"])
def test_cached_copy_is_used_offline(empty_cache, tmp_path, small_checkpoint, monkeypatch, revision):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--some--model"
    shutil.copytree(small_checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    Checkpoint(locate("some/model", revision)).transformer(mx.float32)


@pytest.mark.parametrize(
    ("status", "code", "named"),
    [
        (404, "RepoNotFound", "no such repository"),
        (401, "RepoNotFound", "no such repository"),
        (403, "GatedRepo", "access"),
        (404, "RevisionNotFound", "no revision 'v9'"),
        (403, "", "cannot be fetched"),
    ],
)
def test_answers_of_the_hub_are_distinguished(empty_cache, monkeypatch, status, code, named):
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        message = refusal(lambda: locate("some/model", revision="v9"))
        server.shutdown()
    assert "some/model" in message
    assert named in message


def test_names_the_hub_does_not_allow_are_rejected(empty_cache):
    for name in ("a/b--c", "a/b..c", "a/b.git", "a/" + 100 * "b"):
        assert name in refusal(lambda n=name: locate(n))
