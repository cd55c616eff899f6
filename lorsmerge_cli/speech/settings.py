"""Settings of a training, and dtypes to compute in; importing this loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lorsmerge_cli.errors import UsageFault

SCHEDULES = ("constant", "linear", "cosine")
LABEL_SPACES = ("auto", "none")
DTYPES = ("float32", "float16", "bfloat16")
AUTO_DTYPE = "auto"  # float16 on CUDA, float32 elsewhere
LARGEST_BATCH = 8  # the paper's
REPORTERS = {  # where a training can also report to -> packages that do it, any of which is enough
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
}
_SHORT_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training; the defaults are the paper's (section 4.2).

    Attributes:
        learning_rate: of Adam; the paper's differ by language and task (Tables 5 and 6).
        schedule: `constant`, `linear` or `cosine` decay after the warm-up.
        warmup: steps, or below 1 a share of all steps.
        clip: largest L2 norm of a gradient; 0 for no limit.
        epochs: passes over the data.
        steps: of the optimiser; replaces `epochs`.
        batch_size: utterances in memory at a time on each device; None for the largest up to 8
            that divides the effective batch.
        effective_batch: utterances for each step of the optimiser, over all devices.
        language_temperature: T of the shares of languages, n_l^(1/T) of their utterances; None for
            every row once an epoch.
        freeze_encoder: whether to train the decoder alone.
        spec_augment: whether to mask parts of the input, as the base's config says or else 5% of
            its frames and of its mel bins.
        masks: Park et al.'s sizes in place of those, as `parse_masks` reads them; implies
            `spec_augment`.
        label_space: `auto` or `none`, as in `SpeechModel.labels`.
        pack: seconds of the windows that rows are joined into; None to learn from rows as they are.
        timestamps: share of the rows whose text has timestamps.
        condition: share of the rows that have what was said before them as context.
        keep_language: whether the language token is not learnt; None for where all rows have one
            language, which the model would learn to detect in everything.
        dtype: `float32`, or the dtype of autocast.
        save_steps: steps between checkpoints, in addition to those of each epoch.
        eval_steps: steps between evaluations; None for one after each epoch.
        patience: evaluations without a better score after which the training ends; None for none.
        keep: number of checkpoints on disk.
        workers: processes that read audio ahead; 0 for none.
        seed: of the order of the data and of masks.
    """

    learning_rate: float = 1e-6
    schedule: str = "constant"
    warmup: float = 0.0
    clip: float = 1.0
    epochs: float = 10.0
    steps: int | None = None
    batch_size: int | None = None
    effective_batch: int = 32
    language_temperature: float | None = None
    freeze_encoder: bool = False
    spec_augment: bool = False
    masks: str | None = None
    label_space: str = "auto"
    pack: float | None = None
    timestamps: float | None = None
    condition: float | None = None
    keep_language: bool | None = None
    dtype: str = "float32"
    save_steps: int | None = None
    eval_steps: int | None = None
    patience: int | None = None
    keep: int = 2
    workers: int = 0
    seed: int = 0

    def batches(self, processes: int) -> tuple[int, int]:
        """Return the batch size on each device, and how many batches make a step.

        Raises:
            UsageFault: the effective batch is no multiple of the devices' batches.
        """
        if self.effective_batch % processes:
            raise UsageFault(
                f"An effective batch of {self.effective_batch} cannot be shared by {processes} "
                "processes.",
                f"Give --effective-batch a multiple of {processes}.",
            )
        share = self.effective_batch // processes
        size = self.batch_size or next(
            n for n in range(min(LARGEST_BATCH, share), 0, -1) if share % n == 0
        )
        if share % size:
            raise UsageFault(
                f"--batch-size {size} on {processes} devices does not divide an effective batch of "
                f"{self.effective_batch}.",
                f"Give --effective-batch a multiple of {size * processes}.",
            )
        return size, share // size

    def total_steps(self, utterances: int) -> int:
        """Return the steps of the optimiser for a number of utterances."""
        return self.steps or math.ceil(self.epochs * math.ceil(utterances / self.effective_batch))


def full_dtype(name: str, others: tuple[str, ...] = ()) -> str:
    """Return the full name of a dtype to compute in: `bfloat16` of `bf16`.

    Args:
        name: of the dtype.
        others: further names that are taken as they are.

    Raises:
        UsageFault: there is no such dtype.
    """
    dtype, known = _SHORT_DTYPES.get(name, name), (*others, *DTYPES)
    if dtype not in known:
        raise UsageFault(f"There is no dtype {name!r}.", f"Use {', '.join(known)}.")
    return dtype


def check_compute_dtype(name: str) -> None:
    """Check the name of a dtype to decode in: one of `DTYPES`, or `auto` for the device's.

    Raises:
        UsageFault: there is no such dtype.
    """
    full_dtype(name, (AUTO_DTYPE,))
