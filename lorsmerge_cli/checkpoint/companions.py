"""The files of a model folder beside its weights: which of them a copy gets, and where they are."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorsmerge_cli.checkpoint.model_files import (
    CONFIG,
    GENERATION,
    companion_files,
    inherited_files,
)
from lorsmerge_cli.errors import LorsmergeError, UnreadableFile, named
from lorsmerge_cli.inputs import file_type, json_object, open_regular, read_document

MOST = 256 << 20  # bytes of all files together: the largest tokenizers have 35 MB
TEMPLATES = "additional_chat_templates"  # the only subfolder that transformers reads
AUTO_MAP_FILES = ("config.json", "tokenizer_config.json", "preprocessor_config.json",
                  "processor_config.json")  # fmt: skip
# how transformers finds the modules that a module of code imports from its folder
RELATIVE_IMPORT = re.compile(
    r"^\s*(?:from\s+\.(\w+)\s+import\b|import\s+\.(\w+)\s*$)", re.MULTILINE
)


@dataclass
class Companions:
    """The files that a model folder's copy gets.

    Attributes:
        files: name in the folder -> the file itself, links followed.
        code: names of the Python files among them, which the configs name.
        size: bytes of all of them.
        faults: one for each file that must not, or cannot, be copied.
    """

    files: dict[str, Path] = field(default_factory=dict)
    code: tuple[str, ...] = ()
    size: int = 0
    faults: list[LorsmergeError] = field(default_factory=list)


def find_companions(folder: Path) -> Companions:
    """Find config, tokenizer, processor, licence and the code that the configs name.

    Args:
        folder: a model folder. For a Trainer's `checkpoint-N`, files that it lacks are taken from
            its parent.
    """
    found = Companions()
    if not folder.is_dir():
        return found
    for name in companion_files(sorted(_names(folder))):
        _add(found, name, folder)
    for path in inherited_files(folder):
        _add(found, path.name, path.parent)
    found.code = tuple(_add_code(found, folder))
    if found.size > MOST:
        largest = sorted(found.files, key=lambda name: -found.files[name].stat().st_size)
        found.faults.append(
            UnreadableFile(
                f"The files beside the weights in {folder} have {found.size:,} bytes "
                f"({named(largest)}), and those of a model have at most {MOST >> 20} MiB.",
                "Move away the files that do not belong to the model.",
            )
        )
    return found


def with_processor_of(own: Companions, other: Companions) -> Companions:
    """Return a folder's files with the tokenizer and feature extractor of another folder.

    Config, generation config and the code that they name stay the folder's own.
    """
    kept = {CONFIG, GENERATION, *own.code} & own.files.keys()
    files = other.files | {name: own.files[name] for name in kept}
    return Companions(files, own.code, own.size + other.size, own.faults + other.faults)


def _names(folder: Path) -> list[str]:
    """List the files in a folder and in its subfolder of chat templates."""
    names = [path.name for path in folder.iterdir() if not path.is_dir()]
    below = folder / TEMPLATES
    if below.is_dir() and not below.is_symlink():
        names += [f"{TEMPLATES}/{path.name}" for path in below.iterdir() if not path.is_dir()]
    return names


def _add(found: Companions, name: str, folder: Path) -> None:
    try:
        real = real_file(folder / name, folder)
        found.files[name] = real
        found.size += real.stat().st_size
    except UnreadableFile as fault:
        found.faults.append(fault)


def real_file(path: Path, folder: Path) -> Path:
    """Resolve a path to a regular file, inside its folder or among a Hub cache's blobs.

    Args:
        path: a file, or a link to one.
        folder: a folder above it, which links may not lead out of.

    Raises:
        UnreadableFile: a link that leads elsewhere or nowhere, or not a regular file.
    """
    place = folder.resolve()
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        reason = error.strerror if isinstance(error, OSError) else "links lead in a circle"
        raise UnreadableFile(
            f"{path} cannot be read ({reason}).", "Remove it, or replace it by the file."
        ) from None
    if not any(real.is_relative_to(allowed) for allowed in (place, *_blobs(place))):
        raise UnreadableFile(
            f"{path} is a link that leads out of its folder, to {real}.",
            "Replace the link by the file if it belongs to the model, else remove it.",
        )
    if not stat.S_ISREG(mode):
        raise UnreadableFile(
            f"{path} is a {file_type(mode)}, and a file is needed.",
            "Remove it, or replace it by the file.",
        )
    return real


def _blobs(folder: Path) -> list[Path]:
    """Return the folder of blobs for a snapshot in a Hub cache, models--ORG--NAME/snapshots/COMMIT."""
    snapshots, repo = folder.parent, folder.parent.parent
    cached = snapshots.name == "snapshots" and repo.name.startswith("models--")
    return [repo / "blobs"] if cached else []


def _add_code(found: Companions, folder: Path) -> list[str]:
    """Add the modules that a config's `auto_map` names, and those that they import relatively."""
    waiting = [name for file in AUTO_MAP_FILES for name in _mapped(found.files.get(file))]
    code: dict[str, None] = {}
    while waiting:
        name = f"{waiting.pop()}.py"
        path = folder / name
        if name in code or not path.is_file():
            continue
        code[name] = None
        _add(found, name, folder)
        if name in found.files:
            text = read_document(found.files[name]).decode("utf-8", errors="replace")
            waiting += [match[1] or match[2] for match in RELATIVE_IMPORT.finditer(text)]
    return sorted(code)


def _mapped(config: Path | None) -> list[str]:
    """List the modules that `auto_map` takes from its own folder, unlike `org/name--module.Class`."""
    try:
        table = json_object(read_document(config)).get("auto_map") if config else None
    except (OSError, ValueError, UnreadableFile):
        return []  # reported where the config is checked
    values = table.values() if isinstance(table, Mapping) else [table]
    classes = [item for value in values for item in (value if isinstance(value, list) else [value])]
    modules = (item.rpartition(".")[0] for item in classes if isinstance(item, str))
    return [name for name in modules if re.fullmatch(r"\w+", name)]


def copy_file(source: Path, target: Path) -> None:
    """Copy a regular file of bounded size with its mode, but never read-only.

    Raises:
        UnreadableFile: it grew past the bound, or is not a regular file any more.
        OSError: it cannot be read, or the copy cannot be written.
    """
    size = 0
    target.parent.mkdir(exist_ok=True)
    with open_regular(source) as file, target.open("wb") as copy:
        while part := file.read(1 << 20):
            size += len(part)
            if size > MOST:
                raise UnreadableFile(
                    f"{source} grew while it was copied.", "Run the command again."
                )
            copy.write(part)
    target.chmod(stat.S_IMODE(source.stat().st_mode) & 0o777 | stat.S_IWUSR)
