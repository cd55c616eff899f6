"""Merge: base + sum of scaled, pruned deltas, streamed tensor by tensor (Eq. 8)."""

from lorsmerge_cli.operations.merge.inputs import MergeInputs, open_inputs, pinned_recipe
from lorsmerge_cli.operations.merge.plan import MergePlan, plan_merge
from lorsmerge_cli.operations.merge.run import MergeReport, merge

__all__ = [
    "MergeInputs",
    "MergePlan",
    "MergeReport",
    "merge",
    "open_inputs",
    "pinned_recipe",
    "plan_merge",
]
