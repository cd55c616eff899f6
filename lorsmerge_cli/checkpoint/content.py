"""A hash of every byte of named tensors, computed while they are read.

The fingerprint samples a few windows of each tensor, which is quick and enough to tell models apart.
A record of how an output was made needs more: two bases may differ in a few rows of an embedding. The
hash is XXH3-128 of blocks, which takes a thirtieth of the time of reading them from memory. It detects
any accidental difference; it does not protect against forgery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
import xxhash
from torch import Tensor

from lorsmerge_cli.checkpoint.reader import BLOCK
from lorsmerge_cli.checkpoint.safetensors_file import DTYPE_CODES, TensorSpec


class ContentHash:
    """The hash of a set of tensors, whose blocks arrive in any order and from any thread.

    Example:
        >>> whole = ContentHash({"w": TensorSpec((3,), torch.float32)})
        >>> whole.add("w", torch.tensor([1.0, 2.0, 3.0]))
        >>> whole.hexdigest()[:16]
        '0cc9b4e2876866e5'
    """

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self._specs = dict(specs)
        self._blocks: dict[tuple[str, int], bytes] = {}

    def add(self, name: str, values: Tensor, start: int = 0) -> None:
        """Hash the elements of a tensor from `start` on, in row-major order.

        Args:
            name: the tensor.
            values: the elements, in their stored dtype.
            start: index of the first one, a multiple of BLOCK; 0 by default.
        """
        for number, block in enumerate(values.reshape(-1).split(BLOCK)):
            if block.numel():
                raw = block.contiguous().view(torch.uint8).numpy()
                self._blocks[name, start // BLOCK + number] = xxhash.xxh3_128_digest(raw)

    def hexdigest(self, names: Iterable[str] | None = None) -> str:
        """Return the hash of all tensors, or of the named ones, however they are split over files.

        Raises:
            ValueError: a block of one of them was not added.
        """
        digest = hashlib.sha256()
        for name in sorted(self._specs if names is None else names):
            spec = self._specs[name]
            digest.update(f"{name}\0{spec.shape}\0{DTYPE_CODES[spec.dtype]}\0".encode())
            for number in range(-(-spec.numel // BLOCK)):
                if (name, number) not in self._blocks:
                    raise ValueError(f"block {number} of {name!r} was not hashed")
                digest.update(self._blocks[name, number])
        return digest.hexdigest()
