"""Mask parts of clips in time and frequency, with Park et al.'s sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lorsmerge_cli.errors import UsageFault

if TYPE_CHECKING:  # a policy is checked before either is loaded
    import numpy as np
    from torch import Tensor

HOW = "Give LB, LD, SM or SS, or sizes such as F=27,mF=2,T=100,mT=2,p=1."


@dataclass(frozen=True)
class Masks:
    """A policy of SpecAugment (Park et al. 2019, Table 1), without its time warping.

    Attributes:
        bins: F, the most mel bins of a mask.
        bin_masks: m_F, masks of bins in a clip.
        frames: T, the most frames of a mask (of 10 ms in Whisper).
        frame_masks: m_T, masks of frames in a clip.
        share: p, the largest share of a clip's frames that one mask takes.
    """

    bins: int = 27
    bin_masks: int = 1
    frames: int = 100
    frame_masks: int = 1
    share: float = 1.0


POLICIES = {
    "LB": Masks(),
    "LD": Masks(27, 2, 100, 2),
    "SM": Masks(15, 2, 70, 2, 0.2),
    "SS": Masks(27, 2, 70, 2, 0.2),
}
LETTERS = {"F": "bins", "mF": "bin_masks", "T": "frames", "mT": "frame_masks", "p": "share"}


def parse_masks(text: str) -> Masks:
    """Return a policy by its name in the paper (`LD`), or of sizes; those not given are LB's.

    Raises:
        UsageFault: no such policy or size, or a size that is no number.

    Example:
        >>> parse_masks("LD") == parse_masks("mF=2,mT=2")
        True
    """
    if text in POLICIES:
        return POLICIES[text]
    given: dict[str, float] = {}
    for part in text.split(","):
        letter, _, value = part.strip().partition("=")
        name = LETTERS.get(letter)
        if name is None:
            raise UsageFault(f"--masks: {part.strip()!r} is neither a policy nor a size.", HOW)
        if name in given:
            raise UsageFault(f"--masks: {letter} is given twice.", HOW)
        try:
            given[name] = float(value) if name == "share" else int(value)
        except ValueError:
            raise UsageFault(f"--masks: {part.strip()} is not a number.", HOW) from None
        if not 0 <= given[name] <= (1 if name == "share" else 10_000):
            most = "1" if name == "share" else "10,000"
            raise UsageFault(f"--masks: {part.strip()} is not between 0 and {most}.", HOW)
    made: Masks = replace(Masks(), **given)  # type: ignore[arg-type]
    return made


def mask(features: Tensor, frames: Sequence[int], masks: Masks, seeds: Sequence[list[int]]) -> None:
    """Mask each clip of a batch in place, with zero, which is near the mean of Whisper's features.

    Args:
        features: [clips, mel bins, frames].
        frames: of each clip's own audio; only those are masked, and padding is not.
        masks: the policy.
        seeds: whole numbers by which a clip's masks are drawn, whatever is in its batch.
    """
    import numpy as np

    bins = features.shape[1]
    for clip, length, seed in zip(features, frames, seeds, strict=True):
        draw = np.random.default_rng(seed)
        for _ in range(masks.bin_masks):
            first, size = _piece(draw, bins, masks.bins)
            clip[first : first + size, :length] = 0
        widest = min(masks.frames, int(masks.share * length))
        for _ in range(masks.frame_masks):
            first, size = _piece(draw, length, widest)
            clip[:, first : first + size] = 0


def _piece(draw: np.random.Generator, length: int, widest: int) -> tuple[int, int]:
    """Draw the start and size of a mask: a size from 0 to the widest, and anywhere it fits."""
    size = int(draw.integers(min(widest, length) + 1))
    return int(draw.integers(length - size + 1)), size
