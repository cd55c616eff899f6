"""The target of a push: a repository on the Hub, and whether it may be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from lorsmerge_cli.errors import HubFault, UsageFault
from lorsmerge_cli.hub.faults import check_token, hub_faults, log_in

MAIN = "main"


@dataclass(frozen=True)
class Target:
    """The current state of a repository that may be written.

    Attributes:
        repo: `org/name`.
        exists: whether it exists; else it is created.
        files: path -> git's id of its content.
        revision: branch to commit to, or to open a pull request against.
        create_pr: whether to open a pull request.
        private: whether a new repository is private.
        token: the token given on the command line, if any.
    """

    repo: str
    exists: bool
    files: Mapping[str, str]
    revision: str
    create_pr: bool
    private: bool
    token: str | None = field(repr=False)

    @property
    def url(self) -> str:
        """The repository's page."""
        return f"{constants.ENDPOINT}/{self.repo}"


def open_target(
    repo: str,
    *,
    revision: str | None = None,
    create_pr: bool = False,
    private: bool = False,
    token: str | None = None,
) -> Target:
    """Check that a repository can be pushed to.

    The parameters are those of `push`.

    Raises:
        UsageFault: not a repository id, or options that contradict one another.
        HubFault: no token, one without write access, no network, or no such revision.
    """
    check_id(repo)
    if create_pr and revision not in (None, MAIN):
        raise UsageFault(
            f"A pull request is opened against {MAIN}, and --revision is {revision}.",
            "Omit one of the two.",
        )
    token = check_token(token)
    api = HfApi(token=token)
    exists = True
    with hub_faults(repo, revision, token):
        _check_access(api, repo, create_pr, token)
        try:
            info = api.model_info(repo)
        except RepositoryNotFoundError:
            exists = False
    branch = revision or MAIN
    if not exists:
        if create_pr or branch != MAIN:
            what = "open a pull request on" if create_pr else f"put on the branch {branch}"
            raise HubFault(
                f"There is no repository {repo} to {what}.", "Push without the option first."
            )
        return new_target(
            repo, revision=revision, create_pr=create_pr, private=private, token=token
        )
    if private and not info.private:
        raise HubFault(
            f"{repo} exists and is public, so --private would not hold.",
            f"Make it private at {constants.ENDPOINT}/{repo}/settings, or omit --private.",
        )
    with hub_faults(repo, branch, token):
        files = listed(api, repo, branch)
    return Target(repo, True, files, branch, create_pr, private, token)


def new_target(
    repo: str, *, revision: str | None, create_pr: bool, private: bool, token: str | None
) -> Target:
    """Return the target for a repository that does not exist, or may not; see `open_target`."""
    return Target(repo, False, {}, revision or MAIN, create_pr, private, token and token.strip())


def check_id(repo: str, option: str = "") -> None:
    """Raise UsageFault if an id is not `org/name`; the message begins with `option`."""
    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError
    except HFValidationError:
        raise UsageFault(
            f"{option}{repo!r} is not the id of a repository on the Hub.",
            "Write ORG/NAME with letters, digits, dots, dashes and underscores, such as "
            "you/whisper-small-babel.",
        ) from None


def _check_access(api: HfApi, repo: str, create_pr: bool, token: str | None) -> None:
    """Raise HubFault if the token's own data say that it may not write; the Hub checks again."""
    if token is None and get_token() is None:
        raise HubFault("There is no Hugging Face token.", log_in())
    user = api.whoami()
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubFault(f"The token of {user['name']} may only read.", log_in())
    namespaces = [user["name"], *(org["name"] for org in user.get("orgs", []))]
    namespace = repo.split("/")[0]
    if role == "write" and not create_pr and namespace not in namespaces:
        raise HubFault(
            f"{user['name']} may not write to {namespace}, only to {', '.join(namespaces)}.",
            f"Push to {namespaces[0]}/{repo.split('/')[1]}, or propose the change with --create-pr.",
        )


def listed(api: HfApi, repo: str, revision: str) -> dict[str, str]:
    """Return path -> git's id of every file of a repository."""
    tree = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {item.path: item.blob_id for item in tree if isinstance(item, RepoFile)}
