"""How much memory the process can have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

_CGROUPS = {"v2": ("memory.max", "memory.current"), "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes")}


def resident_bytes() -> int:
    """What the process holds now."""
    return int(psutil.Process().memory_info().rss)


def attainable_bytes(
    device: torch.device, *, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> int:
    """Most that the process can hold: what it has and what the machine and its container, or the GPU, have left.

    Where there is no /proc, as on macOS, it is all the memory of the machine.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if not (proc / "meminfo").exists():
        return int(psutil.virtual_memory().total)
    lines = (line.split() for line in (proc / "meminfo").read_text().splitlines())
    available = next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
    return resident_bytes() + min([available, *_left_in_cgroups(proc / "self/cgroup", cgroups)])


def _left_in_cgroups(memberships: Path, root: Path) -> Iterator[int]:
    """Limit minus usage of the process's memory cgroup and of those around it, where they set a limit."""
    for line in memberships.read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            version, base = "v2", root
        elif "memory" in controllers.split(","):
            version, base = "v1", root / "memory"
        else:
            continue
        limit_file, usage_file = _CGROUPS[version]
        own = base / path.lstrip("/")
        # A container may show its own cgroup as the root, whatever its path is outside.
        for folder in (own, *own.parents):
            if not folder.is_relative_to(base):
                break
            if (folder / limit_file).exists() and (limit := (folder / limit_file).read_text().strip()) != "max":
                yield int(limit) - int((folder / usage_file).read_text()) + _cached_files(folder / "memory.stat")


def _cached_files(stat: Path) -> int:
    """Counted as used, and given up when memory is short."""
    counts = dict(line.split() for line in stat.read_text().splitlines())
    return sum(int(counts.get(f"total_{key}", counts.get(key, 0))) for key in ("inactive_file", "active_file"))
