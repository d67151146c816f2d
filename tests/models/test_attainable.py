"""What is left is read from the files in which Linux says it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from postgrad.models.attainable import attainable_bytes

CPU = torch.device("cpu")
UNLIMITED = 9223372036854771712
"""What version 1 says where nobody set a limit."""


def written(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")
    return folder


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """8 GB available to a process in cgroup /jobs/mine, of version 2 beside a version 1 without memory."""
    written(tmp_path / "proc", meminfo="MemTotal: 16000000 kB\nMemFree: 9 kB\nMemAvailable:   8000000 kB")
    written(tmp_path / "proc/self", cgroup="3:cpu,cpuacct:/jobs/mine\n0::/jobs/mine")
    return tmp_path / "proc"


def left(proc: Path) -> int:
    """Beside what the process holds, which differs from call to call by less than the rounding."""
    rest = attainable_bytes(CPU, proc=proc, cgroups=proc.parent / "cgroups") - psutil.Process().memory_info().rss
    return round(rest / 1e8) * 100


def test_without_a_cgroup_it_is_what_the_machine_has_available(proc):
    assert left(proc) == 8200  # kB are of 1024 bytes


def test_a_limit_of_version_2_counts_less_its_usage_without_cached_files(proc):
    stat = "anon 1\ninactive_file 300000000\nactive_file 200000000"
    written(proc.parent / "cgroups/jobs/mine", memory__max=4 * 10**9, memory__current=10**9, memory__stat=stat)
    assert left(proc) == 3500


def test_the_limit_of_a_cgroup_around_counts_too_and_max_is_none(proc):
    stat = "inactive_file 0\nactive_file 0"
    written(proc.parent / "cgroups/jobs/mine", memory__max="max", memory__current=10**9, memory__stat=stat)
    assert left(proc) == 8200
    written(proc.parent / "cgroups/jobs", memory__max=3 * 10**9, memory__current=10**9, memory__stat=stat)
    assert left(proc) == 2000


def test_a_limit_of_version_1_counts_and_the_largest_number_is_none(proc):
    written(proc / "self", cgroup="7:pids:/\n4:memory:/jobs/mine\n0::/")
    stat = "inactive_file 1\nactive_file 1\ntotal_inactive_file 500000000\ntotal_active_file 0"
    own = {"memory__usage_in_bytes": 10**9, "memory__stat": stat}
    written(proc.parent / "cgroups/memory/jobs/mine", memory__limit_in_bytes=UNLIMITED, **own)
    assert left(proc) == 8200
    # A container sees its own cgroup as the root, under a path from outside.
    written(proc.parent / "cgroups/memory", memory__limit_in_bytes=2 * 10**9, **own)
    assert left(proc) == 1500


def test_where_there_is_no_proc_it_is_all_the_memory_of_the_machine(tmp_path):
    assert attainable_bytes(CPU, proc=tmp_path / "none") == psutil.virtual_memory().total


def test_on_a_gpu_it_is_what_the_gpu_has_free_and_what_torch_holds_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7_000, 9_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    assert attainable_bytes(torch.device("cuda")) == 7_500
