"""Find the memory that a process may still use, within the machine, cgroups, SLURM and ulimits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.outputs import OCTAL

ROOT = Path("/")  # of /proc and the cgroups
CACHE = ("inactive_file", "active_file")  # of memory.stat: given back when memory is short
LIMITS = {  # type of file system -> files of a cgroup's limits and usage, and its caches
    "cgroup2": (("memory.max", "memory.high"), "memory.current", CACHE),
    "cgroup": (
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        tuple(f"total_{name}" for name in CACHE),
    ),
}
SLURM_UNITS = {"K": 2**10, "": 2**20, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """A share of the memory.

    Attributes:
        limit: bytes that this process may use in all, set by the user; None for no such limit.
        workers: processes on this machine that share its memory; None for those of torchrun.
    """

    limit: int | None = None
    workers: int | None = None

    def free(self) -> int:
        """Return the bytes that this process may still use."""
        mapped, own = _used()
        if self.limit is not None:
            return max(0, self.limit - own)
        workers = self.workers or _whole(os.environ.get("LOCAL_WORLD_SIZE")) or 1
        left = [available // workers for available in (_physical(), *_cgroups())]
        job, space = _slurm(), _address_space()
        left += [] if job is None else [job // workers - own]
        left += [] if space is None else [space - mapped]
        return max(0, min(left))


def limited(limit: int | None) -> Memory:
    """Return the memory that a user lets this process use.

    Raises:
        UsageFault: the process holds as much already, before it has read a model.
    """
    own = _used()[1]
    if limit is not None and limit <= own:
        raise UsageFault(
            f"--memory: {limit / 1e6:,.3g} MB is less than the {own / 1e6:,.0f} MB that this process holds "
            "before it reads a model.",
            "Give the most that it may use in all, such as --memory 4GB.",
        )
    return Memory(limit)


ALL = Memory()  # all of it, shared by the processes that torchrun started


def _physical() -> int:
    """Return the bytes available on the machine; half of all where it reports none."""
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:  # macOS
        return os.sysconf("SC_PHYS_PAGES") // 2 * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("proc/meminfo"):
        found = re.fullmatch(r"MemAvailable:\s*(\d+) kB\s*", line, re.ASCII)
        if found:
            return int(found[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroups() -> Iterator[int]:
    """Yield the bytes left in each cgroup of this process and in their parents."""
    paths = {}
    for line in _lines("proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    for line in _lines("proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        place, kind = before.split(" "), after.split(" ")
        if len(place) < 5 or len(kind) < 3 or kind[0] not in paths:
            continue
        if kind[0] == "cgroup" and "memory" not in kind[2].split(","):
            continue
        root, mount = (OCTAL.sub(lambda code: chr(int(code[1], 8)), text) for text in place[3:5])
        own = _below(paths[kind[0]], root)
        for folder in (own, *own.parents):
            left = _left(ROOT / mount.lstrip("/") / folder, *LIMITS[kind[0]])
            if left is not None:
                yield left


def _below(path: str, root: str) -> PurePosixPath:
    """Return the path of a cgroup relative to a mount whose root is `root`.

    A container may see a path of its host, or one above its own root: the mount is its cgroup then.
    """
    cgroup = PurePosixPath(path)
    if ".." in cgroup.parts or not cgroup.is_relative_to(root):
        return PurePosixPath()
    return cgroup.relative_to(root)


def _left(folder: Path, limits: tuple[str, ...], usage: str, cache: tuple[str, ...]) -> int | None:
    """Return the bytes left under a cgroup's own limit; None without one that can be read."""
    found = [_whole(_text(folder / name)) for name in limits]
    numbers = [number for number in found if number is not None]
    if not numbers:
        return None
    used = _whole(_text(folder / usage)) or 0
    pairs = [line.partition(" ")[::2] for line in _text(folder / "memory.stat").splitlines()]
    reclaimable = sum(_whole(value) or 0 for name, value in pairs if name in cache)
    return min(numbers) - max(0, used - reclaimable)


def _slurm() -> int | None:
    """Return the bytes of a SLURM job on this machine; None without a job, or without a limit."""
    for name, counts in (
        ("SLURM_MEM_PER_NODE", None),
        ("SLURM_MEM_PER_CPU", ("SLURM_CPUS_ON_NODE", "SLURM_JOB_CPUS_PER_NODE")),
        ("SLURM_MEM_PER_GPU", ("SLURM_GPUS_ON_NODE",)),
    ):
        found = re.fullmatch(
            r"(\d+)([KMGT]?)B?", os.environ.get(name, "").strip().upper(), re.ASCII
        )
        if found is None or int(found[1]) == 0:  # 0: no limit
            continue
        each = int(found[1]) * SLURM_UNITS[found[2]]
        if counts is None:
            return each
        listed = [re.match(r"\d+", os.environ.get(count, ""), re.ASCII) for count in counts]
        number = next(
            (int(match[0]) for match in listed if match), _cpus() if len(counts) > 1 else 1
        )
        return each * max(1, number)
    return None


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _address_space() -> int | None:
    """Return the bytes that `ulimit -v` lets this process map; None without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _used() -> tuple[int, int]:
    """Return the bytes that this process has mapped, and its resident ones without files."""
    sizes = [_whole(word) or 0 for word in _text(ROOT / "proc/self/statm").split()]
    if len(sizes) < 3:
        return 0, 0
    page = os.sysconf("SC_PAGE_SIZE")
    return sizes[0] * page, max(0, sizes[1] - sizes[2]) * page


def _lines(path: str) -> list[str]:
    return _text(ROOT / path).splitlines()


def _text(path: Path) -> str:
    """Return the text of a file; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _whole(text: str | None) -> int | None:
    """Return a whole number from 0 on; None for `max` and any other text."""
    found = re.fullmatch(r"\s*(\d{1,20})\s*", text or "", re.ASCII)
    return int(found[1]) if found else None
