"""Code on a model card that works as pasted."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from lorsmerge_cli.data.languages import WHISPER_TASKS
from lorsmerge_cli.operations.push.source import Source
from lorsmerge_cli.quoting import fence

SPEECH = "automatic-speech-recognition"  # transformers' and the Hub's name of the task

DELTA = """
lorsmerge merge {base} {repo} --scale 1 -o finetuned/   # the fine-tune itself
lorsmerge merge {base} {repo} OTHER.delta -o merged/    # with others
"""

MODEL = """
import soundfile
from transformers import pipeline

recognizer = pipeline({speech}, model={repo})
audio, rate = soundfile.read("clip.wav", dtype="float32")  # one channel, 16 kHz
options = {{"language": {language}, "task": {task}}}
said = recognizer({{"raw": audio, "sampling_rate": rate}}, generate_kwargs=options)
print(said["text"])
"""

CHECKPOINT = """
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration

model = WhisperForConditionalGeneration.from_pretrained({base})
weights = load_file(hf_hub_download({repo}, {file}))
model.load_state_dict(weights, strict=False)  # the output layer is the embedding
"""


def usage_of(source: Source, repo: str, base: str | None, pairs: Sequence[tuple[str, str]]) -> str:
    """A snippet for what is pushed, empty where none can be sure to work.

    Args:
        source: what is pushed.
        repo: where to.
        base: the base's Hub id.
        pairs: languages and tasks it was trained for; the first is shown.
    """
    if source.kind == "delta":
        words = {"base": base or "BASE", "repo": repo}
        shell = DELTA.format_map({key: shlex.quote(word) for key, word in words.items()})
        return fence(shell, "sh")
    if not source.is_whisper or (source.kind == "checkpoint" and base is None):
        return ""
    language, task = next(iter(pairs), ("", ""))
    names = {
        "speech": SPEECH, "repo": repo, "base": base, "file": next(iter(source.files)),
        "language": language or "en", "task": WHISPER_TASKS.get(task, "transcribe"),
    }  # fmt: skip
    python = CHECKPOINT if source.kind == "checkpoint" else MODEL
    return fence(python.format_map({key: repr(name) for key, name in names.items()}), "python")
