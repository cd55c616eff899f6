"""Fine-tuning: transformers' Trainer over audio files, made exact and interruptible."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from lorsmerge_cli.data.utterance import Drop, Utterance, listed
from lorsmerge_cli.errors import UnreadableFile
from lorsmerge_cli.inputs import read_json
from lorsmerge_cli.speech.batches import IGNORED, SpeechDataset, collate
from lorsmerge_cli.speech.model import SpeechModel
from lorsmerge_cli.speech.settings import TrainingSettings

LOG_STEPS = 5  # of a mean in `TrainingResult.losses`
SPEED, TIME = "utterances_per_second", "time"  # of a step, beside what Trainer logs
# a training ends when over this share of the utterances seen so far was skipped: those skipped being so
# many, and those seen so many or all
MANY_SKIPPED, FEW_SKIPPED, FEW_SEEN = 0.1, 5, 100
# shares of the input that a fine-tune with SpecAugment masks (Park et al. 2019), in time and mel bins
TIME_MASKED, BINS_MASKED = 0.05, 0.05


@dataclass(frozen=True)
class TrainingHooks:
    """What the caller wants to hear, or to do, while a model is trained.

    Attributes:
        evaluate: scores of the model as it is; `score` is the one that the best epoch has most of.
        saved: told the records of all epochs so far, once their checkpoint is on disk.
        interrupted: whether to save and stop, asked after each step.
        progress: told the steps just done and those in all.
        skipped: told of utterances whose audio cannot be read, the first time that one is met.
        learnt: told the record of each step, those of the run that is resumed first: `step`, `epoch`,
            `loss` (nats per token), `grad_norm`, `learning_rate`, `utterances_per_second`, `time`
            (UTC).
    """

    evaluate: Callable[[float], dict[str, float]]
    saved: Callable[[list[dict[str, float]]], None]
    interrupted: Callable[[], bool]
    progress: Callable[[int, int], None]
    skipped: Callable[[Sequence[Drop]], None] = lambda drops: None
    learnt: Callable[[dict[str, Any]], None] = lambda record: None


@dataclass(frozen=True)
class TrainingResult:
    """What was logged; `finished` is False where the run was interrupted.

    `records` are those that `TrainingHooks.learnt` is told; `losses` are means over five of them, or
    those that an epoch ends with.
    """

    epochs: list[dict[str, float]]
    losses: list[dict[str, float]]
    records: list[dict[str, Any]]
    step: int
    steps: int
    finished: bool


def token_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """Cross-entropy summed over a batch's tokens, over the tokens of the whole step.

    So 4 batches of 8 weigh every token as 1 batch of 32 does. Trainer's own way trusts Whisper to
    do this, which it does not.
    """
    loss = torch.nn.functional.cross_entropy(
        outputs.logits.flatten(0, 1).float(),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
    return loss / num_items_in_batch


def train(
    speech: SpeechModel,
    utterances: Sequence[Utterance],
    settings: TrainingSettings,
    folder: Path,
    *,
    device: str,
    hooks: TrainingHooks,
    resume: bool = False,
    skipped: Sequence[Drop] = (),
    removed: Collection[str] = (),
) -> TrainingResult:
    """Train the model in place, with checkpoints to go on from.

    An utterance whose audio cannot be read is skipped: the step is one of the others, and changes
    nothing where there are none.

    Args:
        speech: the model, in float32.
        utterances: to learn from, with labels that fit the model.
        settings: how.
        folder: for checkpoints.
        device: `cpu`, `cuda` (under torchrun each process has one of its own) or `mps`.
        hooks: what the caller does meanwhile.
        resume: go on from the newest whole checkpoint in the folder, if there is one.
        skipped: what the interrupted run has skipped.
        removed: ids of those of the utterances that are no longer there.

    Raises:
        UnreadableFile: over 10% of the utterances seen were skipped.
    """
    checkpoint = newest_checkpoint(folder) if resume else None
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step >= state.max_steps:  # Trainer would go one step too far
            for record in _records(state):
                hooks.learnt(record)
            return _result(state, finished=True)
    arguments = _arguments(settings, folder, device)
    model = speech.model
    model.model.encoder.requires_grad_(not settings.freeze_encoder)
    model.model.encoder.embed_positions.requires_grad_(False)  # sinusoids, as Whisper has them
    config, before = model.config, model.config.to_dict()
    if settings.spec_augment:
        config.apply_spec_augment = True
        config.mask_time_prob = config.mask_time_prob or TIME_MASKED
        config.mask_feature_prob = config.mask_feature_prob or BINS_MASKED
    start, pad = config.decoder_start_token_id, speech.processor.tokenizer.eos_token_id
    control = _Control(settings, hooks)
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=SpeechDataset(speech, utterances, settings.label_space, removed),
        data_collator=partial(collate, start=start, pad=pad),
        compute_loss_func=token_loss,
        callbacks=[control],
    )
    trainer.hooks, trainer.steps = hooks, control
    trainer.rows, trainer.effective_batch = len(utterances), settings.effective_batch
    trainer.skipped = {drop.id: drop for drop in skipped}
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        for name in ("apply_spec_augment", "mask_time_prob", "mask_feature_prob", "use_cache"):
            if name in before:
                setattr(config, name, before[name])
        model.eval()
    return _result(trainer.state, finished=not control.stopped)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: its state comes last."""
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = read_json(path / "trainer_state.json")
            found.append((int(state["global_step"]), path))
        except (OSError, ValueError, KeyError):
            continue
    return max(found)[1] if found else None


def _result(state: TrainerState, *, finished: bool) -> TrainingResult:
    records = _records(state)
    return TrainingResult(
        _epochs(state), _means(records), records, state.global_step, state.max_steps, finished
    )


def _records(state: TrainerState) -> list[dict[str, Any]]:
    """What was logged of each step."""
    return [entry for entry in state.log_history if "loss" in entry]


def _means(records: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The last record of every five steps and of every epoch, with the mean loss since the one before."""
    found, losses = [], []
    for record, after in zip(records, [*records[1:], None], strict=True):
        losses.append(record["loss"])
        ends = after is None or math.ceil(after["epoch"]) > math.ceil(record["epoch"])
        if record["step"] % LOG_STEPS == 0 or ends:
            kept = {key: value for key, value in record.items() if key not in (SPEED, TIME)}
            found.append(kept | {"loss": sum(losses) / len(losses)})
            losses.clear()
    return found


def _arguments(settings: TrainingSettings, folder: Path, device: str) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=device == "cpu",  # accelerate forgets the other processes where it finds this out
        optim="adamw_torch",  # without decay of the weights it is Adam
        weight_decay=0.0,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=(
            "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
        ),
        warmup_steps=settings.warmup,
        max_grad_norm=settings.clip,
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        bf16=settings.dtype == "bfloat16",
        fp16=settings.dtype == "float16",
        seed=settings.seed,
        dataloader_num_workers=settings.workers,
        dataloader_persistent_workers=settings.workers > 0,
        dataloader_pin_memory=torch.cuda.is_available() and device != "cpu",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        eval_strategy="no",  # _Control says when
        save_strategy="no",
        save_total_limit=settings.keep,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is no number is to be seen
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are for torchrun, not DataParallel
    size, accumulation = settings.batches(arguments.world_size)
    arguments.per_device_train_batch_size = size
    arguments.gradient_accumulation_steps = accumulation
    return arguments


def _epochs(state: TrainerState) -> list[dict[str, float]]:
    """What was logged at the end of each epoch, prefixes off."""
    return [
        {key.removeprefix("eval_"): value for key, value in entry.items()}
        for entry in state.log_history
        if "eval_score" in entry
    ]


class _Trainer(Trainer):
    hooks: TrainingHooks
    steps: _Control
    rows: int
    effective_batch: int
    skipped: dict[str, Drop]  # by id
    _step_began = 0.0
    _step_utterances = 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss of a step with its speed, so that a run that is resumed has both."""
        if "loss" in logs:
            seconds = time.perf_counter() - self._step_began
            speed: dict[str, Any] = {
                SPEED: round(self._step_utterances / seconds, 3),
                TIME: datetime.now(UTC).isoformat(timespec="seconds"),
            }
            logs |= speed
        super().log(logs, start_time)
        if "loss" in logs:
            self.hooks.learnt(self.state.log_history[-1])

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Decode instead of computing a loss."""
        model: Any = self.model
        model.eval()
        scores = self.hooks.evaluate(self.state.epoch)
        metrics = {f"eval_{key}": value for key, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """Without the rows that several processes hear twice so that all have as many batches."""
        self._step_began = time.perf_counter()
        drops: list[Drop | None] = []
        samples, count = super().get_batch_samples(
            (self._once(batch, drops) for batch in epoch_iterator), num_batches, device
        )
        self._step_utterances = self.args.world_size * sum(len(each["labels"]) for each in samples)
        if samples:
            self._skip(drops, device)
        assert count is None or isinstance(count, Tensor)
        # where nothing is learnt from at all, the loss is zero
        return samples, None if count is None else count.clamp(min=1)

    def _once(self, batch: dict[str, Any], drops: list[Drop | None]) -> dict[str, Tensor]:
        """The last batch of an epoch, accelerate's filling with rows of its beginning ignored."""
        own = batch.pop("drops")
        ending = self.accelerator.gradient_state
        if ending.end_of_dataloader and ending.remainder > 0 and self.args.world_size > 1:
            before = self.args.process_index * self.args.per_device_train_batch_size
            kept = max(0, ending.remainder - before)
            batch["labels"][kept:] = IGNORED
            own = own[:kept]
        drops += own
        return batch

    def _skip(self, drops: list[Drop | None], device: torch.device) -> None:
        """Tell of the step's rows that cannot be read, and end a training that has too many."""
        bad = [drop for drop in drops if drop is not None]
        counts = torch.tensor([len(drops), len(bad)])
        if self.args.world_size > 1:  # all processes do the same
            counts = counts.to(device)
            torch.distributed.all_reduce(counts)
            bad = gather_object(bad) if counts[1] else []
        self.steps.empty = bool(counts[0] == counts[1])
        if new := {drop.id: drop for drop in bad if drop.id not in self.skipped}:
            self.skipped |= new
            self.hooks.skipped(list(new.values()))
        seen, count = (self.state.global_step + 1) * self.effective_batch, len(self.skipped)
        seen = min(seen, self.rows)
        if (
            count >= FEW_SKIPPED
            and seen >= min(FEW_SEEN, self.rows)
            and count > MANY_SKIPPED * seen
        ):
            raise _too_many(list(self.skipped.values()), seen)


def _too_many(skipped: Sequence[Drop], seen: int) -> UnreadableFile:
    return UnreadableFile(
        f"{len(skipped)} of the first {seen} utterances of the training data had to be skipped "
        f"({listed(skipped)}), the first: {skipped[0].detail or skipped[0].audio}",
        "Mend the data or take those rows out (`lorsmerge data --check-audio -o FILE` does that), and "
        "begin anew with --force.",
    )


class _Control(TrainerCallback):
    """When to evaluate, to save and to stop."""

    def __init__(self, settings: TrainingSettings, hooks: TrainingHooks) -> None:
        self.settings, self.hooks = settings, hooks
        self.stopped = False
        self.empty = False  # whether the step has no row that can be read

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.hooks.progress(state.global_step, state.max_steps)
        for record in _records(state):
            self.hooks.learnt(record)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.empty:  # or Adam would move on by its momentum
            optimizer = kwargs["optimizer"]
            if optimizer.scaler is not None and not self.settings.clip:
                optimizer.scaler.unscale_(optimizer.optimizer)  # which has to have seen a gradient
            kwargs["model"].zero_grad()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.hooks.progress(1, state.max_steps)
        # an epoch's end is evaluated before it is saved, so that a run that goes on from there
        # has the scores; so is the last step
        if state.epoch == int(state.epoch or 0) or state.global_step >= state.max_steps:
            return
        every = self.settings.save_steps
        if every and state.global_step % every == 0:
            control.should_save = True
        if self._interrupted(args):
            self.stopped = control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped:
            return
        control.should_log = control.should_evaluate = control.should_save = True
        if state.global_step < state.max_steps and self._interrupted(args):
            self.stopped = control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.hooks.saved(_epochs(state))

    def _interrupted(self, args: TrainingArguments) -> bool:
        """Whether any process was told to stop: all have to leave the loop at the same step."""
        told = torch.tensor(float(self.hooks.interrupted()), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        return bool(told)
