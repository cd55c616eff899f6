"""What a failure of huggingface_hub means, and what to do about it."""

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
TOKEN = re.compile(r"[!-~]+")  # printable ASCII without blanks: what a header of HTTP takes
RETRY_LATER = "Run the command again later: what arrived is not sent again."


@contextmanager
def hub_faults(repo: str, revision: str | None = None, token: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises about a repository into a HubFault.

    Args:
        repo: `org/name`.
        revision: the branch, tag or commit that was asked for.
        token: the one that was given on the command line.

    Raises:
        HubFault: a token that none can be, access, network, or something that is not there.
    """
    check_token(token)
    try:
        yield
    except Exception as error:
        said: BaseException | None = error
        while said is not None:  # uploads and downloads wrap what the network raised
            fault = _fault(said, repo, revision, token or get_token())
            if fault is not None:
                raise fault from error
            said = said.__cause__
        raise


def check_token(token: str | None = None) -> str | None:
    """Check the token that the Hub would be asked with, before it is sent.

    Args:
        token: the one that was given on the command line; None for HF_TOKEN or the stored one.

    Returns:
        The token that was given, without the blanks around it.

    Raises:
        HubFault: it holds what no token does; the message does not say what.
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
            f"The token of {where} holds {kind} and can be none.",
            f"Copy it again, whole and alone: {constants.ENDPOINT}/settings/tokens lists yours.",
        )
    return token and token.strip()


def _token(given: str | None) -> tuple[str, str]:
    """Where the token comes from, and the token as it is there; empty where there is none."""
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
    """The remedy where a token is missing or may too little."""
    return (
        f"Make a token that may write at {constants.ENDPOINT}/settings/tokens and log in with "
        "`hf auth login`, or set HF_TOKEN."
    )


def _fault(
    error: BaseException, repo: str, revision: str | None, token: str | None
) -> HubFault | None:
    url = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, OfflineModeIsEnabled):
        return HubFault(
            f"{repo}: HF_HUB_OFFLINE is set, and the Hub is needed.",
            "Unset it, or give a local path.",
        )
    if isinstance(error, GatedRepoError):
        return HubFault(
            f"{repo} is gated, and you have not been let in.",
            f"Ask for access at {url}, then log in with `hf auth login`.",
        )
    unknown = isinstance(error, HfHubHTTPError) and error.response.status_code == 401
    if isinstance(error, RepositoryNotFoundError) or (unknown and token is None):
        who = "without a token" if token is None else "with this token"
        return HubFault(
            f"There is no repository {repo} at {constants.ENDPOINT}, or none that can be seen {who}.",
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
    said = f" ({error.server_message})" if error.server_message else ""
    if status == 401:
        return HubFault(f"{repo}: the Hub does not know this token{said}.", log_in())
    if status in (402, 403):
        return HubFault(f"{repo}: the Hub does not let you do this{said}.", log_in())
    if status == 429:
        return HubFault(f"{repo}: too many requests for the Hub{said}.", RETRY_LATER)
    if status >= 500:
        return HubFault(f"{repo}: the Hub failed (error {status}){said}.", RETRY_LATER)
    return HubFault(f"{repo}: the Hub refused (error {status}){said}.")


def _is_network(error: BaseException) -> bool:
    """httpx's errors below HTTP, whatever httpx this huggingface_hub is built on."""
    httpx_error = HfHubHTTPError.__mro__[1]
    return isinstance(error, httpx_error | ConnectionError | TimeoutError)
