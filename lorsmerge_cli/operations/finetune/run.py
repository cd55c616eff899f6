"""Carry out a fine-tune: train, choose the best epochs, and write a model folder."""

from __future__ import annotations

import json
import os
import platform
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, gather_object
from safetensors import SafetensorError
from torch import Tensor
from transformers import TrainerCallback

from lorsmerge_cli.checkpoint.model_files import GENERATION
from lorsmerge_cli.checkpoint.model_writer import RUN, ModelWriter, copy_companions
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.checkpoint.references import pinned
from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec
from lorsmerge_cli.core.device import resolve_device
from lorsmerge_cli.core.merging import is_finite
from lorsmerge_cli.core.sketch import digests_entry
from lorsmerge_cli.data.languages import WHISPER_TASKS
from lorsmerge_cli.data.utterance import Drop, listed
from lorsmerge_cli.errors import Interrupted, LorsmergeError, NonFinite, OutputFault, named
from lorsmerge_cli.operations.delta import delta as write_delta
from lorsmerge_cli.operations.finetune.plan import FinetunePlan, interrupted_run
from lorsmerge_cli.operations.finetune.skips import add_skipped, row_digests
from lorsmerge_cli.outputs import atomic_file, atomic_folder, lock, remove_matching, write_json
from lorsmerge_cli.recipe.record import trained_on
from lorsmerge_cli.results.records import dev_scores, finite
from lorsmerge_cli.speech.decoding.clips import DecodingSettings, decode
from lorsmerge_cli.speech.features import FEATURES_SHARE, Features
from lorsmerge_cli.speech.memory import ALL
from lorsmerge_cli.speech.source import process_device, processes
from lorsmerge_cli.speech.training import TrainingHooks, TrainingResult, train
from lorsmerge_cli.usage import EPOCH_FILES, LOSSES, STATE, TRAINING_FILES
from lorsmerge_cli.version import __version__

MAX_SHARD = 5 * 10**9  # bytes, transformers' default
LIBRARIES = (
    "torch", "transformers", "accelerate", "soundfile", "soxr", "jiwer", "sacrebleu",
)  # fmt: skip
_HELD: set[int] = set()  # descriptors of locked folders


def _release_in_child() -> None:
    """Close what a forked process inherited: a worker that outlives this one would keep the lock."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


@dataclass(frozen=True)
class FinetuneReport:
    """The result of a fine-tune.

    Attributes:
        output: the model folder.
        delta: the delta file, if one was written.
        before: scores of the base on the dev set; empty without one. `score` is the mean over
            languages and tasks of BLEU, or of 100 less the error rate.
        after: scores of the fine-tune.
        epochs: scores of each epoch, or of each evaluation with `eval_steps`.
        chosen: epochs whose mean the model is.
        steps: of the optimiser.
        warnings: what the user should know.
        main: whether this process is the one that prints.
        skipped: utterances whose audio could not be read during the training.
        planned: steps that would have been made if patience had not run out.
    """

    output: Path
    delta: Path | None
    before: dict[str, float]
    after: dict[str, float]
    epochs: list[dict[str, float]]
    chosen: list[float]
    steps: int
    warnings: list[str]
    main: bool
    skipped: list[Drop]
    planned: int


def run_finetune(
    plan: FinetunePlan,
    *,
    command: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_scores: Callable[[dict[str, float]], None] = lambda scores: None,
    on_skip: Callable[[str], None] = lambda text: None,
    on_step: Callable[[dict[str, Any]], None] = lambda record: None,
) -> FinetuneReport:
    """Carry out a plan.

    Args:
        plan: a checked fine-tune.
        command: the line for a delta's history.
        progress: called with the steps just done and those in all.
        on_scores: called with the scores before training and those of each epoch.
        on_skip: called with a message for each utterance whose audio cannot be read.
        on_step: called with the record of each step, as `TrainingHooks.logged`.

    Raises:
        Interrupted: a signal came; the state is kept for `--resume`.
        NonFinite: the training diverged.
        LorsmergeError: memory or disk is too small, or too many utterances cannot be read; the
            state of the last epoch is kept.
    """
    state = processes(plan.device)
    run = _Run(plan, state, on_scores, on_skip, on_step)
    with run.held:
        return _carry_out(plan, run, command, progress)


def _carry_out(
    plan: FinetunePlan, run: _Run, command: str, progress: Callable[[int, int], None]
) -> FinetuneReport:
    state = run.state
    with _stoppable() as interrupted, _run_kept(plan.folder):
        result = run.train(interrupted, progress)
    if not result.finished:
        raise Interrupted(
            f"Interrupted after step {result.step} of {result.steps}; the run is kept in "
            f"{plan.folder}.",
            "The same command with --resume continues it.",
        )
    chosen = run.chosen(result.epochs)
    after = run.install(chosen, result.epochs)
    if state.is_main_process:
        with _run_kept(plan.folder):
            run.write(result, chosen, after)
        remove_matching(plan.folder, TRAINING_FILES)
        if plan.delta is not None:
            language, task = plan.single() or ("", "")
            write_delta(
                plan.source.checkpoint.path, plan.output, plan.delta, task=task, language=language,
                command=command, force=plan.force,
            )  # fmt: skip
    state.wait_for_everyone()
    return FinetuneReport(
        plan.output, plan.delta, run.before, after, result.epochs,
        [entry["epoch"] for entry in chosen], result.step,
        _warnings(run.before, after, run.skipped), state.is_main_process, run.skipped, result.steps,
    )  # fmt: skip


class _Run:
    """A fine-tune in progress: the model in memory, and its epochs' weights on disk."""

    def __init__(
        self,
        plan: FinetunePlan,
        state: PartialState,
        on_scores: Callable[[dict[str, float]], None],
        on_skip: Callable[[str], None],
        on_step: Callable[[dict[str, Any]], None],
    ) -> None:
        self.plan, self.state = plan, state
        self.on_scores, self.on_skip, self.on_step = on_scores, on_skip, on_step
        self.before: dict[str, float] = {}
        self.skipped = list(plan.skipped)
        self.held = ExitStack()
        self.reporters = self._reporters()
        self.dev_features = Features(plan.speech, int(FEATURES_SHARE * ALL.free()))

    def train(
        self, interrupted: Callable[[], bool], progress: Callable[[int, int], None]
    ) -> TrainingResult:
        plan = self.plan
        device = resolve_device(process_device(plan.device, self.state))
        plan.speech.model.to(device)
        # every process reads the state before one of them changes it
        kept = interrupted_run(plan)
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            self._hold_folder()
            if not kept:
                remove_matching(plan.folder, TRAINING_FILES)
                plan.folder.mkdir(parents=True, exist_ok=True)
                self.held.close()  # the folder may have been removed and made again
                self._hold_folder()
        self.before = kept.get("before") or self._scores()
        if self.before:
            self.on_scores({"epoch": 0, **self.before})
        if self.state.is_main_process and not kept:
            rows = row_digests(plan.train.utterances)
            state = {"run": plan.describe(), "before": self.before, "rows": rows}
            write_json(plan.folder / STATE, state)
        self.state.wait_for_everyone()
        if self.state.is_main_process:  # a resumed run logs its earlier steps again
            (plan.folder / LOSSES).write_bytes(b"")
        hooks = TrainingHooks(
            self._evaluate,
            self._prune_epochs,
            interrupted,
            progress,
            self._skipped,
            self._keep_loss,
        )
        try:
            return train(
                plan.speech, plan.train.utterances, plan.settings, plan.folder,
                device=device.type, hooks=hooks, resume=bool(kept), skipped=self.skipped,
                removed=plan.removed, reporters=self.reporters,
            )  # fmt: skip
        except torch.OutOfMemoryError:
            size, _ = plan.settings.batches(plan.processes)
            raise LorsmergeError(
                f"Memory is too small for {size} utterances at a time.",
                "Begin anew with --force and a smaller --batch-size, which gives the same result, or "
                "with --dtype bfloat16.",
            ) from None

    def _reporters(self) -> list[TrainerCallback]:
        if self.plan.report_to is None:
            return []
        from lorsmerge_cli.speech.reporters import reporter  # loads TensorBoard

        output = self.plan.output
        return [reporter(self.plan.report_to, output.with_name(f"{output.name}.tensorboard"))]

    def _hold_folder(self) -> None:
        """Lock the folder of the run's state until the run ends, if the system has such locks.

        Raises:
            LorsmergeError: another process trains in it.
        """
        if os.name == "nt" or not self.plan.folder.is_dir():  # Windows opens no folders
            return
        folder = os.open(self.plan.folder, os.O_RDONLY)
        _HELD.add(folder)
        self.held.callback(os.close, folder)
        self.held.callback(_HELD.discard, folder)
        if not lock(folder):
            raise LorsmergeError(
                f"Another process is training in {self.plan.folder}.",
                "Wait for it, or write to another folder with -o.",
            )

    def _skipped(self, drops: Sequence[Drop]) -> None:
        self.skipped += drops
        if self.state.is_main_process:
            add_skipped(self.plan.folder, self.plan.train.utterances, drops)
        for drop in drops:
            self.on_skip(f"skipped {drop.id}: {drop.reason} ({drop.shown})")

    def _evaluate(self, epoch: float) -> dict[str, float]:
        if self.state.is_main_process:
            path = self._epoch_file(epoch)
            path.parent.mkdir(exist_ok=True)
            weights = self.plan.speech.model.state_dict()
            with atomic_file(path, force=True, intermediate=True) as partial:
                _write_weights(partial, self.plan.source.checkpoint, weights.__getitem__, None)
        scores = self._scores() or {"score": epoch}  # without a dev set later is better
        if self.plan.dev:
            self.on_scores({"epoch": epoch, **scores})
        return scores

    def _keep_loss(self, record: dict[str, Any]) -> None:
        if self.state.is_main_process:
            with (self.plan.folder / LOSSES).open("a", encoding="utf-8", newline="\n") as file:
                file.write(_loss_line(record))
        self.on_step(record)

    def _scores(self) -> dict[str, float]:
        """Return WER (or CER) in percent or BLEU by `ca_asr`, and the mean that chooses epochs."""
        if self.plan.dev is None:
            return {}
        rows = self.plan.dev.utterances
        mine = rows[self.state.process_index :: self.state.num_processes]
        with _without_autocast(self.plan.speech.model):
            texts = decode(
                self.plan.speech,
                mine,
                DecodingSettings(beam=self.plan.dev_beam),
                features=self.dev_features,
            )
        if self.state.num_processes > 1:
            texts = dict(gather_object(list(texts.items())))
        return dev_scores(rows, texts, self.plan.normalisation)

    def _epoch_file(self, epoch: float) -> Path:
        return self.plan.folder / "epochs" / f"{epoch:.6f}.safetensors"

    def chosen(self, epochs: Sequence[dict[str, float]]) -> list[dict[str, float]]:
        """Return the epochs whose mean the model is, in order."""
        averaging = self.plan.averaging
        if not averaging.best:
            return list(epochs[-averaging.count :])
        best = sorted(epochs, key=lambda entry: (-entry["score"], entry["epoch"]))
        return sorted(best[: averaging.count], key=lambda entry: entry["epoch"])

    def _prune_epochs(self, epochs: list[dict[str, float]]) -> None:
        """Remove weights that will not be chosen, whatever later epochs score."""
        wanted = {self._epoch_file(entry["epoch"]) for entry in self.chosen(epochs)}
        for path in self.plan.folder.glob(EPOCH_FILES):
            if path not in wanted:
                path.unlink()

    def install(
        self, chosen: Sequence[dict[str, float]], epochs: Sequence[dict[str, float]]
    ) -> dict[str, float]:
        """Put the mean of the chosen epochs into the model, and return its scores."""
        weights = self.plan.speech.model.state_dict()
        if self.state.is_main_process:
            files = [Checkpoint(self._epoch_file(entry["epoch"])) for entry in chosen]
            for name in files[0].float_specs:
                weights[name].copy_(_mean([file.read(name) for file in files]))
        if self.state.num_processes > 1:
            for value in weights.values():
                broadcast(value)
        if self.plan.dev is None:
            return {}
        if len(chosen) > 1:
            return self._scores()
        return {key: chosen[0][key] for key in self.before}

    def write(
        self,
        result: TrainingResult,
        chosen: Sequence[dict[str, float]],
        after: dict[str, float],
    ) -> None:
        """Write the model folder."""
        plan = self.plan
        weights = plan.speech.model.state_dict()
        with atomic_folder(plan.output, force=plan.force) as partial:
            copy_companions(plan.source.folder, partial, torch.float32)
            single = plan.single()
            if single and (partial / GENERATION).is_file():
                generation = json.loads((partial / GENERATION).read_bytes())
                if generation.get("is_multilingual", True):  # else there is nothing to choose
                    language, task = single
                    generation |= {"language": language, "task": WHISPER_TASKS[task]}
                    write_json(partial / GENERATION, generation)
            record = {
                "lorsmerge": __version__,
                "base_name": pinned(plan.source.checkpoint.path) or plan.source.name,
                **plan.describe(),
                "trained_on": trained_on(plan.train),
                **({"hub": list(plan.train.hub)} if plan.train.hub else {}),
                **({"selected": list(plan.train.selected)} if plan.train.selected else {}),
                **digests_entry(plan.digests),
                "skipped": [
                    {"id": drop.id, "audio": drop.audio.name, "reason": drop.reason}
                    for drop in self.skipped
                ],
                "before": self.before,
                "after": after,
                "chosen": [entry["epoch"] for entry in chosen],
                **_early(result),
                "epochs": result.epochs,
                "losses": result.losses,
                "versions": {name: version(name) for name in LIBRARIES}
                | {"python": platform.python_version()},
            }  # fmt: skip
            write_json(partial / RUN, record)
            lines = "".join(map(_loss_line, result.records))
            (partial / LOSSES).write_text(lines, encoding="utf-8", newline="\n")
            _write_weights(partial, plan.source.checkpoint, weights.__getitem__, MAX_SHARD)


def _early(result: TrainingResult) -> dict[str, Any]:
    """Return what is recorded of a training that ended before its last step."""
    if result.step == result.steps:
        return {}
    return {"ended_early": {"step": result.step, "planned": result.steps}}


def _loss_line(record: Mapping[str, Any]) -> str:
    """Return a line of `losses.jsonl`; JSON has no NaN, so such a loss is null."""
    return json.dumps({key: finite(value) for key, value in record.items()}) + "\n"


@contextmanager
def _without_autocast(model: Any) -> Iterator[None]:
    """Remove the forward that accelerate puts on a model it trains, so that decoding is that of eval."""
    trained = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if trained is not None:
            model.forward = trained


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Return the mean, computed in float64: that of equal weights is those weights."""
    return torch.stack([value.double() for value in values]).mean(0).to(values[0].dtype)


def _write_weights(
    path: Path, base: Checkpoint, read: Callable[[str], Tensor], max_shard_size: int | None
) -> None:
    """Write the base's tensors with other values, floats in float32, to a file or into a folder."""
    specs = {
        name: TensorSpec(spec.shape, torch.float32) if spec.is_float else spec
        for name, spec in base.specs.items()
    }
    tied = base.tied if max_shard_size is not None else {}
    with ModelWriter(path, specs, tied, {}, max_shard_size) as writer:
        for name in specs:
            value = read(name).detach().cpu()
            if not is_finite(value):
                raise NonFinite(
                    f"The training diverged: {name!r} holds a NaN or an infinity.",
                    "Lower --learning-rate, or --clip the gradient.",
                )
            writer.write(name, value)
        writer.finish()


def _warnings(
    before: dict[str, float], after: dict[str, float], skipped: Sequence[Drop]
) -> list[str]:
    found = []
    if skipped:
        found.append(
            f"{len(skipped)} utterances were skipped ({listed(skipped)}): "
            f"{named([drop.id for drop in skipped])}; all are in run.json."
        )
    if after and after["score"] <= before["score"]:
        found.append(
            "The fine-tune is no better than its base on the dev set: try another --learning-rate, "
            "or more data."
        )
    return found


@contextmanager
def _run_kept(folder: Path) -> Iterator[None]:
    """Turn any library's error of a full disk into one that names --resume."""
    try:
        yield
    except (OSError, OutputFault, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise  # torch.save has no exception of its own
        what = error.what if isinstance(error, OutputFault) else f"{folder} cannot be written."
        how = f"Free some space; the run is kept in {folder}: --resume continues it."
        raise OutputFault(what, how) from error


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Make the first SIGINT or SIGTERM ask for a stop, and the second one stop at once."""
    asked: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signum)

    heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
