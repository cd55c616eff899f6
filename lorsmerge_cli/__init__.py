"""Low-rank and sparse merging of fine-tuned speech models (LoRS-Merging).

What the `lorsmerge` command does is here as functions. Each is loaded when it is first asked for, and
with it PyTorch:

    from lorsmerge_cli import delta, merge

    delta("base", "ft/ca_asr", "ca.delta")
    report = merge("base", ["ca.delta", "de.delta:scale=0.2"], "merged", svp=0.03, mp=0.4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "delta",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "lors",
    "merge",
    "merge_state_dicts",
    "mp",
    "prune",
    "push",
    "report",
    "search",
    "svp",
    "transcribe",
]

if TYPE_CHECKING:
    from lorsmerge_cli.core.by_ratio import lors, mp, svp
    from lorsmerge_cli.operations.delta import delta
    from lorsmerge_cli.operations.eval import evaluate
    from lorsmerge_cli.operations.export import export
    from lorsmerge_cli.operations.finetune import finetune
    from lorsmerge_cli.operations.inspect import inspect
    from lorsmerge_cli.operations.merge import merge, merge_state_dicts
    from lorsmerge_cli.operations.prune import prune
    from lorsmerge_cli.operations.push import push
    from lorsmerge_cli.operations.report import report
    from lorsmerge_cli.operations.search import search
    from lorsmerge_cli.operations.transcribe import transcribe
else:
    _MODULES = {  # name -> the module that has it
        "delta": "operations.delta",
        "evaluate": "operations.eval",
        "export": "operations.export",
        "finetune": "operations.finetune",
        "inspect": "operations.inspect",
        "lors": "core.by_ratio",
        "merge": "operations.merge",
        "merge_state_dicts": "operations.merge",
        "mp": "core.by_ratio",
        "prune": "operations.prune",
        "push": "operations.push",
        "report": "operations.report",
        "search": "operations.search",
        "svp": "core.by_ratio",
        "transcribe": "operations.transcribe",
    }

    def __getattr__(name: str) -> Any:
        """Load a function when it is first asked for."""
        from importlib import import_module

        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        """List the functions that are not loaded yet, too."""
        return sorted({*globals(), *__all__})
