"""README.md and docs/: command lines parse, links lead somewhere, and the examples run.

A fence marked `sh` is run line by line, each page's in one folder; a line of a fence marked
`console` that begins with `$ ` is run too, and has to print what is below it but for the numbers. A
file name behind the language (```` ```toml mine.toml ````) has the fence written to that file. What
cannot be run here has `<!-- not run: WHY -->` before it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from commands_ended import Ended
from hub_server import Hub
from make_models import make_finetune
from speech_models import OFTEN, make_clip, make_test_set, make_tuned, make_whisper
from typer.testing import CliRunner

from lorsmerge_cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "benchmarks").glob("*.md")),
          *sorted((ROOT / "examples").rglob("*.md"))]  # fmt: skip
README_LINES = 150
COMMANDS = typer.main.get_command(app).commands
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+?) -->\n+)?"
    r"```(?P<language>\w*)(?: (?P<file>[\w./-]+))?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LANGUAGES = {"sh", "console", "toml", "json", "python", "mermaid", "text"}
PATIENCE = 60  # seconds for a line that is not lorsmerge's


@dataclass(frozen=True)
class Block:
    """A fence of a page; `why` it is not run, and the `file` that it is written to, where it has them."""

    language: str
    text: str
    why: str
    file: str

    @property
    def lines(self) -> list[str]:
        """Command lines, continued ones in one piece."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line for line in lines if shlex.split(line, comments=True)]


def blocks_of(page: Path) -> list[Block]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(m["language"], m["text"], m["why"] or "", m["file"] or "") for m in found]


def prose_of(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> list[list[str]]:
    """The words of every code span outside of fences."""
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", prose_of(page))
    return [span.split() for span in spans]


def lorsmerge_lines(page: Path) -> list[list[str]]:
    """Subcommand and arguments of every command line, those in sentences included."""
    found = []
    for block in blocks_of(page):
        if block.language in ("sh", "console"):
            found += [shlex.split(line, comments=True) for line in block.lines]
    found += [words for words in inline_code(page) if words[0] == "lorsmerge"]
    programs = ("lorsmerge", "lorsmerge_cli")  # the latter behind `torchrun -m`
    return [
        words[1 + next(n for n, word in enumerate(words) if word in programs) :]
        for words in found
        if set(words) & set(programs) and words[1:]
    ]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --- without running anything ---------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_line_parses(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where a recipe that `finetune` reads while it parses lies
    for command, *arguments in lorsmerge_lines(page):
        assert command in COMMANDS, f"there is no subcommand {command}"
        if arguments:  # or it is named in a sentence
            COMMANDS[command].make_context(command, arguments)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_that_a_sentence_names_is_there(page: Path) -> None:
    options = {
        name: {"--help"}.union(*([*item.opts, *item.secondary_opts] for item in command.params))
        for name, command in COMMANDS.items()
    }
    every = set().union(*options.values())
    for first, *rest in inline_code(page):
        known = options.get(first, every if first.startswith("--") else None)
        if known is not None:
            given = {word.partition("=")[0] for word in (first, *rest) if word.startswith("--")}
            assert given <= known, f"`{' '.join([first, *rest])}`"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_fence_is_of_a_language_that_is_checked(page: Path) -> None:
    assert {block.language for block in blocks_of(page)} <= LANGUAGES
    fences = re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(blocks_of(page))


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"https?://", target):
            continue
        path, _, heading = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target} is not there"
        assert found.is_relative_to(ROOT)
        assert not heading or heading in headings(found), f"{target}: no such heading"


def headings(page: Path) -> set[str]:
    """As GitHub names them in links."""
    titles = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short_and_names_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(re.findall(r"\]\(([^)]+)\)", text))


def test_the_readmes_scores_are_the_demos() -> None:
    demo = (ROOT / "examples/demo/README.md").read_text(encoding="utf-8")
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    cells = [
        row.split("|")[1:-1] for row in shown.splitlines() if re.match(r"\| .*\d\d\.\d \|$", row)
    ]
    systems = {
        "pretrained": "Pretrained",
        "five fine-tunes": "Finetuned",
        "one merge": "LoRS-Merging",
    }
    assert len(cells) == len(systems)
    for first, *_, score in cells:
        system = next(name for start, name in systems.items() if first.strip().startswith(start))
        numbers = re.search(rf"^ {system} .*$", demo, re.MULTILINE)[0].split()
        assert score.strip() == f"{float(numbers[-2]):.1f}"


# --- run ------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def quietly(line: str) -> None:
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def stock(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the pages take for granted; read only. GIVEN says which page takes what."""
    folder = tmp_path_factory.mktemp("stock")
    speech_stock(folder / "speech")
    weights_stock(models, folder / "weights")
    return folder


def speech_stock(folder: Path) -> None:
    """Small models that say something, and speech data in every format."""
    folder.mkdir()
    make_whisper(folder / "base", spells=True, spelt=36)
    shutil.copy(folder / "base" / "model.safetensors", folder / "base.safetensors")
    for seed, (name, task) in enumerate((("ca", "asr"), ("de", "st")), 1):
        make_tuned(folder / "base", folder / f"ft-{name}", seed=seed)
        with chdir(folder):
            line = f"delta base ft-{name} -o {name}_{task}.delta --task {task} --language {name}"
            quietly(line)
    for seed, name in enumerate(("train", "dev", "test"), 1):
        manifest = make_test_set(folder / f"audio-{name}", count=10, seed=seed)
        rows = [json.loads(line) for line in manifest.read_text().splitlines()]
        for row in rows:
            row["audio_filepath"] = f"audio-{name}/{row['audio_filepath']}"
        write_rows(folder / f"{name}.jsonl", rows)
    for row in rows:
        del row["text"]
    write_rows(folder / "unlabelled.jsonl", rows)
    make_clip(folder / "clip.wav", 1, 1.2)
    for code in ("ca", "de"):
        common_voice(folder / "cv-corpus" / code, code)
    hf_folder(folder / "my-clips")
    kaldi_folder(folder)


def common_voice(folder: Path, code: str) -> None:
    """A language's folder of a release, and CoVoST 2's table of it."""
    (folder / "clips").mkdir(parents=True)
    heads = "client_id\tpath\tsentence\tlocale\tup_votes\taccents\n"
    translated = ["path\ttranslation\tsplit\tclient_id"]
    valid = [heads.strip()]
    for seed, split in enumerate(("train", "dev", "test")):
        rows = []
        for number in range(6):
            accent = ("balear", "central", "")[number % 3]
            name = f"common_voice_{code}_{6 * seed + number}.mp3"
            make_clip(folder / "clips" / "clip.wav", 6 * seed + number, 1.0)
            shutil.move(folder / "clips" / "clip.wav", folder / "clips" / name)
            rows.append(f"s{number}\t{name}\t{' '.join(OFTEN[:4])}\t{code}\t{number}\t{accent}")
            translated.append(f"{name}\t{' '.join(OFTEN[2:4])}\t{split}\ts{number}")
        (folder / f"{split}.tsv").write_text(heads + "\n".join(rows) + "\n")
        valid += rows
    (folder / "validated.tsv").write_text("\n".join(valid) + "\n")
    (folder / f"covost_v2.{code}_en.tsv").write_text("\n".join(translated) + "\n")


def hf_folder(folder: Path) -> None:
    (folder / "train").mkdir(parents=True)
    make_clip(folder / "train" / "a.wav", 3, 1.0)
    (folder / "train" / "metadata.csv").write_text("file_name,text\na.wav,el nen\n")


def kaldi_folder(folder: Path) -> None:
    (folder / "kaldi").mkdir()
    (folder / "kaldi" / "wav.scp").write_text("a clip.wav\n")
    (folder / "kaldi" / "text").write_text("a el nen veu ocells\n")


def weights_stock(models: Path, folder: Path) -> None:
    """Models with OpenAI's shapes of layers and a vocabulary of their size, that nobody listens to."""
    folder.mkdir()
    shutil.copytree(models / "base", folder / "base")
    shutil.copytree(models / "base", folder / "openai-whisper-small")
    shutil.copy(models / "base" / "model.safetensors", folder / "base.safetensors")
    for seed, code in enumerate(("ca", "de", "es", "fr", "it"), 1):
        make_finetune(models / "base", folder / f"ft-{code}", seed=seed)
    with chdir(folder):
        for code in ("ca", "de", "es", "fr", "it"):
            quietly(f"delta base ft-{code} -o {code}_asr.delta --task asr --language {code}")
        quietly("delta base ft-de -o de_st.delta --task st --language de")
        quietly("export base --format openai -o small.pt")
        quietly("prune ca_asr.delta --svp 0.1 -o svp.delta --as-lora my-adapter")
        wrapped("ft-ca", "wrapped-ft-ca")


def wrapped(model: str, folder: str) -> None:
    """A fine-tune as DataParallel saves it."""
    from safetensors.torch import load_file, save_file

    Path(folder).mkdir()
    tensors = load_file(Path(model) / "model.safetensors")
    renamed = {f"module.{name}": tensor for name, tensor in tensors.items()}
    save_file(renamed, Path(folder) / "model.safetensors", metadata={"format": "pt"})


SPEECH = "base ft-ca ft-de ca_asr.delta de_st.delta"
DATA = "train.jsonl dev.jsonl test.jsonl audio-train audio-dev audio-test clip.wav cv-corpus"
GIVEN = {  # page -> the kind of its models, and what lies in the reader's folder before its first line
    "README.md": ("speech", DATA),
    "docs/data.md": ("speech", f"base my-clips kaldi {DATA}"),
    "docs/distil.md": ("speech", f"{SPEECH} {DATA} unlabelled.jsonl"),
    "docs/audio-methods.md": ("speech", f"{SPEECH} {DATA}"),
    "docs/search.md": ("speech", f"{SPEECH} {DATA} unlabelled.jsonl"),
    "docs/report.md": ("speech", f"{SPEECH} {DATA}"),
    "docs/long.md": ("speech", f"{SPEECH} {DATA}"),
    "docs/hub.md": ("speech", f"{SPEECH} {DATA}"),
    "docs/merging.md": ("weights", "base base.safetensors openai-whisper-small ft-ca ft-de ca_asr.delta "
                        "de_asr.delta es_asr.delta fr_asr.delta it_asr.delta de_st.delta"),
    "docs/methods.md": ("weights", "base ca_asr.delta de_st.delta"),
    "docs/formats.md": ("weights", "base ca_asr.delta small.pt my-adapter wrapped-ft-ca"),
}  # fmt: skip


@pytest.fixture
def folder(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Go to a new folder that is a clone with some of the stock in it."""

    def make(kind: str, names: str | None) -> Path:
        place = tmp_path / f"reader-{len(list(tmp_path.glob('reader-*')))}"
        place.mkdir()
        for name in names.split() if names is not None else os.listdir(stock / kind):
            source = stock / kind / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, place / name)
        for name in ("examples", "completions"):
            (place / name).symlink_to(ROOT / name)
        monkeypatch.chdir(place)
        return place

    return make


@pytest.fixture
def stocked_hub(hub: Hub, stock: Path) -> Callable[[str], None]:
    """Put on the Hub what the pages name there."""

    def put(kind: str) -> None:
        card = "---\nlicense: apache-2.0\n---\n# Whisper\n"
        files = {path.name: path.read_bytes() for path in (stock / kind / "base").iterdir()}
        hub.add_repo("openai/whisper-small", files | {"README.md": card})
        deltas = {
            name: (stock / kind / name).read_bytes() for name in ("ca_asr.delta", "de_st.delta")
        }
        for ref in ("main", "v2"):
            hub.add_repo("you/ca-asr", {"ca_asr.delta": deltas["ca_asr.delta"]}, ref=ref)
        hub.add_repo("you/deltas", deltas)

    return put


@pytest.fixture
def run_line(
    succeed: Callable[[str], Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Ended]:
    """Run a line of a page: lorsmerge in this process, anything else in bash."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    def run(line: str) -> Ended:
        words = shlex.split(line, comments=True)
        if words[0] == "lorsmerge":
            return succeed(shlex.join(words))
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line], capture_output=True, text=True,
            timeout=PATIENCE, check=False, env=os.environ | {"HOME": str(home)},
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


def test_an_example_is_run_or_says_why_not() -> None:
    assert set(GIVEN) <= set(map(name_of, PAGES))
    others = [block for page in PAGES if name_of(page) not in GIVEN for block in blocks_of(page)]
    assert [b.text for b in others if b.language in ("sh", "console") and not b.why] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", GIVEN)
def test_the_commands_of_a_page_run(
    name: str, folder: Callable[..., Path], stocked_hub: Callable, run_line: Callable
) -> None:
    kind, given = GIVEN[name]
    stocked_hub(kind)
    place = folder(kind, given)
    for block in blocks_of(ROOT / name):
        if block.file:
            (place / block.file).write_text(block.text, encoding="utf-8")
        for line in block.lines if block.language == "sh" and not block.why else []:
            run_line(line)


def consoles() -> Iterator[object]:
    for name in GIVEN:
        for number, block in enumerate(blocks_of(ROOT / name)):
            if block.language == "console" and not block.why:
                yield pytest.param(name, block, id=f"{name}-{number}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "block"), list(consoles()))
def test_a_command_prints_what_a_page_shows(
    name: str, block: Block, folder: Callable[..., Path], stocked_hub: Callable, run_line: Callable
) -> None:
    kind, _ = GIVEN[name]
    stocked_hub(kind)
    folder(kind, None)
    shown = re.split(r"^\$ (?:.*\\\n)*.*\n", block.text, flags=re.MULTILINE)[1:]
    for line, text in zip(block.lines, shown, strict=True):
        assert form_of(run_line(line).out) == form_of(text)


def form_of(text: str) -> list[str]:
    """The lines of an output with numbers, units and the widths of columns taken out."""
    text = re.sub(r"[-+]?\d[\d,]*(\.\d+)?(e-?\d+)?", "N", text)
    text = re.sub(r"\bN [kMG]?B\b", "N B", text)
    text = re.sub(r"─+", "─", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if line]
