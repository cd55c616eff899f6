"""Names of languages and tasks, as data sets spell them and as Whisper does."""

from __future__ import annotations

import difflib

from lorsmerge_cli.errors import UsageFault

TASKS = ("asr", "st")
# Written without spaces between words: Whisper's texts in them begin without one too.
SPACELESS = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km"})
WHISPER_TASKS = {"asr": "transcribe", "st": "translate"}
_TASK_NAMES = {
    "asr": "asr", "transcribe": "asr", "transcription": "asr",
    "st": "st", "ast": "st", "translate": "st", "translation": "st", "s2t_translation": "st",
}  # fmt: skip


def parse_language(name: str) -> str:
    """Whisper's code of a language: `ca` of `ca`, `Catalan` or `ca-ES`.

    Raises:
        UsageFault: Whisper has no such language.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    wanted = name.strip().lower().replace("_", "-")
    for candidate in (wanted, wanted.split("-")[0]):
        if candidate in LANGUAGES:
            return str(candidate)
        if candidate in TO_LANGUAGE_CODE:
            return str(TO_LANGUAGE_CODE[candidate])
    close = difflib.get_close_matches(wanted, [*LANGUAGES, *TO_LANGUAGE_CODE], n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else "Use a code such as ca, or a name."
    raise UsageFault(f"Whisper has no language {name!r}.", hint)


def parse_task(name: str) -> str:
    """`asr` or `st`, from those or from transcribe, translate, ast.

    Raises:
        UsageFault: it is none of them.
    """
    task = _TASK_NAMES.get(name.strip().lower())
    if task is None:
        raise UsageFault(f"There is no task {name!r}.", "Use asr (transcribe) or st (translate).")
    return task
