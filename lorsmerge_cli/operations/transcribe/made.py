"""How the transcripts of a folder were made: JSON lines beside them, by which `--resume` knows its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from lorsmerge_cli.errors import OutputFault, UnreadableFile
from lorsmerge_cli.inputs import json_object, open_regular

NAME = "transcripts.journal"
HEARD = "audio"  # the entry of the digest of what was heard


class Made:
    """The transcripts of a folder and what each was made of: settings, weights and audio, as texts.

    Args:
        folder: of the transcripts; it need not exist yet.

    Raises:
        OutputFault: its journal cannot be read or is no file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        try:
            self._known = dict(_lines(self.path))
        except OSError as error:
            raise OutputFault(
                f"{self.path} cannot be read ({error.strerror}).", "Choose another folder with -o."
            ) from None
        except UnreadableFile as error:
            raise OutputFault(error.what, "Choose another folder with -o.") from None

    def differences(self, path: Path, about: Mapping[str, str]) -> str | None:
        """Return what differs between what a transcript was made of and `about`; None if nothing does."""
        before = self._known.get(path.name)
        if before is None:
            return f"{self.path.name} does not say how"
        names = [name for name in {**before, **about} if before.get(name) != about.get(name)]
        parts = [
            f"of other {name}"
            if name in (HEARD, "weights")
            else f"with {name} {before.get(name)}, and not {about.get(name)}"
            for name in names
        ]
        return "; ".join(parts) if parts else None

    def add(self, path: Path, about: Mapping[str, str]) -> None:
        """Append a line for a transcript that was just written.

        Raises:
            OutputFault: it cannot be written.
        """
        line = (
            json.dumps({"transcript": path.name, **about}) + "\n"
        )  # in ASCII: names may be no UTF-8
        try:
            with self.path.open("ab+") as file:  # one write at the end, whoever else writes there
                if file.tell():
                    file.seek(-1, 2)
                    line = (
                        line if file.read() == b"\n" else f"\n{line}"
                    )  # after one that a kill cut
                file.write(line.encode())
        except OSError as error:
            raise OutputFault(
                f"{self.path} cannot be written ({error.strerror}).",
                f"{path} is whole; remove it before the command is given again.",
            ) from None


def _lines(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield a transcript's name and what it was made of, the latest last; damaged lines say nothing."""
    if not path.exists():
        return
    with open_regular(path) as file:
        for line in file:
            try:
                row = json_object(line)
            except ValueError:
                continue
            name = row.pop("transcript", None)
            if isinstance(name, str) and all(isinstance(value, str) for value in row.values()):
                yield name, row
