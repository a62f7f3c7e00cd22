"""What memory is free: the kernel's word, and every limit of a control group above us, in both their versions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swarmnode.node.machine import hardware_name, read_host_memory, read_memory

GIB = 1 << 30


def system(root: Path, groups: str, *, available_gib: int = 8) -> Path:
    """A system's files with so much memory available, and this process in these control groups."""
    write(root / "proc/meminfo", f"MemTotal: 99999999 kB\nMemAvailable: {available_gib * GIB >> 10} kB\n")
    write(root / "proc/self/cgroup", groups)
    write(root / "proc/self/statm", "5000 1000 300 1 0 2000 0\n")
    return root


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def group(folder: Path, limit: str, used: int, *, caches: int = 0, high: str = "max") -> None:
    write(folder / "memory.max", limit + "\n")
    write(folder / "memory.high", high + "\n")
    write(folder / "memory.current", f"{used}\n")
    write(folder / "memory.stat", f"anon 1\nfile 7\ninactive_file {caches // 2}\nactive_file {caches - caches // 2}\n")


def free(root: Path) -> int:
    memory = read_host_memory(root)
    assert memory is not None
    return memory.free


def test_no_group_limits_anything(tmp_path: Path) -> None:
    memory = read_host_memory(system(tmp_path, "0::/\n"))
    assert memory is not None
    assert (memory.free, memory.source) == (8 * GIB, "the kernel (MemAvailable)")
    assert memory.used > 0


def test_a_limit_counts_less_what_is_used_but_for_caches_of_files(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/user/me\n")
    group(root / "sys/fs/cgroup/user/me", str(4 * GIB), 3 * GIB, caches=GIB)
    memory = read_host_memory(root)
    assert memory is not None
    assert (memory.free, memory.source) == (2 * GIB, "the limit of a control group")


def test_the_tightest_of_all_groups_above_counts(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/a/b/c\n")
    group(root / "sys/fs/cgroup/a/b/c", "max", GIB)
    group(root / "sys/fs/cgroup/a/b", str(7 * GIB), GIB, high=str(5 * GIB))
    group(root / "sys/fs/cgroup/a", str(6 * GIB), 3 * GIB)
    assert free(root) == 3 * GIB
    group(root / "sys/fs/cgroup/a", "max", 3 * GIB)
    assert free(root) == 4 * GIB


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/not/visible/from/here\n")
    group(root / "sys/fs/cgroup", str(2 * GIB), GIB)
    assert free(root) == GIB


def test_groups_of_version_1(tmp_path: Path) -> None:
    root = system(tmp_path, "5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n")
    folder = root / "sys/fs/cgroup/memory/x"
    write(folder / "memory.limit_in_bytes", f"{3 * GIB}\n")
    write(folder / "memory.usage_in_bytes", f"{2 * GIB}\n")
    write(folder / "memory.stat", f"cache 9\ntotal_inactive_file {GIB}\ntotal_active_file 0\ninactive_file 5\n")
    write(root / "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(root / "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{20 * GIB}\n")
    assert free(root) == 2 * GIB


def test_more_used_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/\n")
    group(root / "sys/fs/cgroup", str(GIB), 2 * GIB)
    assert free(root) == 0


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert read_host_memory(tmp_path) is None


def test_this_machine() -> None:
    memory = read_memory(torch.device("cpu"))
    assert memory is None or memory.free > memory.used > 0
    assert "torch" in hardware_name(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu() -> None:
    memory = read_memory(torch.device("cuda"))
    assert memory is not None
    assert memory.free > GIB
    assert torch.cuda.get_device_name() in hardware_name(torch.device("cuda"))
