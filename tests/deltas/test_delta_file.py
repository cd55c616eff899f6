"""Delta files: what is written is read, and what is damaged is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorsmerge_cli.core.low_rank_sparse import Delta, LowRankSparse, dense
from lorsmerge_cli.core.pruning import prune
from lorsmerge_cli.core.pruning.budget import budget
from lorsmerge_cli.deltas.encodings import TensorLayout
from lorsmerge_cli.deltas.file import DeltaFile, DeltaWriter, Provenance, total_norm
from lorsmerge_cli.errors import UnreadableFile

WriteDelta = Callable[..., Path]


def deltas() -> dict[str, Delta]:
    """One of every form: low-rank and sparse with bitmask, each alone, places, nothing, dense."""
    generator = torch.Generator().manual_seed(0)

    def matrix() -> torch.Tensor:
        return torch.randn(24, 40, generator=generator) * 1e-3

    def pruned(pruner: str, svp: float | None, mp: float | None) -> Delta:
        return prune(matrix(), pruner, budget((24, 40), svp, mp))

    return {
        "lors.weight": pruned("lors", 0.1, 0.3),
        "svp.weight": pruned("svp", 0.1, None),
        "mp.weight": pruned("mp", None, 0.3),
        "places.weight": pruned("lors", 0.1, 0.01),
        "nothing.weight": pruned("mp", None, 1e-6),
        "dense.weight": matrix(),
        "bias": torch.randn(24, generator=generator),
        "scalar": torch.tensor(0.5),
        "größe": torch.zeros(0, 3),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_is_written_is_read(
    tmp_path: Path, write_delta: WriteDelta, provenance: Provenance, dtype: torch.dtype
) -> None:
    file = DeltaFile(write_delta(tmp_path / "x.delta", deltas(), dtype))
    assert file.layouts.keys() == deltas().keys()
    assert file.provenance == provenance
    for name, delta in deltas().items():
        wanted, read = delta.to(dtype), file.read(name)
        assert isinstance(read, LowRankSparse) == isinstance(delta, LowRankSparse)
        if isinstance(read, LowRankSparse):
            for part in ("left", "right", "sparse", "mask"):
                ours, theirs = getattr(read, part), getattr(wanted, part)
                assert (ours is None and theirs is None) or torch.equal(ours, theirs)
        else:
            assert read.dtype == dtype
            assert torch.equal(read, wanted)
        assert file.specs[name].shape == tuple(dense(delta).shape)
        assert file.norms[name] == float(dense(delta).norm())


def test_the_plain_library_opens_it(tmp_path: Path, write_delta: WriteDelta) -> None:
    path = write_delta(tmp_path / "x.delta", deltas())
    stored = load_file(path)
    assert {"lors.weight.low_rank.left", "lors.weight.sparse.bitmask", "bias"} <= stored.keys()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert all(key == "format" or key.startswith("lorsmerge.") for key in metadata)


def test_tensors_in_any_order_and_blocks_make_the_same_file(
    tmp_path: Path, provenance: Provenance
) -> None:
    tensors = {name: torch.arange(100.0) * i for i, name in enumerate("abc")}
    layouts = {name: TensorLayout("dense", (100,), torch.float32) for name in tensors}
    norms = dict.fromkeys("abc", 1.0)
    with DeltaWriter(tmp_path / "whole", layouts, provenance) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.finish(norms)
    with DeltaWriter(tmp_path / "blocks", layouts, provenance) as writer:
        for start in (60, 0, 30, 90):
            for name in "cab":
                writer.write_block(name, tensors[name][start : start + 30], start)
        writer.finish(norms)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "blocks").read_bytes()


def test_any_norm_fits_the_space_kept_for_it(tmp_path: Path, provenance: Provenance) -> None:
    longest = [1.2345678901234567e-300, 0.00012345678901234567, 1.2345678901234567e38, math.pi]
    layouts = {f"t{i}": TensorLayout("dense", (1,), torch.float32) for i in range(2000)}
    norms = {name: longest[i % 4] for i, name in enumerate(layouts)}
    with DeltaWriter(tmp_path / "x", layouts, provenance) as writer:
        pruning = {**provenance.pruning, "energy_kept": 0.12345678901234567}
        writer.finish(norms, replace(provenance, pruning=pruning))
    file = DeltaFile(tmp_path / "x")
    assert file.norms == norms
    assert file.provenance.pruning == pruning


def test_provenance_defaults(tmp_path: Path, provenance: Provenance) -> None:
    plain = Provenance("base", provenance.base, "F16")
    layouts = {"a": TensorLayout("dense", (2,), torch.float32)}
    with DeltaWriter(tmp_path / "x", layouts, plain) as writer:
        writer.finish({"a": 0.0})
    assert DeltaFile(tmp_path / "x").provenance == plain


def test_norms_add_up() -> None:
    assert total_norm({"a": 3.0, "b": 4.0}) == 5.0
    assert total_norm({}) == 0.0


Edit = Callable[[dict[str, str], dict[str, torch.Tensor]], None]
TENSORS = "lorsmerge.tensors"


def without(key: str) -> Edit:
    return lambda metadata, stored: metadata.pop(key)


def setting(key: str, value: str) -> Edit:
    return lambda metadata, stored: metadata.update({key: value})


def entry(name: str, **changes: Any) -> Edit:
    """One tensor's header entry with keys changed; `...` removes a key."""

    def edit(metadata: dict[str, str], stored: dict[str, torch.Tensor]) -> None:
        tensors = json.loads(metadata[TENSORS])
        tensors[name] |= changes
        tensors[name] = {key: value for key, value in tensors[name].items() if value is not ...}
        metadata[TENSORS] = json.dumps(tensors)

    return edit


def unlisted(metadata: dict[str, str], stored: dict[str, torch.Tensor]) -> None:
    tensors = json.loads(metadata[TENSORS])
    del tensors["bias"]
    metadata[TENSORS] = json.dumps(tensors)


def lost_part(metadata: dict[str, str], stored: dict[str, torch.Tensor]) -> None:
    del stored["lors.weight.sparse.bitmask"]


def extra_part(metadata: dict[str, str], stored: dict[str, torch.Tensor]) -> None:
    stored["lors.weight.sparse.places"] = torch.zeros(3, dtype=torch.int32)


def other_dtype(metadata: dict[str, str], stored: dict[str, torch.Tensor]) -> None:
    stored["bias"] = stored["bias"].half()


DAMAGED: dict[str, tuple[Edit, str]] = {
    "no mark": (without("lorsmerge.format_version"), "no lorsmerge delta"),
    "a later format": (setting("lorsmerge.format_version", "2"), "format 2"),
    "no tensors": (without(TENSORS), TENSORS),
    "no base name": (without("lorsmerge.base.name"), "base.name"),
    "no fingerprint": (without("lorsmerge.base.fingerprint"), "base.fingerprint"),
    "no dtype of the fine-tune": (without("lorsmerge.finetuned_dtype"), "finetuned_dtype"),
    "tensors are no JSON": (setting(TENSORS, "{"), "damaged"),
    "tensors are a list": (setting(TENSORS, "[]"), "damaged"),
    "tensors are numbers": (setting(TENSORS, '{"bias": 3}'), "damaged"),
    "fingerprint is no JSON": (setting("lorsmerge.base.fingerprint", "0f0f"), "damaged"),
    "fingerprint without digest": (setting("lorsmerge.base.fingerprint", "{}"), "digest"),
    "history is no JSON": (setting("lorsmerge.history", "x"), "damaged"),
    "pruning is no JSON": (setting("lorsmerge.pruning", "x"), "damaged"),
    "pruning is a list": (setting("lorsmerge.pruning", "[1]"), "damaged"),
    "history is a number": (setting("lorsmerge.history", "3"), "damaged"),
    "no encoding": (entry("bias", encoding=...), "encoding"),
    "no shape": (entry("bias", shape=...), "shape"),
    "no norm": (entry("bias", norm=...), "norm"),
    "unknown encoding": (entry("bias", encoding="zip"), "zip"),
    "encoding is a list": (entry("bias", encoding=["dense"]), "damaged"),
    "unknown dtype": (entry("bias", dtype="F33"), "F33"),
    "shape is a number": (entry("bias", shape=24), "damaged"),
    "norm is a word": (entry("bias", norm="large"), "damaged"),
    "another shape": (entry("bias", shape=[25]), "'bias'"),
    "a negative shape": (entry("bias", shape=[-24]), "'bias'"),
    "another dtype": (entry("bias", dtype="F16"), "'bias'"),
    "dense said to be lors": (entry("dense.weight", encoding="lors"), "dense.weight"),
    "a vector said to be lors": (entry("bias", encoding="lors", rank=1, kept=0), "bias"),
    "a scalar said to be lors": (entry("scalar", encoding="lors"), "scalar"),
    "lors said to be dense": (entry("lors.weight", encoding="dense"), "lors.weight"),
    "a higher rank": (entry("lors.weight", rank=3), "lors.weight.low_rank"),
    "no rank": (entry("lors.weight", rank=...), "lors.weight.low_rank"),
    "a negative rank": (entry("lors.weight", rank=-1), "lors.weight"),
    "more kept": (entry("lors.weight", kept=1000), "lors.weight.sparse"),
    "a part is lost": (lost_part, "lors.weight.sparse.bitmask"),
    "a part too many": (extra_part, "lors.weight.sparse.places"),
    "a part of another dtype": (other_dtype, "'bias'"),
    "a tensor that is not listed": (unlisted, "'bias'"),
    "tensors nested deeply": (setting(TENSORS, "[" * 10**5), "nested too deeply"),
    "pruning nested deeply": (setting("lorsmerge.pruning", '{"a":' * 10**5), "pruning: it is nested"),
    "history nested deeply": (setting("lorsmerge.history", "[" * 10**5), "nested too deeply"),
    "a size that is a float": (entry("bias", shape=[24.7]), "shape of 'bias' has the size 24.7"),
    "a size that is true": (entry("scalar", shape=[True]), "'scalar'"),
    "a size that is a word": (entry("bias", shape=["24"]), "shape of 'bias'"),
    "a size past any memory": (entry("nothing.weight", shape=[10**30, 10**30]), "shape of 'nothing.weight'"),
    "a size of 5,000 digits": (setting(TENSORS, '{"bias":{"shape":[' + "9" * 5000 + "]}}"), "digits"),
    "dtype is a list": (entry("bias", dtype=["F32"]), "dtype of 'bias' is a list"),
    "dtype of integers": (entry("bias", dtype="I32"), "dtype of 'bias'"),
    "rank is a float": (entry("lors.weight", rank=2.0), "rank of 'lors.weight'"),
    "kept is true": (entry("lors.weight", kept=True), "kept of 'lors.weight'"),
    "a rank past any memory": (entry("lors.weight", rank=10**30), "lors.weight"),
    "a dense one with a rank": (entry("bias", rank=1), "'bias' is dense"),
    "norm is NaN": (entry("bias", norm=float("nan")), "norm of 'bias' is nan"),
    "norm is infinite": (entry("bias", norm=float("inf")), "norm of 'bias' is inf"),
    "norm is negative": (entry("bias", norm=-1), "norm of 'bias' is -1"),
    "norm is a number in quotes": (entry("bias", norm="1e3"), "norm of 'bias'"),
    "norm is true": (entry("bias", norm=True), "norm of 'bias'"),
    "norm is a list": (entry("bias", norm=[1.0]), "norm of 'bias' is a list"),
    "norm past all floats": (entry("bias", norm=10**400), "norm of 'bias'"),
    "norm whose square is infinite": (entry("lors.weight", norm=1e308), "norm of 'lors.weight'"),
    "norm past the dtype": (entry("bias", norm=1e40), "norm of 'bias' is 1e+40"),
    "norm of nothing": (entry("nothing.weight", norm=1.0), "norm of 'nothing.weight'"),
    "norm of no elements": (entry("größe", norm=1.0), "norm of 'größe'"),
    "norm 0 of what is not 0": (entry("bias", norm=0), "the norm of 'bias' is 0"),
    "svp is a word": (setting("lorsmerge.pruning", '{"svp": "x"}'), "svp of its pruning is 'x'"),
    "mp is a list": (setting("lorsmerge.pruning", '{"mp": [1]}'), "mp of its pruning is a list"),
    "svp is NaN": (setting("lorsmerge.pruning", '{"svp": NaN}'), "pruning"),
    "svp above 1": (setting("lorsmerge.pruning", '{"svp": 7}'), "svp of its pruning is 7"),
    "method is markup": (setting("lorsmerge.pruning", '{"method": "<b>"}'), "method of its pruning"),
    "energy is infinite": (setting("lorsmerge.pruning", '{"energy_kept": 1e999}'), "pruning"),
    "history holds a number": (setting("lorsmerge.history", '["a", 1]'), "history"),
    "history holds a table": (setting("lorsmerge.history", '[{"a": 2}]'), "history"),
    "history holds half a pair": (setting("lorsmerge.history", '["\\ud800"]'), "no Unicode"),
    "training holds half a pair": (setting("lorsmerge.training", '{"x": "\\ud800"}'), "training"),
    "training is a list": (setting("lorsmerge.training", '[["a", 1]]'), "training"),
    "training on a word": (setting("lorsmerge.training", '{"trained_on": "x"}'), "trained_on"),
    "training on words": (setting("lorsmerge.training", '{"trained_on": ["x"]}'), "trained_on"),
    "training on half a row": (setting("lorsmerge.training", '{"trained_on": [{"task": "st"}]}'), "trained_on"),
    "training of no language": (
        setting("lorsmerge.training", '{"trained_on": [{"task": "st", "language": 3}]}'), "language is 3"
    ),
    "hours in words": (
        setting("lorsmerge.training", '{"trained_on": [{"task": "st", "language": "ca", "hours": "5"}]}'),
        "hours",
    ),
    "rate in words": (setting("lorsmerge.training", '{"learning_rate": "fast"}'), "learning_rate"),
    "seed in a list": (setting("lorsmerge.training", '{"seed": [1]}'), "seed"),
    "another task": (setting("lorsmerge.task", "tts"), "task is 'tts'"),
    "a task with code": (setting("lorsmerge.task", 'asr"); print("'), "the task is"),
    "a language with code": (setting("lorsmerge.language", "ca'}); import os"), "the language is"),
    "a language with a line break": (setting("lorsmerge.language", "ca\n"), "the language is"),
    "a language in Markdown": (setting("lorsmerge.language", "ca|x"), "the language is"),
    "a language in another script": (setting("lorsmerge.language", "каталан"), "the language is"),
    "another dtype of the fine-tune": (setting("lorsmerge.finetuned_dtype", "F32 "), "finetuned_dtype"),
    "a digest that is none": (
        setting("lorsmerge.base.fingerprint", '{"digest":"x","dtype":"F32","sample":[]}'), "digest"
    ),
    "a sample of words": (
        setting("lorsmerge.base.fingerprint", json.dumps({"digest": "0" * 64, "dtype": "F32", "sample": ["nan"]})),
        "sample",
    ),
    "a sample past all floats": (
        setting("lorsmerge.base.fingerprint", '{"digest":"%s","dtype":"F32","sample":[1e999]}' % ("0" * 64)),
        "sample",
    ),
    "fingerprint is a list": (setting("lorsmerge.base.fingerprint", "[]"), "an object is needed"),
}  # fmt: skip


def damage(source: Path, target: Path, edit: Edit) -> Path:
    """A copy of a delta file with its metadata and its parts edited by the plain library."""
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    stored = load_file(source)
    edit(metadata, stored)
    save_file(stored, target, metadata=metadata)
    return target


@pytest.mark.parametrize(("edit", "word"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_header(tmp_path: Path, write_delta: WriteDelta, edit: Edit, word: str) -> None:
    source = write_delta(tmp_path / "x.delta", deltas())
    path = damage(source, tmp_path / "damaged.delta", edit)
    with pytest.raises(UnreadableFile) as caught:
        DeltaFile(path)
    assert str(path) in str(caught.value)
    assert word in str(caught.value)


@pytest.mark.parametrize("language", ["", "ca", "yue", "zh-Hant", "pt-BR", "jw"])
@pytest.mark.parametrize("task", ["", "asr", "st"])
def test_languages_and_tasks(
    tmp_path: Path, write_delta: WriteDelta, task: str, language: str
) -> None:
    def edit(metadata: dict[str, str], stored: dict[str, torch.Tensor]) -> None:
        metadata |= {"lorsmerge.task": task, "lorsmerge.language": language}

    source = write_delta(tmp_path / "x.delta", deltas())
    found = DeltaFile(damage(source, tmp_path / "y.delta", edit)).provenance
    assert (found.task, found.language) == (task, language)


def claiming(path: Path, layouts: dict[str, TensorLayout], provenance: Provenance) -> Path:
    """A delta file with nothing but zeros in it."""
    with DeltaWriter(path, layouts, provenance) as writer:
        writer.finish(dict.fromkeys(layouts, 0.0))
    return path


F32 = torch.float32
OUT_OF_PROPORTION = {
    "nothing of 200,000 x 200,000": TensorLayout("lors", (200_000, 200_000), F32),
    "rank 1 of 300,000 x 300,000": TensorLayout("lors", (300_000, 300_000), F32, rank=1),
    "rank 1 of 16,384 x 16,384": TensorLayout("lors", (16_384, 16_384), F32, rank=1),
    "rank 1 in half precision": TensorLayout("lors", (20_000, 20_000), torch.float16, rank=1),
    "one element of 10^10": TensorLayout("lors", (10**10,), F32, kept=1),
}


@pytest.mark.parametrize("layout", OUT_OF_PROPORTION.values(), ids=OUT_OF_PROPORTION)
def test_tensors_out_of_proportion_to_the_file(
    tmp_path: Path, provenance: Provenance, layout: TensorLayout
) -> None:
    path = claiming(tmp_path / "x.delta", {"x.weight": layout}, provenance)
    with pytest.raises(UnreadableFile, match=r"'x\.weight' in it is said to be .* bytes"):
        DeltaFile(path)
    assert DeltaFile(path, has_base=True).specs["x.weight"].shape == layout.shape


def lora(
    d: int, k: int, rank: int, embedding: tuple[int, int], layers: int
) -> dict[str, TensorLayout]:
    """A delta of an adapter: factors of some matrices, and nothing of all others."""
    adapted = {
        f"layers.{i}.q_proj.weight": TensorLayout("lors", (d, k), F32, rank) for i in range(layers)
    }
    left_alone = {
        f"layers.{i}.fc1.weight": TensorLayout("lors", (4 * d, k), F32) for i in range(layers)
    }
    return adapted | left_alone | {"embed_tokens.weight": TensorLayout("lors", embedding, F32)}


REAL = {
    "one layer of Whisper large": lora(1280, 1280, 4, (51_866, 1280), 1),
    "one layer of Llama 8B": lora(4096, 4096, 1, (128_256, 4096), 1),
    "MLPs of Llama 8B": lora(14_336, 4096, 1, (128_256, 4096), 2),
    "a head of Llama 8B": {"lm_head.weight": TensorLayout("lors", (128_256, 4096), F32, 4)},
    "Llama 70B": lora(8192, 28_672, 4, (128_256, 8192), 3),
    "an embedding of Gemma left alone": lora(64, 64, 1, (262_144, 5376), 1),
}


@pytest.mark.parametrize("layouts", REAL.values(), ids=REAL)
def test_real_adapters_are_in_proportion(
    tmp_path: Path, provenance: Provenance, layouts: dict[str, TensorLayout]
) -> None:
    file = DeltaFile(claiming(tmp_path / "x.delta", layouts, provenance))
    for name, layout in layouts.items():
        if layout.is_zero:
            delta = file.read(name)
            assert isinstance(delta, LowRankSparse)
            assert dense(delta).shape == layout.shape
            for part in (delta.sparse, delta.mask, dense(delta), delta.to(torch.float16).sparse):
                assert part.untyped_storage().nbytes() <= 8  # however large its shape


def test_specs_are_made_once(tmp_path: Path, write_delta: WriteDelta) -> None:
    file = DeltaFile(write_delta(tmp_path / "x.delta", deltas()))
    assert file.specs is file.specs


def test_names_that_utf8_has_not_do_not_spoil_a_file(
    tmp_path: Path, provenance: Provenance
) -> None:
    odd = Provenance("b\udcff", provenance.base, "F32", history=("lorsmerge delta b\udcff",))
    layouts = {"a": TensorLayout("dense", (2,), F32)}
    file = DeltaFile(claiming(tmp_path / "x.delta", layouts, odd))
    assert (file.provenance.base_name, file.provenance.history) == ("b?", ("lorsmerge delta b?",))


def set_bits(count: int) -> Edit:
    """A bitmask with as many one bits, whatever the number of values."""

    def edit(metadata: dict[str, str], stored: dict[str, torch.Tensor]) -> None:
        whole, rest = divmod(count, 8)
        mask = torch.zeros_like(stored["lors.weight.sparse.bitmask"])
        mask[:whole] = 255
        mask[whole] = 2**rest - 1
        stored["lors.weight.sparse.bitmask"] = mask

    return edit


def place(number: int, value: int) -> Edit:
    def edit(metadata: dict[str, str], stored: dict[str, torch.Tensor]) -> None:
        stored["places.weight.sparse.places"][number] = value

    return edit


LYING_PARTS: dict[str, tuple[str, Edit]] = {
    "fewer bits than values": ("lors.weight", set_bits(100)),
    "more bits than values": ("lors.weight", set_bits(400)),
    "a place past the end": ("places.weight", place(-1, 24 * 40)),
    "a negative place": ("places.weight", place(0, -1)),
    "places out of order": ("places.weight", place(0, 958)),
    "a place given twice": ("places.weight", place(0, 959)),
}


@pytest.mark.parametrize(("name", "edit"), LYING_PARTS.values(), ids=LYING_PARTS)
def test_places_that_do_not_fit_the_values(
    tmp_path: Path, write_delta: WriteDelta, name: str, edit: Edit
) -> None:
    source = write_delta(tmp_path / "x.delta", deltas())
    if name == "places.weight":  # so that the last case is a place given twice
        place(-1, 959)({}, stored := load_file(source))
        assert stored["places.weight.sparse.places"].unique().numel() == 9
    path = damage(
        source,
        tmp_path / "damaged.delta",
        lambda metadata, stored: (
            place(-1, 959)(metadata, stored) if name == "places.weight" else None,
            edit(metadata, stored),
        ),
    )
    with pytest.raises(UnreadableFile) as caught:
        DeltaFile(path).read(name)
    assert str(path) in str(caught.value)
    assert name in str(caught.value)


def test_unknown_keys_are_no_damage(tmp_path: Path, write_delta: WriteDelta) -> None:
    """The format may grow by keys without a new version."""
    source = write_delta(tmp_path / "x.delta", deltas())

    def grow(metadata: dict[str, str], stored: dict[str, torch.Tensor]) -> None:
        metadata["lorsmerge.note"] = "from later"
        entry("bias", note="from later")(metadata, stored)

    file = DeltaFile(damage(source, tmp_path / "later.delta", grow))
    assert torch.equal(file.read("bias"), deltas()["bias"])


def test_optional_keys_may_be_absent(tmp_path: Path, write_delta: WriteDelta) -> None:
    source = write_delta(tmp_path / "x.delta", deltas())

    def drop(metadata: dict[str, str], stored: dict[str, torch.Tensor]) -> None:
        for key in ("task", "language", "pruning", "history"):
            del metadata[f"lorsmerge.{key}"]

    provenance = DeltaFile(damage(source, tmp_path / "less.delta", drop)).provenance
    assert (provenance.task, provenance.language, provenance.history) == ("", "", ())
    assert provenance.pruning == {}
