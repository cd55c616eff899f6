"""Errors of huggingface_hub as messages with a remedy."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lorsmerge_cli.errors import HubFault, LorsmergeError
from lorsmerge_cli.inputs import read_document
from lorsmerge_cli.quoting import command

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
TOKEN = re.compile(r"[!-~]+")  # printable ASCII without blanks, as an HTTP header needs
RETRY_LATER = "Run the command again later: uploaded files are not sent again."


@contextmanager
def hub_faults(
    repo: str, revision: str | None = None, token: str | None = None, kind: str = "model"
) -> Iterator[None]:
    """Turn the errors that huggingface_hub raises about a repository into a HubFault.

    Args:
        repo: `org/name`.
        revision: the requested branch, tag or commit; None for the main branch.
        token: the token given on the command line, if any.
        kind: `model` or `dataset`.

    Raises:
        HubFault: an invalid token, no access, no network, or something that does not exist.
    """
    check_token(token)
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:  # uploads and downloads wrap the network's errors
            fault = _fault(cause, repo, revision, token or get_token(), kind)
            if fault is not None:
                raise fault from error
            cause = cause.__cause__
        raise


def check_token(token: str | None = None) -> str | None:
    """Check the token for the Hub before it is sent.

    Args:
        token: the token given on the command line; None for HF_TOKEN or the stored one.

    Returns:
        The given token without surrounding blanks.

    Raises:
        HubFault: it has a character that no token has; the message does not show the token.
    """
    if constants.HF_HUB_OFFLINE:
        return token and token.strip()
    where, value = _token(token)
    wrong = next((ch for ch in value.strip() if not TOKEN.fullmatch(ch)), None)
    if token is not None and not value.strip():
        raise HubFault("The token of --token is empty.", log_in())
    if wrong is not None:
        kind = (
            "a line break" if wrong in "\r\n" else "a blank" if wrong in " \t"
            else "a control character" if wrong.isascii() else "a character beyond ASCII"
        )  # fmt: skip
        raise HubFault(
            f"The token of {where} is invalid: it contains {kind}.",
            f"Copy it again, whole and alone: {constants.ENDPOINT}/settings/tokens lists yours.",
        )
    return token and token.strip()


def _token(given: str | None) -> tuple[str, str]:
    """Return the token's origin and the token as found there; empty if there is none."""
    if given is not None:
        return "--token", given
    for name in VARIABLES:
        if os.environ.get(name, "").strip():
            return name, os.environ[name]
    try:
        stored = read_document(Path(constants.HF_TOKEN_PATH)).decode(errors="replace")
    except (OSError, LorsmergeError):
        stored = ""
    return constants.HF_TOKEN_PATH, stored


def log_in() -> str:
    """Return the remedy for a token that is missing or lacks permissions."""
    return (
        f"Make a token with write access at {constants.ENDPOINT}/settings/tokens and log in with "
        "`hf auth login`, or set HF_TOKEN."
    )


def page_of(repo: str, kind: str) -> str:
    """Return the address of a repository's page.

    Args:
        repo: `org/name`.
        kind: `model` or `dataset`.
    """
    folder = "datasets/" if kind == "dataset" else ""
    return f"{constants.ENDPOINT}/{folder}{repo}"


def _fault(
    error: BaseException, repo: str, revision: str | None, token: str | None, kind: str
) -> HubFault | None:
    url = page_of(repo, kind)
    if isinstance(error, OfflineModeIsEnabled):
        return HubFault(
            f"{repo}: HF_HUB_OFFLINE is set, and the Hub is needed.",
            "Unset it, or give a local path.",
        )
    if isinstance(error, GatedRepoError):
        return HubFault(
            f"{repo} is gated, and you have no access to it.",
            f"Ask for access at {url}, then log in with `hf auth login`.",
        )
    unknown = isinstance(error, HfHubHTTPError) and error.response.status_code == 401
    if isinstance(error, RepositoryNotFoundError) or (unknown and token is None):
        what = "data set" if kind == "dataset" else "repository"
        who = "without a token" if token is None else "with this token"
        return HubFault(
            f"There is no {what} {repo} at {constants.ENDPOINT}, or it is not visible {who}.",
            "Check its name; for a private one log in with `hf auth login`.",
        )
    if isinstance(error, RevisionNotFoundError):
        return HubFault(
            f"{repo} has no revision {revision!r}.",
            f"{url}/tree/main lists its branches; "
            f"`{command('hf', 'repos', 'branch', 'create', repo, str(revision))}` makes one.",
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return HubFault(f"{repo} has no such file: {error.response.url}.", "Check its name.")
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, repo)
    if _is_network(error) or isinstance(error, LocalEntryNotFoundError):
        return HubFault(
            f"{repo}: {constants.ENDPOINT} cannot be reached, or the connection broke ({error}).",
            f"Check the network. {RETRY_LATER}",
        )
    return None


def _refusal(error: HfHubHTTPError, repo: str) -> HubFault:
    status = error.response.status_code
    detail = f" ({error.server_message})" if error.server_message else ""
    if status == 401:
        return HubFault(f"{repo}: the Hub does not know this token{detail}.", log_in())
    if status in (402, 403):
        return HubFault(f"{repo}: the Hub does not let you do this{detail}.", log_in())
    if status == 429:
        return HubFault(f"{repo}: too many requests for the Hub{detail}.", RETRY_LATER)
    if status >= 500:
        return HubFault(f"{repo}: the Hub failed (error {status}){detail}.", RETRY_LATER)
    return HubFault(f"{repo}: the Hub refused (error {status}){detail}.")


def _is_network(error: BaseException) -> bool:
    """Tell whether the network failed, with either HTTP library that huggingface_hub is built on."""
    library_error = HfHubHTTPError.__mro__[1]
    return isinstance(error, library_error | ConnectionError | TimeoutError)
