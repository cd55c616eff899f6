"""Push: a model folder, a checkpoint or a delta to the Hub, with a card; only what changed."""

from lorsmerge_cli.operations.push.run import PushPlan, PushReport, plan_push, push

__all__ = ["PushPlan", "PushReport", "plan_push", "push"]
