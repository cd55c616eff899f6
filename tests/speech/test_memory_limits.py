"""What memory a process may use, read from trees that look as the kernel's do."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.speech import memory
from lorsmerge_cli.speech.memory import Memory, limited

GB = 10**9
MIB = 2**20
PAGE = os.sysconf("SC_PAGE_SIZE")
MACHINE = 64 * GB  # available
V1_NONE = "9223372036854771712"  # what version 1 has in place of `max`


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 GB without cgroups or SLURM, on which this process uses 0.5 GB of its own."""
    for name in list(os.environ):
        if name.startswith("SLURM_") or name == "LOCAL_WORLD_SIZE":
            monkeypatch.delenv(name)
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    say(tmp_path, "proc/meminfo", f"MemTotal: 99999999 kB\nMemAvailable: {MACHINE // 1024} kB\n")
    say(tmp_path, "proc/self/statm", f"{4 * GB // PAGE} {GB // PAGE} {GB // PAGE // 2} 1 0 1 0\n")
    return tmp_path


def say(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def mounted(root: Path, *mounts: tuple[str, str, str]) -> None:
    """Mount points with their roots and their file systems' type and options."""
    lines = ["23 1 0:2 / /proc rw - proc proc rw"]
    for number, (inner, where, what) in enumerate(mounts, 30):
        kind, _, options = what.partition(" ")
        lines.append(f"{number} 23 0:{number} {inner} {where} rw shared:9 - {kind} x rw,{options}")
    say(root, "proc/self/mountinfo", "\n".join(lines) + "\n")


def version2(
    root: Path, folder: str, limit: str, used: int = 0, cache: tuple[int, int] = (0, 0)
) -> None:
    say(root, f"{folder}/memory.max", limit + "\n")
    say(root, f"{folder}/memory.current", f"{used}\n")
    stat = f"anon 5\nfile 99999999999\ninactive_file {cache[0]}\nactive_file {cache[1]}\n"
    say(root, f"{folder}/memory.stat", stat)


def version1(
    root: Path, folder: str, limit: str, used: int = 0, cache: tuple[int, int] = (0, 0)
) -> None:
    say(root, f"{folder}/memory.limit_in_bytes", limit + "\n")
    say(root, f"{folder}/memory.usage_in_bytes", f"{used}\n")
    stat = (
        f"cache 7\ninactive_file 3\ntotal_inactive_file {cache[0]}\ntotal_active_file {cache[1]}\n"
    )
    say(root, f"{folder}/memory.stat", stat)


UNIFIED = ("/", "/sys/fs/cgroup", "cgroup2 nsdelegate")
VERSION1 = ("/", "/sys/fs/cgroup/memory", "cgroup memory")


def near(bytes_: float) -> object:
    return pytest.approx(bytes_, abs=2 * PAGE)


def test_a_machine_without_limits_gives_what_it_has(root: Path) -> None:
    assert Memory().free() == near(MACHINE)


def test_version_2_limit_less_what_is_used_and_cannot_be_given_back(root: Path) -> None:
    say(root, "proc/self/cgroup", "0::/job\n")
    mounted(root, UNIFIED)
    version2(root, "sys/fs/cgroup/job", str(8 * GB), 5 * GB, (GB, 2 * GB))
    assert Memory().free() == 8 * GB - (5 * GB - 3 * GB)


def test_cache_is_no_more_than_what_is_used(root: Path) -> None:
    say(root, "proc/self/cgroup", "0::/job\n")
    mounted(root, UNIFIED)
    version2(root, "sys/fs/cgroup/job", str(8 * GB), GB, (5 * GB, 0))
    assert Memory().free() == 8 * GB


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        (("max", "max", "max"), MACHINE),
        (("max", f"{6 * GB}", "max"), 6 * GB),
        ((f"{3 * GB}", f"{6 * GB}", "max"), 3 * GB),
        (("max", f"{9 * GB}", f"{7 * GB}"), 7 * GB),
        ((f"{900 * GB}", "max", "max"), MACHINE),  # more than there is
        (("0", "max", "max"), 0),
    ],
)
def test_the_tightest_of_nested_cgroups_holds(
    root: Path, limits: tuple[str, str, str], left: int
) -> None:
    """From the outermost to the process's own."""
    say(root, "proc/self/cgroup", "0::/pods/pod/container\n")
    mounted(root, UNIFIED)
    for folder, limit in zip(("pods", "pods/pod", "pods/pod/container"), limits, strict=True):
        version2(root, f"sys/fs/cgroup/{folder}", limit)
    assert Memory().free() == near(left)


def test_what_siblings_use_counts_where_the_limit_is_theirs_too(root: Path) -> None:
    say(root, "proc/self/cgroup", "0::/pod/mine\n")
    mounted(root, UNIFIED)
    version2(root, "sys/fs/cgroup/pod", str(10 * GB), 9 * GB)
    version2(root, "sys/fs/cgroup/pod/mine", str(8 * GB), GB)
    assert Memory().free() == GB


def test_a_limit_that_throttles_is_one(root: Path) -> None:
    say(root, "proc/self/cgroup", "0::/job\n")
    mounted(root, UNIFIED)
    version2(root, "sys/fs/cgroup/job", str(8 * GB), GB)
    say(root, "sys/fs/cgroup/job/memory.high", f"{4 * GB}\n")
    assert Memory().free() == 3 * GB


def test_version_1(root: Path) -> None:
    say(root, "proc/self/cgroup", "9:cpu,cpuacct:/a\n4:memory:/slurm/job_7\n")
    mounted(root, ("/", "/sys/fs/cgroup/cpu", "cgroup cpu,cpuacct"), VERSION1)
    version1(root, "sys/fs/cgroup/memory/slurm/job_7", str(4 * GB), 2 * GB, (GB // 2, GB // 2))
    version1(root, "sys/fs/cgroup/memory/slurm", V1_NONE)
    version1(root, "sys/fs/cgroup/memory", V1_NONE)
    version1(root, "sys/fs/cgroup/cpu/slurm/job_7", "5")  # not the memory controller's
    assert Memory().free() == 3 * GB


def test_a_hybrid_tree_has_its_limits_in_version_1(root: Path) -> None:
    say(root, "proc/self/cgroup", "4:memory:/job\n1:name=systemd:/job\n0::/job\n")
    mounted(root, VERSION1, ("/", "/sys/fs/cgroup/unified", "cgroup2 rw"))
    version1(root, "sys/fs/cgroup/memory/job", str(4 * GB))
    (root / "sys/fs/cgroup/unified/job").mkdir(parents=True)
    assert Memory().free() == 4 * GB


def test_a_container_sees_its_hosts_path_and_its_own_mount(root: Path) -> None:
    """Docker without a namespace of cgroups, and a cgroup of its own inside the container."""
    say(root, "proc/self/cgroup", "4:memory:/docker/5ea/worker\n")
    mounted(root, ("/docker/5ea", "/sys/fs/cgroup/memory", "cgroup memory"))
    version1(root, "sys/fs/cgroup/memory", str(6 * GB), GB)
    version1(root, "sys/fs/cgroup/memory/worker", str(2 * GB))
    assert Memory().free() == 2 * GB
    say(root, "sys/fs/cgroup/memory/worker/memory.limit_in_bytes", V1_NONE)
    assert Memory().free() == 5 * GB


@pytest.mark.parametrize("path", ["/", "/../elsewhere", "/not/there", "/docker/other"])
def test_a_path_that_the_mount_does_not_show_is_the_mount(root: Path, path: str) -> None:
    say(root, "proc/self/cgroup", f"0::{path}\n")
    mounted(root, ("/" if path == "/not/there" else "/docker/5ea", "/sys/fs/cgroup", "cgroup2 rw"))
    version2(root, "sys/fs/cgroup", str(6 * GB))
    assert Memory().free() == 6 * GB


def test_a_mount_point_with_a_blank_in_its_name(root: Path) -> None:
    say(root, "proc/self/cgroup", "0::/\n")
    mounted(root, ("/", r"/my\040cgroups", "cgroup2 rw"))
    version2(root, "my cgroups", str(6 * GB))
    assert Memory().free() == 6 * GB


@pytest.mark.parametrize("text", ["", "garbage", "-1", "12 34", "1e9", "9" * 30, "0x10", "\0", "٣"])
@pytest.mark.parametrize("file", ["memory.max", "memory.current", "memory.stat"])
def test_what_is_no_number_limits_nothing(root: Path, file: str, text: str) -> None:
    say(root, "proc/self/cgroup", "0::/a/b\n")
    mounted(root, UNIFIED)
    version2(root, "sys/fs/cgroup/a", str(7 * GB))
    version2(root, "sys/fs/cgroup/a/b", str(6 * GB), GB, (GB, 0))
    say(root, f"sys/fs/cgroup/a/b/{file}", text)
    left = {"memory.max": 7 * GB, "memory.current": 6 * GB, "memory.stat": 5 * GB}
    assert Memory().free() == left[file]


@pytest.mark.parametrize(
    "name", ["proc/self/cgroup", "proc/self/mountinfo", "proc/self/statm", "sys/fs/cgroup/a/memory.max"]
)  # fmt: skip
def test_files_that_cannot_be_read_limit_nothing(root: Path, name: str) -> None:
    say(root, "proc/self/cgroup", "0::/a\n")
    mounted(root, UNIFIED)
    version2(root, "sys/fs/cgroup/a", str(7 * GB))
    (root / name).unlink()
    (root / name).mkdir()  # an error to read, even for root
    assert Memory().free() == near(7 * GB if name == "proc/self/statm" else MACHINE)
    say(root, "proc/meminfo", "MemAvailable: lots\n")
    assert 0 < Memory().free() <= os.sysconf("SC_PHYS_PAGES") * PAGE


@pytest.mark.parametrize("text", ["", "::", "0", "0::", "x:memory:", "4:memory:/a:b\n\n", "\udcff"])
def test_a_broken_list_of_cgroups_or_mounts_is_no_error(root: Path, text: str) -> None:
    for name in ("proc/self/cgroup", "proc/self/mountinfo"):
        (root / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        assert Memory().free() == near(MACHINE)


@pytest.mark.parametrize(
    ("variables", "left"),
    [
        ({"SLURM_MEM_PER_NODE": "4096"}, 4096 * MIB),
        ({"SLURM_MEM_PER_NODE": "4G"}, 4096 * MIB),
        ({"SLURM_MEM_PER_NODE": "0"}, None),  # all of it
        ({"SLURM_MEM_PER_NODE": "some"}, None),
        ({"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "3"}, 3 * 2048 * MIB),
        ({"SLURM_MEM_PER_CPU": "2048", "SLURM_JOB_CPUS_PER_NODE": "4(x2),8"}, 4 * 2048 * MIB),
        ({"SLURM_MEM_PER_GPU": "8192", "SLURM_GPUS_ON_NODE": "2"}, 2 * 8192 * MIB),
        ({"SLURM_MEM_PER_GPU": "8192"}, 8192 * MIB),
    ],
)
def test_a_slurm_job_has_what_it_asked_for(
    root: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], left: int | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # less the half of a GB that is this process's own and no file's
    assert Memory().free() == near(MACHINE if left is None else left - GB / 2)


def test_slurm_without_a_count_of_cpus_has_those_of_the_process(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "1024")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 5})
    assert Memory().free() == near(3 * 1024 * MIB - GB / 2)


@pytest.mark.parametrize(("variable", "given"), [("4", None), (None, 4), ("2", 4)])
def test_workers_on_the_machine_share(
    root: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, given: int | None
) -> None:
    if variable:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", variable)
    assert Memory(workers=given).free() == near(MACHINE / 4)
    say(root, "proc/self/cgroup", "0::/job\n")
    mounted(root, UNIFIED)
    version2(root, "sys/fs/cgroup/job", str(9 * GB), GB)
    assert Memory(workers=given).free() == 2 * GB
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "4096")
    assert Memory(workers=given).free() == near(1024 * MIB - GB / 2)


def test_ulimit_counts_what_is_mapped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (10 * GB, resource.RLIM_INFINITY))
    assert Memory().free() == near(6 * GB)


def test_a_limit_by_hand_holds_for_this_process_whatever_there_is(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Memory(limit=16 * GB, workers=3).free() == near(15.5 * GB)
    assert Memory(limit=1).free() == 0
    assert Memory().free() == 0  # SLURM's one megabyte is used up


def test_a_limit_below_what_the_process_holds_is_refused(root: Path) -> None:
    for limit in (1, 1000, GB // 2 - MIB):
        with pytest.raises(UsageFault, match=r"less than the 500 MB that this process holds"):
            limited(limit)
    assert limited(GB) == Memory(GB)
    assert limited(None) == Memory()
