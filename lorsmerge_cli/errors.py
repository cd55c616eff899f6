"""Every error a user can meet. `app` turns each into a message and an exit code.

LorsmergeError              the work failed: exit 1
├── UsageFault              wrong or contradictory options: exit 2
├── UnreadableFile          missing, truncated, pickled, or with a false header
│   └── NoSuchFile          not in its folder or repository
├── Mismatch                files that do not belong together: names, shapes, ancestry
├── NonFinite               a NaN or an infinity in a tensor
├── OutputFault             the target exists, is an input, or cannot be written
├── HubFault                the Hub is unreachable, refuses, or lacks a file
├── DeviceFault             this machine lacks the device
├── Interrupted             interrupted by a signal; can be resumed: exit 130
└── Faults                  several of the above, found together

A message says what is wrong and where, and `remedy` what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


class LorsmergeError(Exception):
    """A failure with a remedy; its `str()` is the paragraph that a user reads.

    Args:
        what: what is wrong, and where.
        remedy: what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what} {remedy}".strip())

    @property
    def lines(self) -> tuple[str, ...]:
        """The message's paragraphs; a newline within one belongs to a name that it quotes."""
        return (str(self),)


class UsageFault(LorsmergeError):
    """Options or arguments are wrong or contradict one another."""

    exit_code = 2


class UnreadableFile(LorsmergeError):
    """A file is missing, damaged or not of the expected type."""


class NoSuchFile(UnreadableFile):
    """A folder or a repository does not have a file."""


class Mismatch(LorsmergeError):
    """Files do not belong together."""


class NonFinite(LorsmergeError):
    """A tensor holds a NaN or an infinity."""


class OutputFault(LorsmergeError):
    """A target must not or cannot be written."""


class HubFault(LorsmergeError):
    """The Hugging Face Hub is unreachable, refuses a request, or lacks a file."""


class DeviceFault(LorsmergeError):
    """This machine, or this PyTorch, does not have a device."""


class Interrupted(LorsmergeError):
    """Work was interrupted by a signal and can be resumed."""

    exit_code = 130  # 128 + SIGINT, as in shells


class Faults(LorsmergeError):
    """Several errors were found in one check.

    Args:
        errors: at least one; the exit code is their largest.
    """

    def __init__(self, errors: Sequence[LorsmergeError]) -> None:
        self.errors = tuple(errors)
        self.exit_code = max(error.exit_code for error in self.errors)
        super().__init__("\n".join(self.lines))

    @property
    def lines(self) -> tuple[str, ...]:
        """The number of errors, and each of them."""
        listed = (f"  {n}. {error}" for n, error in enumerate(self.errors, 1))
        return (f"{len(self.errors)} problems were found:", *listed)


def raise_all(errors: Sequence[LorsmergeError]) -> None:
    """Raise the error if there is one, `Faults` if there are several.

    Example:
        >>> raise_all([])
        >>> raise_all([UsageFault("--svp 7 is not between 0 and 1.")])
        Traceback (most recent call last):
        ...
        lorsmerge_cli.errors.UsageFault: --svp 7 is not between 0 and 1.
    """
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise Faults(errors)


def named(names: Sequence[str], shown: int = 3) -> str:
    """Return the first names, quoted, and how many more there are.

    Example:
        >>> named(["a", "b", "c"], shown=2)
        "'a', 'b' and 1 more"
    """
    listed = ", ".join(repr(name) for name in names[:shown])
    return listed if len(names) <= shown else f"{listed} and {len(names) - shown} more"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return the end of a message on an unknown word: the nearest known one, or all of them.

    Example:
        >>> did_you_mean("tis", ["ties", "wa"]), did_you_mean("x", ["ties", "wa"])
        (" Did you mean 'ties'?", ' Known: ties, wa.')
    """
    close = get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def non_finite(where: object, tensor: str) -> NonFinite:
    """Return the error for a NaN or an infinity in a tensor of a file."""
    return NonFinite(
        f"{where}: {tensor!r} holds a NaN or an infinity.",
        "The training diverged or the file is damaged: use an earlier checkpoint of it.",
    )


def zero_delta(where: object) -> Mismatch:
    """Return the error for a delta of zeros."""
    return Mismatch(
        f"{where}: its delta is zero throughout; the fine-tune equals its base.",
        "Check that the training changed the weights, and that the right folder was given.",
    )
