"""Time and memory of merges at Whisper small's size, beside peers and a floor, in one run.

Every command is a process of its own that reads the same fine-tunes and writes the same 967 MB;
rounds take turns, and ratios are of medians. `mergekit-pytorch` is measured where --mergekit
names it or PATH has it.

    python benchmarks/merge.py --rounds 3 -o benchmarks/merge.md
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
FINETUNES = ("ca_asr", "de_asr", "de_st")
MERGE = ["merge", "base", *FINETUNES, "-q", "-o", "out"]
CONFIG = "mergekit.yaml"
RATIOS = [  # (ours, peer, what is asked of it)
    ("lorsmerge lors", "plain lors", "at most 0.2 (5 times as fast)"),
    ("lorsmerge lors, 1 thread", "plain lors, 1 thread", "at most 0.2 (5 times as fast)"),
    ("lorsmerge ta", "plain ta", "at most 1.3"),
    ("lorsmerge ta", "mergekit ta", "at most 0.2 (5 times as fast)"),
    ("lorsmerge ta", "read and write", "the floor"),
]
# CPU seconds of the hash of all inputs, and of the merge; pages are touched before, as it would itself
HASHING = """
import sys, time
from lorsmerge_cli.app import main
from lorsmerge_cli.checkpoint import content
spent, real = [], content.xxhash.xxh3_128_digest
def measured(raw):
    raw[::4096].sum()
    began = time.thread_time()
    found = real(raw)
    spent.append(time.thread_time() - began)
    return found
content.xxhash.xxh3_128_digest = measured
try:
    main()
except SystemExit:
    print(sum(spent), time.process_time())
"""


@dataclass
class Measured:
    """Wall and processor seconds of every round, and the largest memory of any (MB)."""

    seconds: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    resident: float = 0.0
    anonymous: float = 0.0


def build(folder: Path, size: str, finetunes: Sequence[str] = FINETUNES) -> None:
    """A base, its fine-tunes and mergekit's configuration, unless they are there."""
    if (folder / CONFIG).exists() and all((folder / name).exists() for name in finetunes):
        return
    shutil.rmtree(folder, ignore_errors=True)
    script = HERE.parent / "examples" / "make_models.py"
    command = [sys.executable, script, folder, "--size", size, "--finetunes", *finetunes]
    subprocess.run(command, check=True)
    models = "\n".join(
        f"  - model: {name}/model.safetensors\n    parameters: {{weight: 0.15}}"
        for name in finetunes
    )
    (folder / CONFIG).write_text(
        f"merge_method: task_arithmetic\nbase_model: base/model.safetensors\nmodels:\n{models}\n"
        "parameters: {normalize: false}\ndtype: float32\n"
    )


def commands(mergekit: str | None) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Name -> command and environment, to be run in the models' folder."""
    ours = [sys.executable, "-m", "lorsmerge_cli", *MERGE]
    lors = [*ours, "--svp", "0.03", "--mp", "0.4"]
    files = [f"{name}/model.safetensors" for name in ("base", *FINETUNES)]
    plain = [sys.executable, str((HERE / "plain_merge.py").resolve())]
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    copy = f"cat {' '.join(files[1:])} > /dev/null && cp {files[0]} out && sync out"
    arguments = [files[0], "out", *files[1:]]
    found = {
        "read and write": (["sh", "-c", copy], {}),
        "plain ta": ([*plain, "ta", *arguments], {}),
        "lorsmerge ta": (ours, {}),
        "plain lors": ([*plain, "lors", *arguments], {}),
        "lorsmerge lors": (lors, {}),
        "plain lors, 1 thread": ([*plain, "lors", *arguments], one),
        "lorsmerge lors, 1 thread": ([*lors, "--threads", "1"], one),
    }
    if mergekit:
        found["mergekit ta"] = ([mergekit, CONFIG, "out"], {})
    return found


def measure(command: list[str], environment: dict[str, str], folder: Path, into: Measured) -> None:
    """Run a command in a folder and add what it took."""
    for old in (folder / "out",):
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    began, before = time.perf_counter(), _busy()
    with subprocess.Popen(
        command, cwd=folder, env=os.environ | environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while process.poll() is None:
            memory_of(process.pid, into)
            time.sleep(0.02)
        problem = process.stderr.read() if process.stderr else ""
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{problem[-2000:]}")
    into.seconds.append(time.perf_counter() - began)
    into.busy.append(_busy() - before)


def _busy() -> float:
    """Processor seconds of all processes that have ended, in the kernel too."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def hashing(folder: Path, rounds: int) -> str:
    """What the hash of every byte of the inputs costs, as a share of task arithmetic's CPU time."""
    shares = []
    for _ in range(rounds):
        shutil.rmtree(folder / "out", ignore_errors=True)
        done = subprocess.run(
            [sys.executable, "-c", HASHING, *MERGE, "--threads", "1"], cwd=folder, check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        spent, whole = map(float, done.stdout.split())
        shares.append((spent / whole, spent, whole))
    share, spent, whole = sorted(shares)[len(shares) // 2]
    return (
        f"Hashing every byte of the inputs (task arithmetic, one thread): {spent:.2f} of {whole:.1f} "
        f"seconds of CPU time, {share:.1%}; asked: at most 5%.\n"
    )


def memory_of(process: int, into: Measured) -> None:
    """Linux's own figures; elsewhere memory stays 0."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return
    for name, kilobytes in re.findall(r"(VmHWM|RssAnon):\s+(\d+)", status):
        if name == "VmHWM":
            into.resident = max(into.resident, int(kilobytes) / 1e3)
        else:
            into.anonymous = max(into.anonymous, int(kilobytes) / 1e3)


def report(results: dict[str, Measured], size: str) -> str:
    """Markdown."""
    rounds = max(len(item.seconds) for item in results.values())
    lines = [
        "# Merging three float32 fine-tunes",
        "",
        f"Whisper {size}'s size; {os.cpu_count()} cores ({platform.machine()}), Python "
        f"{platform.python_version()}; median of {rounds} rounds, warm page cache, start-up and "
        f"fsync included. Made by `python benchmarks/merge.py`.",
        "",
        "| command | seconds | from - to | peak memory of its own, MB | with mapped files, MB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, item in results.items():
        lines.append(
            f"| {name} | {statistics.median(item.seconds):.1f} | {min(item.seconds):.1f} - "
            f"{max(item.seconds):.1f} | {item.anonymous:,.0f} | {item.resident:,.0f} |"
        )
    lines += ["", "| | time as a share of | ratio | asked |", "| --- | --- | ---: | --- |"]
    for ours, peer, asked in RATIOS:
        if ours in results and peer in results:
            ratio = statistics.median(results[ours].seconds) / statistics.median(
                results[peer].seconds
            )
            lines.append(f"| {ours} | {peer} | {ratio:.2f} | {asked} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("bench/merge"), help="for the models")
    parser.add_argument("--size", default="small")
    parser.add_argument("--only", nargs="*", help="names of commands; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mergekit", default=shutil.which("mergekit-pytorch"))
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    build(arguments.folder, arguments.size)
    found = commands(arguments.mergekit)
    found = {name: found[name] for name in (found if arguments.only is None else arguments.only)}
    results = {name: Measured() for name in found}
    for number in range(arguments.rounds):
        for name, (command, environment) in found.items():
            measure(command, environment, arguments.folder, results[name])
            print(f"round {number + 1}: {name} {results[name].seconds[-1]:.1f} s", flush=True)
    text = report(results, arguments.size) if results else ""
    text += "\n" + hashing(arguments.folder, arguments.rounds)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
