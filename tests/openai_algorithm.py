"""openai-whisper's own transcribe(), on weights that `export` wrote for it."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lorsmerge_cli import export


def whisper_package() -> Any:
    """The package, without numba: only the alignment of words is compiled by it, and runs without."""
    if "numba" not in sys.modules:
        stub: Any = types.ModuleType("numba")
        stub.jit = lambda **settings: lambda function: function
        sys.modules["numba"] = stub
    if "whisper" not in sys.modules:  # an import that failed for want of numba leaves its modules
        for name in [name for name in sys.modules if name.startswith("whisper.")]:
            del sys.modules[name]
    import whisper

    return whisper


def openai_model(folder: Path) -> Any:
    """The model of a folder, as openai-whisper loads it."""
    file = folder.with_name(f"{folder.name}.pt")
    if not file.exists():
        export(folder, file, format="openai")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return whisper_package().load_model(str(file), device="cpu")


def openai_transcribe(
    model: Any, wave: NDArray[np.float32], *, silence_after: bool = True, **settings: Any
) -> dict[str, Any]:
    """What its transcribe() returns.

    Args:
        model: by `openai_model`.
        wave: [samples] at 16 kHz.
        silence_after: fill the last window with the features of silence, as we do; it fills it with
            zeros, which are those of no sound in particular.
        settings: of transcribe().
    """
    module = sys.modules[whisper_package().transcribe.__module__]
    own: Callable[..., torch.Tensor] = module.pad_or_trim
    mel = whisper_package().log_mel_spectrogram(wave, model.dims.n_mels, padding=480_000)
    content = mel.shape[-1] - 3000

    def padded(segment: torch.Tensor, length: int) -> torch.Tensor:
        found = own(segment, length)
        if segment.shape[-1] < length:
            found[:, segment.shape[-1] :] = mel[:, content : content + length - segment.shape[-1]]
        return found

    if silence_after:
        module.pad_or_trim = padded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return whisper_package().transcribe(model, wave, fp16=False, **settings)
    finally:
        module.pad_or_trim = own
