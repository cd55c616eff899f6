"""What an engine is: a program that computes the texts of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lorsmerge_cli.data.utterance import Answer, Utterance
from lorsmerge_cli.errors import LorsmergeError

if TYPE_CHECKING:
    from lorsmerge_cli.speech.decoding.clips import DecodingSettings
    from lorsmerge_cli.speech.decoding.ear import Ear
    from lorsmerge_cli.speech.features import Features
    from lorsmerge_cli.speech.model import SpeechModel
    from lorsmerge_cli.speech.source import ModelSource


class Decoder(Protocol):
    """A model in an engine."""

    @property
    def speech(self) -> SpeechModel:
        """Its prompts, features and settings, with the device and dtype it computes in."""

    def prepare(self, settings: DecodingSettings) -> None:
        """Do what is done once, before the first utterance; later calls do nothing."""

    def answers(
        self,
        utterances: Sequence[Utterance],
        settings: DecodingSettings,
        progress: Callable[[Utterance, Answer], None],
        features: Features,
    ) -> dict[str, Answer]:
        """Decode utterances, as `decode_answers`, by the settings that it was prepared for."""

    def ear(self) -> Ear:
        """Return what hears windows of recordings, and identifies languages; prepared if it was not."""


@dataclass(frozen=True)
class Engine:
    """An engine.

    Attributes:
        check: dtype and device, as given -> what is wrong with them, or with the installation.
        dtype: likewise -> the name of what is computed in, on this machine.
        stamp: that name -> the engine, its version and the name, for signatures; empty for the one
            whose signatures have the dtype alone.
        unfit: model -> why the engine cannot compute it.
        open: model, that name, device -> the model in the engine.
    """

    check: Callable[[str, str], list[LorsmergeError]]
    dtype: Callable[[str, str], str]
    stamp: Callable[[str], str]
    unfit: Callable[[ModelSource], list[LorsmergeError]]
    open: Callable[[ModelSource, str, str], Decoder]
