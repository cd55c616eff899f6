"""`lorsmerge finetune`, as a user types it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hub_server import Hub
from real_vocabularies import make_real_vocabulary
from results_files import reported
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from speech_models import make_test_set, make_whisper
from transformers import WhisperForConditionalGeneration

from lorsmerge_cli import console, usage
from lorsmerge_cli.operations.finetune import run as operation
from lorsmerge_cli.speech import features
from lorsmerge_cli.speech.decoding.clips import decode
from lorsmerge_cli.speech.model import audio_of

BUNDLE = Path(__file__).parents[2] / "examples/demo/bundle"
RECIPES = sorted((BUNDLE.parents[1] / "recipes/finetune").glob("*.toml"))
LINE = "lorsmerge finetune base --data train.jsonl --dev dev.jsonl -o out --lr 1e-3 --effective-batch 8"
Command = Callable[..., Any]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    make_whisper(folder / "base", spells=True)
    make_test_set(folder / "a", count=16, seed=1)
    make_test_set(folder / "b", count=10, seed=2)
    for name, where in (("train", "a"), ("dev", "b")):
        text = (folder / where / "test.jsonl").read_text()
        text = text.replace('"audio_filepath": "', f'"audio_filepath": "{folder / where}/')
        (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.fixture
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `base`, `train.jsonl` and `dev.jsonl`."""
    for path in prepared.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def write_rows(name: str, rows: list[dict[str, Any]]) -> None:
    """Put a manifest in the place of the one that is linked to."""
    Path(name).unlink()
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def rewrite(name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the first row of a manifest."""
    rows = rows_of(name)
    change(rows[0])
    write_rows(name, rows)


def process(line: str, *, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *(launcher or ("-m",)), "lorsmerge_cli", *line.split()[1:]]


def test_it_writes_a_model_its_delta_and_how_it_was_made(here: Path, succeed: Command) -> None:
    ended = succeed(f"{LINE} --epochs 2 --delta out.delta")
    assert "before: ca_asr" in ended.out
    assert not Path("out.training").exists()
    run = json.loads(Path("out/run.json").read_text())
    assert run["settings"]["learning_rate"] == 1e-3
    assert [entry["epoch"] for entry in run["epochs"]] == [1.0, 2.0]
    assert set(run["before"]) == set(run["after"]) == {
        "score", "ca_asr", "de_asr", "zh_asr", "ca_st", "de_st",
    }  # fmt: skip
    best = max(run["epochs"], key=lambda entry: entry["score"])
    assert run["chosen"] == [best["epoch"]]
    assert run["after"]["score"] == best["score"]
    model = WhisperForConditionalGeneration.from_pretrained("out")
    assert model.dtype == torch.float32
    succeed("lorsmerge delta base out -o again.delta")
    ours, again = load_file("out.delta"), load_file("again.delta")
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def losses_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_loss_of_each_step_is_in_the_output(here: Path, succeed: Command) -> None:
    succeed(f"{LINE} --epochs 2 --schedule linear")
    records = losses_of("out/losses.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert [record["epoch"] for record in records] == [0.5, 1.0, 1.5, 2.0]
    assert [record["learning_rate"] for record in records] == pytest.approx(
        [1e-3, 7.5e-4, 5e-4, 2.5e-4]
    )
    assert set(records[0]) >= {"loss", "utterances_per_second", "time"}
    run = json.loads(Path("out/run.json").read_text())
    assert [entry["step"] for entry in run["losses"]] == [2, 4]
    assert run["losses"][0]["loss"] == pytest.approx((records[0]["loss"] + records[1]["loss"]) / 2)
    assert "time" not in run["losses"][0]
    assert "losses.jsonl" in json.loads(Path("out/.lorsmerge-files.json").read_text())["files"]
    succeed(f"{LINE} --epochs 1 --force")  # of a folder that is known to be ours, this file too
    assert len(losses_of("out/losses.jsonl")) == 2
    succeed("lorsmerge merge base out --scale 1 -o merged")
    assert not Path("merged/losses.jsonl").exists()


def test_losses_are_kept_as_the_training_goes(
    here: Path, shell: Command, succeed: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that broke off in its second epoch, three steps in and with a checkpoint of two."""
    seen: list[int] = []
    real = operation._Run._keep_loss

    def keep(self: Any, record: dict[str, Any]) -> None:
        real(self, record)
        seen.append(len(losses_of("out.training/losses.jsonl")))
        if len(seen) == 3:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(operation._Run, "_keep_loss", keep)
        assert shell(f"{LINE} --epochs 3").code == 1
    assert seen == [1, 2, 3]
    before = losses_of("out.training/losses.jsonl")
    with Path("out.training/losses.jsonl").open("a") as file:
        file.write('{"loss": 0.1, "st')  # as a kill may leave it
    succeed(f"{LINE} --epochs 3 --resume")
    after = losses_of("out/losses.jsonl")
    assert [record["step"] for record in after] == [1, 2, 3, 4, 5, 6]
    assert after[:2] == before[:2]  # the third was done again
    assert after[2]["loss"] == before[2]["loss"]
    assert not Path("out.training").exists()


def test_the_line_of_a_long_training_says_loss_and_speed(
    here: Path, succeed: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "INTERVAL", 0.02)
    ended = succeed(f"{LINE} --epochs 20")
    assert re.search(r"finetune: \d+/40 steps, loss \d\.\d{4}, [\d.]+ utterances/s, ", ended.err)
    assert re.search(r"steps/(s|min|h), 0:\d\d:\d\d left\n", ended.err)
    assert "finetune:" not in succeed(f"{LINE} --epochs 2 --force --quiet").err


def test_a_base_from_the_hub_is_recorded_with_its_commit(
    here: Path, hub: Hub, succeed: Command
) -> None:
    commit = hub.add_repo("org/whisper", Path("base").resolve())
    succeed(f"{LINE.replace('finetune base', 'finetune org/whisper')} --steps 1 --delta out.delta")
    run = json.loads(Path("out/run.json").read_text())
    assert run["base_name"] == f"org/whisper@{commit}"
    with safe_open("out.delta", "pt") as file:
        assert file.metadata()["lorsmerge.base.name"] == f"org/whisper@{commit}"
    assert succeed("lorsmerge merge base out.delta --scale 1 -o merged").code == 0  # the same base
    torch.testing.assert_close(weights("merged"), weights("out"), rtol=0, atol=1e-6)


def test_scores_are_those_of_eval(here: Path, succeed: Command) -> None:
    succeed(f"{LINE} --epochs 1")
    run = json.loads(Path("out/run.json").read_text())
    succeed("lorsmerge eval out --data dev.jsonl --beam 1 -o results.json")
    records = json.loads(Path("results.json").read_text())["records"]
    for record in records:
        name = f"{record['language']}_{record['task']}"
        if name != "zh_asr":
            assert run["after"][name] == pytest.approx(reported(record)["score"]), name


@pytest.mark.parametrize(("option", "chosen"), [("--average-last 2", [2.0, 3.0])])
def test_the_mean_of_epochs_is_their_mean(
    here: Path, succeed: Command, option: str, chosen: list[float]
) -> None:
    succeed(f"{LINE} --epochs 3 {option}")
    succeed(f"{LINE.replace('-o out', '-o last')} --epochs 3 --average-last 1")
    succeed(f"{LINE.replace('-o out', '-o two')} --steps 4 --average-last 1")
    assert json.loads(Path("out/run.json").read_text())["chosen"] == chosen
    mean, two, three = weights("out"), weights("two"), weights("last")
    for name in mean:
        torch.testing.assert_close(mean[name], (two[name] + three[name]) / 2, rtol=0, atol=1e-7)


def test_a_dry_run_writes_nothing(here: Path, succeed: Command) -> None:
    before = sorted(here.iterdir())
    ended = succeed(f"{LINE} --epochs 3 --dry-run")
    assert "steps: 6 of 8 utterances (8 at a time x 1 x 1 processes)" in ended.out
    assert "train: 16 utterances" in ended.out
    assert sorted(here.iterdir()) == before


def test_a_single_language_is_set_for_generation(here: Path, succeed: Command) -> None:
    for name in ("train.jsonl", "dev.jsonl"):
        pair = ("ca", "st")
        write_rows(name, [r for r in rows_of(name) if (r["source_lang"], r["taskname"]) == pair])
    succeed(f"{LINE} --epochs 1")
    generation = json.loads(Path("out/generation_config.json").read_text())
    assert (generation["language"], generation["task"]) == ("ca", "translate")


def test_an_english_only_model_is_asked_for_no_language(here: Path, succeed: Command) -> None:
    base = here / "english"
    shutil.copytree((here / "base").resolve(), base)
    generation = base / "generation_config.json"
    own = json.loads(generation.read_text()) | {"is_multilingual": False}
    for key in ("lang_to_id", "task_to_id"):
        own.pop(key)
    generation.write_text(json.dumps(own))
    for name in ("train.jsonl", "dev.jsonl"):
        english = {"source_lang": "en", "target_lang": "en", "taskname": "asr"}
        write_rows(name, [row | english for row in rows_of(name)])
    succeed(LINE.replace("finetune base", "finetune english") + " --epochs 1")
    written = json.loads(Path("out/generation_config.json").read_text())
    assert {"language", "task"}.isdisjoint(written)


@pytest.mark.parametrize(("option", "written"), [("", "added"), ("--label-space none", "none")])
def test_the_space_before_a_text_is_recorded(
    here: Path, succeed: Command, option: str, written: str
) -> None:
    succeed(f"{LINE} --steps 2 --delta out.delta {option}")
    run = json.loads(Path("out/run.json").read_text())
    assert run["leading_space"] == written
    assert run["settings"]["label_space"] == (option.rpartition(" ")[2] or "auto")
    with safe_open("out.delta", "pt") as file:
        training = json.loads(file.metadata()["lorsmerge.training"])
    assert training["leading_space"] == written


def test_labels_with_a_space_teach_something_else(here: Path, succeed: Command) -> None:
    line = f"{LINE} --steps 2"
    losses = []
    for option in ("auto", "none"):
        succeed(f"{line.replace('-o out', f'-o {option}')} --label-space {option}")
        losses.append(json.loads(Path(option, "run.json").read_text())["losses"][0]["loss"])
    assert losses[0] != losses[1]


def test_a_tokenizer_that_adds_the_space_is_recorded(here: Path, succeed: Command) -> None:
    copy_base()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = Path("base", name).read_text()
        Path("base", name).write_text(re.sub(r'("add_prefix_space": )false', r"\1true", text))
    succeed(f"{LINE} --steps 1")
    assert json.loads(Path("out/run.json").read_text())["leading_space"] == "tokenizer"


@pytest.mark.parametrize("how", ["auto", "raw"])
def test_epochs_are_chosen_by_the_normalisation_asked_for(
    here: Path, succeed: Command, how: str
) -> None:
    for name in ("train.jsonl", "dev.jsonl"):
        rows = [row | {"text": row["text"].title()} for row in rows_of(name)]
        write_rows(name, rows)
    succeed(f"{LINE} --epochs 1 --normalise {how}")
    run = json.loads(Path("out/run.json").read_text())
    assert run["normalisation"] == how
    succeed(f"lorsmerge eval out --data dev.jsonl --beam 1 --normalise {how} -o results.json")
    for record in json.loads(Path("results.json").read_text())["records"]:
        name = f"{record['language']}_{record['task']}"
        assert run["after"][name] == pytest.approx(reported(record)["score"])


def test_dev_scores_are_not_under_autocast(
    here: Path, succeed: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch is chosen by what its weights say, not by what half of their digits do."""
    trained = []

    def record(speech: Any, *arguments: Any, **rest: Any) -> Any:
        trained.append("forward" in vars(speech.model))  # accelerate's, which casts
        return decode(speech, *arguments, **rest)

    monkeypatch.setattr(operation, "decode", record)
    succeed(f"{LINE} --epochs 2 --dtype bfloat16")
    assert trained == [False] * 3


def test_a_dev_set_is_read_once_for_all_epochs(
    here: Path, succeed: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def record(row: Any) -> Any:
        read.append(row.id)
        return audio_of(row)

    monkeypatch.setattr(features, "audio_of", record)
    succeed(f"{LINE} --epochs 3")
    assert sorted(read) == sorted(row["id"] for row in rows_of("dev.jsonl"))


def test_the_best_step_is_kept_and_patience_ends_a_training(here: Path, succeed: Command) -> None:
    line = f"{LINE.replace('1e-3', '1e-30')} --epochs 5"  # no step makes a difference
    ended = succeed(f"{line} --eval-steps 1 --patience 2")
    assert (
        "ended after step 3 of 10: --patience ran out, the last scores were no better" in ended.out
    )
    assert "out: epoch 0.5, 3 steps" in ended.out
    made = json.loads(Path("out/run.json").read_text())
    assert made["ended_early"] == {"step": 3, "planned": 10}
    assert made["settings"]["eval_steps"] == 1
    assert made["settings"]["patience"] == 2
    assert [entry["step"] for entry in made["epochs"]] == [1, 2, 3]
    assert "note: epoch 1.5: ca_asr" in ended.err
    whole = succeed(f"{LINE} --epochs 1 --force --json").out
    assert json.loads(whole)["steps"] == json.loads(whole)["planned"] == 2
    assert "ended_early" not in json.loads(Path("out/run.json").read_text())


@pytest.mark.parametrize("option", ["--eval-steps 2", "--patience 1"])
def test_evaluations_need_a_dev_set(here: Path, shell: Command, option: str) -> None:
    ended = shell(f"{LINE.replace('--dev dev.jsonl', '')} {option}")
    assert ended.code == 2
    assert f"{option.split()[0]} needs a dev set to decode. Give --dev." in ended.err


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_reporter_that_is_not_installed_is_told_first(
    here: Path, shell: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(usage, "find_spec", lambda package: None)
    ended = shell(f"{LINE} --report-to {name}")
    assert ended.code == 1
    assert f"--report-to {name} needs the package {name}." in ended.err
    assert f"pip install 'lorsmerge[{name}]'" in ended.err
    assert not Path("out.training").exists()


def test_a_training_is_reported_to_what_there_is(here: Path, shell: Command) -> None:
    ended = shell(f"{LINE} --report-to mlflow")
    assert ended.code == 2
    assert "cannot be reported to 'mlflow'. Use tensorboard or wandb." in ended.err


def test_tensorboard_has_losses_and_scores(here: Path, succeed: Command) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    succeed(f"{LINE} --epochs 2 --report-to tensorboard")
    read = EventAccumulator("out.tensorboard").Reload()
    losses = {event.step: event.value for event in read.Scalars("train/loss")}
    kept = {record["step"]: record["loss"] for record in losses_of("out/losses.jsonl")}
    assert losses == pytest.approx(kept, rel=1e-6)
    run = json.loads(Path("out/run.json").read_text())
    scores = [event.value for event in read.Scalars("eval/ca_asr")]
    assert scores == pytest.approx([entry["ca_asr"] for entry in run["epochs"]], rel=1e-6)
    assert not Path("out.training").exists()


def test_a_recipe_gives_defaults_and_the_command_line_wins(here: Path, succeed: Command) -> None:
    Path("r.toml").write_text('learning_rate = 1e-4\nepochs = 7\nschedule = "linear"\nseed = 3\n')
    line = "lorsmerge finetune base --data train.jsonl --dev dev.jsonl -o out --dry-run --json"
    plan = json.loads(succeed(f"{line} --recipe r.toml --epochs 2").out)
    settings = plan["settings"]
    assert settings["learning_rate"] == 1e-4
    assert settings["epochs"] == 2
    assert settings["schedule"] == "linear"
    assert settings["seed"] == 3


def test_a_recipe_may_name_everything(here: Path, succeed: Command) -> None:
    Path("r.toml").write_text(
        'base = "base"\ndata = ["train.jsonl"]\ndev = "dev.jsonl"\noutput = "out"\n'
    )
    assert "would write out" in succeed("lorsmerge finetune --recipe r.toml --dry-run").out


@pytest.mark.parametrize(
    ("line", "learnt"),
    [
        ("keep_language = false", True),
        ("learn_language = true", True),
        ("learn_language = false", False),
    ],
)
def test_a_recipe_may_name_either_side_of_an_option(
    here: Path, succeed: Command, line: str, learnt: bool
) -> None:
    Path("r.toml").write_text(f'{line}\nlanguage = "ca"\ntask = "asr"\n')
    found = json.loads(succeed(f"{LINE} --recipe r.toml --dry-run --json").out)
    assert found["settings"].get("keep_language", False) is not learnt


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ("", False), ("--language ca", True), ("--language ca --learn-language", False),
        ("--keep-language", True),
    ],
)  # fmt: skip
def test_the_language_token_is_kept_where_all_rows_have_one(
    here: Path, succeed: Command, options: str, kept: bool
) -> None:
    plan = json.loads(succeed(f"{LINE} {options} --dry-run --json").out)
    assert plan["settings"].get("keep_language", False) is kept


def test_a_kept_language_token_has_no_part_in_the_loss(here: Path, succeed: Command) -> None:
    loss = {}
    for option in ("keep", "learn"):
        succeed(f"{LINE} -o {option} --language ca --task asr --steps 1 --{option}-language")
        loss[option] = json.loads(Path(option, "losses.jsonl").read_text().splitlines()[0])["loss"]
    assert loss["keep"] != loss["learn"]


PACKED = f"{LINE} --language ca --pack 2 --condition 0.5 --epochs 4"


def talks(path: Path) -> None:
    """Recordings of clips that follow one another: `talks.jsonl` of their segments."""
    lines = []
    for number, rows in enumerate(json.loads(f"[{','.join(group)}]") for group in _groups()):
        waves = [soundfile.read(row["audio_filepath"])[0] for row in rows]
        soundfile.write(path / f"talk{number}.wav", np.concatenate(waves), 16_000)
        ends = np.cumsum([len(wave) / 16_000 for wave in waves])
        segments = [
            {"start": end - len(wave) / 16_000, "end": end, "text": row["text"]}
            for row, wave, end in zip(rows, waves, ends, strict=True)
        ]
        lines.append({"audio_filepath": f"talk{number}.wav", "segments": segments})
    (path / "talks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _groups() -> list[list[str]]:
    lines = Path("train.jsonl").read_text().splitlines()
    return [lines[:6], lines[6:11], lines[11:]]


def test_recordings_are_cut_packed_and_resumed_to_the_bit(here: Path, succeed: Command) -> None:
    talks(here)
    line = f"{PACKED.replace('train.jsonl', 'talks.jsonl')} --save-steps 1 --effective-batch 2"
    plan = json.loads(succeed(f"{line} --dry-run --json").out)
    assert plan["train"]["utterances"] > 3  # the recordings, of which none fits
    assert plan["settings"] | {"pack": 2.0, "condition": 0.5} == plan["settings"]
    running = subprocess.Popen(process(line), stderr=subprocess.PIPE)
    try:
        wait_for(lambda: list(Path("out.training").glob("checkpoint-*/trainer_state.json")))
    finally:
        running.kill()
        running.communicate()
    succeed(f"{line} --resume")
    succeed(f"{line.replace('-o out', '-o whole')}")
    resumed, whole = weights("out"), weights("whole")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_texts_with_control_tokens_are_refused(here: Path, shell: Command) -> None:
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    rows[1]["text"] = f"<|transcribe|>{rows[1]['text']}"
    rows[2]["text"] = f"{rows[2]['text']} <|endoftext|>"
    Path("tokens.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = shell(LINE.replace("train.jsonl", "tokens.jsonl"))
    assert refused.code == 1
    told = f"2 of {len(rows)} texts of the training data have control tokens in them, the first"
    assert f"{told} <|transcribe|> in" in " ".join(refused.err.split())
    assert not Path("out").exists()


def test_packing_makes_fewer_windows_of_as_many_hours(here: Path, succeed: Command) -> None:
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    short = [row | {"text": "red", "speaker": "s"} for row in rows]
    Path("short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in short))
    line = f"{LINE.replace('train.jsonl', 'short.jsonl')} --dry-run --json"
    alone, packed = (json.loads(succeed(f"{line} {o}").out)["train"] for o in ("", "--pack 2"))
    assert packed["utterances"] < alone["utterances"]
    assert packed["hours"] == alone["hours"]
    shown = succeed(f"{line.removesuffix(' --json')} --pack 2").out
    assert f"train: {packed['utterances']} windows, " in shown
    assert re.search(r"steps: \d+ of \d+ windows", shown)
    told = succeed(f"{line} --pack 300").err
    assert re.search(r"--pack 300 is more than the model's window: \d+ s are filled", told)


def test_a_share_of_other_data_is_mixed_in(here: Path, succeed: Command) -> None:
    line = f"{LINE} --language ca --task asr"
    plan = json.loads(
        succeed(f"{line} --retain train.jsonl --retain-share 0.5 --dry-run --json").out
    )
    alone = json.loads(succeed(f"{line} --dry-run --json").out)
    assert plan["train"]["hours"] == pytest.approx(2 * alone["train"]["hours"], rel=0.4)
    assert not plan["settings"].get("keep_language")
    succeed(f"{line} --retain train.jsonl --steps 1 --delta out.delta")
    with safe_open("out.delta", "pt") as file:  # the delta is of what was to be learnt
        assert file.metadata()["lorsmerge.language"] == "ca"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--timestamps 1", "has no timestamps in its vocabulary"),
        ("--condition 1", "No row of the training data follows another one"),
        ("--timestamps 2", "--timestamps 2 is no share from 0 to 1"),
        ("--pack 0", "--pack 0 is not a positive number of seconds"),
        ("--retain train.jsonl --retain-share 1", "--retain-share 1 is no share between 0 and 1"),
    ],
)
def test_what_cannot_be_learnt_is_told_before_the_work(
    here: Path, shell: Command, options: str, told: str
) -> None:
    ended = shell(f"{LINE} {options}")
    assert ended.code in (1, 2)
    assert told in " ".join(ended.err.split())
    assert not Path("out.training").exists()


def test_timestamps_are_learnt_with_a_real_vocabulary(here: Path, succeed: Command) -> None:
    make_real_vocabulary(here / "real", "v2")
    line = LINE.replace("finetune base", "finetune real") + " --language ca --task asr --steps 2"
    losses = {}
    for name, options in (("plain", ""), ("timed", "--pack 30 --timestamps 1")):
        succeed(f"{line.replace('-o out', f'-o {name}')} {options}")
        losses[name] = json.loads(Path(name, "losses.jsonl").read_text().splitlines()[0])["loss"]
    assert losses["plain"] != losses["timed"]


def test_killed_and_resumed_it_ends_where_a_whole_run_does(here: Path, succeed: Command) -> None:
    line = f"{LINE} --epochs 4 --save-steps 1 --spec-augment"
    running = subprocess.Popen(process(line), stderr=subprocess.PIPE)
    try:
        wait_for(lambda: list(Path("out.training").glob("checkpoint-*/trainer_state.json")))
    finally:
        running.kill()
        running.communicate()
    assert not Path("out").exists()
    succeed(f"{line} --resume")
    succeed(f"{line.replace('-o out', '-o whole')}")
    resumed, whole = weights("out"), weights("whole")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    a, b = (json.loads(Path(name, "run.json").read_text()) for name in ("out", "whole"))
    assert a["epochs"] == b["epochs"]


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the run did not get there"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_run_to_go_on_with(here: Path, number: int, shell: Command) -> None:
    line = f"{LINE} --epochs 1000 --save-steps 1"
    running = subprocess.Popen(process(line), stderr=subprocess.PIPE, encoding="utf-8")
    wait_for(lambda: list(Path("out.training").glob("checkpoint-*/trainer_state.json")))
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert re.search(r"Interrupted after step \d+ of 2000.*--resume", err)
    assert "Traceback" not in err
    refused = shell(line)
    assert refused.code == 1
    assert "out.training holds a run that was interrupted" in refused.err
    other = shell(f"{line} --resume --schedule linear")
    assert other.code == 1
    assert "settings schedule was constant and is linear" in other.err
    assert list(Path("out.training").glob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [16, 10, 14])
def test_two_processes_train_as_one(here: Path, succeed: Command, rows: int) -> None:
    """Where their batches come out even, and where one or both are left with fewer rows."""
    write_rows("train.jsonl", rows_of("train.jsonl")[:rows])
    line = f"{LINE} --epochs 3 --batch-size 4 --masks LD --eval-steps 2"
    succeed(line)
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m")
    two = process(line.replace("-o out", "-o two"), launcher=launcher)
    done = subprocess.run(two, capture_output=True, encoding="utf-8", timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("two: epoch") == 1
    steps = [[r["step"] for r in losses_of(f"{name}/losses.jsonl")] for name in ("out", "two")]
    assert steps[0] == steps[1] == list(range(1, 1 + len(steps[0])))
    a, b = (json.loads(Path(name, "run.json").read_text()) for name in ("out", "two"))
    losses = [[entry["loss"] for entry in run["losses"]] for run in (a, b)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert len(losses[0]) >= 3
    start, one, other = weights("base"), weights("out"), weights("two")
    moved = max(float((one[name] - start[name]).abs().max()) for name in one)
    apart = max(float((one[name] - other[name]).abs().max()) for name in one)
    assert apart < 0.01 * moved


@pytest.mark.slow
def test_it_lowers_the_word_error_rate_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, succeed: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    succeed(
        f"lorsmerge finetune {BUNDLE}/base --data {BUNDLE}/it_asr.train.jsonl "
        f"--dev {BUNDLE}/it_asr.dev.jsonl -o ft --recipe {BUNDLE.parent}/finetune.toml"
    )
    succeed(f"lorsmerge eval {BUNDLE}/base ft --data {BUNDLE}/it_asr.test.jsonl --beam 1 -o r.json")
    before, after = json.loads(Path("r.json").read_text())["records"]
    assert reported(after)["score"] < 0.8 * reported(before)["score"]


def bad_weights() -> None:
    tensors = {name: value.clone() for name, value in weights("base").items()}
    tensors["model.encoder.conv1.bias"][0] = torch.nan
    copy_base()
    save_file(tensors, "base/model.safetensors", metadata={"format": "pt"})


def copy_base(without: str = "") -> None:
    files = {
        p.name: p.read_bytes()
        for p in Path("base").iterdir()
        if without not in p.name or not without
    }
    Path("base").unlink()
    Path("base").mkdir()
    for name, held in files.items():
        Path("base", name).write_bytes(held)


def no_row_is_usable() -> None:
    path = Path("train.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    path.write_text("".join(json.dumps(row | {"text": " "}) + "\n" for row in rows))


def make_output() -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("kept")


@pytest.mark.parametrize(
    ("spoil", "options", "code", "message"),
    [
        (None, "--schedule sawtooth", 2, "no schedule 'sawtooth'.*constant, linear, cosine"),
        (None, "--dtype int8", 2, "no dtype 'int8'"),
        (None, "--lr -1", 2, "learning rate of -1 is not between 0 and 1"),
        (None, "--batch-size 3", 2, "does not divide an effective batch of 8"),
        (None, "--device cuda:1", 2, "CUDA_VISIBLE_DEVICES=1"),
        (None, "--device gpu", 2, "no device 'gpu'"),
        (None, "--epochs 0", 2, "--epochs 0 is not a positive number of passes"),
        (None, "--epochs nan", 2, "--epochs|greater than or equal"),
        (None, "--epochs inf", 2, "--epochs inf is not a positive number of passes"),
        (None, "--dev-hours 0", 2, "--dev-hours"),
        (None, "--hours inf", 2, "--hours inf is not a finite number"),
        (None, "--lr nan", 2, "learning rate of nan is not between 0 and 1"),
        (None, "--warmup inf", 2, "--warmup inf is not a number of at least 0"),
        (None, "--clip inf", 2, "--clip inf is not a number of at least 0"),
        (None, "--label-space maybe", 2, "no label space 'maybe'.*auto, none"),
        (None, "--normalise anglish", 2, "no normalisation 'anglish'.*auto, raw"),
        (None, "--language klingon", 2, "no language 'klingon'"),
        (None, "--task sing", 2, "no task 'sing'"),
        (None, "--format csv", 2, "no format 'csv'"),
        (None, "--average-best 2 --average-last 2", 2, "not both"),
        (None, "--data nowhere.jsonl", 1, "no data set nowhere.jsonl"),
        (lambda: rewrite("train.jsonl", lambda row: row.update(source_lang="xx")), "", 2, "no language 'xx'"),
        (lambda: copy_base(without="token"), "", 1, "holds no tokenizer"),
        (lambda: copy_base(without="config.json"), "", 1, "holds no config.json"),
        (bad_weights, "", 1, "holds a NaN"),
        (no_row_is_usable, "", 1, "No row of train.jsonl can be used: 16 empty text"),
        (make_output, "", 1, "out exists.*--force"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_loses_nothing(
    here: Path,
    shell: Command,
    spoil: Callable[[], None] | None,
    options: str,
    code: int,
    message: str,
) -> None:
    if spoil:
        spoil()
    before = sorted(here.rglob("*"))
    ended = shell(f"{LINE} {options}")
    text = " ".join(ended.err.split())
    assert ended.code == code, text
    assert re.search(message, text), text
    assert not Path("out/model.safetensors").exists()
    assert sorted(here.rglob("*")) == before
    if spoil is make_output:
        assert Path("out/mine.txt").read_text() == "kept"


def test_a_recipe_with_a_wrong_name_is_refused(here: Path, shell: Command) -> None:
    Path("r.toml").write_text("learning_rat = 1e-4\n")
    ended = shell(f"{LINE} --recipe r.toml")
    assert ended.code == 2
    assert "learning_rate" in ended.err


def test_rows_that_do_not_fit_are_dropped_and_counted(here: Path, succeed: Command) -> None:
    rewrite("train.jsonl", lambda row: row.update(text="the girl " * 20))
    ended = succeed(f"{LINE} --dry-run --verbose")
    assert "train: 15 utterances" in ended.out
    assert "1 text longer than the decoder" in ended.err
    assert "dropped u0: text longer than the decoder" in ended.err


def test_seeds_of_the_training_draw_the_same_data(here: Path, succeed: Command) -> None:
    def drawn(options: str) -> list[str]:
        line = f"{LINE} --hours 0.002 --dev-hours 0.001 --dry-run --json {options}"
        plan = json.loads(succeed(line).out)
        assert plan["train"]["utterances"] < 16
        return [plan[part]["sha256"] for part in ("train", "dev")]

    first = drawn("")
    assert drawn("--seed 1") == drawn("--seed 2 --data-seed 0") == first
    assert drawn("--data-seed 1")[0] != first[0]
    assert drawn("--data-seed 1") == drawn("--data-seed 1 --seed 7")


def test_a_dev_set_that_was_trained_on_is_told(here: Path, succeed: Command) -> None:
    line = LINE.replace("dev.jsonl", "train.jsonl")
    told = succeed(f"{line} --dry-run").err
    assert "16 of the 16 dev utterances are in the training data too" in told


def test_a_training_that_diverges_is_told(
    here: Path, shell: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorsmerge_cli.speech import training

    def diverging(outputs: Any, labels: torch.Tensor, **rest: Any) -> torch.Tensor:
        return outputs.logits.sum() * torch.nan

    monkeypatch.setattr(training, "token_loss", diverging)
    ended = shell(f"{LINE} --epochs 2")
    assert ended.code == 1
    assert "The training diverged" in ended.err
    assert "--learning-rate" in ended.err
    assert not Path("out").exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_papers_recipes_are_settings_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, succeed: Command, recipe: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    name = recipe.stem.replace("multilingual", "fr")
    plan = json.loads(
        succeed(
            f"lorsmerge finetune {BUNDLE}/base --data {BUNDLE}/{name}.train.jsonl -o out "
            f"--recipe {recipe} --dry-run --json"
        ).out
    )
    assert plan["settings"]["learning_rate"] == tomllib.loads(recipe.read_text())["learning_rate"]
    assert plan["steps"] == 70  # 10 epochs of 200 utterances, 32 at a time


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        ("operations.finetune.run", "copy_companions", OSError(28, "No space left on device")),
        ("operations.finetune.run", "copy_companions", SafetensorError("No space left on device")),
        ("speech.training", "collate", RuntimeError("[enforce fail at inline_container.cc:672]")),
    ],
)
def test_a_full_disk_costs_nothing(
    here: Path, succeed: Command, shell: Command, monkeypatch: pytest.MonkeyPatch, module: str,
    name: str, error: Exception,
) -> None:  # fmt: skip
    def fail(*arguments: Any, **rest: Any) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(f"lorsmerge_cli.{module}.{name}", fail)
        ended = shell(f"{LINE} --steps 3")
    assert ended.code == 1
    assert "Free some space; the run is kept in out.training: --resume" in ended.err
    succeed(f"{LINE} --steps 3 --resume")
    succeed(f"{LINE.replace('-o out', '-o whole')} --steps 3")
    again, whole = weights("out"), weights("whole")
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize("option", ["--resume", "--force"])
def test_a_run_beside_another_one_leaves_its_state_alone(
    here: Path, succeed: Command, shell: Command, contents: Callable,
    monkeypatch: pytest.MonkeyPatch, option: str,
) -> None:  # fmt: skip
    """The other one is this test, which holds the folder as a run does."""
    fcntl = pytest.importorskip("fcntl")

    def fail(*arguments: Any, **rest: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:  # a run that can be resumed
        broken.setattr("lorsmerge_cli.operations.finetune.run.copy_companions", fail)
        shell(f"{LINE} --steps 3")
    before = contents(Path("out.training"))
    assert before
    holder = os.open("out.training", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    ended = shell(f"{LINE} --steps 3 {option}")
    assert ended.code == 1
    assert "Another process is training in out.training" in ended.err
    assert contents(Path("out.training")) == before
    assert not Path("out").exists()
    os.close(holder)
    succeed(f"{LINE} --steps 3 {option}")
