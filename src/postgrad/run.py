"""The run directory: resolved config, metrics.jsonl, trajectories, seeds; and the only way files reach the disk.

Whatever is written here is whole or absent after `kill -9`, and a full disk is a sentence, not a traceback.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from safetensors import SafetensorError

from postgrad.errors import DataError, StoreError
from postgrad.metrics import METRIC_KEYS
from postgrad.types import Group, Trajectory

CERTIFICATE = "certificate.json"
"""Beside a reward model: what it was found to be worth."""
STEPS = "steps.json"
"""Beside a reward model of steps: how they are told apart."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's complaint about `path` into one sentence with the fix.

    Raises:
        StoreError: the disk is full, or `path` cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as e:
        if getattr(e, "errno", None) in DISK_FULL or "No space left" in str(e):
            problem = f"disk full while writing {path}; free space and run the same command again"
        else:
            reason = getattr(e, "strerror", None) or e
            problem = f"cannot write {path}: {reason}; mend that and run the same command again"
        raise StoreError(problem) from e


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """One object a line; answers hold characters, such as U+2028, that `str.splitlines` takes for the end of one."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def atomic_write(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` in one step, on the disk before this returns; folders are made as needed.

    Half a surrogate pair, which has no bytes in UTF-8, is written as the escape that JSON has for it.

    Raises:
        StoreError: the disk is full or the folder cannot be written; `path` is then as it was.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                _sync(file)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(directory: Path) -> str:
    """Hex digest over the relative names and bytes of every file below `directory`; unfinished writes do not count."""
    files = {
        path.relative_to(directory).as_posix(): path
        for path in directory.rglob("*")
        if path.is_file() and not (path.name.startswith(".") and path.name.endswith(".tmp"))
    }
    listing = "".join(f"{sha256_file(files[name])}  {name}\n" for name in sorted(files))
    return hashlib.sha256(listing.encode("utf-8")).hexdigest()


class WorkspaceLock:
    """One process a workspace. The kernel holds the lock (flock), so it goes with the process, even on `kill -9`."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            StoreError: another process holds it, or the workspace cannot be written.
        """
        with disk_errors(self.workspace):
            self.workspace.mkdir(parents=True, exist_ok=True)
            file = open(self.workspace / ".lock", "a+", encoding="ascii")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise StoreError(
                f"workspace {str(self.workspace)!r} is in use by process {holder}; "
                "wait for it, stop it, or choose another workspace"
            ) from None
        self._file = file
        with disk_errors(self.workspace):
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._file is not None, "the lock is left once, after it was entered"
        self._file.close()
        self._file = None


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One stage's files under `path`: config.json, metrics.jsonl, warnings.jsonl, trajectories/step-0001.jsonl."""

    path: Path
    root_seed: int = 0

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def warnings_path(self) -> Path:
        return self.path / "warnings.jsonl"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Keep the resolved configuration beside what it produced."""
        atomic_write(self.path / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    def seed(self, step: int, *salt: str | int) -> int:
        """A seed in [0, 2**63) that depends on (root seed, step, salt) alone: stable across processes and machines."""
        text = json.dumps([self.root_seed, step, *salt])
        return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") >> 1

    def write_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step's line to metrics.jsonl; a value that is not finite is written as null.

        Raises:
            StoreError: the disk is full; no half line is left.
        """
        unknown = sorted(metrics.keys() - METRIC_KEYS.keys())
        assert not unknown, f"metric keys {unknown} are not in METRIC_KEYS"
        values = {key: float(value) if math.isfinite(value) else None for key, value in metrics.items()}
        _append(self.metrics_path, json.dumps({"step": step, **values}) + "\n")

    def read_metrics(self) -> list[dict[str, float]]:
        """Every whole line, in order; null values are left out, and so is a torn last line.

        Raises:
            DataError: a line that is not the last does not parse.
        """
        return read_metrics(self.metrics_path)

    def write_warning(self, warning: Mapping[str, Any]) -> None:
        """Append one line to warnings.jsonl.

        Raises:
            StoreError: the disk is full; no half line is left.
        """
        _append(self.warnings_path, json.dumps(warning, ensure_ascii=False) + "\n")

    def read_warnings(self) -> list[dict[str, Any]]:
        """Every whole line of warnings.jsonl, in order.

        Raises:
            DataError: a line that is not the last does not parse.
        """
        return [row for _, row in _whole_lines(self.warnings_path)] if self.warnings_path.exists() else []

    def truncate_after(self, step: int) -> None:
        """Forget the metrics, warnings and trajectories of steps after `step`, which a resumed run will repeat."""
        for path in (self.metrics_path, self.warnings_path):
            if path.exists():
                kept = [line for line, row in _whole_lines(path) if row["step"] <= step]
                atomic_write(path, b"".join(kept))
        for path in (self.path / "trajectories").glob("step-*.jsonl"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()

    def save_groups(self, step: int, groups: Sequence[Group]) -> Path:
        """Write every trajectory of the step, one a line: prompt, token ids, logprobs, scores, policy version."""
        lines = [
            json.dumps(_trajectory_record(group, index, trajectory), ensure_ascii=False) + "\n"
            for index, group in enumerate(groups)
            for trajectory in group.trajectories
        ]
        path = self._trajectories_path(step)
        atomic_write(path, "".join(lines))
        return path

    def read_trajectories(self, step: int) -> list[dict[str, Any]]:
        """What `save_groups` wrote at `step`.

        Raises:
            DataError: the step was not saved, or a line does not parse.
        """
        path = self._trajectories_path(step)
        if not path.exists():
            raise DataError(f"{path} does not exist: no trajectories were saved at step {step}")
        return [row for _, row in _whole_lines(path)]

    def saved_steps(self) -> list[int]:
        """Steps whose trajectories were saved, in order."""
        return sorted(int(p.stem.removeprefix("step-")) for p in (self.path / "trajectories").glob("step-*.jsonl"))

    def _trajectories_path(self, step: int) -> Path:
        return self.path / "trajectories" / f"step-{step:04d}.jsonl"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.jsonl; a file that does not exist has none. See `RunDirectory.read_metrics`."""
    return tail_metrics(path, 0)[0]


def tail_metrics(path: Path, start: int) -> tuple[list[dict[str, float]], int]:
    """Rows that begin at byte `start` or later, and where the next one will begin; see `RunDirectory.read_metrics`."""
    rows = []
    if path.exists():
        for line, row in _whole_lines(path, start):
            start += len(line)
            rows.append({key: value for key, value in row.items() if value is not None})
    return rows, start


def _trajectory_record(group: Group, index: int, trajectory: Trajectory) -> dict[str, Any]:
    messages = group.example.prompt.messages
    return {
        "group": index,
        "example_id": group.example.id,
        "prompt": next((m.content for m in reversed(messages) if m.role == "user"), ""),
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        "id": trajectory.id,
        "status": trajectory.status,
        "error": trajectory.error,
        "reward": trajectory.reward,
        "scores": [asdict(score) for score in trajectory.scores],
        "turns": [
            {
                "prompt_ids": turn.prompt_ids,
                **asdict(turn.completion),
                "feedback": [{"role": m.role, "content": m.content} for m in turn.feedback],
            }
            for turn in trajectory.turns
        ],
    }


def _whole_lines(path: Path, start: int = 0) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(line, its object) from byte `start` on; a last line without its newline was torn by a crash and does not count.

    Line numbers in errors count from `start`.
    """
    with open(path, "rb") as file:
        file.seek(start)
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line.decode("utf-8", errors="replace"))
            except json.JSONDecodeError as e:
                raise DataError(f"{path}, line {number} is not JSON ({e.msg}); remove that line") from None
            yield line, row


def _append(path: Path, line: str) -> None:
    """Add a line after the last whole one; on failure the file is as it was."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with open(descriptor, "r+b", buffering=0) as file:
            end = _end_of_whole_lines(file)
            try:
                file.seek(end)
                file.write(line.encode("utf-8"))
                _sync(file)
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
            file.truncate()


def _end_of_whole_lines(file: IO[bytes]) -> int:
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
