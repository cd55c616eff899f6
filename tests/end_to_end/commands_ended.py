"""What the tests' shells give back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """What a command left: its exit code and both of its streams."""

    code: int
    out: str
    err: str


Shell = Callable[..., Ended]
