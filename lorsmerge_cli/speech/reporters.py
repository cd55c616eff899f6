"""Show a training in TensorBoard or in Weights & Biases, by transformers' own callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers.integrations
from transformers import TrainerCallback

_made_by: Any = transformers.integrations  # which declares no types


def _tensorboard(folder: Path) -> Any:
    callback = _made_by.TensorBoardCallback()
    # by default it writes into the folder of checkpoints, which goes when the training ends
    callback.logging_dir = callback.logging_dir or str(folder)
    return callback


def _wandb(folder: Path) -> Any:
    return _made_by.WandbCallback()


MAKERS = {"tensorboard": _tensorboard, "wandb": _wandb}


def reporter(name: str, folder: Path) -> TrainerCallback:
    """Return the callback that reports a training.

    Args:
        name: one of `REPORTERS`, whose package is installed.
        folder: for TensorBoard's files, unless TENSORBOARD_LOGGING_DIR names another.
    """
    found: TrainerCallback = MAKERS[name](folder)
    return found
