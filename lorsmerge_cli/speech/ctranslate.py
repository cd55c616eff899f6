"""Convert a Whisper for CTranslate2; importing this loads neither it nor torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorsmerge_cli.errors import LorsmergeError, Mismatch, UsageFault

if TYPE_CHECKING:
    from lorsmerge_cli.speech.model import SpeechModel


def check_installed(option: str) -> list[LorsmergeError]:
    """Return a fault if an option needs CTranslate2 and it is not installed."""
    try:
        import ctranslate2  # noqa: F401
    except ImportError:
        return [
            UsageFault(
                f"{option} needs CTranslate2, which is not installed.",
                "`pip install 'lorsmerge[ct2]'`, or `pip install ctranslate2`.",
            )
        ]
    return []


def check_network(name: str, config: Mapping[str, Any], hint: str = "") -> list[LorsmergeError]:
    """Return a fault if CTranslate2 would compute something else than a config says.

    Its Whispers have OpenAI's activation and embeddings, and nothing in its format says otherwise.
    """
    activation = config.get("activation_function", "gelu")
    odd = [f"activation_function = {activation}"] * (activation != "gelu")
    odd += ["scale_embedding = true"] * bool(config.get("scale_embedding"))
    if not odd:
        return []
    what = f"{name} is not a Whisper that CTranslate2 can compute: {', '.join(odd)}."
    return [Mismatch(what, hint)]


def convert(
    folder: Path,
    output: Path,
    quantization: str | None,
    *,
    copied: Sequence[str] = (),
    loaded: SpeechModel | None = None,
) -> None:
    """Write a CTranslate2 folder.

    Args:
        folder: with the model's config and, unless it is loaded, weights and tokenizer.
        output: the folder, which may exist if it is empty.
        quantization: one of CTranslate2's types of weights; the model's own by default.
        copied: names of files in the folder that it gets as well.
        loaded: the model, where it is in memory.
    """
    from ctranslate2.converters import TransformersConverter
    from transformers.utils import logging

    class Converter(TransformersConverter):  # type: ignore[misc]  # it has no types
        def load_model(self, *arguments: Any, **named: Any) -> Any:
            return loaded.model if loaded else super().load_model(*arguments, **named)

        def load_tokenizer(self, *arguments: Any, **named: Any) -> Any:
            if loaded:
                return loaded.processor.tokenizer
            return super().load_tokenizer(*arguments, **named)

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    converter = Converter(str(folder), copy_files=list(copied))
    converter.convert(str(output), quantization=quantization, force=True)
