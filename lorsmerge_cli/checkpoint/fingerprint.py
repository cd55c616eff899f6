"""What tells one checkpoint from another, at the cost of reading a few pages per tensor.

A delta only means something beside the base it was taken from, so it carries its base's
fingerprint. Reading all bytes of a base would cost as much as merging it; a fine-tune moves
every entry of the tensors it trains, so some bytes of every tensor are enough to tell it apart.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.safetensors_file import DTYPE_CODES, TensorSpec
from lorsmerge_cli.inputs import parse_json

WINDOWS = 8  # places sampled in a tensor
WINDOW_BYTES = 512
SAMPLE_TENSORS = 256  # tensors that give one value each to compare across dtypes
BFLOAT16_STEP = 2.0**-7  # relative: the widest rounding that "the same model" may differ by


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a set of named tensors.

    Attributes:
        digest: SHA-256 over names, shapes, dtypes and sampled bytes.
        dtype: dtype code of the tensors, `F32+F16` where they are mixed.
        sample: one value of each of up to 256 tensors, in float32.
        content: `ContentHash` of all bytes, empty where they were not read.
    """

    digest: str
    dtype: str
    sample: tuple[float, ...]
    content: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Fingerprint:
        fields = parse_json(text)
        return Fingerprint(
            str(fields["digest"]),
            str(fields["dtype"]),
            tuple(float(v) for v in fields["sample"]),
            str(fields.get("content", "")),
        )

    def is_rounding_of(self, other: Fingerprint) -> bool:
        """Whether both hold the same values, each in a dtype of its own."""
        if self.dtype == other.dtype or len(self.sample) != len(other.sample):
            return False
        return all(
            abs(a - b) <= BFLOAT16_STEP * max(abs(a), abs(b)) + 1e-7
            for a, b in zip(self.sample, other.sample, strict=True)
        )


def fingerprint(specs: Mapping[str, TensorSpec], read: Callable[[str], Tensor]) -> Fingerprint:
    """Fingerprint of the named tensors, independent of how files hold them."""
    digest = hashlib.sha256()
    names = sorted(specs)
    sampled = set(names[:: max(1, len(names) // SAMPLE_TENSORS)][:SAMPLE_TENSORS])
    sample = []
    for name in names:
        spec = specs[name]
        digest.update(f"{name}\0{spec.shape}\0{DTYPE_CODES[spec.dtype]}\0".encode())
        if not spec.numel:
            continue
        flat = read(name).reshape(-1)
        digest.update(_windows(flat.view(torch.uint8)))
        if name in sampled and spec.is_float:
            # float32 as JSON writes it: short, and equal when read again
            sample.append(struct.unpack("f", struct.pack("f", flat[spec.numel // 2].item()))[0])
    dtypes = sorted({DTYPE_CODES[spec.dtype] for spec in specs.values()})
    return Fingerprint(digest.hexdigest(), "+".join(dtypes), tuple(sample))


def _windows(raw: Tensor) -> bytes:
    size = raw.numel()
    if size <= WINDOWS * WINDOW_BYTES:
        return raw.numpy().tobytes()
    step = (size - WINDOW_BYTES) // (WINDOWS - 1)
    view = raw.numpy()
    return b"".join(view[i * step : i * step + WINDOW_BYTES].tobytes() for i in range(WINDOWS))
