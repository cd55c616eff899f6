"""What is kept in a database, and what is shown of it."""

from __future__ import annotations

import base64
import math
import time
import zlib

import numpy as np
import optuna
import pytest

from lorsmerge_cli.commands.search import _command
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import UnreadableFile, UsageFault
from lorsmerge_cli.operations.search import study as search_study
from lorsmerge_cli.operations.search.scores import Goal, loss_statistics
from lorsmerge_cli.operations.search.storage import open_storage
from lorsmerge_cli.recipe.search_settings import shown
from lorsmerge_cli.recipe.space import make_space


def test_statistics_come_back_as_they_were_kept() -> None:
    study = optuna.create_study()
    kept = {
        "ca_asr": np.arange(12.0).reshape(6, 2),
        "de_st": np.random.default_rng(0).random((3, 10)),
    }
    search_study.keep_statistics(study, "x", kept)
    shapes = {key: table.shape for key, table in kept.items()}
    found = search_study.kept_statistics(study.user_attrs, "x", shapes)
    assert found is not None
    assert all(np.array_equal(found[key], table) for key, table in kept.items())
    assert search_study.kept_statistics(study.user_attrs, "y", shapes) is None
    assert len(study.user_attrs["x ca_asr"]) < 12 * 8


@pytest.mark.parametrize(
    "packed",
    [7, "no base 64!", "AAAA", base64.b64encode(zlib.compress(bytes(8 * 11))).decode(),
     base64.b64encode(zlib.compress(bytes(1 << 20))).decode()],
    ids=["a number", "no base 64", "no deflate", "too few", "too many"],
)  # fmt: skip
def test_statistics_of_something_else_are_refused(packed: object) -> None:
    with pytest.raises(UnreadableFile, match="x ca_asr that no search of this dev set kept"):
        search_study.kept_statistics({"x ca_asr": packed}, "x", {"ca_asr": (6, 2)})


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("postgresql+psycopg://u:secret@h/db", "postgresql+psycopg://u:***@h/db"),
        ("postgresql://h/db?user=u&password=secret", "postgresql://h/db?password=...&user=u"),
        ("postgresql://u:sec@re:t@h/db", "postgresql://..."),
        ("postgresql://u@h/db?sslpassword=secret", "postgresql://u@h/db?sslpassword=..."),
        ("study.db", "study.db"),
    ],
)
def test_a_password_is_never_shown(url: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(url) == wanted
    for words in (["--study", url], [f"--study={url}"]):
        monkeypatch.setattr("sys.argv", ["lorsmerge", "search", "base", *words])
        line = _command(url)
        assert "sec" not in line.replace("search", "")
        assert line.startswith(("lorsmerge search base --study", "lorsmerge search base '--study"))


def test_a_url_that_is_none_says_how_a_password_is_written() -> None:
    with pytest.raises(UsageFault, match=r"--study postgresql://\.\.\. is not a .*%40 for @"):
        open_storage("postgresql://u:sec@re:t@h/db")


def test_a_loss_that_overflows_ranks_last() -> None:
    rows = [
        Utterance(id=name, audio=None, text="a", language=name, task="asr") for name in ("ca", "de")
    ]
    found = loss_statistics(rows, {"ca": (math.nan, 3), "de": (6.0, 3)})
    scores = Goal(("asr",), "loss").scores(found, ranking=True)
    assert scores == {"ca_asr": math.inf, "de_asr": 2.0}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_trial_has_heartbeats_while_its_block_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_study, "HEARTBEAT", 0.01)
    study = optuna.create_study()
    trial = study.ask()

    def last() -> float:
        return study.get_trials()[0].user_attrs[search_study.ALIVE]

    with search_study.heartbeat(trial, worker=True):
        first = last()
        deadline = time.monotonic() + 30
        while last() == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert last() > first
    ended = last()
    time.sleep(0.1)
    assert last() == ended
    search_study.requeue_lost(study)
    assert [t.state.name for t in study.get_trials()] == ["RUNNING"]
    monkeypatch.setattr(search_study, "GRACE", 0.05)
    search_study.requeue_lost(study)
    search_study.requeue_lost(study)  # of two workers that see it one requeues it
    assert [t.state.name for t in study.get_trials()] == ["FAIL", "WAITING"]


@pytest.mark.parametrize(
    "text", ["0.124155:0.620774:0.0620774", "0.1:0.5:0.05", "1e-05:0.33333:0.0012345"]
)
def test_every_value_of_a_range_with_a_step_can_be_tried_and_read_back(text: str) -> None:
    space = make_space("base", ("a.delta",), {"scale": text}, "")
    study = optuna.create_study()
    for point in space.grid():
        study.enqueue_trial(point)
    for point in space.grid():
        trial = study.ask()  # Optuna warns of a value that is not one of the range's: an error here
        assert search_study.suggest(trial, space) == point
        study.tell(trial, 0.0)
    assert [trial.params for trial in study.trials] == space.grid()
    optuna.create_study().add_trials(study.trials)  # and checks them when a study is read
