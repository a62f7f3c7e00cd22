"""What this machine is and what memory it has free. Reads it; decides nothing.

A CPU's free memory is what the kernel says can be had without swapping, within the limits of every control group that
this process is in; an accelerator's is what its driver says.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Memory", "cpu_name", "hardware_name", "read_host_memory", "read_memory"]

_UNLIMITED_BYTES = 1 << 60
"""Control groups of version 1 write "no limit" as a number near 2⁶³."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a device.

    Attributes:
        free: bytes that can be had now.
        used: bytes that this process has taken already.
        source: who says so, for people.
    """

    free: int
    used: int
    source: str


def read_memory(device: torch.device) -> Memory | None:
    """The memory of the device that blocks will be on; None where the system does not say."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return Memory(free, torch.cuda.memory_reserved(device), "the GPU's driver")
    host = read_host_memory()
    if device.type == "mps":
        import torch

        # It shares the machine's memory; Metal advises how much of it one process should take.
        used = torch.mps.driver_allocated_memory()
        advised = torch.mps.recommended_max_memory() - used
        return Memory(advised if host is None else min(advised, host.free), used, "Metal")
    return host


def read_host_memory(root: Path = Path("/")) -> Memory | None:
    """The memory of the machine for this process, or None where the system does not say (it is no Linux).

    Args:
        root: where `proc` and `sys` are.
    """
    available = _meminfo(root, "MemAvailable")
    if available is None:
        return None
    free, source = available, "the kernel (MemAvailable)"
    for room in _group_rooms(root):
        if room < free:
            free, source = room, "the limit of a control group"
    return Memory(free, _resident(root), source)


def hardware_name(device: torch.device) -> str:
    """What speed depends on, in words: the device, and for a CPU how many threads compute."""
    import torch

    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{device.type} of {cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def cpu_name() -> str:
    """The processor's own name for itself, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _meminfo(root: Path, name: str) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return None


def _resident(root: Path) -> int:
    pages = "".join(_lines(root / "proc/self/statm")).split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else 0


def _group_rooms(root: Path) -> Iterator[int]:
    """What each limit of a control group above us leaves: bytes, its caches of files counted as free."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _rooms(root / "sys/fs/cgroup", path, ("memory.max", "memory.high"), "memory.current", "")
        elif "memory" in controllers.split(","):
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
            yield from _rooms(root / "sys/fs/cgroup/memory", path, (limit,), usage, "total_")


def _rooms(mount: Path, path: str, limits: tuple[str, ...], usage: str, prefix: str) -> Iterator[int]:
    # Inside a container the path may be that of the host, while the mount shows our own group as its root.
    group = mount / path.strip("/")
    while True:
        used = _number(group / usage)
        if used is not None:
            caches = (f"{prefix}active_file", f"{prefix}inactive_file")
            used -= sum(int(line.split()[1]) for line in _lines(group / "memory.stat") if line.split()[0] in caches)
            for limit in limits:
                most = _number(group / limit)
                if most is not None and most < _UNLIMITED_BYTES:
                    yield max(0, most - used)
        if group == mount:
            return
        group = group.parent


def _number(file: Path) -> int | None:
    """The number in a file; None where there is none, or `max`."""
    text = "".join(_lines(file)).strip()
    return int(text) if text.isdecimal() else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
