"""Early stops, lost trials, and what is shown of a database."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.trial import TrialState

from lorsmerge_cli.commands.search import _command
from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.operations import search_study
from lorsmerge_cli.operations.search_scores import _loss_scores
from lorsmerge_cli.operations.search_storage import open_storage, shown
from lorsmerge_cli.operations.search_study import BehindTheMedian
from lorsmerge_cli.speech.utterance import Utterance


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
@pytest.mark.parametrize(
    ("values", "stopped"),
    [
        ((10.2,), False),  # the median of 10, 11, ... 14 is 12
        ((12.0,), False),
        ((12.1,), True),
        ((math.nan,), True),
        ((10.2, 22.0), False),
        ((10.2, 22.1), True),  # though its best so far, 10.2, is of the easier first part
    ],
)
def test_a_trial_is_stopped_where_it_is_behind_the_median_of_the_same_part(
    direction: str, sign: int, values: tuple[float, ...], stopped: bool
) -> None:
    study = optuna.create_study(direction=direction, pruner=BehindTheMedian())
    for number in range(5):
        assert not asked(study, sign, *values).should_prune()  # too few to compare with
        study.add_trial(
            optuna.create_trial(
                value=sign * 20.0,
                intermediate_values={1: sign * (10.0 + number), 2: sign * (20.0 + number)},
            )
        )
    study.add_trial(  # one that was stopped is not compared with
        optuna.create_trial(state=TrialState.PRUNED, intermediate_values={1: sign * 1.0})
    )
    assert asked(study, sign, *values).should_prune() == stopped


def asked(study: optuna.Study, sign: int, *values: float) -> optuna.Trial:
    trial = study.ask()
    for step, value in enumerate(values, 1):
        trial.report(sign * value, step)
    return trial


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
    with pytest.raises(UsageFault, match=r"--study postgresql://\.\.\. is no .*%40 for @"):
        open_storage("postgresql://u:sec@re:t@h/db", search_study.do_again, print)


def test_a_loss_that_overflows_ranks_last() -> None:
    rows = [
        Utterance(id=name, audio=None, text="a", language=name, task="asr") for name in ("ca", "de")
    ]
    found = _loss_scores(rows, {"ca": (math.nan, 3), "de": (6.0, 3)})
    assert found == {"ca_asr": math.inf, "de_asr": 2.0}
