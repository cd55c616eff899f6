"""The hash of every byte: independent of how tensors arrive, different for any other number."""

from __future__ import annotations

import hashlib
import random

import pytest
import torch
import xxhash

from lorsmerge_cli.checkpoint.content import ContentHash
from lorsmerge_cli.checkpoint.reader import BLOCK
from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec

TENSORS = {
    "long": torch.arange(2 * BLOCK + 5, dtype=torch.float32),
    "half": torch.arange(12).to(torch.bfloat16).reshape(3, 4),
    "one": torch.tensor(1.5),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False]),
    "complex": torch.tensor([1 + 2j]),
}
SPECS = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in TENSORS.items()}


def plain(tensors: dict[str, torch.Tensor]) -> str:
    """The definition: SHA-256 over names, shapes, dtypes and the XXH3-128 of each block."""
    codes = {
        torch.float32: "F32",
        torch.bfloat16: "BF16",
        torch.bool: "BOOL",
        torch.complex64: "C64",
    }
    text = b""
    for name in sorted(tensors):
        tensor = tensors[name]
        text += f"{name}\0{tuple(tensor.shape)}\0{codes[tensor.dtype]}\0".encode()
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        size = BLOCK * tensor.element_size()
        text += b"".join(
            xxhash.xxh3_128(raw[i : i + size]).digest() for i in range(0, len(raw), size)
        )
    return hashlib.sha256(text).hexdigest()


def hashed(tensors: dict[str, torch.Tensor], seed: int = 0) -> ContentHash:
    """The same in blocks, whose order the seed decides."""
    content = ContentHash(SPECS)
    blocks = [
        (name, start)
        for name, tensor in tensors.items()
        for start in range(0, max(1, tensor.numel()), BLOCK)
    ]
    random.Random(seed).shuffle(blocks)
    for name, start in blocks:
        content.add(name, tensors[name].reshape(-1)[start : start + BLOCK], start)
    return content


@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_it_is_defined_to_be(seed: int) -> None:
    assert hashed(TENSORS, seed).hexdigest() == plain(TENSORS)
    whole = ContentHash(SPECS)
    for name, tensor in TENSORS.items():
        whole.add(name, tensor)
    assert whole.hexdigest() == plain(TENSORS)


@pytest.mark.parametrize("name", ["long", "half", "one", "flags", "complex"])
@pytest.mark.parametrize("index", [0, -1])
def test_any_other_number_is_another_hash(name: str, index: int) -> None:
    changed = {key: tensor.clone() for key, tensor in TENSORS.items()}
    flat = changed[name].view(-1)
    flat[index] = ~flat[index] if name == "flags" else flat[index] + 1
    assert hashed(changed).hexdigest() != plain(TENSORS)


def test_the_sign_of_a_zero_counts() -> None:
    negative = TENSORS | {"long": TENSORS["long"] * -1.0}
    negative["long"][1:] *= -1.0
    assert torch.equal(negative["long"], TENSORS["long"])
    assert hashed(negative).hexdigest() != plain(TENSORS)


def test_a_transposed_tensor_is_hashed_in_row_major_order() -> None:
    content = ContentHash({"half": SPECS["half"]})
    content.add("half", TENSORS["half"].T.contiguous().T)
    assert content.hexdigest() == plain({"half": TENSORS["half"]})


def test_a_part_by_itself() -> None:
    names = ["one", "half"]
    assert hashed(TENSORS).hexdigest(names) == plain({name: TENSORS[name] for name in names})


def test_a_block_that_did_not_come_is_an_error() -> None:
    content = ContentHash(SPECS)
    content.add("long", TENSORS["long"][:BLOCK])
    with pytest.raises(ValueError, match="block 1 of 'long' was not hashed"):
        content.hexdigest(["long"])
