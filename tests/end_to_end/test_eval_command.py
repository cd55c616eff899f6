"""`lorsmerge eval` as a user types it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import pytest
import sacrebleu
from results_files import reported
from safetensors.torch import load_file, save_file
from speech_models import make_test_set, make_tuned, make_whisper
from typer.testing import CliRunner

from lorsmerge_cli.app import app
from lorsmerge_cli.core.methods import METHODS
from lorsmerge_cli.metrics.normalisation import normalise
from lorsmerge_cli.speech.decoding import clips

WORK, USAGE = 1, 2  # exit codes
PATIENCE = 120  # seconds for two processes
DATA = " --data data/test.jsonl --samples 20 --device cpu "
EVAL = "lorsmerge eval base/ ca/" + DATA + "--beam 2 "


@pytest.fixture(scope="module")
def speech_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, ca/, de/, bare.safetensors (the base's) and data/test.jsonl."""
    folder = tmp_path_factory.mktemp("speech")
    make_whisper(folder / "base")
    make_tuned(folder / "base", folder / "ca", seed=1)
    make_tuned(folder / "base", folder / "de", seed=2)
    shutil.copy(folder / "base" / "model.safetensors", folder / "bare.safetensors")
    make_test_set(folder / "data")
    return folder


def results(file: str) -> dict[str, Any]:
    return json.loads(Path(file).read_text())


def hypotheses(file: str, model: str) -> dict[str, str]:
    return {
        row["id"]: row["hypothesis"]
        for record in results(file)["records"]
        if record["model"] == model
        for row in record["rows"]
    }


# --- scores ---------------------------------------------------------------------------------------


def test_auto_computes_in_float32_on_a_cpu_and_says_so(files: Path, succeed: Callable) -> None:
    line = f"{BASE}--hypotheses h.jsonl "
    succeed(f"{line} -o auto.json --dtype auto")
    succeed(f"{line} -o float32.json --force")  # takes the hypotheses of the first
    assert Path("h.jsonl").read_text().count("\n") == len(hypotheses("auto.json", "base"))
    assert results("auto.json")["settings"] == results("float32.json")["settings"]
    assert "dtype:float32" in results("auto.json")["settings"]["signature"]


def test_the_tables_show_what_jiwer_and_sacrebleu_make_of_the_stored_hypotheses(
    files: Path, succeed: Callable
) -> None:
    ended = succeed(EVAL + "-o results.json")
    shown: dict[str, list[str]] = {"WER / CER %": [], "BLEU": []}
    title = ""
    for line in ended.out.splitlines():
        title = line.strip() if line.strip() in shown else title
        if line.startswith((" base ", " ca ")) and title:
            shown[title].append(line)
    for number, model in enumerate(("base", "ca")):
        own = [r for r in results("results.json")["records"] if r["model"] == model]
        scores = []
        for record in own:
            said = [row["hypothesis"] for row in record["rows"]]
            meant = [row["reference"] for row in record["rows"]]
            if record["task"] == "st":
                bleu = sacrebleu.corpus_bleu(said, [meant]).score
                chrf = sacrebleu.corpus_chrf(said, [meant]).score
                scores.append(bleu)
                assert record["scores"]["chrF2"]["score"] == pytest.approx(chrf, rel=1e-12)
                assert "|tok:13a|" in reported(record)["signature"]
            else:
                pair = [[normalise(text, "basic") for text in side] for side in (meant, said)]
                if record["metric"] == "CER":
                    pair = [[text.replace(" ", "") for text in side] for side in pair]
                    words = jiwer.process_characters(*pair)
                    rate = words.cer
                else:
                    words = jiwer.process_words(*pair)
                    rate = words.wer
                scores.append(100 * rate)
                for kind in ("substitutions", "deletions", "insertions"):
                    assert record["details"][kind] == getattr(words, kind)
            assert reported(record)["score"] == pytest.approx(scores[-1])
            table = shown["BLEU" if record["task"] == "st" else "WER / CER %"]
            assert f" {scores[-1]:.2f} " in table[number]
        assert len(own) == 5
    assert "signature: unit:word|norm:basic|jiwer:" in ended.out
    assert "signature: beam:2|dtype:float32|" in ended.out
    assert "wrote results.json" in ended.err


def test_json_is_the_results_file(files: Path, succeed: Callable) -> None:
    ended = succeed(EVAL + "-o results.json --json")
    assert json.loads(ended.out) == results("results.json")


def test_scores_of_hypotheses_alone_are_the_same(files: Path, succeed: Callable) -> None:
    def figures(file: str) -> dict[tuple[str, str, str], tuple[object, ...]]:
        return {
            (r["model"], r["language"], r["task"]): (
                r["scores"], r["details"],
                sorted(map(repr, r["rows"])),
            )
            for r in results(file)["records"]
        }  # fmt: skip

    succeed(EVAL + "-o results.json --hypotheses h.jsonl")
    shutil.rmtree("base")
    shutil.rmtree("data")
    lines = Path("h.jsonl").read_text().splitlines(keepends=True)
    Path("h.jsonl").write_text("".join(reversed(lines)))
    again = succeed("lorsmerge eval --score-only --hypotheses h.jsonl --samples 20 -o again.json")
    (way,) = set(results("again.json")["settings"]["decoded"].values())
    assert way.startswith("beam:2|float32|")
    assert f"decoded with: {way}\n" in again.out
    assert figures("again.json") == figures("results.json")
    assert len(figures("again.json")) == 10


def test_a_killed_run_goes_on(files: Path, succeed: Callable) -> None:
    succeed(EVAL + "-o results.json --hypotheses h.jsonl")
    whole = Path("h.jsonl").read_bytes().splitlines(keepends=True)
    marked = json.loads(whole[2]) | {"hypothesis": "kept as it was"}
    kept = [*whole[:2], json.dumps(marked).encode() + b"\n", *whole[3:5]]
    Path("h.jsonl").write_bytes(b"".join(kept) + whole[5][:40])
    succeed(EVAL + "-o resumed.json --hypotheses h.jsonl")
    assert Path("h.jsonl").read_bytes().startswith(b"".join(kept))
    lines = [json.loads(line) for line in Path("h.jsonl").read_bytes().splitlines()]
    assert len(lines) == len(whole)
    found = hypotheses("resumed.json", marked["model"])
    assert found.pop(marked["id"]) == "kept as it was"
    assert found.items() <= hypotheses("results.json", marked["model"]).items()
    assert len(found) == 9


def test_trn_files_have_every_utterance(files: Path, succeed: Callable) -> None:
    succeed(EVAL + "-o results.json --trn trn")
    names = {path.name for path in Path("trn").iterdir()}
    assert "base-test.jsonl-ca-asr.hyp.trn" in names
    assert len(names) == 2 * 2 * 5
    said = hypotheses("results.json", "base")
    lines = Path("trn/base-test.jsonl-ca-asr.hyp.trn").read_text().splitlines()
    assert lines == [f"{said['u0']} (s0-u0)", f"{said['u5']} (s1-u5)"]


def test_the_worst_utterances_come_first(files: Path, succeed: Callable) -> None:
    ended = succeed(EVAL + "-o results.json --worst 3")
    for model in ("base", "ca"):
        part = ended.out.partition(f"worst of {model}\n")[2].partition("worst of")[0]
        listed = [int(count) for count in re.findall(r": (\d+) errors", part)]
        rows = [(r["language"], r["task"], row) for r in results("results.json")["records"]
                if r["model"] == model for row in r["rows"]]  # fmt: skip
        every = {row["id"]: _errors(row, language) for language, _, row in rows}
        assert listed == sorted(every.values(), reverse=True)[:3]
        for name, count in re.findall(r"(u\d) \(.*\): (\d+) errors", part):
            assert every[name] == int(count)
        said = hypotheses("results.json", model)
        first = re.findall(r"(u\d) \(", part)[0]
        assert f"hypothesis: {said[first]}" in part


def _errors(row: dict[str, str], language: str) -> int:
    pair = [normalise(row[key], "basic") for key in ("reference", "hypothesis")]
    if language == "zh":
        found: Any = jiwer.process_characters(*[text.replace(" ", "") for text in pair])
    else:
        found = jiwer.process_words(*pair)
    return found.substitutions + found.deletions + found.insertions


@pytest.mark.parametrize(("a", "b"), [("base", "ca"), ("ca", "base")])
def test_a_comparison_is_b_less_a(files: Path, succeed: Callable, a: str, b: str) -> None:
    ended = succeed(EVAL + f"-o results.json --compare {a} {b}")
    document = results("results.json")
    scores = {
        (r["model"], r["language"], r["task"]): reported(r)["score"] for r in document["records"]
    }
    assert len(document["comparisons"]) == 5
    different = 0
    for found in document["comparisons"]:
        key = (found["language"], found["task"])
        expected = scores[(b, *key)] - scores[(a, *key)]
        assert (found["a"], found["b"]) == (a, b)
        assert found["difference"] == pytest.approx(expected, abs=1e-9)
        assert (
            f"{key[0]} {key[1]}: {found['metric']} of {b} minus {a} {expected:+.2f} (" in ended.out
        )
        different += abs(expected) > 0.01
    assert different


# --- models ---------------------------------------------------------------------------------------


def test_a_bare_file_with_a_config_is_its_model(files: Path, succeed: Callable) -> None:
    line = "lorsmerge eval m={}" + DATA + "--beam 2 --config base -o {}.json"
    succeed(line.format("bare.safetensors", "bare"))
    succeed(line.format("base", "folder"))
    assert results("bare.json")["records"] == results("folder.json")["records"]


@pytest.mark.parametrize("scale", ["1.5", "-0.5"])
@pytest.mark.parametrize(
    "method", [*(n for n, m in METHODS.items() if not (m.ratios or m.statistics)), "ties:k=0.5"]
)
def test_a_delta_applied_scores_as_the_merge_on_disk(
    files: Path, succeed: Callable, scale: str, method: str
) -> None:
    for name in ("ca", "de"):
        succeed(f"lorsmerge delta base {name} -o {name}.delta --task asr --language {name}")
    succeed(f"lorsmerge merge base ca.delta de.delta --method {method} --scale={scale} -o merged")
    succeed(
        f"lorsmerge eval base{DATA}--beam 2 --apply ca.delta --apply de.delta --scale={scale} "
        f"--method {method} -o a.json"
    )
    succeed(f"lorsmerge eval merged{DATA}--beam 2 -o b.json")
    update = "ca+de" if method == "ta" else f"{method}(ca+de)"
    applied = f"base+{update}@{float(scale):g}"
    assert hypotheses("a.json", applied) == hypotheses("b.json", "merged")
    for a, b in zip(results("a.json")["records"], results("b.json")["records"], strict=True):
        assert (a["model"], b["model"]) == (applied, "merged")
        assert a | {"model": ""} == b | {"model": ""}
    succeed(EVAL + "-o plain.json")
    assert hypotheses("plain.json", "base") != hypotheses("a.json", applied)


def test_many_models_and_sets_have_names(files: Path, succeed: Callable) -> None:
    succeed(
        "lorsmerge eval before=base after=ca --data first=data/test.jsonl --data data/test.jsonl "
        "--beam 1 --samples 20 --device cpu -o results.json"
    )
    found = [(r["model"], r["dataset"]) for r in results("results.json")["records"]]
    assert list(dict.fromkeys(found)) == [
        ("before", "first"), ("before", "test.jsonl"), ("after", "first"), ("after", "test.jsonl"),
    ]  # fmt: skip


# --- bad input ------------------------------------------------------------------------------------


def no_tokenizer() -> None:
    for name in ("tokenizer.json", "vocab.json"):
        Path("base", name).unlink(missing_ok=True)


def another_architecture() -> None:
    config = Path("base/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "wav2vec2"}))


def another_size() -> None:
    config = Path("base/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"d_model": 64}))


def a_nan() -> None:
    tensors = load_file("base/model.safetensors")
    tensors["model.encoder.conv1.weight"][0, 0, 0] = float("nan")
    save_file(tensors, "base/model.safetensors", metadata={"format": "pt"})


def other_base() -> None:
    assert CliRunner().invoke(app, ["delta", "ca", "de", "-o", "x.delta"]).exit_code == 0


def edit_row(**changes: str) -> Callable[[], None]:
    def edit() -> None:
        manifest = Path("data/test.jsonl")
        rows = [json.loads(line) for line in manifest.read_text().splitlines()]
        manifest.write_text("".join(json.dumps(row | changes) + "\n" for row in rows))

    return edit


def existing_output() -> None:
    Path("results.json").write_text("scores of last week")


def nothing() -> None:
    """The files are good; the command is not."""


BASE = "lorsmerge eval base" + DATA + "--beam 1 "
BAD: dict[str, tuple[str, Callable[[], None], int, tuple[str, ...]]] = {
    "no tokenizer": (BASE, no_tokenizer, WORK, ("base holds no tokenizer", "tokenizer.json")),
    "another architecture": (BASE, another_architecture, WORK, ("base is a wav2vec2 model",)),
    "another size": (BASE, another_size, WORK, ("config.json does not describe base", "d_model is 64 and has to be 32")),
    "a bare file": (
        "lorsmerge eval bare.safetensors" + DATA, nothing, WORK, ("config.json", "--config"),
    ),
    "no such model": ("lorsmerge eval nowhere" + DATA, nothing, WORK, ("nowhere",)),
    "no such data": ("lorsmerge eval base --data nowhere.jsonl", nothing, WORK, ("nowhere.jsonl",)),
    "unknown language": (
        BASE, edit_row(source_lang="klingon"), USAGE, ("no language 'klingon'",),
    ),
    "a language the model lacks": (
        BASE, edit_row(source_lang="fr"), USAGE, ("base has no token <|fr|>",),
    ),
    "no such normalisation": (
        BASE + "--normalise anglish", nothing, USAGE, ("'anglish'", "auto, raw, basic, marks"),
    ),
    "two models of one name": (
        "lorsmerge eval base base" + DATA, nothing, USAGE, ("Two models are called 'base'", "NAME=PATH"),
    ),
    "a NaN": (BASE, a_nan, WORK, ("base: 'model.encoder.conv1.weight' holds a NaN",)),
    "an existing output": (
        BASE + "-o results.json", existing_output, WORK, ("results.json exists", "--force"),
    ),
    "the model as output": (
        BASE + "--force -o base/model.safetensors", nothing, WORK, ("lies in the input base",),
    ),
    "score-only of nothing": (
        "lorsmerge eval --score-only", nothing, USAGE, ("--score-only takes files",),
    ),
    "compare without a second model": (
        BASE + "--compare base --beam 1", nothing, USAGE, ("takes two names",),
    ),
    "score-only with a model": (
        BASE + "--score-only --hypotheses data/test.jsonl", nothing, USAGE, ("remove --data",),
    ),
    "score-only of another file": (
        "lorsmerge eval --score-only --hypotheses data/test.jsonl", nothing, WORK,
        ("data/test.jsonl, line 1 is no hypothesis",),
    ),
    "no data": ("lorsmerge eval base", nothing, USAGE, ("--data",)),
    "a comparison of others": (
        BASE + "--compare base ca", nothing, USAGE, ("names no model 'ca'", "There are: base"),
    ),
    "no such dtype": (BASE + "--dtype int8", nothing, USAGE, ("no dtype 'int8'", "float32")),
    "a delta for two models": (
        "lorsmerge eval base ca --apply x.delta" + DATA, nothing, USAGE, ("--apply takes one MODEL",),
    ),
    "a delta of another base": (
        BASE + "--apply x.delta", other_base, WORK, ("x.delta was taken from another model",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error_and_loses_nothing(
    files: Path, shell: Callable, contents: Callable, name: str
) -> None:
    line, prepare, code, words = BAD[name]
    prepare()
    before = contents(Path.cwd())
    ended = shell(line)
    message = " ".join(re.sub("[│╭╮╰╯─]", " ", ended.err).split())
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert [word for word in words if word not in message] == [], message
    for unkind in ("Traceback", "bug in lorsmerge"):
        assert unkind not in ended.err
    assert contents(Path.cwd()) == before


def test_an_existing_output_is_replaced_with_force(files: Path, succeed: Callable) -> None:
    existing_output()
    succeed(BASE + "-o results.json --force")
    assert results("results.json")["records"]


def test_an_interruption_tells_where_the_hypotheses_are(
    files: Path, shell: Callable, succeed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = clips.decode_answers

    def stopped(speech: Any, rows: Any, *rest: Any) -> Any:
        real(speech, rows[:3], *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(clips, "decode_answers", stopped)
        ended = shell(BASE + "--hypotheses h.jsonl -o results.json")
    assert (ended.code, ended.err.strip().splitlines()[-1]) == (
        130, "error: Interrupted; written: 'h.jsonl'.",
    )  # fmt: skip
    assert len(Path("h.jsonl").read_text().splitlines()) == 3
    assert not Path("results.json").exists()
    succeed(BASE + "--hypotheses h.jsonl -o results.json")


def test_hypotheses_of_other_weights_are_refused_and_kept(files: Path, shell: Callable) -> None:
    assert shell(BASE + "--hypotheses h.jsonl").code == 0
    before = Path("h.jsonl").read_bytes()
    shutil.copy("ca/model.safetensors", "base/model.safetensors")
    ended = shell(BASE + "--hypotheses h.jsonl -o results.json")
    assert ended.code == WORK
    assert (
        "of 'base' on 'test.jsonl' that were made differently: by other weights. Give" in ended.err
    )
    ended = shell(BASE.replace("beam 1", "beam 2") + "--hypotheses h.jsonl -o results.json")
    assert "differently: by other weights; beam:1, now beam:2. Give another" in ended.err
    assert Path("h.jsonl").read_bytes() == before
    assert not Path("results.json").exists()


# --- several processes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_write_the_records_of_one(files: Path, succeed: Callable) -> None:
    succeed(EVAL + "-o one.json")
    line = EVAL.removeprefix("lorsmerge ") + "-o two.json --hypotheses h.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         "--nproc-per-node", "2", "-m", "lorsmerge_cli", *line.split()],
        capture_output=True, encoding="utf-8", timeout=PATIENCE, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert results("two.json")["records"] == results("one.json")["records"]
    assert done.stdout.count("signature: beam:2") == 1  # one process prints
    lines = [json.loads(line) for line in Path("h.jsonl").read_text().splitlines()]
    assert len(lines) == len({(line["model"], line["id"]) for line in lines}) == 20


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--data data/test.jsonl", "--data data/test.jsonl is given twice"),
        ("--scale 0.5", "--scale needs --apply"),
        ("--method wa", "--method needs --apply"),
        ("--coef decoder=0.5", "--coef needs --apply"),
        ("--apply ca --coef decoder", "--coef 'decoder' has no number"),
        ("--apply ca --method lors", "--method lors prunes, and needs ratios"),
        ("--apply ca --method was", "Unknown method 'was'. Did you mean 'wa'?"),
        ("--compare base base", "--compare base with itself"),
    ],
)
def test_options_that_would_have_no_effect_are_wrong_usage(
    files: Path, shell: Callable, more: str, said: str
) -> None:
    ended = shell(BASE + more)
    assert ended.code == USAGE
    assert said in " ".join(re.sub(r"[│╭╮╰╯─]", " ", ended.err).split())


@pytest.mark.parametrize(
    ("more", "ignored"),
    [
        ("--data data/test.jsonl", "--data"),
        ("--beam 20 --max-tokens 9", "--beam, --max-tokens"),
        ("--language ca --task asr --hours 1 --split test", "--split, --language, --task, --hours"),
        ("--apply x.delta --scale 0.5 --device cpu", "--device, --apply, --scale"),
    ],
)
def test_options_that_score_only_ignores_are_wrong_usage(
    files: Path, shell: Callable, succeed: Callable, more: str, ignored: str
) -> None:
    line = "lorsmerge eval --score-only --hypotheses h.jsonl "
    ended = shell(line + more)
    assert ended.code == USAGE
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", ended.err).split())
    assert f"remove {ignored}." in said
    succeed(BASE + "--hypotheses h.jsonl")
    succeed(line + "--normalise raw --seed 1 --samples 9 --worst 1 -o r.json")
    succeed(line + "--quiet --debug")
    assert json.loads(succeed(line + "--json").out)["records"]


def test_few_speakers_are_said_beside_an_interval_and_a_test(
    files: Path, succeed: Callable
) -> None:
    """The test set has four."""
    ended = succeed(
        "lorsmerge eval base ca --compare base ca --beam 1 --device cpu --data data/test.jsonl "
        "-o r.json"
    )
    assert "average: plain mean over the columns; +-: its standard error, over " in ended.out
    assert re.search(
        r"WER of ca minus base .* \(95% interval .*\), p = [\d.]+, 2 speakers", ended.out
    )
    assert (
        "intervals from under 10 are wide, and a paired test of 2 has no p below 0.5"
        in " ".join(ended.err.split())
    )
    stored = results("r.json")
    for record in stored["records"]:
        assert record["blocks"] == len({row["speaker"] for row in record["rows"]})
        assert record["block_unit"] == "speakers"
    assert all(found["interval"]["blocks"] == 2 for found in stored["comparisons"])


def test_references_without_words_are_said_to_have_no_score(files: Path, succeed: Callable) -> None:
    rows = [json.loads(line) for line in Path("data/test.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"text": ""} if row["source_lang"] == "ca" else row) for row in rows]
    Path("data/empty.jsonl").write_text("\n".join(lines))
    ended = succeed(f"{BASE.replace('test.jsonl', 'empty.jsonl')} -o empty.json --force")
    assert "empty.jsonl: the ca references have no words, so there is no score" in ended.err
    assert "nan" not in ended.out
    records = json.loads(Path("empty.json").read_text())["records"]
    silent = next(record for record in records if record["language"] == "ca")
    words = sum(len(row["hypothesis"].split()) for row in silent["rows"])
    minutes = sum(row["seconds"] for row in silent["rows"]) / 60
    line = next(line for line in ended.out.splitlines() if f"{words / minutes:.2f}" in line)
    assert line.split()[1:4] == ["empty.jsonl", "ca", str(len(silent["rows"]))]


def test_one_row_that_cannot_be_scored_is_said(files: Path, succeed: Callable) -> None:
    text = Path("data/test.jsonl").read_text()
    rows = [
        *10 * text.splitlines(),
        json.dumps(json.loads(text.splitlines()[0]) | {"audio_filepath": "x"}),
    ]
    Path("data/few.jsonl").write_text("\n".join(rows))
    ended = succeed(BASE.replace("test.jsonl", "few.jsonl") + "-o results.json")
    assert "data/few.jsonl: 1 of 101 rows are dropped (1 missing audio)" in ended.err
    assert results("results.json")["settings"]["dropped"] == {"few.jsonl": {"missing audio": 1}}


def test_half_a_test_set_is_scored_only_when_told_to(
    files: Path, shell: Callable, succeed: Callable
) -> None:
    rows = [json.loads(line) for line in Path("data/test.jsonl").read_text().splitlines()]
    for row in rows[::2]:
        row["audio_filepath"] = f"gone/{row['audio_filepath']}"
    Path("data/half.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = (
        "lorsmerge eval base --data data/half.jsonl --samples 20 --device cpu --beam 1 -o half.json"
    )
    ended = shell(line)
    assert ended.code == WORK
    gone = len(rows[::2])
    said = " ".join(ended.err.split())
    assert f"{gone} of {len(rows)} rows cannot be scored ({gone} missing audio)" in said
    assert "--allow-missing" in said
    assert not Path("half.json").exists()
    succeed(f"{line} --allow-missing")
    assert results("half.json")["settings"]["dropped"] == {"half.jsonl": {"missing audio": gone}}


def test_seeds_of_the_bootstrap_draw_the_same_rows(files: Path, succeed: Callable) -> None:
    def drawn(options: str) -> list[str]:
        line = "lorsmerge eval base --data data/test.jsonl --samples 20 --device cpu --beam 1"
        succeed(f"{line} --hours 0.001 {options} -o part.json --force")
        return sorted(hypotheses("part.json", "base"))

    first = drawn("")
    assert drawn("--seed 1") == first
    assert any(drawn(f"--data-seed {number}") != first for number in (1, 2, 3))


def test_scores_of_a_shard_say_that_they_are_of_a_part(files: Path, succeed: Callable) -> None:
    said = " ".join(succeed(BASE + "--shard 1/2 --hypotheses one.jsonl").err.split())
    assert "these scores are of part 1 of 2, not of the whole test set" in said
    assert "joins the parts' files, one.jsonl and the others" in said
    assert "part 1" not in succeed(BASE + "--hypotheses all.jsonl").err


def test_a_part_without_utterances_is_joined_as_others_are(files: Path, succeed: Callable) -> None:
    succeed(BASE + "--hypotheses all.jsonl -o all.json")
    ended = succeed(BASE + "--shard 999/1000 --hypotheses last.jsonl")
    assert "part 999 of 1000 has no utterance: last.jsonl has no lines" in " ".join(
        ended.err.split()
    )
    assert Path("last.jsonl").read_bytes() == b""
    succeed("lorsmerge eval --score-only all.jsonl last.jsonl --samples 20 -o joined.json")
    scores = [[r["scores"] for r in results(f)["records"]] for f in ("all.json", "joined.json")]
    assert sorted(map(repr, scores[0])) == sorted(map(repr, scores[1]))
    succeed(BASE + "--shard 999/1000 --hypotheses last.jsonl")  # again, as a job that is repeated


def test_the_lambda_of_a_fine_tune_that_is_applied_alone_is_told(
    files: Path, succeed: Callable
) -> None:
    for name in ("ca", "de"):
        succeed(f"lorsmerge delta base {name} -o {name}.delta --task asr --language {name}")
    line = f"lorsmerge eval base{DATA}--beam 1 --apply ca.delta "
    assert "ca.delta is applied with lambda 0.15" in succeed(line).err
    assert "is applied with" not in succeed(line + "--scale 0.15").err
    assert "is applied with" not in succeed(line + "--apply de.delta").err
