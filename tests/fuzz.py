"""Mutate what lorsmerge reads, and count what comes of it: refusals and sane results only.

    python tests/fuzz.py --count 100000 --seed 0

Files of each sort are changed at random, in their bytes or in the values of their JSON, and opened as a
command opens them; one in ten that opens is merged as well. A refusal is an error of `errors.py`. Anything
else is a finding: another exception, a second of time, or more memory than the address space allows.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lorsmerge_cli.errors import LorsmergeError

ADDRESS_SPACE = 6 << 30  # bytes
SLOW = 2.0  # seconds
MERGED = 10  # one in so many that open is merged as well
STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 7.7, 2**31, 2**63, 10**30, -(10**30), 1e308, float("nan"),
    float("inf"), "", "x", "F32", "BF16", "lors", "dense", "..", "/etc/passwd", "\x00", "\x1b[31m",
    "\u202e", "\ud800", "a" * 5000, [], {}, [[]], [1, 2], [10**9, 10**9], [-1], {"a": 1}, [None],
    ["x"], {"": {}}, "(a+)+$", "nan", "1e3",
]  # fmt: skip
FLOAT = {"fc1.weight": (6, 4), "fc1.bias": (6,), "norm.weight": (4,), "embed_tokens.weight": (9, 4)}


def make(folder: Path) -> dict[str, Path]:
    """A base, a fine-tune, deltas, an adapter and documents, all of them sound."""
    from lorsmerge_cli import delta, merge, prune, tall_masks
    from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe

    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in FLOAT.items()}
    base["step"] = torch.tensor([3])
    tuned = {n: t + 0.01 if t.is_floating_point() else t for n, t in base.items()}
    (folder / "base").mkdir()
    save_file(base, folder / "base" / "model.safetensors")
    (folder / "base" / "config.json").write_text('{"model_type": "bert", "vocab_size": 9}')
    save_file(tuned, folder / "ft.safetensors")
    torch.save(tuned, folder / "ft.bin")

    delta(folder / "base", folder / "ft.safetensors", folder / "a.delta", task="asr", language="ca")
    prune(folder / "a.delta", folder / "p.delta", svp=0.3, mp=0.3)
    tall_masks(folder / "base", [folder / "a.delta", folder / "p.delta"], folder / "tall.delta")
    adapter = folder / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"fc1": 3},
              "target_modules": ["fc1"], "base_model_name_or_path": "x"}  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.fc1.lora_A.weight": torch.ones(2, 4),
               "base_model.model.fc1.lora_B.weight": torch.ones(6, 2)},
              adapter / "adapter_model.safetensors")  # fmt: skip
    recipe = Recipe(
        str(folder / "base"), (DeltaEntry(str(folder / "a.delta"), scale=0.3),), svp=0.5, mp=0.2
    )
    (folder / "recipe.toml").write_text(recipe.to_toml())
    merge(output=folder / "merged", recipe=folder / "recipe.toml")
    return {
        "base": folder / "base" / "model.safetensors", "config": folder / "base" / "config.json",
        "delta": folder / "a.delta", "pruned delta": folder / "p.delta",
        "fine-tune": folder / "ft.safetensors", "pickle": folder / "ft.bin",
        "adapter config": adapter / "adapter_config.json",
        "adapter": adapter / "adapter_model.safetensors", "recipe": folder / "recipe.toml",
        "record": folder / "merged" / "lorsmerge.json", "masks": folder / "tall.delta",
    }  # fmt: skip


def change_bytes(content: bytes, draw: random.Random) -> bytes:
    """Flip, insert, remove, cut or repeat a few bytes, most of them near the beginning."""
    raw = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        place = min(int(draw.expovariate(4 / max(1, len(raw)))), max(0, len(raw) - 1))
        how = draw.randrange(5)
        if how == 0 and raw:
            raw[place] = draw.randrange(256)
        elif how == 1:
            raw[place:place] = bytes(draw.randrange(256) for _ in range(draw.randrange(9)))
        elif how == 2:
            del raw[place : place + draw.randrange(1, 40)]
        elif how == 3:
            del raw[place:]
        else:
            raw[place:place] = raw[place : place + draw.randrange(200)]
    return bytes(raw)


def change_value(value: Any, draw: random.Random) -> Any:
    """Put something strange into a document, take something out or add something."""
    value = copy.deepcopy(value)
    spots: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        found = todo.pop()
        keys = list(found) if isinstance(found, dict) else range(len(found))
        for key in keys:
            spots.append((found, key))
            if isinstance(found[key], dict | list):
                todo.append(found[key])
    if not spots or draw.random() < 0.02:
        return draw.choice(STRANGE)
    holder, key = draw.choice(spots)
    how = draw.randrange(4)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[str(draw.choice(STRANGE))] = draw.choice(STRANGE)
    elif how == 2 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    else:
        holder[key] = draw.choice(STRANGE)
    return value


def change_header(content: bytes, draw: random.Random) -> bytes:
    """Change a value in a safetensors header, or in the JSON that its metadata hold."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    metadata = header.get("__metadata__", {})
    inner = [key for key in metadata if metadata[key].startswith(("{", "["))]
    if inner and draw.random() < 0.6:
        key = draw.choice(inner)
        changed = change_value(json.loads(metadata[key]), draw)
        metadata[key] = json.dumps(changed) if draw.random() < 0.97 else "[" * 99_999
    else:
        header = change_value(header, draw)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def change(path: Path, content: bytes, draw: random.Random) -> bytes:
    """One mutation of a file of its sort."""
    if draw.random() < 0.3 or path.suffix in (".toml", ".bin"):
        return change_bytes(content, draw)
    if path.suffix == ".json":
        return json.dumps(change_value(json.loads(content), draw)).encode("utf-8", "surrogatepass")
    return change_header(content, draw)


def openers(folder: Path) -> dict[str, Callable[[bool], None]]:
    """How a command opens each sort of file; with True it merges, too."""
    from lorsmerge_cli.operations.inspect import inspect as inspect_files
    from lorsmerge_cli.operations.merge import plan_merge, run_merge
    from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe, load_recipe

    def carry_out(recipe: Recipe, whole: bool) -> None:
        output = folder / "out.safetensors"
        plan = plan_merge(recipe, output, device="cpu", threads=1, force=True)
        if whole:
            run_merge(plan)
            with output.open("rb") as file:
                assert file.read(8)

    def merged(path: str, for_task: str | None = None, **settings: Any) -> Callable[[bool], None]:
        entry = DeltaEntry(str(folder / path), for_task=for_task)
        recipe = Recipe(str(folder / "base"), (entry,), **settings)
        return lambda whole: carry_out(recipe, whole)

    def folder_out(whole: bool) -> None:
        recipe = Recipe(str(folder / "base"), (DeltaEntry(str(folder / "a.delta")),))
        plan = plan_merge(recipe, folder / "again", device="cpu", threads=1, force=True)
        if whole:
            run_merge(plan)

    def inspected(path: str, **settings: Any) -> Callable[[bool], None]:
        both = merged(path, **settings)

        def run(whole: bool) -> None:
            inspect_files([folder / path], spectra=False, threads=1)
            both(whole)

        return run

    return {
        "base": merged("a.delta"), "config": folder_out, "delta": inspected("a.delta", svp=0.3),
        "pruned delta": inspected("p.delta"), "fine-tune": merged("ft.safetensors", mp=0.3),
        "pickle": merged("ft.bin"), "adapter config": merged("adapter"), "adapter": merged("adapter"),
        "recipe": lambda whole: carry_out(load_recipe(folder / "recipe.toml"), whole),
        "masks": inspected("tall.delta", for_task="p"),
        "record": lambda whole: carry_out(load_recipe(folder / "merged" / "lorsmerge.json"), whole),
    }  # fmt: skip


def fuzz(folder: Path, count: int, seed: int) -> tuple[dict[str, Counter[str]], list[str]]:
    """Run `count` mutations.

    Returns:
        Sort of file -> how often it was refused, opened or merged; and what else came of it.
    """
    files = make(folder)
    sound = {name: path.read_bytes() for name, path in files.items()}
    works = openers(folder)
    for work in works.values():
        work(True)
    draw = random.Random(seed)
    counts: dict[str, Counter[str]] = {name: Counter() for name in files}
    findings: list[str] = []
    for number in range(count):
        name = draw.choice(list(files))
        mutated = change(files[name], sound[name], draw)
        whole = draw.randrange(MERGED) == 0
        files[name].write_bytes(mutated)
        began = time.monotonic()
        try:
            works[name](whole)
            counts[name]["merged" if whole else "opened"] += 1
        except LorsmergeError:
            counts[name]["refused"] += 1
        except BaseException:
            findings.append(f"{number}, {name}: {traceback.format_exc(limit=-4)}")
        if time.monotonic() - began > SLOW:
            findings.append(f"{number}, {name}: took {time.monotonic() - began:.1f} s")
        files[name].write_bytes(sound[name])
    return counts, findings


def main() -> None:
    """Print a table and the findings."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=10, help="findings")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        counts, findings = fuzz(Path(folder), arguments.count, arguments.seed)
    print("| file | mutations | refused | opened | merged |\n| --- | ---: | ---: | ---: | ---: |")
    for name, found in counts.items():
        row = (found.total(), *(found[what] for what in ("refused", "opened", "merged")))
        print(f"| {name} | {' | '.join(f'{figure:,}' for figure in row)} |")
    print(f"{len(findings)} findings")
    for text in findings[: arguments.show]:
        print(text)


if __name__ == "__main__":
    main()
