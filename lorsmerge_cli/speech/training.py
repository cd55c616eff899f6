"""Fine-tuning: transformers' Trainer over audio files, made exact and interruptible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.inputs import read_json
from lorsmerge_cli.speech.batches import IGNORED, SpeechDataset, collate
from lorsmerge_cli.speech.model import SpeechModel
from lorsmerge_cli.speech.settings import TrainingSettings

LOG_STEPS = 5
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
    """

    evaluate: Callable[[float], dict[str, float]]
    saved: Callable[[list[dict[str, float]]], None]
    interrupted: Callable[[], bool]
    progress: Callable[[int, int], None]


@dataclass(frozen=True)
class TrainingResult:
    """`epochs` and `losses` as logged; `finished` is False where the run was interrupted."""

    epochs: list[dict[str, float]]
    losses: list[dict[str, float]]
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
) -> TrainingResult:
    """Train the model in place, with checkpoints to go on from.

    Args:
        speech: the model, in float32.
        utterances: to learn from, with labels that fit the model.
        settings: how.
        folder: for checkpoints.
        device: `cpu`, `cuda` (under torchrun each process has one of its own) or `mps`.
        hooks: what the caller does meanwhile.
        resume: go on from the newest whole checkpoint in the folder, if there is one.
    """
    checkpoint = newest_checkpoint(folder) if resume else None
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step >= state.max_steps:  # Trainer would go one step too far
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
        train_dataset=SpeechDataset(speech, utterances, settings.label_space),
        data_collator=partial(collate, start=start, pad=pad),
        compute_loss_func=token_loss,
        callbacks=[control],
    )
    trainer.hooks = hooks
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
    losses = [entry for entry in state.log_history if "loss" in entry]
    return TrainingResult(_epochs(state), losses, state.global_step, state.max_steps, finished)


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
        logging_steps=LOG_STEPS,
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
    ) -> tuple[list[Any], Tensor | int | None]:
        """Without the rows that several processes hear twice so that all have as many batches."""
        found: tuple[list[Any], Tensor | int | None] = super().get_batch_samples(
            map(self._once, epoch_iterator), num_batches, device
        )
        return found

    def _once(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The last batch of an epoch, accelerate's filling with rows of its beginning ignored."""
        ending = self.accelerator.gradient_state
        if ending.end_of_dataloader and ending.remainder > 0 and self.args.world_size > 1:
            before = self.args.process_index * self.args.per_device_train_batch_size
            batch["labels"][max(0, ending.remainder - before) :] = IGNORED
        return batch


class _Control(TrainerCallback):
    """When to evaluate, to save and to stop."""

    def __init__(self, settings: TrainingSettings, hooks: TrainingHooks) -> None:
        self.settings, self.hooks = settings, hooks
        self.stopped = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.hooks.progress(state.global_step, state.max_steps)

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
