"""Train with transformers' Trainer, exactly and interruptibly, on audio that may be damaged."""

from __future__ import annotations

import math
import os
import shutil
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

from lorsmerge_cli.data.audio import RATE
from lorsmerge_cli.data.utterance import Drop, Utterance, listed
from lorsmerge_cli.errors import UnreadableFile
from lorsmerge_cli.inputs import read_json
from lorsmerge_cli.speech.batches import IGNORED, SpeechDataset, collate
from lorsmerge_cli.speech.features import FEATURES_SHARE
from lorsmerge_cli.speech.kept import KeptFeatures, frames_of
from lorsmerge_cli.speech.masks import Masks, mask, parse_masks
from lorsmerge_cli.speech.memory import ALL
from lorsmerge_cli.speech.model import SpeechModel
from lorsmerge_cli.speech.sampling import LanguageSampler
from lorsmerge_cli.speech.settings import TrainingSettings

LOG_STEPS = 5  # steps of a mean in `TrainingResult.losses`
SPEED, TIME = "utterances_per_second", "time"  # of a step, in addition to what Trainer logs
ADAM_COPIES = 4  # weight, gradient and two moments of each element
CHECKPOINTS = 10  # sizes of the weights that are left on the disk for a run's files
# a training ends if more than this share of the utterances seen so far was skipped, and at least so many
# were skipped and seen (or all were)
MANY_SKIPPED, FEW_SKIPPED, FEW_SEEN = 0.1, 5, 100
# shares of the input that SpecAugment masks (Park et al. 2019), in time and mel bins
TIME_MASKED, BINS_MASKED = 0.05, 0.05


@dataclass(frozen=True)
class TrainingHooks:
    """Callbacks of a training.

    Attributes:
        evaluate: return scores of the model at an epoch, or at a part of one with `eval_steps`; the
            best has the highest `score`.
        saved: called with the records of all evaluations so far, when their checkpoint is on disk.
        interrupted: return whether to save and stop; called after each step.
        progress: called with the steps just done and those in all.
        skipped: called once for each utterance whose audio cannot be read.
        logged: called with the record of each step, first with those of a run that is resumed:
            `step`, `epoch`, `loss` (nats per token), `grad_norm`, `learning_rate`,
            `utterances_per_second`, `time` (UTC).
    """

    evaluate: Callable[[float], dict[str, float]]
    saved: Callable[[list[dict[str, float]]], None]
    interrupted: Callable[[], bool]
    progress: Callable[[int, int], None]
    skipped: Callable[[Sequence[Drop]], None] = lambda drops: None
    logged: Callable[[dict[str, Any]], None] = lambda record: None


@dataclass(frozen=True)
class TrainingResult:
    """The log of a training; `finished` is False if it was interrupted, and True if patience ran out.

    `epochs` are its evaluations. `records` are those of `TrainingHooks.logged`; `losses` are means over five of them, or fewer at the
    end of an epoch.
    """

    epochs: list[dict[str, float]]
    losses: list[dict[str, float]]
    records: list[dict[str, Any]]
    step: int
    steps: int
    finished: bool


def token_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """Return the cross-entropy of a batch's tokens, divided by the tokens of the whole step.

    Each token has the same weight in 4 batches of 8 and in 1 batch of 32. Trainer leaves this to the
    model, and Whisper does not do it.
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
    reporters: Sequence[TrainerCallback] = (),
) -> TrainingResult:
    """Train the model in place, with checkpoints to resume from.

    An utterance whose audio cannot be read is skipped: the step uses the others, and changes nothing
    if there are none.

    Args:
        speech: the model, in float32.
        utterances: training data, with labels that fit the model.
        settings: of the training.
        folder: for checkpoints.
        device: `cpu`, `cuda` (under torchrun each process has one of its own) or `mps`.
        hooks: callbacks.
        resume: resume from the newest complete checkpoint in the folder, if there is one.
        skipped: utterances that the interrupted run skipped.
        removed: ids of utterances whose audio was removed since then.
        reporters: callbacks that show the training elsewhere.

    Raises:
        UnreadableFile: over 10% of the utterances seen were skipped.
    """
    checkpoint = newest_checkpoint(folder) if resume else None
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        # Trainer would go one step too far
        if state.global_step >= state.max_steps or _out_of_patience(state, settings):
            for record in _records(state):
                hooks.logged(record)
            return _result(state, finished=True)
    arguments = _arguments(settings, folder, device)
    model = speech.model
    model.model.encoder.requires_grad_(not settings.freeze_encoder)
    model.model.encoder.embed_positions.requires_grad_(False)  # sinusoids, as Whisper has them
    config, before = model.config, model.config.to_dict()
    # off where it is not asked for, though the base's config turn it on
    config.apply_spec_augment = settings.spec_augment and settings.masks is None
    if config.apply_spec_augment:
        config.mask_time_prob = config.mask_time_prob or TIME_MASKED
        config.mask_feature_prob = config.mask_feature_prob or BINS_MASKED
    control = _Control(settings, hooks)
    data = SpeechDataset(
        speech, utterances, settings, removed, _kept(speech, utterances, settings, folder)
    )
    trainer = _trainer(speech, data, settings, arguments, [control, *reporters])
    trainer.hooks, trainer.steps = hooks, control
    trainer.skipped = {drop.id: drop for drop in skipped}
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        for name in ("apply_spec_augment", "mask_time_prob", "mask_feature_prob", "use_cache"):
            if name in before:
                setattr(config, name, before[name])
        model.eval()
    return _result(trainer.state, finished=not control.stopped)


def _trainer(
    speech: SpeechModel,
    data: SpeechDataset,
    settings: TrainingSettings,
    arguments: TrainingArguments,
    callbacks: list[TrainerCallback],
) -> _Trainer:
    """Make the trainer of some data, without its hooks."""
    start, pad = speech.model.config.decoder_start_token_id, speech.processor.tokenizer.eos_token_id
    trainer = _Trainer(
        model=speech.model,
        args=arguments,
        train_dataset=data,
        data_collator=partial(collate, start=start, pad=pad),
        compute_loss_func=token_loss,
        callbacks=callbacks,
    )
    trainer.rows, trainer.effective_batch = len(data), settings.effective_batch
    trainer.masks = parse_masks(settings.masks) if settings.masks else None
    if settings.language_temperature not in (None, 1.0):
        trainer.sampler = LanguageSampler(
            [row.language for row in data.utterances], settings.language_temperature, settings.seed
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _kept(
    speech: SpeechModel, utterances: Sequence[Utterance], settings: TrainingSettings, folder: Path
) -> KeptFeatures | None:
    """Return where features are kept; None in a training that needs each of them once."""
    if settings.total_steps(len(utterances)) * settings.effective_batch <= len(utterances):
        return None
    extractor = speech.processor.feature_extractor
    hop = extractor.hop_length / RATE
    weights = sum(value.nbytes for value in speech.model.parameters())
    coming = (ADAM_COPIES - 1) * weights if speech.model.device.type == "cpu" else 0
    folder.mkdir(parents=True, exist_ok=True)
    left = shutil.disk_usage(folder).free - CHECKPOINTS * weights
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's, on the same disk
    return KeptFeatures(
        [frames_of(row.duration, speech.window, hop) for row in utterances],
        (extractor.feature_size, extractor.nb_max_frames),
        memory=int(FEATURES_SHARE * max(0, ALL.free() - coming)),
        disk=max(0, left // beside),
        folder=folder,
    )


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint: one with a state, which is written last."""
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = read_json(path / "trainer_state.json")
            found.append((int(state["global_step"]), path))
        except (OSError, ValueError, KeyError):
            continue
    return max(found)[1] if found else None


def _out_of_patience(state: TrainerState, settings: TrainingSettings) -> bool:
    """Return whether the last evaluations, as many as patience allows, brought no better score."""
    scores = [entry["score"] for entry in _epochs(state)]
    best = scores.index(max(scores)) if scores else 0
    return settings.patience is not None and len(scores) - 1 - best >= settings.patience


def _result(state: TrainerState, *, finished: bool) -> TrainingResult:
    records = _records(state)
    return TrainingResult(
        _epochs(state), _means(records), records, state.global_step, state.max_steps, finished
    )


def _records(state: TrainerState) -> list[dict[str, Any]]:
    """Return the records of the steps."""
    return [entry for entry in state.log_history if "loss" in entry]


def _means(records: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the last record of every five steps and of every epoch, with the mean loss of them."""
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
        run_name=folder.stem,
        use_cpu=device == "cpu",  # or accelerate takes this process for the only one
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
        logging_nan_inf_filter=False,  # show a loss that is NaN
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
    """Return the scores of each epoch, without Trainer's prefix."""
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
    masks: Masks | None
    skipped: dict[str, Drop]  # by id
    sampler: LanguageSampler | None = None
    _step_began = 0.0
    _step_utterances = 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss of a step with its speed, so that a resumed run has both."""
        if "loss" in logs:
            seconds = time.perf_counter() - self._step_began
            speed: dict[str, Any] = {
                SPEED: round(self._step_utterances / seconds, 3),
                TIME: datetime.now(UTC).isoformat(timespec="seconds"),
            }
            logs |= speed
        super().log(logs, start_time)
        if "loss" in logs:
            self.hooks.logged(self.state.log_history[-1])

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Take rows by a temperature over languages, or else each once in a random order."""
        return self.sampler or super()._get_train_sampler(train_dataset)

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
        """Return the batches of a step, without rows that accelerate repeats for several processes."""
        self._step_began = time.perf_counter()
        drops: list[Drop | None] = []
        samples, count = super().get_batch_samples(
            (self._once(batch, drops) for batch in epoch_iterator), num_batches, device
        )
        self._step_utterances = self.args.world_size * sum(len(each["labels"]) for each in samples)
        if samples:
            self._skip(drops, device)
        if self.masks is not None:
            for number, batch in enumerate(samples):
                self._mask(number, batch, self.masks)
        assert count is None or isinstance(count, Tensor)
        # without any label the loss is zero
        return samples, None if count is None else count.clamp(min=1)

    def _mask(self, number: int, batch: dict[str, Tensor], masks: Masks) -> None:
        """Mask a batch of a step by each row's index in it, however it is cut up and shared out."""
        args = self.args
        first = (number * args.world_size + args.process_index) * args.per_device_train_batch_size
        where = range(first, first + len(batch["labels"]))
        seeds = [[args.seed, self.state.global_step, index] for index in where]
        mask(batch["input_features"], batch["attention_mask"].sum(1).tolist(), masks, seeds)

    def _once(self, batch: dict[str, Any], drops: list[Drop | None]) -> dict[str, Tensor]:
        """Mask the rows that accelerate repeats to fill the last batch of an epoch."""
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
        """Report the rows of the step that cannot be read, and end the training if there are too many."""
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
        f"({listed(skipped)}), the first: {skipped[0].shown}",
        "Mend the data or take those rows out (`lorsmerge data --check-audio -o FILE` does that), and "
        "begin anew with --force.",
    )


class _Control(TrainerCallback):
    """Decide when to evaluate, to save and to stop."""

    def __init__(self, settings: TrainingSettings, hooks: TrainingHooks) -> None:
        self.settings, self.hooks = settings, hooks
        self.stopped = False
        self.enough = False  # whether patience ran out
        self.empty = False  # whether no row of the step can be read

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.hooks.progress(state.global_step, state.max_steps)
        for record in _records(state):
            self.hooks.logged(record)

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
        # the end of an epoch, and the last step, are evaluated before they are saved, so that a
        # run that is resumed from there has the scores
        if state.epoch == int(state.epoch or 0) or state.global_step >= state.max_steps:
            return
        if self._evaluates(state):
            control.should_evaluate = control.should_save = True
        every = self.settings.save_steps
        if every and state.global_step % every == 0:
            control.should_save = True
        if self._interrupted(args):
            self.stopped = control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped or self.enough:
            return
        control.should_log = control.should_save = True
        ended = state.global_step >= state.max_steps
        control.should_evaluate = ended or not self.settings.eval_steps or self._evaluates(state)
        if not ended and self._interrupted(args):
            self.stopped = control.should_training_stop = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if _out_of_patience(state, self.settings):
            self.enough = control.should_training_stop = True

    def _evaluates(self, state: TrainerState) -> bool:
        """Return whether a step is one of those that are evaluated beside the ends of epochs."""
        every = self.settings.eval_steps
        return every is not None and state.global_step % every == 0

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.hooks.saved(_epochs(state))

    def _interrupted(self, args: TrainingArguments) -> bool:
        """Return whether any process is to stop: all have to leave the loop at the same step."""
        stop = torch.tensor(float(self.hooks.interrupted()), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(stop, torch.distributed.ReduceOp.MAX)
        return bool(stop)
