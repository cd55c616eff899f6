"""Decode test sets with models, and score what they say."""

from lorsmerge_cli.operations.eval.run import evaluate, rescore

__all__ = ["evaluate", "rescore"]
