"""Which language is spoken, by the model's own guess of the token after the start."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lorsmerge_cli.data.languages import LANGUAGES
from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.speech.decoding.stepper import Stepper
from lorsmerge_cli.speech.model import SpeechModel


def language_tokens(speech: SpeechModel) -> Mapping[str, int]:
    """Return the token of each language that a model's vocabulary has.

    Raises:
        UsageFault: it has none.
    """
    size = speech.model.config.vocab_size
    found = {
        code: speech.vocabulary[f"<|{code}|>"]
        for code in LANGUAGES
        if speech.vocabulary.get(f"<|{code}|>", size) < size
    }
    if not found:
        raise UsageFault(f"{speech.name} has no language in its vocabulary.", "Give --language en.")
    return found


def identify_languages(speech: SpeechModel, heard: Tensor) -> list[tuple[str, float]]:
    """Return the likeliest language of each window and its share among the languages.

    Args:
        speech: the model; one that is English-only says English.
        heard: [windows, positions, width], by `encode`.

    Raises:
        UsageFault: its vocabulary has no language.
    """
    if not getattr(speech.model.generation_config, "is_multilingual", True):
        return [("en", 1.0)] * len(heard)
    tokens = language_tokens(speech)
    start = speech.vocabulary["<|startoftranscript|>"]
    with torch.inference_mode():
        logits, _ = Stepper(speech, heard, [[start]] * len(heard), 1).start([-1] * len(heard))
    shares = logits[:, list(tokens.values())].softmax(-1).cpu()
    best = shares.max(-1)
    codes = list(tokens)
    return [
        (codes[index], share)
        for index, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
