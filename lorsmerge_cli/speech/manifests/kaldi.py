"""A Kaldi data folder: wav.scp and text, with segments, utt2spk and utt2lang where there are."""

from __future__ import annotations

from pathlib import Path

from lorsmerge_cli.errors import UnreadableFile
from lorsmerge_cli.speech.manifests.fields import Defaults, language_and_task, unreadable
from lorsmerge_cli.speech.utterance import Utterance

NEEDS = "wav.scp and text (a Kaldi data folder)"


def detects(path: Path) -> bool:
    """Whether a path is of this format."""
    return (path / "wav.scp").is_file() and (path / "text").is_file()


def splits(path: Path) -> tuple[str, ...]:
    """None: a folder is one split."""
    return ()


def read(path: Path, split: str | None, defaults: Defaults) -> list[Utterance]:
    """The rows of `text`, in its order; relative audio paths start at the working folder."""
    recordings = _pairs(path / "wav.scp")
    segments = _pairs(path / "segments") if (path / "segments").is_file() else None
    speakers = _pairs(path / "utt2spk") if (path / "utt2spk").is_file() else {}
    languages = _pairs(path / "utt2lang") if (path / "utt2lang").is_file() else {}
    utterances = []
    for name, text in _pairs(path / "text").items():
        recording, start, duration = name, 0.0, None
        if segments is not None:
            recording, start, end = _segment(path, segments, name)
            duration = end - start
        if recording not in recordings:
            raise UnreadableFile(
                f"{path / 'wav.scp'} has no recording {recording!r}, which text names.",
                "Run Kaldi's fix_data_dir.sh on the folder.",
            )
        audio = recordings[recording]
        if audio.endswith("|"):
            raise UnreadableFile(
                f"{path / 'wav.scp'}: {recording!r} is a command, and commands are not run.",
                "Write its output to a file and name that.",
            )
        language, task = language_and_task(languages.get(name), None, defaults, f"{path}: {name!r}")
        utterances.append(
            Utterance(
                id=name,
                audio=Path(audio),
                text=text,
                language=language,
                task=task,
                duration=duration,
                start=start,
                speaker=speakers.get(name),
            )
        )
    return utterances


def _segment(path: Path, segments: dict[str, str], name: str) -> tuple[str, float, float]:
    try:
        recording, start, end = segments[name].split()
        return recording, float(start), float(end)
    except (KeyError, ValueError):
        raise UnreadableFile(
            f"{path / 'segments'} has no recording, start and end for {name!r}.",
            "Run Kaldi's fix_data_dir.sh on the folder.",
        ) from None


def _pairs(file: Path) -> dict[str, str]:
    """Key -> the rest of its line."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # as Kaldi has it
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(file, error) from None
    split = (line.split(maxsplit=1) for line in lines if line.strip())
    return {cells[0]: cells[1].strip() if len(cells) > 1 else "" for cells in split}
