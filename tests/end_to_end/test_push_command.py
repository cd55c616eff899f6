"""`push` against a Hub on this machine, through huggingface_hub itself."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands_ended import Ended, Shell
from hub_server import ADMIN, READER, USERS, WRITER, Hub
from huggingface_hub import ModelCard
from results_files import reported
from safetensors.torch import load_file
from speech_models import make_clip, make_tuned, make_whisper
from typer.testing import CliRunner

from lorsmerge_cli.app import app

REPO = "you/whisper-babel"
BASE = "openai/whisper-small"
FOLDER_FILES = {"config.json", "generation_config.json", "lorsmerge.json", "model.safetensors",
                "processor_config.json", "tokenizer.json", "tokenizer_config.json"}  # fmt: skip


@pytest.fixture(scope="session")
def speech_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as in `work`; read only."""
    folder = tmp_path_factory.mktemp("speech")
    base = make_whisper(folder / "base")
    for seed, (name, task) in enumerate((("ca", "asr"), ("de", "st")), 1):
        make_tuned(base, folder / f"ft-{name}", seed=seed)
        with chdir(folder):
            quietly(f"delta base ft-{name} -o {name}.delta --task {task} --language {name}")
    (base / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# The base\n")
    with chdir(folder):
        quietly("merge base ca.delta de.delta --svp 0.05 --mp 0.4 -o merged")
        quietly("merge base ca.delta de.delta --svp 0.05 --mp 0.4 -o merged.safetensors")
    return folder


@pytest.fixture
def work(speech_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: base/, ca.delta, de.delta, merged/, merged.safetensors."""
    folder = tmp_path / "work"
    shutil.copytree(speech_files, folder)
    monkeypatch.chdir(folder)
    return folder


def quietly(line: str) -> None:
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 0, result.output


def results_of(identity: str, path: Path, **changes: object) -> Path:
    """What `eval -o` writes, of one recognition and one translation test set."""
    record = {"model": "merged", "dataset": "fleurs", "language": "ca", "task": "asr", "metric": "WER",
              "score": 12.3456, "low": 11.0, "high": 13.5, "signature": "beam:20|norm:basic", "standard_error": 0.5, "details": {},
              "rows": [{"id": "u", "seconds": 1.0, "reference": "a", "hypothesis": "b"}]}  # fmt: skip
    translation = {"language": "de", "task": "st", "metric": "BLEU", "score": 20.5,
                   "signature": "case:mixed|tok:13a"}  # fmt: skip
    document = {
        "settings": {"splits": {"fleurs": "test"}, "scoring": {"normalisation": "auto"}},
        "models": {"merged": {"identity": identity}, "base": {"identity": "0" * 16}},
        "records": [record, record | translation, record | {"model": "base", "score": 99.0}],
    }
    path.write_text(json.dumps(document | changes))
    return path


def identity_of(path: Path) -> str:
    from lorsmerge_cli.operations.push.source import find_source

    return find_source(path).identity


def card_of(hub: Hub, repo: str = REPO, revision: str = "main") -> ModelCard:
    return ModelCard(hub.files(repo, revision)["README.md"].decode())


# what is uploaded


def test_a_model_folder_arrives_whole_in_a_new_repository(
    hub: Hub, work: Path, succeed: Callable[[str], Ended]
) -> None:
    out = succeed(f"lorsmerge push merged {REPO}").out
    arrived = hub.files(REPO)
    assert arrived.keys() == FOLDER_FILES | {"README.md", ".gitattributes"}
    assert all(arrived[name] == (work / "merged" / name).read_bytes() for name in FOLDER_FILES)
    assert f"{hub.url}/{REPO}: 8 of 8 files uploaded" in out
    assert "in a new repository" in out
    assert not hub.repos[REPO].private


def test_files_that_are_not_the_model_stay_at_home(
    hub: Hub, work: Path, succeed: Callable[[str], Ended]
) -> None:
    for name in (".env", "optimizer.pt", "checkpoint-3/model.safetensors", ".cache/x"):
        (work / "merged" / name).parent.mkdir(exist_ok=True)
        (work / "merged" / name).write_text("HF_TOKEN=secret")
    succeed(f"lorsmerge push merged {REPO}")
    assert hub.files(REPO).keys() == FOLDER_FILES | {"README.md", ".gitattributes"}


def test_pushing_again_sends_only_what_changed(
    hub: Hub, work: Path, succeed: Callable[[str], Ended]
) -> None:
    succeed(f"lorsmerge push merged {REPO}")
    hub.calls.clear()
    again = json.loads(succeed(f"lorsmerge push merged {REPO} --json").out)
    assert hub.seen("PUT") == hub.seen("POST", "/commit/") == hub.seen("POST", "/create") == []
    assert again["uploaded"] == []
    assert len(again["unchanged"]) == 7  # and the card is kept
    (work / "merged" / "generation_config.json").write_text("{}")
    changed = json.loads(succeed(f"lorsmerge push merged {REPO} --json").out)
    assert changed["uploaded"] == ["generation_config.json"]
    assert hub.seen("PUT") == []
    (commit,) = hub.seen("POST", "/commit/")
    assert len(commit.body.splitlines()) == 2  # its message and one file


def test_an_upload_that_broke_off_is_gone_on_with(
    hub: Hub, work: Path, shell: Shell, succeed: Callable[[str], Ended]
) -> None:
    succeed("lorsmerge merge base ca.delta -o sharded --max-shard-size 60KB")
    shards = sorted(path.name for path in (work / "sharded").glob("*.safetensors"))
    assert len(shards) > 2
    digest = hashlib.sha256((work / "sharded" / shards[1]).read_bytes()).hexdigest()
    hub.fail("PUT", digest, drop_after=5000, times=6)  # huggingface_hub tries five times again
    ended = shell(f"lorsmerge push sharded {REPO}")
    assert ended.code == 1
    assert "the connection broke" in ended.err
    assert "Run the command again later" in ended.err
    assert "README.md" not in hub.files(REPO)  # nothing of it, as long as it is not all there
    there = set(hub.large)
    hub.calls.clear()
    succeed(f"lorsmerge push sharded {REPO}")
    sent = {call.path.rpartition("/")[2] for call in hub.seen("PUT")}
    assert digest in sent
    assert there
    assert sent.isdisjoint(there)
    assert hub.files(REPO).keys() >= {*shards, "README.md"}


def test_weights_that_a_reader_would_take_instead_are_removed(
    hub: Hub, work: Path, succeed: Callable[[str], Ended]
) -> None:
    succeed(f"lorsmerge push merged {REPO}")
    succeed("lorsmerge merge base ca.delta -o sharded --max-shard-size 90KB")
    out = succeed(f"lorsmerge push sharded {REPO}").out
    assert "model.safetensors" not in hub.files(REPO)
    assert "1 old weight files removed" in out


def test_a_new_repository_can_be_private(
    hub: Hub, work: Path, succeed: Callable[[str], Ended]
) -> None:
    succeed(f"lorsmerge push merged {REPO} --private")
    assert hub.repos[REPO].private
    succeed(f"lorsmerge push merged {REPO} --private")


def test_a_pull_request_a_branch_and_a_message(
    hub: Hub, work: Path, succeed: Callable[[str], Ended]
) -> None:
    hub.add_repo("other/theirs", {"config.json": "{}"})
    ended = succeed(
        "lorsmerge push merged other/theirs --create-pr --commit-message 'A better one'"
    )
    assert f"{hub.url}/other/theirs/discussions/1" in ended.out
    assert hub.files("other/theirs") == {"config.json": b"{}"}
    assert hub.files("other/theirs", "refs/pr/1").keys() >= FOLDER_FILES
    assert list(hub.repos["other/theirs"].messages.values())[-1] == "A better one"
    hub.add_repo(REPO, {"config.json": "old"})
    hub.add_repo(REPO, {"config.json": "old"}, ref="trial")
    succeed(f"lorsmerge push merged {REPO} --revision trial")
    assert hub.files(REPO) == {"config.json": b"old"}
    assert hub.files(REPO, "trial").keys() >= FOLDER_FILES


def test_one_file_and_a_delta_are_repositories_of_their_own(
    hub: Hub, work: Path, succeed: Callable[[str], Ended]
) -> None:
    succeed(f"lorsmerge push merged.safetensors you/file --base-model {BASE}")
    files = hub.files("you/file")
    assert files["merged.safetensors"] == (work / "merged.safetensors").read_bytes()
    card = card_of(hub, "you/file")
    assert (card.data.base_model, card.data.base_model_relation) == ([BASE], "merge")
    snippet = card.text.split("```python\n")[1].split("```")[0]
    hub.add_repo(BASE, work / "base")
    pasted: dict[str, Any] = {}
    exec(snippet, pasted)
    merged = load_file(work / "merged.safetensors")
    loaded = pasted["model"].state_dict()
    assert all(loaded[name].equal(merged[name]) for name in merged)
    succeed("lorsmerge delta base ft-ca -o ca.delta --task asr --language ca --force")
    succeed(f"lorsmerge push ca.delta you/ca --base-model {BASE}")
    files = hub.files("you/ca")
    assert files["ca.delta"] == (work / "ca.delta").read_bytes()
    card = card_of(hub, "you/ca")
    assert (card.data.base_model, card.data.base_model_relation) == ([BASE], "adapter")
    assert card.data.language == ["ca"]
    assert f"lorsmerge merge {BASE} you/ca" in card.text
    assert "delta base ft-ca -o ca.delta" in card.text  # how it was made


def test_it_works_as_a_process_where_the_server_has_no_xet(
    hub: Hub, work: Path, process: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_XET")
    ended = process(f"lorsmerge push merged {REPO} --commit-message Merged")
    assert (ended.code, "8 of 8 files uploaded" in ended.out) == (0, True), ended.err
    assert hub.files(REPO).keys() >= FOLDER_FILES


# the card


def test_the_card_says_what_is_known(hub: Hub, work: Path, succeed: Callable[[str], Ended]) -> None:
    results = results_of(identity_of(work / "merged"), work / "results.json")
    succeed(f"lorsmerge push merged {REPO} --base-model {BASE} --results {results}")
    card = card_of(hub)
    data = card.data
    assert (data.base_model, data.base_model_relation) == ([BASE], "merge")
    assert data.language == ["ca", "de"]
    assert set(data.tags) == {"merge", "lorsmerge", "whisper"}
    assert data.pipeline_tag == "automatic-speech-recognition"
    assert data.library_name == "transformers"
    assert data.license == "cc-by-4.0"  # the base's
    wer, bleu = data.eval_results
    assert (wer.metric_type, wer.metric_value, wer.dataset_name) == ("wer", 12.35, "fleurs")
    assert (wer.dataset_config, wer.dataset_split) == ("ca", "test")
    assert wer.metric_args == {"signature": "beam:20|norm:basic"}
    assert (bleu.task_type, bleu.metric_type, bleu.metric_value) == ("translation", "bleu", 20.5)
    assert "| asr | ca | fleurs | test | WER | 12.35 | 11.00 to 13.50 |" in card.text
    assert "99" not in card.text  # the score of the other model


def test_a_card_tells_scores_of_clips_from_those_of_recordings(
    hub: Hub, work: Path, shell: Callable[[str], Ended], succeed: Callable[[str], Ended]
) -> None:
    clips = results_of(identity_of(work / "merged"), work / "clips.json")
    document = json.loads(clips.read_text())
    document["settings"]["decoding"] = {"beam": 5, "long": "best_of:5", "language": "auto"}
    for record in document["records"]:
        record["score"] += 1
    (work / "long.json").write_text(json.dumps(document))
    succeed(f"lorsmerge push merged {REPO} --results clips.json --results long.json")
    card = card_of(hub)
    names = ["fleurs", "fleurs (whole recordings) (language identified)"]
    wer = [found for found in card.data.eval_results if found.metric_type == "wer"]
    assert [found.dataset_name for found in wer] == names
    assert "| asr | ca | fleurs (whole recordings, language identified) | test |" in card.text
    document["settings"]["decoding"] = {"beam": 5}
    (work / "other.json").write_text(json.dumps(document))
    refused = shell("lorsmerge push merged you/new --results clips.json --results other.json")
    assert refused.code == 1
    assert "clips.json and other.json both have a WER of ca asr on fleurs" in refused.err
    for record in document["records"]:
        for row in record["rows"]:
            row["reference"] = ""
    (work / "silent.json").write_text(json.dumps(document))
    refused = shell("lorsmerge push merged you/new --results silent.json")
    assert "nothing is said in its test sets" in refused.err


def test_results_of_eval_are_shown_with_their_split(
    hub: Hub, work: Path, succeed: Callable[[str], Ended]
) -> None:
    (work / "data" / "test").mkdir(parents=True)
    make_clip(work / "data" / "test" / "0.wav", seed=1, seconds=1.0)
    (work / "data" / "test" / "metadata.csv").write_text("file_name,text\n0.wav,the red boy\n")
    scored = "--language ca --task asr --beam 1 --samples 5 --device cpu -o results.json"
    succeed(f"lorsmerge eval merged base --data clips=data {scored}")
    results = json.loads((work / "results.json").read_text())
    succeed(f"lorsmerge push merged {REPO} --results results.json")
    (found,) = card_of(hub).data.eval_results
    record = next(r for r in results["records"] if r["model"] == "merged")
    assert (found.dataset_name, found.dataset_split) == ("clips", "test")
    assert found.metric_value == round(reported(record)["score"], 2)
    assert found.metric_args == {"signature": reported(record)["signature"]}


def test_a_card_claims_nothing_that_is_not_known(
    hub: Hub, work: Path, succeed: Callable[[str], Ended]
) -> None:
    (work / "base" / "README.md").unlink()
    ended = succeed(f"lorsmerge push merged {REPO}")
    head = yaml.safe_load(hub.files(REPO)["README.md"].decode().split("---")[1])
    assert head.keys().isdisjoint({"base_model", "base_model_relation", "license", "model-index"})
    assert "--base-model ORG/NAME" in ended.err
    assert "--license ID" in ended.err


def test_the_license_of_a_base_on_the_hub_is_carried_over(
    hub: Hub, work: Path, succeed: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "base" / "README.md").unlink()
    hub.add_repo(BASE, {"README.md": "---\nlicense: mit\n---\n"})
    succeed(f"lorsmerge push merged {REPO} --base-model {BASE}")
    assert card_of(hub).data.license == "mit"
    hub.add_repo("lab/gated", {"README.md": "---\nlicense: mit\n---\n"}, gated=True)
    monkeypatch.setitem(USERS, WRITER, {"name": "you", "orgs": [], "role": "write"})
    ended = succeed("lorsmerge push merged you/other --base-model lab/gated")
    assert "--license ID" in ended.err  # nobody who is not let in can know
    succeed(f"lorsmerge push merged {REPO} --license apache-2.0 --replace-card")
    assert card_of(hub).data.license == "apache-2.0"


def test_a_sum_of_pruned_deltas_is_named_after_the_pruning(
    hub: Hub, work: Path, succeed: Callable[[str], Ended]
) -> None:
    succeed("lorsmerge merge base ca.delta de.delta -o sum")
    succeed("lorsmerge push sum you/sum")
    assert "task arithmetic" in card_of(hub, "you/sum").text
    record = json.loads((work / "sum" / "lorsmerge.json").read_text())
    for about in record["deltas"]:
        about["pruning"] = {"method": "lors", "svp": 0.05, "mp": 0.4}
    (work / "sum" / "lorsmerge.json").write_text(json.dumps(record))
    succeed("lorsmerge push sum you/lors")
    card = card_of(hub, "you/lors").text
    assert "LoRS-Merging" in card
    assert "| ca.delta | ca | asr | 0.05 | 0.4 | 0.15 |" in card


def test_a_fine_tune_is_told_from_a_merge(
    hub: Hub, work: Path, succeed: Callable[[str], Ended]
) -> None:
    trained = [{"language": "ca", "task": "asr", "hours": 5.0}]
    run = {"base_name": f"{BASE}@{'0' * 40}", "trained_on": trained}
    (work / "ft-ca" / "run.json").write_text(json.dumps(run))
    succeed(f"lorsmerge push ft-ca {REPO}")
    data = card_of(hub).data
    assert (data.base_model, data.base_model_relation) == ([BASE], "finetune")
    assert (data.language, data.tags) == (["ca"], ["lorsmerge", "whisper"])


def test_a_card_that_is_there_is_kept_unless_told(
    hub: Hub, work: Path, shell: Shell, succeed: Callable[[str], Ended]
) -> None:
    hub.add_repo(REPO, {"README.md": "# By hand\n"})
    ended = succeed(f"lorsmerge push merged {REPO}")
    assert hub.files(REPO)["README.md"] == b"# By hand\n"
    assert "--replace-card" in ended.err
    results = results_of(identity_of(work / "merged"), work / "results.json")
    refused = shell(f"lorsmerge push merged {REPO} --results {results}")
    assert (refused.code, "--replace-card" in refused.err) == (2, True)
    succeed(f"lorsmerge push merged {REPO} --results {results} --replace-card")
    assert "12.35" in card_of(hub).text
    (work / "merged" / "README.md").write_text("# The folder's own\n")
    succeed(f"lorsmerge push merged {REPO} --replace-card")
    assert hub.files(REPO)["README.md"] == b"# The folder's own\n"


def test_a_dry_run_shows_the_card_and_uploads_nothing(
    hub: Hub, work: Path, succeed: Callable[[str], Ended]
) -> None:
    plan = json.loads(succeed(f"lorsmerge push merged {REPO} --dry-run --json").out)
    assert set(plan["files"]) == FOLDER_FILES | {"README.md"}
    assert plan["card"].startswith("---\n")
    assert REPO not in hub.repos
    succeed(f"lorsmerge push merged {REPO}")
    assert hub.files(REPO)["README.md"].decode() == plan["card"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_snippet_works_as_pasted(
    hub: Hub, work: Path, succeed: Callable[[str], Ended], capsys: pytest.CaptureFixture[str]
) -> None:
    succeed(f"lorsmerge push merged {REPO}")
    snippet = card_of(hub).text.split("```python\n")[1].split("```")[0]
    make_clip(work / "clip.wav", seed=3, seconds=1.5)
    beams = 5  # transformers' own choice for its pipeline
    command = f"lorsmerge transcribe merged --audio clip.wav --language ca --beam {beams} --json"
    (wanted,) = json.loads(succeed(command).out)["transcripts"]
    capsys.readouterr()
    exec(snippet, {})
    assert capsys.readouterr().out.strip() == wanted["text"]
    assert wanted["text"]
    assert hub.seen("GET", f"/{REPO}/resolve/")  # it came from there


def test_no_secret_is_printed_or_written(
    hub: Hub, work: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    secrets = (*USERS, "wJalrXUtnFEMI")
    printed = ""
    for options in (
        "--dry-run",
        f"--token {WRITER}",
        "--debug --revision gone",
        f"--token {READER}",
    ):
        ended = shell(f"lorsmerge push merged {REPO} {options}")
        printed += ended.out + ended.err
    hub.fail("POST", "/preupload/", 500, times=9)
    ended = shell(f"lorsmerge push merged {REPO} --debug")
    printed += ended.out + ended.err
    written = b"".join(data for data in hub.files(REPO).values())
    for secret in secrets:
        assert secret not in printed
        assert secret.encode() not in written


# merge --push, and the merge made again


def test_a_merge_is_pushed_in_one_go(hub: Hub, work: Path, succeed: Callable[[str], Ended]) -> None:
    ended = succeed(f"lorsmerge merge base ca.delta de.delta --svp 0.05 -o new --push {REPO}")
    assert "8 of 8 files uploaded" in ended.out
    assert "method svp" in ended.out
    assert hub.files(REPO)["model.safetensors"] == (work / "new" / "model.safetensors").read_bytes()
    again = f"lorsmerge merge base ca.delta -o one.safetensors --push {REPO} --json"
    assert json.loads(succeed(again).out)["push"]["uploaded"] == ["one.safetensors"]


def test_a_control_is_written_and_not_pushed(
    hub: Hub, work: Path, succeed: Callable[[str], Ended]
) -> None:
    ended = succeed(
        f"lorsmerge merge base ca.delta de.delta --method ties --control -o t.safetensors --push {REPO}"
    )
    assert "t-control.safetensors: its control, task arithmetic at lambda" in ended.out
    assert (work / "t-control.safetensors").is_file()
    assert [name for name in hub.files(REPO) if "control" in name] == []


def test_whether_it_may_be_pushed_is_known_before_the_merge(
    hub: Hub, work: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = "lorsmerge merge base ca.delta --svp 0.05 -o new --push"
    for repo, token, said in (
        ("other/x", WRITER, "may not write to other"),
        (REPO, READER, "may only read"),
        (REPO, "", "hf auth login"),
        ("nonsense", WRITER, "not the id of a repository"),
    ):
        monkeypatch.setenv("HF_TOKEN", token)
        ended = shell(f"{command} {repo}")
        assert ended.code != 0
        assert said in ended.err
        assert not (work / "new").exists()


def test_a_merge_that_could_not_be_pushed_is_kept(hub: Hub, work: Path, shell: Shell) -> None:
    hub.fail("PUT", "/lfs/", 500, times=6)
    ended = shell(f"lorsmerge merge base ca.delta --svp 0.05 -o new --push {REPO}")
    assert ended.code == 1
    assert "new is written, but not uploaded." in ended.err
    assert f"`lorsmerge push new {REPO}` sends it." in ended.err
    assert (work / "new" / "model.safetensors").is_file()


def test_the_card_alone_makes_the_merge_again(
    hub: Hub, work: Path, succeed: Callable[[str], Ended]
) -> None:
    hub.add_repo(BASE, work / "base")
    succeed(f"lorsmerge delta {BASE} ft-ca -o ca.hub.delta --task asr --language ca")
    succeed("lorsmerge push ca.hub.delta you/ca")
    delta_card = card_of(hub, "you/ca")
    assert delta_card.data.base_model == [BASE]
    first_use = delta_card.text.split("## Use\n\n```sh\n")[1].split("#")[0].strip()
    succeed(first_use)
    tuned = load_file(work / "ft-ca" / "model.safetensors")
    made = load_file(work / "finetuned" / "model.safetensors")
    assert all(torch.allclose(made[name], tuned[name], atol=1e-6) for name in made)
    succeed(f"lorsmerge merge {BASE} you/ca --svp 0.05 --mp 0.4 -o from-hub --push {REPO}")
    card = card_of(hub)
    assert card.data.base_model == [BASE, "you/ca"]
    elsewhere = work / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "card.md").write_bytes(hub.files(REPO)["README.md"])
    command = card.text.split("```sh\n")[1].split("```")[0].strip()
    with chdir(elsewhere):
        succeed(command)
    made = (elsewhere / "merged" / "model.safetensors").read_bytes()
    assert made == hub.files(REPO)["model.safetensors"]


def test_a_card_without_a_recipe_is_none(work: Path, shell: Shell) -> None:
    (work / "card.md").write_text("# A model\n\n```sh\nls\n```\n")
    ended = shell("lorsmerge merge --recipe card.md -o again")
    assert (ended.code, "the card holds no block of TOML" in ended.err) == (1, True)


def test_an_interrupted_push_says_how_to_go_on(
    hub: Hub, work: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", interrupt)
    ended = shell(f"lorsmerge push merged {REPO}")
    assert (ended.code, "Push again to resume" in ended.err) == (130, True)


# bad input


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("nothing you/x", 1, ["nothing: no such file or folder"]),
        ("notes.txt you/x", 1, ["notes.txt is not a model folder, a .safetensors file or a .delta"]),
        ("empty you/x", 1, ["empty holds neither model.safetensors"]),
        ("bare you/x", 1, ["bare has weights but no config.json"]),
        ("adapter you/x", 1, ["adapter is a PEFT adapter", "hf upload"]),
        ("broken you/x", 1, ["broken: the record of how it was made is damaged", "README.md"]),
        ("merged x", 2, ["'x' is not the id of a repository", "ORG/NAME"]),
        ("merged you/x/y", 2, ["'you/x/y' is not the id of a repository"]),
        ("merged 'you/a b'", 2, ["'you/a b' is not the id of a repository"]),
        ("merged https://huggingface.co/you/x", 2, ["is not the id of a repository"]),
        ("merged you/x --base-model small", 2, ["--base-model 'small' is not the id"]),
        ("merged other/x", 1, ["you may not write to other, only to you, lab", "--create-pr"]),
        ("merged you/there --revision gone", 1, ["you/there has no revision 'gone'", "hf repos"]),
        ("merged you/x --revision trial", 1, ["There is no repository you/x"]),
        ("merged you/x --create-pr", 1, ["There is no repository you/x to open a pull request"]),
        ("merged you/there --replace-card --license none", 1, ["error 400", '"license" must be one']),
        ("merged you/there --create-pr --revision trial", 2, ["--revision is trial"]),
        ("merged you/there --private", 1, ["exists and is public, so --private would not hold"]),
        ("merged you/x --results other.json", 1, ["other.json has no score of merged"]),
        ("merged you/x --results notes.txt", 1, ["notes.txt is no results file"]),
        ("merged you/x --results gone.json", 1, ["gone.json: No such file"]),
        ("ca.delta you/x --results other.json", 2, ["--results is for models"]),
        ("merged you/x --token hf_mistyped", 1, ["does not know this token", "hf auth login"]),
        (f"merged you/x --token {READER}", 1, ["may only read", "settings/tokens"]),
        (f"merged you/x --token {ADMIN}", 1, ["other may not write to you"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_input_is_told_before_anything_is_sent(
    hub: Hub, work: Path, shell: Shell, arguments: str, code: int, said: list[str]
) -> None:
    (work / "notes.txt").write_text("notes")
    (work / "empty").mkdir()
    (work / "adapter").mkdir()
    (work / "adapter" / "adapter_config.json").write_text("{}")
    shutil.copytree(work / "merged", work / "broken")
    (work / "broken" / "lorsmerge.json").write_text('{"recipe": {"deltas": [3]}}')
    (work / "bare").mkdir()
    shutil.copy(work / "merged" / "model.safetensors", work / "bare")
    hub.add_repo("you/there", {"config.json": "{}"})
    results_of("f" * 16, work / "other.json")
    ended = shell(f"lorsmerge push {arguments}")
    assert ended.code == code, ended.err
    error = ended.err[ended.err.index("error: ") :]
    assert all(part in error for part in said), error
    assert len(error.strip().splitlines()) == 1
    assert hub.seen("PUT") == hub.seen("POST", "/commit/") == []
    assert set(hub.repos) == {"you/there"}


def test_no_token_no_network_and_offline(
    hub: Hub, work: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    ended = shell(f"lorsmerge push merged {REPO}")
    assert (ended.code, "hf auth login" in ended.err) == (1, True)
    assert hub.calls == []
    ended = shell(f"lorsmerge push merged {REPO} --dry-run")
    assert (ended.code, "hf auth login" in ended.err) == (0, True)
    assert "[[deltas]]" in ended.out  # the card, with its recipe
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody there
    ended = shell(f"lorsmerge push merged {REPO}")
    assert (ended.code, "http://127.0.0.1:9 cannot be reached" in ended.err) == (1, True)
    assert len(ended.err.splitlines()) == 1
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ended = shell(f"lorsmerge push merged {REPO}")
    assert (ended.code, "HF_HUB_OFFLINE is set" in ended.err) == (1, True)


@pytest.mark.parametrize(
    ("method", "part", "status", "said"),
    [
        ("GET", "whoami", 401, "the Hub does not know this token"),
        ("POST", "/repos/create", 403, "the Hub does not let you do this"),
        ("POST", "/preupload/", 403, "the Hub does not let you do this"),
        ("POST", "/preupload/", 404, "the Hub refused (error 404)"),
        ("POST", "/preupload/", 429, "too many requests for the Hub"),
        ("PUT", "/lfs/", 500, "the Hub failed (error 500)"),
        ("POST", "/commit/", 500, "the Hub failed (error 500)"),
    ],
)  # fmt: skip
def test_what_the_hub_answers_is_one_paragraph(
    hub: Hub, work: Path, shell: Shell, method: str, part: str, status: int, said: str
) -> None:
    hub.fail(method, part, status, times=9)
    ended = shell(f"lorsmerge push merged {REPO}")
    assert ended.code == 1
    error = ended.err[ended.err.index("error: ") :].strip()
    assert said in error
    assert len(error.splitlines()) == 1
    hub.heal()
    assert shell(f"lorsmerge push merged {REPO}").code == 0  # and nothing stands in its way


def test_a_moment_of_trouble_is_got_over(
    hub: Hub, work: Path, succeed: Callable[[str], Ended]
) -> None:
    hub.fail("POST", "/preupload/", 429, headers={"Retry-After": "1"})
    hub.fail("PUT", "/lfs/", 500)
    succeed(f"lorsmerge push merged {REPO}")
    assert hub.files(REPO).keys() >= FOLDER_FILES
