"""Bad input ends with exit code 1 or 2 and one paragraph, and leaves every file as it was."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorsmerge_cli import outputs

WORK, USAGE = 1, 2  # exit codes
Q_PROJ = "model.encoder.layers.0.self_attn.q_proj.weight"
BIAS = "model.encoder.layers.0.self_attn.q_proj.bias"
FC1 = "model.encoder.layers.1.fc1.weight"
MERGE = "lorsmerge merge base.safetensors "
RATIOS = " --svp 0.5 --mp 0.5"


def nothing() -> None:
    """The files are good; the command is not."""


@dataclass(frozen=True)
class Case:
    """A command that must fail.

    Attributes:
        line: what is typed.
        code: how it ends.
        words: what the message has to say.
        prepare: what was done to the good files before.
    """

    line: str
    code: int
    words: tuple[str, ...]
    prepare: Callable[[], object] = nothing


def check(case: Case, shell: Callable, contents: Callable) -> None:
    case.prepare()
    before = contents(Path.cwd())
    ended = shell(case.line)
    assert ended.code == case.code, ended.err
    assert ended.out == ""
    assert [words for words in case.words if words not in ended.err] == [], ended.err
    for unkind in ("Traceback", "bug in lorsmerge", "\n\n"):
        assert unkind not in ended.err.strip()
    assert contents(Path.cwd()) == before


# --- files that are no sound safetensors ------------------------------------------------------


def _header(text: str, length: int | None = None, data: bytes = b"") -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def _tensor(start: int, stop: int, shape: str = "[2]") -> str:
    return f'{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{stop}]}}'


DAMAGED = {
    "truncated": lambda good: good[:-100],
    "truncated header": lambda good: good[:50],
    "too long": lambda good: good + bytes(8),
    "empty": lambda good: b"",
    "four bytes": lambda good: b"\0\0\0\0",
    "random": lambda good: (
        torch.randint(256, (4096,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        .numpy()
        .tobytes()
    ),
    "text": lambda good: b"theta_0 = 1\n" * 100,
    "10 GB header": lambda good: struct.pack("<Q", 10**10) + good[8:],
    "header past the end": lambda good: struct.pack("<Q", len(good)) + good[8:],
    "overlapping": lambda good: _header(
        f'{{"a":{_tensor(0, 8)},"b":{_tensor(4, 12)}}}', data=bytes(12)
    ),
    "out of range": lambda good: _header(f'{{"a":{_tensor(0, 80, "[20]")}}}', data=bytes(8)),
    "backwards": lambda good: _header(f'{{"a":{_tensor(8, 0)}}}', data=bytes(8)),
    "negative shape": lambda good: _header(f'{{"a":{_tensor(0, 8, "[-2]")}}}', data=bytes(8)),
    "shape past the bytes": lambda good: _header(f'{{"a":{_tensor(0, 8, "[9]")}}}', data=bytes(8)),
    "no json": lambda good: _header("{" * 64),
    "json of another kind": lambda good: _header("[1, 2]"),
    "no tensors": lambda good: _header("{}"),
    "pickle": lambda good: pickle.dumps({"a": [1.0]}, protocol=2),
    "git-lfs pointer": lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}
PLACES = {
    "base of delta": ("base", "lorsmerge delta bad.safetensors ca.safetensors -o x.delta"),
    "fine-tune of delta": ("base", "lorsmerge delta base.safetensors bad.safetensors -o x.delta"),
    "prune": ("ca.delta", "lorsmerge prune bad.safetensors -o x.delta" + RATIOS),
    "base of merge": ("base", "lorsmerge merge bad.safetensors ca.delta" + RATIOS),
    "delta of merge": ("ca.delta", MERGE + "ca.delta bad.safetensors" + RATIOS),
    "inspect": ("base", "lorsmerge inspect base.safetensors bad.safetensors"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_named(
    tiny: Path, shell: Callable, contents: Callable, damage: str, place: str
) -> None:
    good, line = PLACES[place]
    source = tiny / ("base.safetensors" if good == "base" else good)
    (tiny / "bad.safetensors").write_bytes(DAMAGED[damage](source.read_bytes()))
    words = {
        "pickle": ("pickle", "safetensors"),
        "empty": ("empty",),
        "git-lfs pointer": ("git lfs pull",),
    }
    check(Case(line, WORK, ("bad.safetensors", *words.get(damage, ()))), shell, contents)


def test_a_torch_pickle_is_never_loaded(tiny: Path, shell: Callable, contents: Callable) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, ("trapped",)

    torch.save({"a": Trap()}, "bad.pt")
    check(Case("lorsmerge merge bad.pt ca.delta", WORK, ("bad.pt", "pickle")), shell, contents)


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_as_long_as_a_pickle_begins_is_no_pickle(
    tiny: Path, shell: Callable, length: int
) -> None:
    # a safetensors file begins with its header's length: here the bytes 80 02, ... of a pickle
    header = f'{{"linear.weight":{_tensor(0, 16, "[2,2]")}}}'.ljust(length)
    Path("sound.safetensors").write_bytes(_header(header, data=struct.pack("<4f", 1, 2, 3, 4)))
    assert load_file("sound.safetensors")["linear.weight"].sum() == 10
    ended = shell("lorsmerge inspect sound.safetensors")
    assert ended.code == 0, ended.err


# --- tensors that do not fit --------------------------------------------------------------------


def _edit(file: str, **changes: torch.Tensor | None) -> None:
    """Rewrite some tensors of a file; None drops one. Dots are written as double underscores."""
    path = Path(file)
    tensors = load_file(path)
    for key, value in changes.items():
        name = key.replace("__", ".")
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    with_metadata = _metadata(path)
    path.unlink()
    save_file(tensors, path, metadata=with_metadata)


def _metadata(path: Path) -> dict[str, str] | None:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]).get("__metadata__")


def _poison(file: str, tensor: str, value: float) -> Callable[[], None]:
    def prepare() -> None:
        values = load_file(file)[tensor]
        values.view(-1)[3] = value
        _edit(file, **{tensor.replace(".", "__"): values})

    return prepare


def _drop(file: str, *tensors: str) -> Callable[[], None]:
    return lambda: _edit(file, **dict.fromkeys(t.replace(".", "__") for t in tensors))


def _save_module(folder: Path) -> None:
    """As `torch.save(model, ...)` does, in place of a folder's weights."""
    (folder / "model.safetensors").unlink()
    torch.save(torch.nn.Linear(2, 2), folder / "pytorch_model.bin")


def _add(file: str, **tensors: torch.Tensor) -> Callable[[], None]:
    return lambda: _edit(file, **tensors)


def _only_index(text: str) -> Callable[[], None]:
    """An index in the place of a folder's one file."""

    def prepare() -> None:
        Path("base/model.safetensors").rename("base/model.safetensors.index.json")
        Path("base/model.safetensors.index.json").write_text(text)

    return prepare


NAN, INF = float("nan"), float("inf")
ALL_LAYERS = [
    f"model.encoder.layers.{layer}.{name}"
    for layer in range(2)
    for name in ("fc1.weight", "final_layer_norm.weight", "self_attn.q_proj.weight")
]

NON_FINITE = {
    f"{value} in a {tensor.rsplit('.')[-1]} of {file}, {what}": Case(
        line, WORK, (file, tensor, "NaN", "checkpoint"), _poison(file, tensor, value)
    )
    for value, tensor in ((NAN, Q_PROJ), (INF, Q_PROJ), (-INF, BIAS), (NAN, BIAS))
    for file, what, line in (
        ("base.safetensors", "lors", MERGE + "ca.delta --allow-other-base" + RATIOS),
        ("base.safetensors", "ta", MERGE + "ca.delta --allow-other-base"),
        ("base.safetensors", "delta", "lorsmerge delta base.safetensors ca.safetensors -o x.delta"),
        ("ca.safetensors", "delta", "lorsmerge delta base.safetensors ca.safetensors -o x.delta"),
        ("ca.safetensors", "lors", MERGE + "ca.safetensors de.delta" + RATIOS),
        ("ca.safetensors", "wa", MERGE + "ca.safetensors de.delta --method wa"),
        ("de.delta", "lors", MERGE + "ca.delta de.delta" + RATIOS),
        ("de.delta", "ta into a folder", "lorsmerge merge base/ ca.delta de.delta"),
        ("de.delta", "prune", "lorsmerge prune de.delta -o x.delta" + RATIOS),
    )
}

MISFITS = {
    "missing tensors": Case(
        MERGE + "ca.safetensors de.delta",
        WORK,
        ("ca.safetensors", "lacks 6", *ALL_LAYERS[:3], "3 more", "inspect"),
        _drop("ca.safetensors", *ALL_LAYERS),
    ),
    "a missing tensor, delta": Case(
        "lorsmerge delta base.safetensors ca.safetensors -o x.delta",
        WORK,
        ("ca.safetensors", "lacks 1", Q_PROJ),
        _drop("ca.safetensors", Q_PROJ),
    ),
    "extra tensors": Case(
        MERGE + "ca.safetensors",
        WORK,
        ("ca.safetensors", "has 2", "'lora_a'", "'lora_b'", "base.safetensors"),
        _add("ca.safetensors", lora_a=torch.zeros(2), lora_b=torch.zeros(2)),
    ),
    "another shape": Case(
        MERGE + "ca.safetensors",
        WORK,
        ("ca.safetensors", Q_PROJ, "[9, 8]", "[8, 8]"),
        _add("ca.safetensors", **{Q_PROJ.replace(".", "__"): torch.zeros(9, 8)}),
    ),
    "the transposed shape": Case(
        "lorsmerge delta base.safetensors ca.safetensors -o x.delta",
        WORK,
        (FC1, "[8, 16]", "[16, 8]"),
        _add("ca.safetensors", **{FC1.replace(".", "__"): torch.zeros(8, 16)}),
    ),
    "everything that does not fit, at once": Case(
        MERGE + "ca.safetensors de.safetensors --exclude nothing* --svp 0.5",
        USAGE,
        ("3 problems", "ca.safetensors lacks 1", "de.safetensors has 1", "'nothing*'"),
        lambda: (_drop("ca.safetensors", BIAS)(), _add("de.safetensors", x=torch.zeros(1))()),
    ),
    "a delta of another base": Case(
        MERGE + "ca.delta",
        WORK,
        ("ca.delta", "another model", "base.safetensors", "--allow-other-base"),
        lambda: _edit("base.safetensors", **{Q_PROJ.replace(".", "__"): torch.ones(8, 8)}),
    ),
    "a delta of the base in another dtype": Case(
        MERGE + "ca.delta",
        WORK,
        ("ca.delta", "same model in F16", "F32", "--allow-other-base"),
        lambda: save_file(
            {
                name: tensor.half() if tensor.is_floating_point() else tensor
                for name, tensor in load_file("base/model.safetensors").items()
            },
            "base.safetensors",
        ),
    ),
    "a fine-tune that equals its base": Case(
        "lorsmerge delta base/ base.safetensors -o x.delta",
        WORK,
        ("base.safetensors", "zero", "Check"),
    ),
    "a zero delta on the fly": Case(MERGE + "base/", WORK, ("base", "zero")),
    "a delta as the base": Case(
        "lorsmerge merge ca.delta de.delta", WORK, ("ca.delta is a delta", "checkpoint")
    ),
    "a delta of a delta": Case(
        "lorsmerge delta base.safetensors ca.delta -o x.delta", WORK, ("ca.delta is a delta",)
    ),
    "pruning a checkpoint": Case(
        "lorsmerge prune ca.safetensors -o x.delta" + RATIOS,
        WORK,
        ("ca.safetensors", "no lorsmerge delta", "lorsmerge delta"),
    ),
    "a delta of a later format": Case(
        MERGE + "ca.delta",
        WORK,
        ("ca.delta", "format 99", "Update lorsmerge"),
        lambda: save_file(
            {"a": torch.zeros(1)}, "ca.delta", metadata={"lorsmerge.format_version": "99"}
        ),
    ),
    "a delta without its header": Case(
        MERGE + "ca.delta",
        WORK,
        ("ca.delta", "damaged", "lorsmerge delta"),
        lambda: save_file(
            {"a": torch.zeros(1)}, "ca.delta", metadata={"lorsmerge.format_version": "1"}
        ),
    ),
    "a delta that lost a tensor": Case(
        MERGE + "ca.delta", WORK, ("ca.delta", Q_PROJ), _drop("ca.delta", Q_PROJ)
    ),
    "a base with nothing to prune": Case(
        "lorsmerge merge conv.safetensors conv2.safetensors --svp 0.5",
        USAGE,
        ("conv.safetensors", "--include"),
        lambda: (
            save_file({"conv.weight": torch.ones(2, 2, 2)}, "conv.safetensors"),
            save_file({"conv.weight": torch.zeros(2, 2, 2)}, "conv2.safetensors"),
        ),
    ),
    "a fine-tune stored in float16 that overflows": Case(
        MERGE + "ca.delta --scale 1e9 --dtype float16",
        WORK,
        ("overflows float16", "--scale", "model."),
    ),
    "a missing file": Case(MERGE + "no.delta", WORK, ("no.delta", "no such file")),
    "two missing files": Case(
        "lorsmerge merge no.safetensors no.delta ca.delta",
        WORK,
        ("no.safetensors", "no.delta", "2 problems"),
    ),
    "a Hub id": Case(
        "lorsmerge merge openai/whisper-small ca.delta",
        WORK,
        ("openai/whisper-small", "HF_HUB_OFFLINE", "no_cache"),
    ),
    "a folder without weights": Case(
        "lorsmerge merge base ca.delta",
        WORK,
        ("base", "model.safetensors"),
        lambda: Path("base/model.safetensors").unlink(),
    ),
    "a folder with a pickle": Case(
        "lorsmerge merge base ca.delta",
        WORK,
        ("base", "was not opened", "save_pretrained"),
        lambda: _save_module(Path("base")),
    ),
    "an adapter": Case(
        MERGE + "base",
        WORK,
        ("base", "no adapter_model.safetensors"),
        lambda: Path("base/model.safetensors").rename("base/adapter_config.json"),
    ),
    "an index that lists a missing shard": Case(
        "lorsmerge merge base ca.delta",
        WORK,
        ("model-00001-of-00002.safetensors", "no such file"),
        _only_index('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
    ),
    "an index that points out of its folder": Case(
        "lorsmerge merge base ca.delta",
        WORK,
        ("model.safetensors.index.json", "outside"),
        _only_index('{"weight_map": {"a": "../base.safetensors"}}'),
    ),
    "an index that is cut short": Case(
        "lorsmerge merge base ca.delta",
        WORK,
        ("model.safetensors.index.json", "index"),
        _only_index('{"weight_map": {"a"'),
    ),
    "a config that is cut short": Case(
        "lorsmerge merge base ca.delta -o merged",
        WORK,
        ("config.json",),
        lambda: Path("base/config.json").write_text('{"dtype": '),
    ),
    "a config that is no table": Case(
        "lorsmerge merge base ca.delta -o merged",
        WORK,
        ("config.json",),
        lambda: Path("base/config.json").write_text("[1]"),
    ),
}

# --- options ------------------------------------------------------------------------------------

OPTIONS = {
    **{
        f"{option} {value}, {what}": Case(
            line + f" {option} {value}", USAGE, (option.strip("-"), "between 0 and 1")
        )
        for option in ("--svp", "--mp")
        for value in ("-0.1", "1.01", "40", "nan", "inf")
        for what, line in (
            ("merge", MERGE + "ca.delta"),
            ("prune", "lorsmerge prune ca.delta -o x.delta"),
        )
    },
    "a ratio of one delta": Case(
        MERGE + "ca.delta:svp=3,mp=0.4", USAGE, ("ca.delta", "svp", "between 0 and 1")
    ),
    "both ratios 0": Case(MERGE + "ca.delta --svp 0 --mp 0", USAGE, ("nothing", "kept")),
    "both ratios 0 of one delta": Case(
        MERGE + "ca.delta de.delta:svp=0,mp=0" + RATIOS, USAGE, ("de.delta", "nothing")
    ),
    "both ratios 0, prune": Case(
        "lorsmerge prune ca.delta -o x.delta --svp 0 --mp 0", USAGE, ("nothing",)
    ),
    "the only ratio 0": Case(MERGE + "ca.delta --svp 0", USAGE, ("nothing",)),
    "no ratio, prune": Case("lorsmerge prune ca.delta -o x.delta", USAGE, ("--svp", "--mp")),
    "a NaN scale": Case(MERGE + "ca.delta --scale nan", USAGE, ("scale", "finite")),
    "an infinite scale": Case(MERGE + "ca.delta --scale=-inf", USAGE, ("scale", "finite")),
    "a NaN scale of one delta": Case(
        MERGE + "ca.delta:scale=nan", USAGE, ("ca.delta", "scale", "finite")
    ),
    "no deltas": Case("lorsmerge merge base.safetensors", USAGE, ("no deltas", "at least one")),
    "no base": Case("lorsmerge merge", USAGE, ("no base", "merge BASE DELTA")),
    "an unknown method": Case(
        MERGE + "ca.delta --method lor", USAGE, ("'lor'", "Did you mean 'lors'")
    ),
    "a method against its ratios": Case(
        MERGE + "ca.delta --method ta --svp 0.5", USAGE, ("ta", "--svp")
    ),
    "a method without its ratios": Case(
        MERGE + "ca.delta --method lors", USAGE, ("lors", "--svp 0.03", "--mp 0.4")
    ),
    "an unknown setting": Case(
        MERGE + "ca.delta:svd=0.5", USAGE, ("ca.delta", "'svd'", "Did you mean 'svp'")
    ),
    "a setting that is no number": Case(MERGE + "ca.delta:svp=x", USAGE, ("svp", "number")),
    "settings between colons": Case(
        MERGE + "ca.delta:svp=0.1:mp=0.2", USAGE, ("commas", "svp=0.05,mp")
    ),
    "a setting given twice": Case(MERGE + "ca.delta:svp=1,svp=1", USAGE, ("svp", "twice")),
    "patterns without pruning": Case(
        MERGE + "ca.delta --exclude *fc1*", USAGE, ("exclude", "--svp")
    ),
    "a pattern that matches nothing": Case(
        MERGE + "ca.delta --svp 0.5 --include *.fc9.*", USAGE, ("*.fc9.*", "inspect")
    ),
    "a pattern that matches no matrix": Case(
        MERGE + "ca.delta --svp 0.5 --include *.bias", USAGE, ("*.bias", "2-D")
    ),
    "an unknown dtype": Case(
        MERGE + "ca.delta --dtype float12", USAGE, ("float12", "float32", "bfloat16")
    ),
    "an unknown dtype, prune": Case(
        "lorsmerge prune ca.delta -o x.delta --dtype int8" + RATIOS, USAGE, ("int8", "bfloat16")
    ),
    "an unknown device": Case(MERGE + "ca.delta --device tpu", USAGE, ("tpu", "cpu")),
    "a device that is not there": Case(
        MERGE + "ca.delta --device cuda:77", WORK, ("cuda:77", "--device cpu")
    ),
    "an unknown task": Case(
        "lorsmerge delta base/ ca.safetensors -o x.delta --task tts", USAGE, ("tts", "asr", "st")
    ),
    "a size without a unit": Case(
        "lorsmerge merge base ca.delta --max-shard-size 5", USAGE, ("5", "5GB")
    ),
    "a negative size": Case(
        "lorsmerge merge base ca.delta --max-shard-size -5GB", USAGE, ("-5GB", "5GB")
    ),
    "a size that is no number": Case(
        "lorsmerge merge base ca.delta --max-shard-size nanGB", USAGE, ("nanGB",)
    ),
    "no output": Case("lorsmerge prune ca.delta --svp 0.5", USAGE, ("Give -o",)),
    "an unknown option": Case(MERGE + "ca.delta --svd 0.5", USAGE, ("--svd",)),
    "no threads": Case(MERGE + "ca.delta --threads 0", USAGE, ("--threads",)),
    "a plot of checkpoints": Case(
        "lorsmerge inspect base.safetensors --plot x.png", USAGE, ("--plot", "deltas")
    ),
    "a plot of an unknown kind": Case(
        "lorsmerge inspect ca.delta --plot x.xyz", USAGE, ("x.xyz", "png")
    ),
}

# --- recipes ------------------------------------------------------------------------------------


def _recipe(text: str | bytes, name: str = "r.toml") -> Callable[[], object]:
    return lambda: Path(name).write_bytes(text.encode() if isinstance(text, str) else text)


WITH_RECIPE = "lorsmerge merge --recipe r.toml"
DELTAS = '[[deltas]]\npath = "ca.delta"\n'
RECIPES = {
    name: Case(line, code, words, _recipe(text, "r.json" if "r.json" in line else "r.toml"))
    for name, line, code, words, text in (
        ("an unknown key", WITH_RECIPE, USAGE, ("r.toml", "`spv`", "Did you mean 'svp'"),
         'base = "gone/"\nspv = 0.5\n' + DELTAS),
        ("an unknown key of a delta", WITH_RECIPE, USAGE, ("r.toml", "delta 1", "'scale'"),
         'base = "base"\n' + DELTAS + "scales = 1\n"),
        ("two faults", WITH_RECIPE, USAGE, ("2 problems", "`spv`", "`pm`"),
         'base = "base"\nspv = 0.5\npm = 1\n' + DELTAS),
        ("an unknown method of a recipe", WITH_RECIPE, USAGE, ("Did you mean 'lors'",),
         'base = "gone/"\nmethod = "lorss"\n' + DELTAS),
        ("a ratio as text", WITH_RECIPE, USAGE, ("r.toml", "svp", "'0.5'"),
         'base = "base"\nsvp = "0.5"\n' + DELTAS),
        ("a ratio as truth", WITH_RECIPE, USAGE, ("svp",), 'base = "base"\nsvp = true\n' + DELTAS),
        ("patterns as text", WITH_RECIPE, USAGE, ("include",),
         'base = "base"\nsvp = 0.5\ninclude = "*fc1*"\n' + DELTAS),
        ("patterns as numbers", WITH_RECIPE, USAGE, ("include",),
         'base = "base"\nsvp = 0.5\ninclude = [1]\n' + DELTAS),
        ("a ratio out of range in a recipe", WITH_RECIPE, USAGE, ("svp", "between 0 and 1"),
         'base = "gone"\nsvp = 3\n' + DELTAS),
        ("an unknown dtype in a recipe", WITH_RECIPE, USAGE, ("float12",),
         'base = "base"\ndtype = "float12"\n' + DELTAS),
        ("no base in a recipe", WITH_RECIPE, USAGE, ("r.toml", "`base` is missing"), DELTAS),
        ("no deltas in a recipe", WITH_RECIPE, USAGE, ("`deltas` is missing",), 'base = "base"\n'),
        ("empty deltas in a recipe", WITH_RECIPE, USAGE, ("no deltas",),
         'base = "base"\ndeltas = []\n'),
        ("a delta without a path", WITH_RECIPE, USAGE, ("delta 1", "`path`"),
         'base = "base"\n[[deltas]]\nsvp = 0.5\n'),
        ("a delta as text", WITH_RECIPE, USAGE, ("delta 1", "[[deltas]]"),
         'base = "base"\ndeltas = ["ca.delta"]\n'),
        ("no TOML", WITH_RECIPE, WORK, ("r.toml", "not a recipe"), "base: base\n"),
        ("bytes", WITH_RECIPE, WORK, ("r.toml", "not a recipe"), b"\xff\xfe\0base"),
        ("a missing recipe", "lorsmerge merge --recipe gone.toml", WORK, ("gone.toml",), ""),
        ("a recipe beside a base", MERGE + "--recipe r.toml", USAGE, ("r.toml", "already holds"),
         'base = "base"\n' + DELTAS),
        ("a recipe beside a ratio", WITH_RECIPE + " --svp 0", USAGE, ("already holds",),
         'base = "base"\n' + DELTAS),
        ("a json of something else", "lorsmerge merge --recipe r.json", WORK,
         ("r.json", "not a recipe"), '{"dtype": "float32"}'),
        ("a json list", "lorsmerge merge --recipe r.json", WORK, ("r.json",), "[1]"),
        ("a json without all fingerprints", "lorsmerge merge --recipe r.json", USAGE, ("r.json",),
         '{"recipe": {"base": "base", "deltas": [{"path": "ca.delta"}]}, '
         '"base": {"fingerprint": "0"}, "deltas": []}'),
    )
}  # fmt: skip

# --- outputs ------------------------------------------------------------------------------------


def _hard_link(source: str, name: str) -> Callable[[], None]:
    return lambda: os.link(source, name)


def _symlink(source: str, name: str) -> Callable[[], None]:
    return lambda: os.symlink(source, name)


def _hub_cache() -> None:
    """A base as the Hub's cache keeps it: a folder of links to files elsewhere."""
    Path("blobs").mkdir()
    for name in ("config.json", "model.safetensors"):
        Path("base", name).rename(Path("blobs", name))
        os.symlink(f"../blobs/{name}", f"base/{name}")


IS_INPUT = ("input",)
OUTPUTS = {
    "a file where a folder should be": Case(
        MERGE + "ca.delta -o config/x.safetensors",
        WORK,
        ("config",),
        lambda: Path("config").write_text(""),
    ),
    "an output that exists": Case(MERGE + "ca.delta -o de.delta2.safetensors", WORK,
        ("de.delta2.safetensors exists", "--force"),
        lambda: Path("de.delta2.safetensors").write_text("precious"),
    ),
    "the default output exists": Case(
        MERGE + "ca.delta",
        WORK,
        ("merged.safetensors exists", "--force"),
        lambda: Path("merged.safetensors").write_text("precious"),
    ),
    "a folder that exists": Case(
        "lorsmerge merge base ca.delta",
        WORK,
        ("merged exists", "--force"),
        lambda: (Path("merged").mkdir(), Path("merged/mine.txt").write_text("precious")),
    ),
    "a dry run onto an output that exists": Case(
        MERGE + "ca.delta --dry-run",
        WORK,
        ("exists",),
        lambda: Path("merged.safetensors").write_text("precious"),
    ),
    "a delta that exists": Case(
        "lorsmerge delta base/ ca.safetensors -o de.delta", WORK, ("de.delta exists", "--force")
    ),
    "a recipe that exists": Case(
        MERGE + "ca.delta --save-recipe ca.safetensors", WORK, ("ca.safetensors", "--force")
    ),
    "a dangling link": Case(
        MERGE + "ca.delta -o x.safetensors", WORK, ("exists",), _symlink("gone", "x.safetensors")
    ),
    "a folder where a file should be": Case(
        MERGE + "ca.delta --force -o x.safetensors",
        WORK,
        ("x.safetensors is a folder",),
        lambda: Path("x.safetensors").mkdir(),
    ),
    "a folder of a bare file": Case(
        MERGE + "ca.delta -o merged/", WORK, ("merged", "base.safetensors", "config")
    ),
    "a pickle as output": Case(
        "lorsmerge merge base ca.delta -o x.pt", WORK, ("x.pt", "x.safetensors")
    ),
    "the base": Case(MERGE + "ca.delta -f -o base.safetensors", WORK, IS_INPUT),
    "the fine-tune": Case(MERGE + "ca.safetensors -f -o ca.safetensors", WORK, IS_INPUT),
    "the base by a longer path": Case(
        MERGE + "ca.delta -f -o base/.././base.safetensors", WORK, IS_INPUT
    ),
    "the base by a symbolic link": Case(
        MERGE + "ca.delta -f -o x.safetensors",
        WORK,
        IS_INPUT,
        _symlink("base.safetensors", "x.safetensors"),
    ),
    "the base read by a symbolic link": Case(
        "lorsmerge merge x.safetensors ca.delta -f -o base.safetensors",
        WORK,
        IS_INPUT,
        _symlink("base.safetensors", "x.safetensors"),
    ),
    "the base by a hard link": Case(
        MERGE + "ca.delta -f -o x.safetensors",
        WORK,
        IS_INPUT,
        _hard_link("base.safetensors", "x.safetensors"),
    ),
    "the base by a linked folder": Case(
        MERGE + "ca.delta -f -o linked/base.safetensors", WORK, IS_INPUT, _symlink(".", "linked")
    ),
    "the base's folder": Case("lorsmerge merge base ca.delta -f -o base/", WORK, IS_INPUT),
    "the base's folder by a link": Case(
        "lorsmerge merge base ca.delta -f -o linked", WORK, IS_INPUT, _symlink("base", "linked")
    ),
    "the base's folder, of a bare file in it": Case(
        "lorsmerge merge base ca.safetensors -f -o base/model.safetensors", WORK, IS_INPUT
    ),
    "the base's folder in the Hub's cache": Case(
        "lorsmerge merge base ca.delta -f -o base", WORK, IS_INPUT, _hub_cache
    ),
    "the folder of all files": Case("lorsmerge merge base ca.delta -f -o .", WORK, IS_INPUT),
    "the delta, prune": Case("lorsmerge prune ca.delta -f -o ca.delta" + RATIOS, WORK, IS_INPUT),
    "the delta by a hard link, prune": Case(
        "lorsmerge prune ca.delta -f -o x.delta" + RATIOS,
        WORK,
        IS_INPUT,
        _hard_link("ca.delta", "x.delta"),
    ),
    "the base, delta": Case(
        "lorsmerge delta base ca.safetensors -f -o base/model.safetensors", WORK, IS_INPUT
    ),
    "the fine-tune by a link, delta": Case(
        "lorsmerge delta base ca.safetensors -f -o x.delta",
        WORK,
        IS_INPUT,
        _symlink("ca.safetensors", "x.delta"),
    ),
    "the delta, plot": Case("lorsmerge inspect ca.delta -f --plot ca.delta", USAGE, IS_INPUT),
    "the base, plot": Case(
        "lorsmerge inspect ca.delta base.safetensors -f --plot base.safetensors", USAGE, IS_INPUT
    ),
    "the base, recipe": Case(
        MERGE + "ca.delta -f --save-recipe base.safetensors", WORK, IS_INPUT
    ),
    "the delta, recipe": Case(MERGE + "ca.delta -f --save-recipe ca.delta", WORK, IS_INPUT),
    "a recipe onto the output": Case(
        MERGE + "ca.delta -f --save-recipe x.safetensors -o x.safetensors",
        WORK,
        ("x.safetensors",),
    ),
    "a name longer than the system takes": Case(
        MERGE + f"ca.delta -o {'n' * 300}.safetensors", WORK, ("nnn", "File name too long")
    ),
}  # fmt: skip

ALL = NON_FINITE | MISFITS | OPTIONS | RECIPES | OUTPUTS


@pytest.mark.parametrize("name", ALL)
def test_bad_input(tiny: Path, shell: Callable, contents: Callable, name: str) -> None:
    if "--plot" in ALL[name].line:
        pytest.importorskip("matplotlib")
    check(ALL[name], shell, contents)


def test_the_longest_name_that_the_system_takes(tiny: Path, shell: Callable) -> None:
    name = "n" * (os.pathconf(tiny, "PC_NAME_MAX") - len(".safetensors")) + ".safetensors"
    ended = shell(MERGE + f"ca.delta -o {name}")
    assert ended.code == 0, ended.err
    assert Path(name).is_file()


def test_the_same_delta_twice_is_a_warning(tiny: Path, shell: Callable) -> None:
    shutil.copy("ca.delta", "again.delta")
    ended = shell(MERGE + "ca.delta de.delta again.delta")
    assert ended.code == 0
    assert "again.delta is the same delta as ca.delta" in ended.err
    assert "warning" in ended.err


def test_deltas_of_very_different_size_are_noted(tiny: Path, shell: Callable) -> None:
    base = load_file("base.safetensors")
    large = {name: t + 1 if t.is_floating_point() else t for name, t in base.items()}
    save_file(large, "large.safetensors")
    ended = shell(MERGE + "ca.delta large.safetensors")
    assert ended.code == 0
    assert "large.safetensors is" in ended.err
    assert "times as large as ca.delta" in ended.err


def test_another_base_is_taken_when_it_is_allowed(tiny: Path, shell: Callable) -> None:
    _edit("base.safetensors", **{BIAS.replace(".", "__"): torch.ones(8)})
    ended = shell(MERGE + "ca.delta --allow-other-base")
    assert ended.code == 0
    assert "another model" in ended.err


# --- a disk that fills up -----------------------------------------------------------------------

WRITING = {
    "delta": "lorsmerge delta base/ ca.safetensors -o x.delta",
    "prune": "lorsmerge prune ca.delta -o x.delta" + RATIOS,
    "merge into a file": MERGE + "ca.delta de.delta -o x.safetensors" + RATIOS,
    "merge into a folder": "lorsmerge merge base ca.delta de.delta -o x" + RATIOS,
    "merge into shards": "lorsmerge merge base ca.delta -o x --max-shard-size 0.001MB",
}


@pytest.mark.parametrize("existing", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("name", WRITING)
def test_a_disk_that_fills_up_in_mid_write(
    tiny: Path,
    shell: Callable,
    contents: Callable,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    existing: bool,
) -> None:
    line = WRITING[name]
    if existing:
        assert shell(line).code == 0
    writes = iter(range(100))
    real = os.pwrite

    def fill(descriptor: int, raw: bytes, offset: int) -> int:
        if next(writes) < 4:
            return real(descriptor, raw, offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", fill)
    words = ("x", "No space left on device", "free some space")
    check(Case(line + " --force", WORK, words), shell, contents)


@pytest.mark.parametrize("name", WRITING)
def test_a_disk_that_is_too_small_is_noticed_before(
    tiny: Path,
    shell: Callable,
    contents: Callable,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    usage = shutil.disk_usage(tiny)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    words = ("100 bytes free", "Free some space")
    check(Case(WRITING[name], WORK, words), shell, contents)


@pytest.mark.parametrize("name", WRITING)
def test_a_folder_that_cannot_be_written(
    tiny: Path,
    shell: Callable,
    contents: Callable,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    check(Case(WRITING[name], WORK, ("not writable", "-o")), shell, contents)


def test_a_folder_that_turns_out_unwritable(
    tiny: Path, shell: Callable, contents: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    # quotas, /proc and network disks let os.access say yes and refuse afterwards
    def refuse(*arguments: object, **settings: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("os.mkdir", refuse)
    case = Case(MERGE + "ca.delta -o x.safetensors", WORK, ("x.safetensors", "quota"))
    check(case, shell, contents)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_real_limit_on_what_is_written(tiny: Path, contents: Callable) -> None:
    before = contents(tiny)
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "from lorsmerge_cli.app import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "merge", "base.safetensors", "ca.delta", "-o", "x.safetensors"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == WORK, done.stderr
    assert "x.safetensors could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(tiny) == before


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_results_into_a_full_disk_are_an_error(tiny: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lorsmerge_cli", "inspect", "base.safetensors", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode != 0
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


FAULTS = {
    "full": errno.ENOSPC, "quota": errno.EDQUOT, "failing": errno.EIO, "read-only": errno.EROFS,
    "out of descriptors": errno.EMFILE,
}  # fmt: skip


@pytest.mark.parametrize("existing", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("call", ["open", "pwrite", "ftruncate", "fsync", "mkdir", "rename"])
@pytest.mark.parametrize("name", ["merge into a file", "merge into shards", "prune"])
def test_a_disk_that_refuses_any_call(
    tiny: Path,
    shell: Callable,
    contents: Callable,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    call: str,
    existing: bool,
) -> None:
    """Every fault at every call that writes: an error in words, and all is as it was."""
    line = WRITING[name] + (" --force" if existing else "")
    if existing:
        assert shell(line).code == 0
    before = contents(tiny)
    real = getattr(os, call)
    for code in FAULTS.values():

        def fail(*arguments: object, code: int = code, **settings: object) -> object:
            # files of ours alone: PyTorch and Python open theirs by the same functions
            if call == "open" and ".partial" not in str(arguments[0]):
                return real(*arguments, **settings)
            if call == "open" and not arguments[1] & os.O_CREAT:
                return real(*arguments, **settings)
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            if call == "rename":  # as where the system cannot exchange two names
                patch.setattr(outputs, "_rename_with_flag", fail)
                patch.setattr(os, "replace", fail)
            ended = shell(line)
        assert ended.code == WORK, ended.err
        assert "could not be written" in ended.err
        assert os.strerror(code) in ended.err
        assert "bug" not in ended.err
        assert contents(tiny) == before


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_many_shards_need_few_descriptors(tiny: Path) -> None:
    save_file(
        {f"layers.{n:03d}.fc1.weight": torch.ones(8, 8) for n in range(200)}, "many.safetensors"
    )
    save_file({f"layers.{n:03d}.fc1.weight": torch.ones(8, 8) * 2 for n in range(200)}, "ft")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64));"
        "from lorsmerge_cli.app import main; main()"
    )
    line = "merge many.safetensors ft -o x --config base --max-shard-size 0.0003MB"
    done = subprocess.run([sys.executable, "-c", code, *line.split()],
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(Path("x").glob("*.safetensors"))) == 200


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="signals of POSIX")
def test_an_input_that_is_cut_short_while_it_is_read(tiny: Path, contents: Callable) -> None:
    """The system ends a process that reads mapped bytes which are gone, unless it is told otherwise."""
    for value, name in enumerate(("base", "ca")):
        save_file({"fc1.weight": torch.full((64, 1024), float(value))}, f"{name}.safetensors")
    before = contents(tiny)
    code = (
        "import os; from lorsmerge_cli.operations.merge import run as merge; from lorsmerge_cli.app import main\n"
        "real = merge._Run._merge_unit\n"
        "def cut(self, unit, writer):\n"
        "    os.truncate('ca.safetensors', 10); return real(self, unit, writer)\n"
        "merge._Run._merge_unit = cut; main()"
    )
    line = "merge base.safetensors ca.safetensors -o x.safetensors"
    done = subprocess.run([sys.executable, "-c", code, *line.split()],
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == WORK, done.stderr
    assert done.stderr.startswith("error: An input was truncated while being read.")
    assert contents(tiny).keys() == before.keys()


def test_what_was_written_before_a_failure_is_told(tiny: Path, shell: Callable) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorsmerge_cli.recipe.recipe.Recipe.to_toml", refuse)
        ended = shell(MERGE + "ca.delta -o x.safetensors --save-recipe x.toml")
    assert ended.code == WORK
    assert "x.toml could not be written: No space left" in ended.err
    assert f"note: In spite of that, written: '{tiny / 'x.safetensors'}'." in ended.err
    assert Path("x.safetensors").exists()
    assert not Path("x.toml").exists()
