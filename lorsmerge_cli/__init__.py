"""Low-rank and sparse merging of fine-tuned speech models (LoRS-Merging).

The functions are the subcommands of `lorsmerge`, for use in Python. Each is loaded, and PyTorch with
it, when it is first used:

    from lorsmerge_cli import delta, merge

    delta("base", "ft/ca_asr", "ca.delta")
    report = merge("base", ["ca.delta", "de.delta:scale=0.2"], "merged", svp=0.03, mp=0.4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorsmerge_cli.version import __version__ as __version__

__all__ = [
    "delta", "evaluate", "export", "finetune", "inspect", "lors", "merge", "merge_state_dicts", "mp",
    "prune", "pseudo_label", "push", "report", "search", "stats", "svp", "tall_masks", "transcribe",
    "transcribe_recordings",
]  # fmt: skip

if TYPE_CHECKING:
    from lorsmerge_cli.core.by_ratio import lors, mp, svp
    from lorsmerge_cli.operations.delta import delta
    from lorsmerge_cli.operations.eval import evaluate
    from lorsmerge_cli.operations.export import export
    from lorsmerge_cli.operations.finetune import finetune
    from lorsmerge_cli.operations.inspect import inspect
    from lorsmerge_cli.operations.merge import merge, merge_state_dicts, tall_masks
    from lorsmerge_cli.operations.prune import prune
    from lorsmerge_cli.operations.push import push
    from lorsmerge_cli.operations.report import report
    from lorsmerge_cli.operations.search import search
    from lorsmerge_cli.operations.stats import stats
    from lorsmerge_cli.operations.transcribe import (
        pseudo_label,
        transcribe,
        transcribe_recordings,
    )
else:
    _VERBS = {  # of functions with another name
        "evaluate": "eval",
        "merge_state_dicts": "merge",
        "pseudo_label": "transcribe",
        "tall_masks": "merge",
        "transcribe_recordings": "transcribe",
    }

    def __getattr__(name: str) -> Any:
        """Load a function when it is first used."""
        from importlib import import_module

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        is_pruner = name in ("lors", "mp", "svp")
        module = "core.by_ratio" if is_pruner else f"operations.{_VERBS.get(name, name)}"
        function = getattr(import_module(f"{__name__}.{module}"), name)
        globals()[name] = function
        return function

    def __dir__() -> list[str]:
        """List all names, including functions that are not loaded yet."""
        return sorted({*globals(), *__all__})
