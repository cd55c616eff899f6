"""Speech from text by espeak-ng's library (`apt install espeak-ng`), about 4 ms a sentence."""

from __future__ import annotations

import ctypes
import ctypes.util

import numpy as np
import soxr

RATE = 16_000
_SYNCHRONOUS, _UTF8, _SPEED, _PITCH = 2, 1, 1, 3  # of espeak-ng's speak_lib.h
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Voices:
    """The synthesiser. There can be one in a process."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1"
        try:
            self._library = ctypes.CDLL(name)
        except OSError:
            raise SystemExit(
                "The demo's generator needs espeak-ng: apt install espeak-ng, or brew install espeak-ng."
            ) from None
        self._rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, 0)
        self._samples: list[np.ndarray] = []
        self._callback = _CALLBACK(self._receive)  # kept: the library holds only its address
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
        """Samples at 16 kHz, float32 in -1..1, without the silence at either end.

        Args:
            voice: such as `fr+m5`, a language and one of espeak-ng's variants.
            speed: words a minute.
            pitch: 0 to 100.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(_SPEED, speed, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        self._samples.clear()
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        heard = np.concatenate(self._samples).astype(np.float32) / 32768
        loud = np.flatnonzero(np.abs(heard) > 0.01)
        heard = heard[max(loud[0] - 200, 0) : loud[-1] + 400]
        return soxr.resample(heard, self._rate, RATE).astype(np.float32)

    def _receive(self, samples: object, count: int, events: object) -> int:
        if count > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0
