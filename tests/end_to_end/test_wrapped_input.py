"""What a message tells the user to type works when it is typed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands_ended import Ended, Shell
from safetensors.torch import load_file, save_file

WRAPPERS = ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."]


def wrap(file: str, prefix: str) -> None:
    tensors = {prefix + name: value for name, value in load_file(file).items()}
    os.unlink(file)
    save_file(tensors, file)


@pytest.mark.parametrize("prefix", WRAPPERS)
@pytest.mark.parametrize("wrapped", ["ca.safetensors", "base.safetensors"])
def test_the_remedy_for_wrapped_names(
    tiny: Path, shell: Shell, succeed: Callable[[str], Ended], prefix: str, wrapped: str
) -> None:
    succeed("lorsmerge merge base.safetensors ca.safetensors -o wanted.safetensors")
    os.unlink("ca.delta")
    wrap(wrapped, prefix)
    line = "lorsmerge merge base.safetensors ca.safetensors -o found.safetensors"
    ended = shell(line)
    assert ended.code == 1
    told = " ".join(ended.err.split()).split("`")
    succeed(f"{line} {told[1]}")
    succeed(told[3])
    succeed("lorsmerge merge base.safetensors ca.delta -o again.safetensors")
    found, again = load_file("found.safetensors"), load_file("again.safetensors")
    wanted = load_file("wanted.safetensors")
    names = load_file("base.safetensors").keys()
    assert found.keys() == again.keys() == names  # the base's names, whichever is wrapped
    for name in names:
        assert torch.equal(found[name], wanted[name.removeprefix(prefix)])
        assert torch.equal(again[name], found[name])


@pytest.mark.parametrize(
    "line",
    [
        "lorsmerge inspect fifo",
        "lorsmerge merge fifo ca.delta -o x.safetensors",
        "lorsmerge merge base.safetensors fifo -o x.safetensors",
        "lorsmerge delta base.safetensors fifo -o x.delta",
        "lorsmerge prune fifo -o x.delta --mp 0.5",
        "lorsmerge inspect folder",
        "lorsmerge merge folder ca.delta -o x.safetensors",
    ],
)
def test_a_fifo_is_refused_and_not_waited_for(tiny: Path, shell: Shell, line: str) -> None:
    os.mkfifo("fifo")
    os.mkdir("folder")
    os.mkfifo("folder/model.safetensors")
    ended = shell(line)
    assert ended.code == 1
    assert "is a FIFO, not a file" in " ".join(ended.err.split())


def test_a_second_set_of_weights_is_told(tiny: Path, succeed: Callable[[str], Ended]) -> None:
    torch.save(load_file("base/model.safetensors"), "base/pytorch_model.bin")
    for line in (
        "lorsmerge inspect base",
        "lorsmerge delta base ca.safetensors -o x.delta",
        "lorsmerge delta base.safetensors base -o x.delta -f",
        "lorsmerge merge base de.safetensors -o merged",
    ):
        if line.endswith("-f"):  # a fine-tune that is its base
            save_file(load_file("ca.safetensors"), "new")
            os.replace("new", "base/model.safetensors")
        told = succeed(line).err
        assert " ".join(told.split()).count("'pytorch_model.bin' is not") == 1
