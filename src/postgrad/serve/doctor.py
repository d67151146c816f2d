"""What this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from rich.markup import escape
from rich.table import Column, Table
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from postgrad.models.packaged import PACKAGED
from postgrad.models.pull import cached_models, hub_reachable, models_dir

Status = Literal["ok", "warn", "missing"]
_GB = 1e9
_HUB_TIMEOUT_S = 1.0
_COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    status: Status
    """"missing" is something that postgrad cannot do without."""
    detail: str
    fix: str = ""
    """A command or a sentence; empty where nothing is wrong."""


def diagnose(workspace: Path) -> list[Check]:
    """Look at everything; takes as long as importing torch, and changes nothing."""
    return [
        _python(),
        *_packages(),
        _cores(),
        _memory(),
        _disk("workspace", workspace),
        _disk("model cache", models_dir()),
        _accelerator(),
        _models(),
        _sqlite(workspace),
        *_postgresql(os.environ.get("POSTGRAD_DATABASE", "")),
        _bubblewrap(),
        _hub(),
    ]


def as_table(checks: Sequence[Check]) -> Table:
    table = Table(*(Column(header, overflow="fold") for header in ("check", "", "found", "what to do")))
    for check in checks:
        status = f"[{_COLOURS[check.status]}]{check.status}[/]"
        table.add_row(check.name, status, escape(check.detail), escape(check.fix))
    return table


def exit_code(checks: Sequence[Check]) -> int:
    """1 if something needed is missing."""
    return int(any(check.status == "missing" for check in checks))


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> list[Check]:
    """The requirements of the installed distribution against what is there."""
    try:
        lines = importlib.metadata.requires("postgrad") or []
        own = importlib.metadata.version("postgrad")
    except importlib.metadata.PackageNotFoundError:
        return [Check("packages", "warn", "postgrad itself is not installed", "pip install -e .")]
    found, checks = [f"postgrad {own}"], []
    for requirement in map(Requirement, lines):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        fix = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(requirement.name, "missing", "not installed", fix))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            checks.append(Check(requirement.name, "missing", f"{version} is not {requirement.specifier}", fix))
        elif requirement.name in ("torch", "transformers"):
            found.append(f"{requirement.name} {version}")
    return [Check("packages", "ok", ", ".join(found)), *checks]


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        return Check("cores", "warn", str(cores), "the quickstart is timed on two cores; expect twice as long")
    return Check("cores", "ok", str(cores))


def _memory() -> Check:
    memory = psutil.virtual_memory()
    detail = f"{memory.available / _GB:.1f} of {memory.total / _GB:.1f} GB free"
    if memory.available < 6 * _GB:
        return Check("memory", "warn", detail, "the quickstart takes up to 6 GB; close other programs")
    return Check("memory", "ok", detail)


def _disk(name: str, path: Path) -> Check:
    place = _existing(path)
    free = shutil.disk_usage(place).free
    detail = f"{free / _GB:.1f} GB free at {path}"
    if not os.access(place, os.W_OK):
        return Check(name, "missing", f"{place} cannot be written", "choose a directory that is yours")
    if free < 5 * _GB:
        return Check(name, "missing" if free < _GB else "warn", detail, "free 5 GB, or choose another disk")
    return Check(name, "ok", detail)


def _accelerator() -> Check:
    try:
        import torch
    except (ImportError, OSError) as e:
        return Check("accelerator", "missing", f"torch does not load: {e}", "pip install --force-reinstall torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("accelerator", "ok", ", ".join(names))
    if torch.backends.mps.is_available():
        return Check("accelerator", "ok", "Apple GPU (mps)")
    return Check("accelerator", "ok", "none; everything runs on the CPU")


def _models() -> Check:
    models = cached_models()
    detail = ", ".join(f"{m.name} ({m.source}, {m.num_bytes / _GB:.1f} GB)" for m in models) or "none"
    default = next(iter(PACKAGED))
    if default not in {model.name for model in models}:
        return Check("models", "warn", detail, f"postgrad models pull {default}")
    return Check("models", "ok", detail)


def _sqlite(workspace: Path) -> Check:
    """Whether the file system of the workspace takes a write-ahead log; network file systems often do not."""
    detail = f"SQLite {sqlite3.sqlite_version}"
    try:
        with tempfile.TemporaryDirectory(dir=_existing(workspace)) as folder:
            connection = sqlite3.connect(Path(folder) / "probe.db")
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            connection.close()
    except (OSError, sqlite3.Error) as e:
        return Check("database", "missing", f"{detail}; {e}", "choose a workspace on a local disk")
    if mode != "wal":
        return Check("database", "missing", f"{detail}, without WAL", "choose a workspace on a local disk")
    stored = workspace / "postgrad.db"
    size = f"{stored.stat().st_size / 1e6:.1f} MB at {stored}" if stored.exists() else "none yet"
    return Check("database", "ok", f"{detail}, WAL works; {size}")


def _postgresql(url: str) -> list[Check]:
    if not url.startswith("postgresql"):
        return []
    try:
        shown = make_url(url).render_as_string(hide_password=True)
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(parsed, connect_args={"connect_timeout": 3})
        with engine.connect() as connection:
            version = connection.execute(text("SHOW server_version")).scalar_one()
        engine.dispose()
    except (ArgumentError, NoSuchModuleError):
        return [
            Check("postgresql", "missing", "POSTGRAD_DATABASE is not a database URL", "postgresql://USER@HOST/NAME")
        ]
    except ModuleNotFoundError:
        return [Check("postgresql", "missing", "no driver", "pip install 'postgrad[postgres]'")]
    except SQLAlchemyError as e:
        reason = str(e.__cause__ or e).strip().splitlines()[0]
        return [Check("postgresql", "missing", f"{shown}: {reason}", "start the server or mend POSTGRAD_DATABASE")]
    return [Check("postgresql", "ok", f"{shown}: PostgreSQL {version}")]


def _bubblewrap() -> Check:
    """Needed for environments that run model-written code, and only there."""
    path = shutil.which("bwrap")
    if path is None:
        return Check("bubblewrap", "warn", "not found; running untrusted code is refused", "apt install bubblewrap")
    try:
        probe = subprocess.run(
            [path, "--ro-bind", "/", "/", "--unshare-all", "true"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return Check("bubblewrap", "warn", f"does not run: {e}", "apt install --reinstall bubblewrap")
    if probe.returncode:
        reason = probe.stderr.strip().splitlines()[0] if probe.stderr.strip() else "it failed"
        return Check("bubblewrap", "warn", reason, "allow unprivileged user namespaces")
    return Check("bubblewrap", "ok", path)


def _hub() -> Check:
    if os.environ.get("HF_HUB_OFFLINE"):
        return Check("hugging face hub", "ok", "switched off by HF_HUB_OFFLINE")
    if hub_reachable(_HUB_TIMEOUT_S):
        return Check("hugging face hub", "ok", "reachable")
    return Check("hugging face hub", "warn", "not reachable", "none needed for packaged models")


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    path = path.expanduser().absolute()
    return next(place for place in (path, *path.parents) if place.exists())
