"""Lambdas that are learned: their gradient, their path, where it stops, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from search_calls import folder, plan, quick_disk, run

from lorsmerge_cli import merge
from lorsmerge_cli.core.device import resolve_device
from lorsmerge_cli.errors import Interrupted, LorsmergeError, Mismatch, NonFinite
from lorsmerge_cli.operations.search.files import document, write_report
from lorsmerge_cli.operations.search.gradient import CoefficientGradient, Learning, adam
from lorsmerge_cli.operations.search.merges import RepeatedMerge
from lorsmerge_cli.operations.search.plan import SearchPlan
from lorsmerge_cli.operations.search.scores import Scorer, halves_of
from lorsmerge_cli.recipe.recipe import load_recipe
from lorsmerge_cli.speech.decoding.clips import DecodingSettings
from lorsmerge_cli.speech.loss import token_counts, token_losses
from lorsmerge_cli.speech.memory import Memory

__all__ = ["folder", "quick_disk"]
pytestmark = pytest.mark.usefixtures("quick_disk")

LEARNED: dict[str, Any] = {
    "sampler": "gradient",
    "texts": {"scale": "0.3"},
    "trials": 4,
    "clips": 6,
}
LORS: dict[str, Any] = {"texts": {"scale": "0.3", "svp": "0.2", "mp": "0.3"}}


def scorer_of(plan: SearchPlan, dtype: torch.dtype = torch.float32) -> Scorer:
    device = resolve_device("cpu")
    ratio = plan.space.values.get("svp")
    found = RepeatedMerge(plan.inputs, ratio.largest if ratio else None, device, 1, 1 << 30)
    decoding = DecodingSettings(2, None, None, memory=Memory(1 << 30, workers=1))
    return Scorer(plan.source.open(dtype, "cpu"), found, "loss", decoding, 1 << 28)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"per_delta": "scale", "by": "half,module,depth"},
        {"method": "wa", "by": "module", "per_delta": "scale"},
        {**LORS, "by": "half,part", "per_delta": "scale"},
        {**LORS, "by": "part,depth"},
        {**LORS, "method": "lors+mean", "by": "module"},
    ],
    ids=str,
)
def test_the_gradient_is_that_of_finite_differences(
    folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    made = plan(folder, tmp_path / "s.journal", **LEARNED | changes)
    scorer = scorer_of(made, torch.float64)
    gradient = CoefficientGradient(made, scorer)
    names = [n for n in made.space.parameters if n.startswith("scale") or n == "beta"]
    # different everywhere, so that no two slopes can be swapped unseen
    lambdas = {name: 0.2 + 0.03 * number for number, name in enumerate(names)}
    rows = made.halves[0][:4]
    weights = {row.id: 0.1 + 0.05 * number for number, row in enumerate(rows)}
    loss, found = gradient.of(lambdas, rows, weights)
    assert list(found) == names
    assert all(value.grad is None for value in gradient.parameters.values())

    def weighed(changed: dict[str, float]) -> float:
        gradient.load(changed)
        losses = token_losses(scorer.speech, rows, scorer.features)
        return sum(weights[row.id] * losses[row.id][0] for row in rows)

    assert weighed(lambdas) == pytest.approx(loss, rel=1e-9)
    step = 1e-3  # weights are added up in float32, whose rounding a smaller step would show
    for name in names:
        ends = [weighed(lambdas | {name: lambdas[name] + sign * step}) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        largest = max(map(abs, found.values()))
        assert found[name] == pytest.approx(slope, rel=2e-3, abs=2e-4 * largest), name


def plain_loss(scorer: Scorer, model: Any, weights: dict[str, torch.Tensor], rows: Any) -> Any:
    """The mean over languages and tasks of the loss per token, of rows one by one."""
    speech, sums = scorer.speech, dict[str, list[Any]]()
    for row in rows:
        labels = torch.tensor([speech.labels(row)[: speech.longest_label]])
        start = torch.tensor([[model.config.decoder_start_token_id]])
        heard = scorer.features.of([row]).to(model.dtype)
        inputs = {
            "input_features": heard, "decoder_input_ids": torch.cat([start, labels[:, :-1]], 1),
        }  # fmt: skip
        logits = torch.func.functional_call(model, weights, kwargs=inputs).logits[0]
        said = slice(3, None)  # behind language, task and no timestamps
        nats = torch.nn.functional.cross_entropy(logits[said], labels[0][said], reduction="sum")
        found = sums.setdefault(f"{row.language}_{row.task}", [0.0, 0])
        found[0], found[1] = found[0] + nats, found[1] + len(labels[0][said])
    return sum(nats / tokens for nats, tokens in sums.values()) / len(sums)


def test_lambdas_are_those_of_a_plain_loop(folder: Path, tmp_path: Path) -> None:
    changes = LEARNED | {"per_delta": "scale", "by": "half", "clips": 1000, "trials": 5}
    report = run(folder, tmp_path / "s.journal", finalists=1, **changes)
    scorer = scorer_of(report.plan, torch.float64)
    model = scorer.speech.model
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    deltas = [load_file(folder / f"{name}.delta") for name in ("ca", "de")]
    own = {  # of the nano model: what is in neither half is in no group of --by half
        name: torch.full((), 0.3, dtype=torch.float64, requires_grad=True)
        for name in ("scale[1,encoder]", "scale[1,decoder]", "scale[2,encoder]", "scale[2,decoder]")
    }
    optimizer = torch.optim.Adam(own.values(), lr=0.1 * 0.3, betas=(0.9, 0.99), eps=1e-8)
    path = []
    for _ in range(5):
        path.append({name: value.item() for name, value in own.items()})
        weights = {
            name: value + sum(
                own[f"scale[{n},{'encoder' if '.encoder.' in name else 'decoder'}]"] * delta[name]
                for n, delta in enumerate(deltas, 1)
            )
            for name, value in base.items()
        }  # fmt: skip
        optimizer.zero_grad()
        plain_loss(scorer, model, weights, report.plan.halves[0]).backward()
        optimizer.step()
    for row, wanted in zip(report.trials, path, strict=True):
        assert row.point == pytest.approx(wanted, rel=2e-3)
        weights = {n: v.detach() for n, v in base.items()}
    last = report.trials[-1].point
    for name in weights:
        half = "encoder" if ".encoder." in name else "decoder"
        weights[name] = base[name] + sum(
            last[f"scale[{n},{half}]"] * delta[name] for n, delta in enumerate(deltas, 1)
        )
    with torch.no_grad():
        losses = {
            task: float(plain_loss(scorer, model, weights,
                                   [r for r in report.plan.halves[1] if r.task == task]))
            for task in report.plan.goal.tasks
        }  # fmt: skip
    assert report.trials[-1].values == pytest.approx(tuple(losses.values()), rel=1e-4)


def test_adam_is_pytorchs() -> None:
    value, means = 0.5, (0.0, 0.0)
    tensor = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([tensor], lr=0.02, betas=(0.9, 0.99), eps=1e-8)
    for step, gradient in enumerate((3.0, -0.1, 0.0, 1e-9, 40.0), 1):
        value, means = adam(value, gradient, means, step, 0.02)
        tensor.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        assert value == pytest.approx(tensor.item(), rel=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"per_delta": "scale", "by": "module"},
        {**LORS, "per_delta": "scale", "by": "half,depth,part"},
        {**LORS, "by": "part"},
        {"method": "wa", "per_delta": "scale"},
    ],
    ids=str,
)
def test_the_recipe_makes_the_model_that_was_scored(
    folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    report = run(folder, tmp_path / "s.journal", best=True, **LEARNED | changes)
    path = write_report(report)[0]
    made = merge(recipe=path, output=tmp_path / "merged")
    assert made.step > 0
    gradient = CoefficientGradient(report.plan, scorer_of(report.plan))
    point = report.chosen.trial.point
    learned = {n: v for n, v in point.items() if n.startswith("scale") or n == "beta"}
    gradient.load(learned)
    written = load_file(tmp_path / "merged" / "model.safetensors")
    for name, value in gradient.parameters.items():
        torch.testing.assert_close(value.data, written[name], rtol=1e-5, atol=2e-6)
    assert load_recipe(path).to_dict() == json.loads(json.dumps(document(report)))["recipe"]
    if len(set(learned.values())) > 1 and "by" in changes:
        assert load_recipe(path).rules


def test_learning_stops_by_the_other_half(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[str] = []
    losses = iter([5.0, 4.0, 3.0, *(3.5 + n for n in range(20))])
    real = CoefficientGradient.of

    def record(self: CoefficientGradient, lambdas: Any, rows: Any, weights: Any) -> Any:
        learned.extend(row.id for row in rows)
        return real(self, lambdas, rows, weights)

    scored: list[set[str]] = []
    rank = Scorer.rank

    def worse(self: Scorer, parts: Any) -> Any:
        scored.append({row.id for part in parts for row in part})
        (found,) = rank(self, parts)
        value = next(losses)
        for table in found.values():
            table[:, 0], table[:, 1] = value, 1.0
        yield found

    monkeypatch.setattr(CoefficientGradient, "of", record)
    monkeypatch.setattr(Scorer, "rank", worse)
    report = run(folder, tmp_path / "s.journal", **LEARNED | {"trials": 30})
    first, second = ({row.id for row in half} for half in report.plan.halves)
    assert set(learned) <= first
    assert all(found == second for found in scored)
    assert not first & second
    assert first | second == {row.id for row in report.plan.rows}
    assert len(report.trials) == 3 + 8  # the best, and as many steps as it has patience for
    names = {found.trial.name for found in report.finalists if found.trial.number}
    assert names == {"trial 1", "trial 3"}


def test_the_halves_share_no_speaker(folder: Path, tmp_path: Path) -> None:
    made = plan(folder, tmp_path / "s.journal", **LEARNED)
    rows = [r for n in range(4) for r in made.rows]
    spoken = [replace(r, id=f"{n}", speaker=f"s{n % 7}") for n, r in enumerate(rows)]
    first, second = halves_of(spoken)
    assert {r.speaker for r in first}.isdisjoint(r.speaker for r in second)
    assert len(first) + len(second) == len(spoken)
    for half in (first, second):
        assert {(r.language, r.task) for r in half} == {(r.language, r.task) for r in spoken}
        assert len(half) > len(spoken) / 4
    assert halves_of(spoken[::-1])[0] == first[::-1]
    with pytest.raises(LorsmergeError, match="too small to learn from"):
        halves_of([replace(r, speaker="one") for r in rows])


def points(report: Any) -> list[dict[str, Any]]:
    return [row.point for row in report.trials]


def test_seeds_and_threads(folder: Path, tmp_path: Path) -> None:
    changes = LEARNED | {"per_delta": "scale", "clips": 3}
    first = run(folder, tmp_path / "a.journal", **changes)
    same = run(folder, tmp_path / "b.journal", **changes | {"threads": 3})
    other = run(folder, tmp_path / "c.journal", **changes | {"seed": 1})
    assert points(first) == points(same)
    assert [row.values for row in first.trials] == [row.values for row in same.trials]
    assert points(first)[0] == points(other)[0]
    assert points(first)[2:] != points(other)[2:]


def test_an_interrupted_search_goes_on_behind_its_last_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = LEARNED | {"per_delta": "scale", "by": "half", "trials": 5}
    whole = run(folder, tmp_path / "whole.journal", **changes)
    real, left = CoefficientGradient.of, [2]

    def interrupted(self: CoefficientGradient, *given: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, *given)

    monkeypatch.setattr(CoefficientGradient, "of", interrupted)
    with pytest.raises(Interrupted, match="finished trials are kept"):
        run(folder, tmp_path / "s.journal", **changes)
    assert not (tmp_path / "s.toml").exists()
    monkeypatch.setattr(CoefficientGradient, "of", real)
    report = run(folder, tmp_path / "s.journal", **changes)
    assert report.own == 2
    assert points(report) == points(whole)
    longer = run(folder, tmp_path / "s.journal", **changes | {"trials": 7, "force": True})
    assert longer.own <= 2
    assert points(longer)[:5] == points(whole)


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"clips": 3}, r"differs in --clips\."), ({"rate": 0.2}, r"differs in --rate\."), ({"seed": 3}, "--seed"),
     ({"by": "half"}, "what may be chosen"), ({"texts": {"scale": "0.2"}}, "what may be chosen"),
     ({"sampler": "tpe", "clips": None, "texts": {"scale": "0.1:0.9"}}, "--sampler")],
)  # fmt: skip
def test_a_study_is_of_one_path(
    folder: Path, tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    run(folder, tmp_path / "s.journal", **LEARNED | {"trials": 1})
    with pytest.raises(Mismatch, match=key):
        run(folder, tmp_path / "s.journal", **LEARNED | {"trials": 1, "force": True} | changes)


def test_two_processes_do_not_mix(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Learning._trial

    def late(self: Learning, *given: Any) -> Any:
        trial = real(self, *given)
        monkeypatch.setattr(Learning, "_trial", real)
        self.study.add_trial(trial)  # as another process would
        return trial

    monkeypatch.setattr(Learning, "_trial", late)
    with pytest.raises(LorsmergeError, match="Another process takes steps"):
        run(folder, tmp_path / "s.journal", **LEARNED)


# --- what is refused, and what goes wrong -----------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "ties"}, "the update of ties is no sum of the deltas times their lambdas"),
        ({"method": "tsv_m"}, "Name a method that sums or averages (ta, wa"),
        ({"method": "lors+iso_c", **LORS}, "the update of lors+iso_c is no sum"),
        ({"method": "ta,wa"}, "learns lambdas of one method"),
        ({"texts": {"svp": "0.1,0.2", "mp": "0.3"}}, "takes one --svp"),
        ({"texts": {"mp": "0.1:0.3"}}, "takes one --mp"),
        ({"texts": {"scale": "0.1,0.2"}}, "a number that lambdas begin at, or the range"),
        ({"texts": {"scale": "0.1:0.5:0.1"}}, "a number that lambdas begin at, or the range"),
        ({**LORS, "per_delta": "svp"}, "--per-delta svp: --sampler gradient learns lambdas alone"),
        ({"by": "part"}, "not all of these deltas have a low-rank and a sparse part"),
        ({"by": "part", "texts": {"svp": "0.2", "scale": "0.3"}}, "not all of these deltas"),
        ({"by": "part", "method": "lors:around=mean", **LORS}, "not all of these deltas"),
        ({"rank_by": "greedy"}, "--rank-by greedy: --sampler gradient ranks by loss"),
        ({"worker": True}, "has no work for a --worker"),
        ({"rate": 0.0}, "--rate 0 is not above 0"),
        ({"rate": 2.0}, "at most 1"),
        ({"clips": 0}, "--clips 0 is not positive"),
        ({"sampler": "tpe", "texts": {"scale": "0.1:0.2"}}, "--clips is for --sampler gradient"),
        ({"sampler": "gradiant"}, "--sampler gradiant: unknown"),
    ],
)
def test_refused(folder: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(LorsmergeError) as caught:
        plan(folder, tmp_path / "s.journal", **LEARNED | changes)
    assert said in str(caught.value)


def test_a_dev_set_of_one_clip(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (folder / "data" / "test.jsonl").read_text().splitlines()]
    for row in rows:
        row["audio_filepath"] = str(folder / "data" / row["audio_filepath"])
    few = tmp_path / "few.jsonl"
    few.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(LorsmergeError, match="too small to learn from"):
        plan(folder, tmp_path / "s.journal", **LEARNED | {"data": [few]})
    few.write_text("".join(json.dumps(row | {"text": ""}) + "\n" for row in rows))
    with pytest.raises(LorsmergeError, match="hold no words"):
        plan(folder, tmp_path / "s.journal", **LEARNED | {"data": [few]})


def test_a_loss_that_is_not_finite(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    real, left = CoefficientGradient.of, [1]

    def burst(self: CoefficientGradient, *given: Any) -> Any:
        loss, gradient = real(self, *given)
        left[0] -= 1
        return loss, gradient if left[0] >= 0 else dict.fromkeys(gradient, float("nan"))

    monkeypatch.setattr(CoefficientGradient, "of", burst)
    report = run(folder, tmp_path / "s.journal", on_message=said.append, **LEARNED)
    assert len(report.trials) == 2
    assert any("learning stopped after 1 steps: the loss or its gradient" in text for text in said)
    assert report.chosen is not None
    monkeypatch.setattr(CoefficientGradient, "of", real)
    texts = {"scale": "1e37"}
    with pytest.raises(NonFinite):
        run(folder, tmp_path / "t.journal", **LEARNED | {"texts": texts})


def test_lambdas_stay_in_their_range(folder: Path, tmp_path: Path) -> None:
    texts = {"scale": "0.1:0.2"}
    report = run(
        folder, tmp_path / "s.journal",
        **LEARNED | {"texts": texts, "rate": 1.0, "trials": 6, "per_delta": "scale"},
    )  # fmt: skip
    assert points(report)[0] == {"scale[1]": 0.15, "scale[2]": 0.15}
    values = [value for point in points(report) for value in point.values()]
    assert 0.1 <= min(values) <= max(values) <= 0.2
    made = plan(folder, tmp_path / "t.journal", **LEARNED | {"texts": {"scale": "-0.3"}})
    values = made.space.values["scale"]
    assert (made.space.start, values.low, values.high) == (-0.3, -3.0, 3.0)


def test_the_control_is_task_arithmetic_with_a_step_as_long(folder: Path, tmp_path: Path) -> None:
    for number, changes in enumerate(
        ({"per_delta": "scale"}, {"by": "half"}, {**LORS, "by": "part", "per_delta": "scale"})
    ):
        report = run(folder, tmp_path / f"{number}.journal", best=True, **LEARNED | changes)
        learned = next(f.trial for f in report.finalists if f.trial.number > 1)
        beside = {f.trial.title: f.trial for f in report.finalists if not f.trial.number}
        control = beside[f"control of {learned.name}"]
        steps = []
        for place, row in enumerate((learned, control)):
            one = report.plan.space.recipe(row.point).resolved()
            steps.append(
                merge(
                    folder / "base",
                    list(one.deltas),
                    tmp_path / f"{number}{place}.safetensors",
                    coef=one.coef,
                    method=one.method,
                ).step
            )
        assert steps[0] == pytest.approx(steps[1], rel=2e-3)
        plain = report.plan.space.recipe(control.point).resolved()
        assert (plain.method, plain.rules) == ("ta", ())
        assert len({entry.scale for entry in plain.deltas}) == 1


def test_one_lambda_alone(folder: Path, tmp_path: Path) -> None:
    report = run(folder, tmp_path / "s.journal", csv=tmp_path / "t.csv", **LEARNED)
    assert [list(point) for point in points(report)] == [["scale"]] * 4
    assert (tmp_path / "t.csv") in write_report(report)
    counts = token_counts(report.plan.source.without_weights, report.plan.rows)
    assert all(count > 0 for count in counts.values())
