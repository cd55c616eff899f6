"""Time and memory of merging methods at Whisper small's size, and peers' results beside ours.

Methods that need statistics over audio (regmean, fisher) are left out: the fine-tunes are made, not trained.

Every command is a process of its own, measured as in merge.py. Peers are mergekit (`--mergekit`, or
on PATH) and PEFT (`--peft` names a Python that has it, with PyTorch and safetensors): where one has a
method of ours, the two merges of one run are compared element by element.

    python benchmarks/methods.py --rounds 3 --peft peers/bin/python -o benchmarks/methods.md
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from merge import Measured, build, measure
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorsmerge_cli.core.methods import METHODS, method_of

HERE = Path(__file__).parent
RATIOS = {"svp": "0.05", "mp": "0.2"}
DENSITY = 0.2  # of TIES
ROUNDINGS = 4  # half steps that two sums of the same numbers may be apart
SHARED = 0.35  # of the first fine-tune's delta that all others get, so that they agree a little
ALIKE = "alike"  # marks models that have it
FLOOR, TA = "read and write", "lorsmerge ta"
MERGEKIT = {  # our method -> mergekit's, its parameters of each model, its parameters
    "ta": ("task_arithmetic", f"weight: {METHODS['ta'].scale}", "normalize: false"),
    "ties": ("ties", f"weight: 1.0, density: {DENSITY}", "normalize: true"),
    "model_stock": ("model_stock", "", "filter_wise: false"),
}
PEFT = ("ties",)
Command = tuple[list[str], dict[str, str]]


@dataclass(frozen=True)
class Apart:
    """How far two merges are from each other.

    Attributes:
        share: L2 norm of their difference, as a share of the step from the base.
        largest: largest difference of an element, as a share of the step's largest.
        beyond: share of the elements that are further apart than rounding to float32 explains.
    """

    share: float
    largest: float
    beyond: float


def names_of(count: int) -> list[str]:
    """Names of the fine-tunes."""
    return [f"ft{number}" for number in range(count)]


def make_alike(folder: Path, names: Sequence[str]) -> None:
    """Give random fine-tunes a part in common: independent ones have cosines of either sign."""
    if (folder / ALIKE).exists():
        return
    base = load_file(folder / "base" / "model.safetensors")
    first = load_file(folder / names[0] / "model.safetensors")
    shared = {name: SHARED * (first[name] - tensor) for name, tensor in base.items()}
    for name in names[1:]:
        path = folder / name / "model.safetensors"
        moved = {key: tensor + shared[key] for key, tensor in load_file(path).items()}
        path.unlink()  # which the tensors may be mapped from
        save_file(moved, path, metadata={"format": "pt"})
    (folder / ALIKE).touch()


def commands(
    folder: Path, count: int, methods: Sequence[str], mergekit: str | None, peft: str | None
) -> dict[str, Command]:
    """Name -> command, to be run in the models' folder."""
    names = names_of(count)
    files = [f"{name}/model.safetensors" for name in ("base", *names)]
    copy = f"cat {' '.join(files[1:])} > /dev/null && cp {files[0]} out && sync out"
    found: dict[str, Command] = {FLOOR: (["sh", "-c", copy], {})}
    for name in methods:
        ratios = [word for ratio in METHODS[name].ratios for word in (f"--{ratio}", RATIOS[ratio])]
        found[f"lorsmerge {name}"] = (
            [sys.executable, "-m", "lorsmerge_cli", "merge", "base", *names, "-q", "-o", "out",
             "--method", name, *ratios], {},
        )  # fmt: skip
    for name in methods:
        if mergekit and name in MERGEKIT:
            config = write_config(folder, name, files)
            found[f"mergekit {name}"] = ([mergekit, config, "out"], {})
        if peft and name in PEFT:
            script = str((HERE / f"peft_{name}.py").resolve())
            found[f"PEFT {name}"] = ([peft, script, "out", str(DENSITY), *files], {})
    return found


def write_config(folder: Path, name: str, files: Sequence[str]) -> str:
    """Write mergekit's configuration, and return its name."""
    method, each, shared = MERGEKIT[name]
    models = "\n".join(f"  - {{model: {file}, parameters: {{{each}}}}}" for file in files[1:])
    config = f"mergekit_{name}_{len(files) - 1}.yaml"
    (folder / config).write_text(
        f"merge_method: {method}\nbase_model: {files[0]}\nmodels:\n{models}\n"
        f"parameters: {{{shared}}}\ndtype: float32\n"
    )
    return config


def weights(path: Path) -> dict[str, Path]:
    """Tensor -> the file that it is in, of a file or a folder."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    found = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def read(files: dict[str, Path], name: str) -> torch.Tensor:
    with safe_open(files[name], framework="pt") as opened:
        return opened.get_tensor(name).double()


def apart(base: Path, ours: Path, theirs: Path) -> Apart:
    """Compare two merges, one tensor at a time in float64."""
    a, b, zero = weights(ours), weights(theirs), weights(base)
    assert a.keys() <= b.keys(), sorted(a.keys() - b.keys())[:3]
    square = steps = largest = longest = 0.0
    beyond = count = 0
    for name in a:
        one, other = read(a, name), read(b, name)
        step, difference = one - read(zero, name), (one - other).abs()
        square += float(difference.square().sum())
        steps += float(step.square().sum())
        largest = max(largest, float(difference.max()))
        longest = max(longest, float(step.abs().max()))
        rounding = ROUNDINGS * torch.finfo(torch.float32).eps / 2 * one.abs()
        beyond += int((difference > rounding).sum())
        count += one.numel()
    return Apart((square / steps) ** 0.5, largest / longest, beyond / count)


def run(
    folder: Path, found: dict[str, Command], rounds: int, label: str
) -> tuple[dict[str, Measured], dict[tuple[str, str], Apart]]:
    """Measure all commands in turns, and compare merges with peers' of the last round."""
    results = {name: Measured() for name in found}
    kept: dict[str, Path] = {}
    compared = {}
    peers = [name for name in found if not name.startswith(("lorsmerge", FLOOR))]
    wanted = {f"lorsmerge {peer.split()[1]}" for peer in peers}
    for number in range(rounds):
        for name, (command, environment) in found.items():
            measure(command, environment, folder, results[name])
            print(
                f"{label}, round {number + 1}: {name} {results[name].seconds[-1]:.1f} s", flush=True
            )
            if number < rounds - 1:
                continue
            if name in wanted:
                kept[name] = folder / f"kept {name}"
                shutil.rmtree(kept[name], ignore_errors=True)
                (folder / "out").rename(kept[name])
            elif name in peers:
                ours = f"lorsmerge {name.split()[1]}"
                compared[ours, name] = apart(
                    folder / "base" / "model.safetensors", kept[ours], folder / "out"
                )
    for path in kept.values():
        shutil.rmtree(path)
    return results, compared


def report(
    measured: dict[int, dict[str, Measured]],
    compared: dict[int, dict[tuple[str, str], Apart]],
    size: str,
    load: float,
) -> str:
    """Markdown; `load` is that of other programs at the start."""
    rounds = max(len(item.seconds) for results in measured.values() for item in results.values())
    lines = [
        "# Every merging method, in time, memory and beside peers",
        "",
        f"Float32 fine-tunes of Whisper {size}'s size (`examples/make_models.py`: random weights, to "
        f"which all but the first have {SHARED} of the first's delta added); "
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}; median "
        f"of {rounds} rounds, warm page cache, start-up and fsync included. The load of other programs "
        f"was {load:.1f} at the start: above half of one, the clock tells of them too, and the "
        f"processor's time, which ratios are of, hardly does. Made by `python benchmarks/methods.py "
        f"--rounds {rounds}`. Pruned with svp {RATIOS['svp']}, mp {RATIOS['mp']}.",
    ]
    for count, results in measured.items():
        busy = {name: statistics.median(item.busy) for name, item in results.items()}
        lines += [
            "",
            f"## {count} fine-tunes",
            "",
            "| command | seconds, from - to | processor's seconds | times `ta` | peak memory of its own, "
            "MB | with mapped files, MB |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name, item in results.items():
            ratio = f"{busy[name] / busy[TA]:.1f}" if TA in busy else ""
            lines.append(
                f"| {name} | {min(item.seconds):.1f} - {max(item.seconds):.1f} | {busy[name]:.1f} "
                f"| {ratio} | {item.anonymous:,.0f} | {item.resident:,.0f} |"
            )
        if compared[count]:
            lines += [
                "",
                "| ours | theirs | difference, as a share of the step (L2) | largest element's | "
                "elements that differ by more than rounding |",
                "| --- | --- | ---: | ---: | ---: |",
            ]
        for (ours, theirs), found in compared[count].items():
            lines.append(
                f"| {ours} | {theirs} | {found.share:.1e} | {found.largest:.1e} | {found.beyond:.4%} |"
            )
    lines += [
        "",
        "Rounding: two merges whose updates are equal may each be half a rounding step of a float32 "
        "weight off, which is much beside a small update. [methods.md](../docs/methods.md) explains "
        "the other differences.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("bench/methods"), help="for the models")
    parser.add_argument("--size", default="small")
    parser.add_argument("--counts", type=int, nargs="+", default=[3, 10], help="of fine-tunes")
    able = [name for name, method in METHODS.items() if not method.statistics]  # over audio
    parser.add_argument("--methods", nargs="+", default=able, choices=able)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mergekit", default=shutil.which("mergekit-pytorch"))
    parser.add_argument("--peft", help="a Python that has PEFT")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    methods = list(
        dict.fromkeys([method_of(()), *arguments.methods])
    )  # the first is what ratios are of
    names = names_of(max(arguments.counts))
    load = os.getloadavg()[0]
    build(arguments.folder, arguments.size, names)
    make_alike(arguments.folder, names)
    measured, compared = {}, {}
    for count in arguments.counts:
        found = commands(arguments.folder, count, methods, arguments.mergekit, arguments.peft)
        measured[count], compared[count] = run(
            arguments.folder, found, arguments.rounds, f"{count} fine-tunes"
        )
    text = report(measured, compared, arguments.size, load)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
