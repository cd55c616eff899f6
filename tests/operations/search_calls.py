"""Searches of tests: with real models, or with a formula in place of a dev set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from speech_models import make_deltas, make_test_set, make_whisper

from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.operations.search import run as module
from lorsmerge_cli.operations.search.plan import SearchPlan, plan_search
from lorsmerge_cli.operations.search.report import SearchReport
from lorsmerge_cli.operations.search.run import run_search
from lorsmerge_cli.operations.search.scores import Statistics, speakers_of
from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe
from lorsmerge_cli.recipe.search_settings import SearchSettings
from lorsmerge_cli.recipe.space import make_space

UNITS = 1000.0  # words of an utterance
SPACE = {"svp": "0.1,0.2,0.3", "mp": "0.2:0.6", "scale": "0.1:0.9"}
COMMAND = "lorsmerge search again"


def plan(folder: Path, place: Path, **changes: Any) -> SearchPlan:
    """A plan over base/, ca.delta, de.delta and data/test.jsonl of a folder."""
    space = make_space(
        str(changes.pop("base", folder / "base")),
        [str(delta) for delta in changes.pop("deltas", [folder / "ca.delta", folder / "de.delta"])],
        changes.pop("texts", SPACE), changes.pop("per_delta", ""), (), changes.pop("exclude", ()),
        changes.pop("method", None), changes.pop("by", ""),
        changes.get("sampler", ""),
    )  # fmt: skip
    data = changes.pop("data", [folder / "data" / "test.jsonl"])
    test = changes.pop("test", [])
    settings: dict[str, Any] = {
        "study": str(place), "trials": 8, "device": "cpu", "threads": 1, "beam": 2,
        "output": None if changes.get("worker") else place.with_suffix(".toml"),
    }  # fmt: skip
    return plan_search(space, data, test, SearchSettings(**settings | changes))


def run(folder: Path, place: Path, **changes: Any) -> SearchReport:
    hooks = {
        key: changes.pop(key) for key in ("on_message", "on_trial", "progress") if key in changes
    }
    return run_search(plan(folder, place, **changes), command=COMMAND, **hooks)


class Formula:
    """Statistics by what a recipe says, no model needed; `tried` lists every recipe scored."""

    def __init__(self) -> None:
        self.tried: list[tuple[float | None, ...]] = []
        self.recipe: Recipe

    def share_memory(self, workers: int) -> None:
        """Nothing is kept."""

    def load(self, recipe: Recipe) -> None:
        self.recipe = recipe.resolved()
        self.tried.append(tuple(x for d in self.recipe.deltas for x in (d.svp, d.mp, d.scale)))

    def load_base(self) -> None:
        self.recipe = Recipe("base", (DeltaEntry("ca", scale=0.0),)).resolved()

    def step_norm(self, recipe: Recipe) -> float:
        return sum((d.scale or 0) * (0.5 if d.svp else 1) for d in recipe.resolved().deltas)

    def score(self, rows: Sequence[Utterance]) -> Statistics:
        """Each utterance has the score, in thousandths, that the recipe's distance gives."""
        found = {}
        for group, names in speakers_of(rows).items():
            delta = self.recipe.deltas[group.startswith("de") and len(self.recipe.deltas) > 1]
            far = abs((delta.scale or 0) - 0.3) + abs((delta.mp or 0) - 0.4) + (delta.svp or 0)
            if group.endswith("asr"):
                row = [far * UNITS, UNITS]
            else:
                share = max(0.0, 1 - far * (delta.mp or 0) / 2)
                row = [UNITS, UNITS, *([share * UNITS] * 4), *([UNITS] * 4)]
            found[group] = np.array([row] * len(names))
        return found

    def rank(self, parts: Sequence[Sequence[Utterance]]) -> Iterator[Statistics]:
        for part in parts:
            yield self.score(part)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, ca/, de/, their deltas, and data/test.jsonl. Read only."""
    folder = tmp_path_factory.mktemp("search")
    base = make_whisper(folder / "base")
    make_deltas(base, {name: {"language": name} for name in ("ca", "de")}, step=0.5)
    make_test_set(folder / "data", count=20)
    return folder


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that need not outlive the machine."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> Formula:
    """In place of every model and dev set."""
    found = Formula()
    monkeypatch.setattr(module._Run, "scorer", property(lambda self: found))
    return found
