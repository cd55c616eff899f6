"""A fingerprint that tells checkpoints apart, and needs only a few pages of each tensor.

A delta is meaningless without the base it was taken from, so it carries its base's fingerprint.
Reading all bytes of a base would cost as much as merging it. A fine-tune changes every element of
the tensors it trains, so a few bytes of every tensor are enough to recognise it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from lorsmerge_cli.checkpoint.safetensors_file import DTYPE_CODES, DTYPES, TensorSpec, shown
from lorsmerge_cli.inputs import json_object

WINDOWS = 8  # sampled from each tensor
WINDOW_BYTES = 512
SAMPLE_TENSORS = 256  # tensors that give one value each, compared across dtypes
BFLOAT16_STEP = 2.0**-7  # relative: the coarsest rounding of "the same model"
LARGEST = torch.finfo(torch.float32).max
MAX_NUMBER = 1e300  # largest number in a JSON document


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a set of named tensors.

    Attributes:
        digest: SHA-256 over names, shapes, dtypes and sampled bytes.
        dtype: dtype code of the tensors, `F32+F16` where they are mixed.
        sample: one value of each of up to 256 tensors, in float32.
        content: `ContentHash` of all bytes, empty if they were not read.
    """

    digest: str
    dtype: str
    sample: tuple[float, ...]
    content: str = ""

    def to_json(self) -> str:
        """Return the fingerprint as a JSON object."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Fingerprint:
        """Read what `to_json` wrote, from a file that anyone may have written.

        Raises:
            ValueError: it is not a fingerprint.
            KeyError: a part of it is missing.
        """
        found = json_object(text)
        digest, dtype, sample = found["digest"], found["dtype"], found["sample"]
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"the digest of the base's fingerprint is {shown(digest)}")
        if not isinstance(dtype, str) or not set(dtype.split("+")) <= DTYPES.keys() | {""}:
            raise ValueError(f"the dtype of the base's fingerprint is {shown(dtype)}")
        if not isinstance(sample, list) or not all(map(is_number, sample)):
            raise ValueError("the sample of the base's fingerprint is not a list of finite numbers")
        return Fingerprint(digest, dtype, tuple(map(float, sample)), str(found.get("content", "")))

    def is_rounding_of(self, other: Fingerprint) -> bool:
        """Tell whether both hold the same values in different dtypes."""
        if self.dtype == other.dtype or len(self.sample) != len(other.sample):
            return False
        return all(
            abs(a - b) <= BFLOAT16_STEP * max(abs(a), abs(b)) + 1e-7
            for a, b in zip(self.sample, other.sample, strict=True)
        )


def is_number(value: object) -> bool:
    """Tell whether a value of a JSON document is a finite number."""
    return type(value) in (int, float) and -MAX_NUMBER <= value <= MAX_NUMBER  # type: ignore[operator]


def fingerprint(specs: Mapping[str, TensorSpec], read: Callable[[str], Tensor]) -> Fingerprint:
    """Return the fingerprint of named tensors, however they are split over files."""
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
            # finite float32, which JSON holds exactly
            sample.append(flat[spec.numel // 2].float().clamp(-LARGEST, LARGEST).item())
    dtypes = sorted({DTYPE_CODES[spec.dtype] for spec in specs.values()})
    return Fingerprint(digest.hexdigest(), "+".join(dtypes), tuple(sample))


def _windows(raw: Tensor) -> bytes:
    size = raw.numel()
    if size <= WINDOWS * WINDOW_BYTES:
        return raw.numpy().tobytes()
    step = (size - WINDOW_BYTES) // (WINDOWS - 1)
    view = raw.numpy()
    return b"".join(view[i * step : i * step + WINDOW_BYTES].tobytes() for i in range(WINDOWS))
