"""The engines of `eval --engine`; importing this loads none of them."""

from __future__ import annotations

from lorsmerge_cli.errors import LorsmergeError, UsageFault, did_you_mean
from lorsmerge_cli.speech.engines.ct2 import CT2
from lorsmerge_cli.speech.engines.engine import Decoder, Engine
from lorsmerge_cli.speech.engines.torch import TORCH

__all__ = ["DEFAULT", "ENGINES", "Decoder", "Engine", "check_engine"]

DEFAULT = "torch"
ENGINES: dict[str, Engine] = {
    "torch": TORCH,
    "ct2": CT2,
}


def check_engine(name: str, dtype: str, device: str) -> list[LorsmergeError]:
    """Return the faults of an engine's name, and of a dtype and a device for it."""
    if name not in ENGINES:
        return [UsageFault(f"There is no engine {name!r}.{did_you_mean(name, [*ENGINES])}")]
    return ENGINES[name].check(dtype, device)
