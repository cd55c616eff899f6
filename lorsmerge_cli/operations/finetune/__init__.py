"""Fine-tune a model, keep the best epoch, and write it as a model folder."""

from lorsmerge_cli.operations.finetune.plan import (
    Averaging,
    DataSource,
    FinetunePlan,
    plan_finetune,
)
from lorsmerge_cli.operations.finetune.run import FinetuneReport, finetune

__all__ = ["Averaging", "DataSource", "FinetunePlan", "FinetuneReport", "finetune", "plan_finetune"]
