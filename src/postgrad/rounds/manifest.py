"""The round's unit of truth: which stage made what from what, in how long, from how many tokens, under which versions.

WORKSPACE/rounds/0001-name/ holds manifest.json, recipe.json (resolved) and stages/NAME/. Every write is atomic, so
after `kill -9` the manifest names the stage that was running, and the same command continues there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import resource
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from postgrad.errors import StoreError
from postgrad.models.memory import return_freed_memory
from postgrad.run import atomic_write, disk_errors, sha256_file

STAGES = ("prompts", "sft", "samples", "labels", "reward", "rl", "arena", "gate")
"""In the order of the loop."""

METHODS: Mapping[str, tuple[str, ...]] = {
    "round": STAGES,
    "pretrain": ("text", "tokenizer", "pretrain", "evaluate"),
    "rl": ("questions", "rl"),
    "reward": ("pairs", "reward", "certificate"),
    "steps": ("steps", "process", "outcome"),
    "preference": ("pairs", "reference", "preference", "evaluate"),
    "sft": ("data", "sft"),
    "distill": ("questions", "distill", "arena"),
}
"""A recipe's method -> its stages, in order; those of "iterate" and "compare" depend on their recipe, and a round that
a held-out ensemble examines has one more."""

SCRATCH = "checkpoints"
"""A stage's folder of this name holds what only a resumption needs; it is no output."""

State = Literal["running", "done", "failed"]


def plan_stages(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of all stages of a resolved recipe, in order."""
    if recipe["method"] == "compare":
        used = {key for method in recipe["methods"] for key, section in method.items() if section is not None}
        edits = ("edits",) if "edits" in used else ()
        reward = ("reward",) if used & {"best", "rl"} else ()
        return (*STAGES[:4], *edits, *reward, *(method["name"] for method in recipe["methods"]), "arena")
    if recipe["method"] == "round" and (recipe.get("exam") or {}).get("gold") == "ensemble":
        before = STAGES.index("rl")
        return (*STAGES[:before], "gold", *STAGES[before:])
    if recipe["method"] != "iterate":
        return METHODS[recipe["method"]]
    rounds = range(1, recipe["iterate"]["rounds"] + 1)
    return ("questions", *(f"{name}-{k}" for k in rounds for name in ("sample", "teach", "sft")), "arena")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Tokens(_Record):
    generated: int = 0
    trained: int = 0
    scored: int = 0


class StageRecord(_Record):
    name: str
    status: State
    started_at: str
    """ISO 8601, UTC; of the first attempt."""
    seconds: float = 0.0
    """Summed over resumptions, as of the last save."""
    tokens: Tokens = Field(default_factory=Tokens)
    peak_memory_bytes: int = 0
    """Largest resident set of the process while the stage ran (on macOS: since the process began)."""
    inputs: dict[str, str] = Field(default_factory=dict)
    outputs: dict[str, str] = Field(default_factory=dict)
    """Path below the round's directory -> SHA-256."""
    policy_version: int | None = None
    summary: dict[str, Any] = Field(default_factory=dict)
    error: str | None = None


class RoundRecord(_Record):
    id: str
    method: str = "round"
    recipe: str
    recipe_sha256: str
    seed: int
    created_at: str
    status: State
    versions: dict[str, str]
    model: dict[str, str]
    plan: tuple[str, ...] = ()
    """Names of all stages, in order, where the method alone does not say them."""
    stages: list[StageRecord] = Field(default_factory=list)


class Manifest:
    """A round's record and the directory it describes."""

    def __init__(self, directory: Path, record: RoundRecord) -> None:
        self.directory = directory
        self.record = record

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read `directory`/manifest.json.

        Raises:
            StoreError: there is none, or it is not a manifest.
        """
        path = directory / "manifest.json"
        try:
            return cls(directory, RoundRecord.model_validate_json(path.read_bytes()))
        except FileNotFoundError:
            raise StoreError(f"{directory} is not a round: it has no manifest.json; see `postgrad rounds`") from None
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise StoreError(f"{path}: {where}: {first['msg']}; restore the file or delete the round") from None

    def save(self) -> None:
        """Replace manifest.json.

        Raises:
            StoreError: the disk is full.
        """
        atomic_write(self.directory / "manifest.json", self.record.model_dump_json(indent=2) + "\n")

    def find(self, name: str) -> StageRecord | None:
        """The stage's record, or None where the round has not reached it."""
        return next((stage for stage in self.record.stages if stage.name == name), None)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of all stages, in order, reached or not."""
        return self.record.plan or METHODS[self.record.method]

    @property
    def policy(self) -> Path | None:
        """Directory of the last policy that was made."""
        made = [self.stage_directory(stage.name) / "policy" for stage in self.record.stages if stage.status == "done"]
        return next((path for path in reversed(made) if path.is_dir()), None)

    def stage_directory(self, name: str) -> Path:
        assert name in self.stages, f"{name!r} is not one of {self.stages}"
        return self.directory / "stages" / name

    def digest(self, name: str) -> str:
        """One SHA-256 for all outputs of a finished stage: the `inputs` entry of the stages that read them."""
        record = self.find(name)
        assert record is not None, f"stage {name!r} must be done before its outputs are read"
        assert record.status == "done", f"stage {name!r} must be done before its outputs are read"
        listing = "".join(f"{digest}  {path}\n" for path, digest in sorted(record.outputs.items()))
        return hashlib.sha256(listing.encode("utf-8")).hexdigest()

    def stage(self, name: str, *, inputs: Mapping[str, str]) -> Stage:
        """The stage as a context manager; do the work only where its `todo` is true.

        Raises:
            StoreError: it was begun from other inputs, or a file it had written has changed or is gone.
        """
        directory = self.stage_directory(name)
        record = self.find(name)
        if record is None:
            record = StageRecord(name=name, status="running", started_at=_now(), inputs=dict(inputs))
            return Stage(self, record, directory, todo=True)
        self._check_inputs(record, inputs)
        if record.status == "done":
            self._check_outputs(record)
        return Stage(self, record, directory, todo=record.status != "done")

    def finish(self) -> None:
        """Every stage is done: so is the round."""
        unfinished = [stage.name for stage in self.record.stages if stage.status != "done"]
        assert not unfinished, f"stages {unfinished} are not done"
        self.record.status = "done"
        self.save()

    def _check_inputs(self, record: StageRecord, inputs: Mapping[str, str]) -> None:
        for name in sorted(record.inputs.keys() | inputs.keys()):
            then, now = record.inputs.get(name, "absent"), inputs.get(name, "absent")
            if then != now:
                raise StoreError(
                    f"round {self.record.id}: stage {record.name!r} was begun with {name!r} = {then[:12]}, "
                    f"which is now {now[:12]}; restore it, or delete {self.directory} "
                    "and run the same command to begin again"
                )

    def _check_outputs(self, record: StageRecord) -> None:
        for relative, digest in record.outputs.items():
            path = self.directory / relative
            if not path.is_file():
                problem = "is gone"
            elif sha256_file(path) != digest:
                problem = "has changed"
            else:
                continue
            raise StoreError(
                f"round {self.record.id}: {path}, written by stage {record.name!r}, {problem}; "
                f"restore it, or delete {self.directory} and run the same command to begin again"
            )


class Stage:
    """One attempt at a stage. Set `summary` and `policy_version`, count tokens, and write files into `directory`."""

    def __init__(self, manifest: Manifest, record: StageRecord, directory: Path, *, todo: bool) -> None:
        self.todo = todo
        """False where an earlier run has finished the stage: its files are verified, and there is nothing to do."""
        self.directory = directory
        self.record = record
        self._manifest = manifest
        self._saved_at = 0.0

    @property
    def summary(self) -> dict[str, Any]:
        return self.record.summary

    @summary.setter
    def summary(self, value: Mapping[str, Any]) -> None:
        self.record.summary = dict(value)

    @property
    def policy_version(self) -> int | None:
        return self.record.policy_version

    @policy_version.setter
    def policy_version(self, value: int) -> None:
        self.record.policy_version = value

    def add_tokens(self, *, generated: int = 0, trained: int = 0, scored: int = 0) -> None:
        """Count work; kept by the next `save`, and by the end of the stage."""
        tokens = self.record.tokens
        tokens.generated += generated
        tokens.trained += trained
        tokens.scored += scored

    def save(self) -> None:
        """Keep seconds, tokens and peak memory so far; call beside every checkpoint.

        Raises:
            StoreError: the disk is full.
        """
        now = time.monotonic()
        self.record.seconds += now - self._saved_at
        self._saved_at = now
        self.record.peak_memory_bytes = max(self.record.peak_memory_bytes, _peak_memory_bytes())
        self._manifest.save()

    def __enter__(self) -> Self:
        if not self.todo:
            return self
        self._saved_at = time.monotonic()
        _reset_peak_memory()
        with disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        if self._manifest.find(self.record.name) is None:
            self._manifest.record.stages.append(self.record)
        self.record.status, self.record.error = "running", None
        self._manifest.record.status = "running"
        self.save()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Record success or failure; an interruption (Ctrl-C) leaves the stage running, to be continued."""
        if not self.todo:
            return
        if error is None:
            self.record.outputs = self._hash_outputs()
            self.record.status = "done"
        elif isinstance(error, Exception):
            self.record.status = self._manifest.record.status = "failed"
            self.record.error = str(error) or type(error).__name__
        # A disk too full for the manifest must not hide the error that is already on its way up.
        with contextlib.suppress(StoreError) if error is not None else contextlib.nullcontext():
            self.save()

    def _hash_outputs(self) -> dict[str, str]:
        scratch = self.directory / SCRATCH
        files = sorted(path for path in self.directory.rglob("*") if path.is_file())
        return {
            path.relative_to(self._manifest.directory).as_posix(): sha256_file(path)
            for path in files
            if scratch not in path.parents and not (path.name.startswith(".") and path.name.endswith(".tmp"))
        }


def recipe_sha256(recipe: Mapping[str, Any]) -> str:
    """Digest of a resolved recipe; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode("utf-8")).hexdigest()


def list_rounds(workspace: Path) -> list[Manifest]:
    """Every round of the workspace, oldest first.

    Raises:
        StoreError: a manifest cannot be read.
    """
    return [Manifest.load(path.parent) for path in sorted((workspace / "rounds").glob("[0-9]*-*/manifest.json"))]


def find_round(workspace: Path, reference: str) -> Manifest:
    """The round with this id ("0001-quickstart"), number ("1") or directory; "latest" is the newest.

    Raises:
        StoreError: there is no such round; the message lists those there are.
    """
    if (Path(reference) / "manifest.json").is_file():
        return Manifest.load(Path(reference))
    rounds = list_rounds(workspace)
    if reference == "latest" and rounds:
        return rounds[-1]
    for manifest in rounds:
        number = manifest.record.id.partition("-")[0]
        if reference == manifest.record.id or (reference.isdecimal() and int(reference) == int(number)):
            return manifest
    known = ", ".join(manifest.record.id for manifest in rounds) or "none yet; `postgrad quickstart` makes one"
    raise StoreError(f"no round {reference!r} in workspace {str(workspace)!r}; rounds: {known}")


def workspace_checkpoints(workspace: Path) -> set[str]:
    """What samples call the weights of the workspace's policies that are still there: see `graders.certificate`.

    Raises:
        StoreError: a manifest cannot be read.
    """
    found: dict[Path, list[str]] = {}
    for manifest in list_rounds(workspace):
        for stage in manifest.record.stages:
            for name, digest in sorted(stage.outputs.items()):
                path = manifest.directory / name
                if path.suffix == ".safetensors" and path.parent.name == "policy" and path.is_file():
                    found.setdefault(path.parent, []).append(digest + path.name)
    return {hashlib.sha256("".join(listing).encode("utf-8")).hexdigest() for listing in found.values()}


def find_or_create_round(
    workspace: Path,
    recipe: Mapping[str, Any],
    *,
    versions: Mapping[str, str],
    model: Mapping[str, str],
    once: bool = False,
) -> Manifest:
    """The unfinished round of the same resolved recipe, model and versions, or a new one.

    Args:
        workspace: made where it does not exist; the caller holds its lock.
        recipe: resolved, with "name", "seed" and "method"; kept as recipe.json.
        versions: of postgrad, python, torch, transformers, and the device: what a resumption must share to be exact.
        model: "name" and "sha256" of the initial policy.
        once: take a finished round too.

    Raises:
        StoreError: the disk is full, or a manifest cannot be read.
    """
    digest = recipe_sha256(recipe)
    for manifest in reversed(list_rounds(workspace)):
        record = manifest.record
        same = (record.recipe_sha256, record.versions, record.model) == (digest, dict(versions), dict(model))
        if same and (once or record.status != "done"):
            return manifest
    taken = [path.name for path in (workspace / "rounds").glob("[0-9]*-*")]
    number = 1 + max((int(name.partition("-")[0]) for name in taken if re.match(r"\d+-", name)), default=0)
    record = RoundRecord(
        id=f"{number:04d}-{recipe['name']}",
        method=recipe["method"],
        recipe=recipe["name"],
        recipe_sha256=digest,
        seed=recipe["seed"],
        created_at=_now(),
        status="running",
        versions=dict(versions),
        model=dict(model),
        plan=plan if (plan := plan_stages(recipe)) != METHODS.get(recipe["method"]) else (),
    )
    manifest = Manifest(workspace / "rounds" / record.id, record)
    atomic_write(manifest.directory / "recipe.json", json.dumps(recipe, indent=2, ensure_ascii=False) + "\n")
    manifest.save()
    return manifest


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak_memory() -> None:
    """Linux alone forgets a process's peak (proc_pid_clear_refs(5), value 5); elsewhere the peak is the process's."""
    return_freed_memory()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
