"""PyTorch and transformers: what all other commands decode with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorsmerge_cli.data.utterance import Answer, Utterance
from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.speech.engines.engine import Decoder, Engine
from lorsmerge_cli.speech.settings import check_compute_dtype

if TYPE_CHECKING:
    from lorsmerge_cli.speech.decoding.clips import DecodingSettings
    from lorsmerge_cli.speech.decoding.ear import Ear
    from lorsmerge_cli.speech.features import Features
    from lorsmerge_cli.speech.model import SpeechModel
    from lorsmerge_cli.speech.source import ModelSource


@dataclass(frozen=True)
class _Decoder:
    speech: SpeechModel

    def prepare(self, settings: DecodingSettings) -> None:
        pass

    def answers(
        self,
        utterances: Sequence[Utterance],
        settings: DecodingSettings,
        progress: Callable[[Utterance, Answer], None],
        features: Features,
    ) -> dict[str, Answer]:
        from lorsmerge_cli.speech.decoding import clips

        return clips.decode_answers(self.speech, utterances, settings, progress, features)

    def ear(self) -> Ear:
        from lorsmerge_cli.speech.decoding.ear import TorchEar

        return TorchEar(self.speech)


def _check(dtype: str, device: str) -> list[LorsmergeError]:
    try:
        check_compute_dtype(dtype)
    except LorsmergeError as fault:
        return [fault]
    return []


def _dtype(name: str, device: str) -> str:
    from lorsmerge_cli.speech.source import compute_dtype

    return compute_dtype(name, device)


def _open(source: ModelSource, dtype: str, device: str) -> Decoder:
    from lorsmerge_cli.speech.source import parse_speech_dtype

    return _Decoder(source.open(parse_speech_dtype(dtype), device))


TORCH = Engine(_check, _dtype, lambda dtype: "", lambda source: [], _open)
