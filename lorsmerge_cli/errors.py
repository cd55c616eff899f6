"""Every error a user can meet. `app` turns each into a message and an exit code.

LorsmergeError              the work failed: exit 1
├── UsageFault              options that contradict one another: exit 2
├── UnreadableFile          missing, truncated, pickled, or with a header that lies
│   └── NoSuchFile          not in its folder or repository
├── Mismatch                files that do not belong together: names, shapes, ancestry
├── NonFinite               a NaN or an infinity in a tensor
├── OutputFault             the target exists, is an input, or cannot be written
├── HubFault                the Hub cannot be reached, refuses, or lacks what was asked for
├── DeviceFault             the device asked for is not there
├── Interrupted             stopped by a signal, and to be gone on with: exit 130
└── Faults                  several of the above, found together

A message says what was found and where, and `remedy` what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence


class LorsmergeError(Exception):
    """A failure with a remedy. `str()` of it is the one paragraph a user reads."""

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what} {remedy}".strip())

    @property
    def lines(self) -> tuple[str, ...]:
        """The message, a paragraph in each; a newline within one stands in a name that it quotes."""
        return (str(self),)


class UsageFault(LorsmergeError):
    """Options or arguments that are wrong or contradict one another."""

    exit_code = 2


class UnreadableFile(LorsmergeError):
    """A file that is missing, damaged or of another kind than was asked for."""


class NoSuchFile(UnreadableFile):
    """A file that a folder or a repository does not have."""


class Mismatch(LorsmergeError):
    """Files that do not fit together."""


class NonFinite(LorsmergeError):
    """A NaN or an infinity where a number has to be."""


class OutputFault(LorsmergeError):
    """A target that must not or cannot be written."""


class HubFault(LorsmergeError):
    """What the Hugging Face Hub refuses or lacks, or a network that is not there."""


class DeviceFault(LorsmergeError):
    """A device that this machine, or this PyTorch, does not have."""


class Interrupted(LorsmergeError):
    """Work that a signal stopped and that can be gone on with."""

    exit_code = 130  # 128 + SIGINT, as shells have it


class Faults(LorsmergeError):
    """Several errors that were found in one check."""

    def __init__(self, errors: Sequence[LorsmergeError]) -> None:
        self.errors = tuple(errors)
        self.exit_code = max(error.exit_code for error in self.errors)
        super().__init__("\n".join(self.lines))

    @property
    def lines(self) -> tuple[str, ...]:
        listed = (f"  {n}. {error}" for n, error in enumerate(self.errors, 1))
        return (f"{len(self.errors)} things stand in the way:", *listed)


def raise_all(errors: Sequence[LorsmergeError]) -> None:
    """Raise nothing, the one error, or `Faults` of all of them."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise Faults(errors)


def named(names: Sequence[str], shown: int = 3) -> str:
    """The first few of many names and how many more there are: `'a', 'b' and 7 more`."""
    listed = ", ".join(repr(name) for name in names[:shown])
    return listed if len(names) <= shown else f"{listed} and {len(names) - shown} more"


def non_finite(where: object, tensor: str) -> NonFinite:
    """The error for a tensor with a NaN or an infinity in it."""
    return NonFinite(
        f"{where}: {tensor!r} holds a NaN or an infinity.",
        "The training diverged or the file is damaged: use an earlier checkpoint of it.",
    )


def zero_delta(where: object) -> Mismatch:
    """The error for a delta with nothing in it."""
    return Mismatch(
        f"{where}: its delta is zero throughout; the fine-tune equals its base.",
        "Check that the training changed the weights, and that the right folder was given.",
    )
