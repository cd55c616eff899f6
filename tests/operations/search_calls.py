"""Searches of tests: with real models, or with a formula in place of a dev set."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import Engine

from lorsmerge_cli.operations import search as module
from lorsmerge_cli.operations.recipe import DeltaEntry, Recipe
from lorsmerge_cli.operations.search import search
from lorsmerge_cli.operations.search_plan import (
    DataSettings,
    SearchPlan,
    SearchSettings,
    plan_search,
)
from lorsmerge_cli.operations.search_report import SearchReport
from lorsmerge_cli.operations.search_space import make_space

SPACE = {"svp": "0.1,0.2,0.3", "mp": "0.2:0.6", "scale": "0.1:0.9"}
COMMAND = "lorsmerge search again"


def plan(folder: Path, place: Path, **changes: Any) -> SearchPlan:
    """A plan over base/, ca.delta, de.delta and data/test.jsonl of a folder."""
    space = make_space(
        str(changes.pop("base", folder / "base")),
        [str(delta) for delta in changes.pop("deltas", [folder / "ca.delta", folder / "de.delta"])],
        changes.pop("texts", SPACE), changes.pop("per_delta", ""), (), changes.pop("exclude", ()),
    )  # fmt: skip
    data = changes.pop("data", [folder / "data" / "test.jsonl"])
    test = changes.pop("test", [])
    settings: dict[str, Any] = {
        "study": str(place), "trials": 8, "device": "cpu", "threads": 1, "beam": 2,
        "output": None if changes.get("worker") else place.with_suffix(".toml"),
    }  # fmt: skip
    reading = DataSettings(task=changes.pop("task", None))
    return plan_search(space, data, test, reading, SearchSettings(**settings | changes))


@functools.cache
def _empty_database() -> bytes:
    """Its tables take longer to make than several trials."""
    with tempfile.TemporaryDirectory() as folder:
        RDBStorage(f"sqlite:///{folder}/empty.db").engine.dispose()
        return Path(folder, "empty.db").read_bytes()


def run(folder: Path, place: Path, **changes: Any) -> SearchReport:
    if place.parent.is_dir() and not place.exists() and not changes.get("worker"):
        place.write_bytes(_empty_database())
    hooks = {key: changes.pop(key) for key in ("told", "done", "progress") if key in changes}
    return search(plan(folder, place, **changes), command=COMMAND, **hooks)


class Formula:
    """Scores of what a recipe says, no model needed; `tried` lists every recipe scored."""

    def __init__(self, languages: Sequence[str], tasks: Sequence[str] = ("asr",)) -> None:
        self.groups = [f"{language}_{task}" for language in languages for task in tasks]
        self.tried: list[tuple[float | None, ...]] = []
        self.recipe: Recipe

    def load(self, recipe: Recipe) -> None:
        self.recipe = recipe.resolved()
        self.tried.append(tuple(x for d in self.recipe.deltas for x in (d.svp, d.mp, d.scale)))

    def load_base(self) -> None:
        self.recipe = Recipe("base", (DeltaEntry("ca", scale=0.0),)).resolved()

    def score(self, rows: object) -> dict[str, float]:
        found = {}
        for number, group in enumerate(self.groups):
            delta = self.recipe.deltas[number % len(self.recipe.deltas)]
            far = abs((delta.scale or 0) - 0.3) + abs((delta.mp or 0) - 0.4) + (delta.svp or 0)
            found[group] = 100 * far if group.endswith("asr") else 100 - 50 * far * (delta.mp or 0)
        return found

    def rank(self, parts: Sequence[object]) -> Iterator[dict[str, float]]:
        for part in parts:
            yield self.score(part)


def _never_sync(connection: Any, record: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA journal_mode = MEMORY")


@pytest.fixture
def quick_disk() -> Iterator[None]:
    """A database that need not outlive the machine."""
    event.listen(Engine, "connect", _never_sync)
    yield
    event.remove(Engine, "connect", _never_sync)


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> Formula:
    """In place of every model and dev set."""
    found = Formula(["ca", "de"])
    monkeypatch.setattr(module._Run, "scorer", property(lambda self: found))
    return found
