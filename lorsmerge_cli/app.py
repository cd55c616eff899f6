"""The Typer app: registers the commands, and turns exceptions into exit codes."""

from __future__ import annotations

import ctypes
import functools
import inspect
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lorsmerge_cli import console, options, outputs
from lorsmerge_cli.commands.data import data
from lorsmerge_cli.commands.delta import delta
from lorsmerge_cli.commands.eval import evaluate
from lorsmerge_cli.commands.export import export
from lorsmerge_cli.commands.finetune import finetune
from lorsmerge_cli.commands.inspect import inspect_files
from lorsmerge_cli.commands.merge import merge
from lorsmerge_cli.commands.methods import methods
from lorsmerge_cli.commands.prune import prune
from lorsmerge_cli.commands.push import push
from lorsmerge_cli.commands.report import report
from lorsmerge_cli.commands.search import search
from lorsmerge_cli.commands.stats import stats
from lorsmerge_cli.commands.transcribe import transcribe
from lorsmerge_cli.errors import LorsmergeError, named
from lorsmerge_cli.version import __version__

WrongUsage: Any = typer.BadParameter.__base__  # not exported by Typer
INTERRUPTED = 130  # 128 + SIGINT, as in shells


class _Program(TyperGroup):
    """Print the top-level help without rich, which takes longer to load than all the rest.

    Typer's messages on wrong arguments quote them, so they are cleaned like any other message.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)

    def main(self, *args: Any, **settings: Any) -> Any:
        self.rich_markup_mode = None  # rich's panel would break a long name
        return super().main(*args, **settings)

    def make_context(self, *args: Any, **settings: Any) -> Any:
        with _clean_messages():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: Any) -> Any:
        with _clean_messages():
            return super().invoke(ctx)


@contextmanager
def _clean_messages() -> Iterator[None]:
    try:
        yield
    except WrongUsage as error:
        error.message = console.shown(error.message)
        error.show = functools.partial(_show_wrong_usage, error)
        raise


def _show_wrong_usage(error: Any) -> None:
    if error.ctx is not None:
        typer.echo(error.ctx.get_usage(), err=True)
        typer.echo(f"Try '{error.ctx.command_path} --help' for help.", err=True)
    console.error(error.format_message())


app = typer.Typer(
    name="lorsmerge",
    cls=_Program,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Merge several fine-tunes of one speech model into one model, without training again.\n\n"
    "A pipeline of files: `finetune` trains a model on a language and task, `delta` extracts the "
    "change of its weights, `prune` keeps a low-rank and a sparse part of it, `merge` adds the deltas "
    "to the base, `search` finds the ratios and scale, `eval` scores the result, `report` makes tables "
    "of scores, `push` uploads a model.",
    epilog="\b\nExample: lorsmerge merge base.safetensors ca_asr.delta de_st.delta --svp 0.03 --mp 0.4",
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"lorsmerge {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def _register(name: str, command: Callable[..., None]) -> None:
    """Add a command with the common options, and turn its exceptions into messages and exit codes."""
    signature = inspect.signature(command, eval_str=True)
    common = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
        for key, option in (
            ("quiet", options.Quiet),
            ("as_json", options.Json),
            ("debug", options.Debug),
        )
    ]

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        console.configure(**{item.name: arguments.pop(item.name) for item in common})
        outputs.forget_written()
        _signals.clear()
        try:
            command(**arguments)
        except LorsmergeError as error:
            if console.debugging():
                console.traceback()
            console.error(*error.lines)
            _note_outputs(str(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            raise _interrupted() from None
        except (BrokenPipeError, typer.Exit, typer.BadParameter):
            raise
        except Exception as error:
            if console.debugging():
                console.traceback()
            if _signals:  # an import that a signal breaks off may end with another error
                raise _interrupted() from None
            console.error(_in_words(error))
            _note_outputs()
            raise typer.Exit(1) from None

    parameters = [*signature.parameters.values(), *common]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {item.name: item.annotation for item in parameters} | {"return": None}
    # rich would keep the docstring's line breaks instead of filling the terminal's width
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    app.command(name, help="\n\n".join(" ".join(text.split("\n")) for text in paragraphs))(run)


def _interrupted() -> typer.Exit:
    """Tell what was written, and return the exit of an interrupted command."""
    console.error(f"Interrupted; {_written()}.")
    return typer.Exit(INTERRUPTED)


def _written() -> str:
    paths = [str(path) for path in outputs.written()]
    return f"written: {named(paths, len(paths))}" if paths else "nothing was written"


def _note_outputs(message: str = "") -> None:
    """Name the outputs that are in place although the command failed."""
    if any(str(path) not in message for path in outputs.written()):
        console.note(f"In spite of that, {_written()}.")


def _in_words(error: Exception) -> str:
    """Format an unexpected exception: an OSError by file and cause, any other as a bug."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}. Check the path and its permissions."
    return (
        f"{type(error).__name__}: {error}. This is a bug in lorsmerge; please report it with what "
        "--debug prints."
    )


_register("finetune", finetune)
_register("delta", delta)
_register("prune", prune)
_register("stats", stats)
_register("merge", merge)
_register("methods", methods)
_register("search", search)
_register("eval", evaluate)
_register("report", report)
_register("inspect", inspect_files)
_register("data", data)
_register("transcribe", transcribe)
_register("push", push)
_register("export", export)


_signals: list[int] = []


def _terminate(signum: int, frame: FrameType | None) -> None:
    _signals.append(signum)
    raise KeyboardInterrupt  # so that temporary files are removed as after Ctrl-C


_bus_errors: list[int] = []


def _cut_short(signum: int) -> None:
    """End the process when a mapped file has lost the bytes that are being read."""
    if _bus_errors:  # another thread is ending the process
        return
    _bus_errors.append(signum)
    os.write(2, b"error: An input was truncated while being read. Run the command again when nothing "
                b"writes to its inputs; an output that does not exist was not written.\n")  # fmt: skip
    outputs.discard_unfinished()
    os._exit(1)


_on_bus_error = ctypes.CFUNCTYPE(None, ctypes.c_int)(_cut_short)  # referenced by the system alone


def _leave_process_group() -> None:
    """End the threads of torchrun's process group: one that outlives Python aborts the process.

    Not to be called after a failure: another process may still wait for this one, and its threads
    would wait with it.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def main() -> None:
    """Run the command line."""
    # a handler in Python would never run: the faulting instruction is repeated at once
    if hasattr(signal, "SIGBUS"):
        ctypes.CDLL(None).signal(signal.SIGBUS.value, _on_bus_error)
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # for names that the terminal cannot encode
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="lorsmerge")
    except SystemExit as end:
        if not end.code:
            _leave_process_group()
        raise
    except BrokenPipeError:  # `lorsmerge inspect ... | head`
        sys.stderr.close()
        sys.exit(1)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C must not break Python's own exit
