"""The tests' Hub, accessed by huggingface_hub itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import READER, Hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

WEIGHTS = bytes(range(256)) * 400


def commit(*operations: CommitOperationAdd | CommitOperationDelete, **settings: object) -> str:
    return HfApi().create_commit(
        "you/model", operations, commit_message="a test", **settings
    ).oid  # fmt: skip


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def test_what_is_uploaded_is_what_is_downloaded(hub: Hub) -> None:
    HfApi().create_repo("you/model", private=True)
    oid = commit(add("README.md", b"# Model\n"), add("a/model.safetensors", WEIGHTS))
    folder = Path(snapshot_download("you/model"))
    assert folder.name == oid
    assert (folder / "README.md").read_bytes() == b"# Model\n"
    assert (folder / "a" / "model.safetensors").read_bytes() == WEIGHTS
    assert len(hub.seen("PUT")) == 1  # the text went with the commit
    commit(CommitOperationDelete("README.md"))
    assert set(hub.files("you/model")) == {".gitattributes", "a/model.safetensors"}


def test_what_is_there_is_not_uploaded_again(hub: Hub) -> None:
    hub.add_repo("you/model", {"model.safetensors": WEIGHTS, "README.md": "text"})
    commit(add("model.safetensors", WEIGHTS), add("README.md", b"text"))
    assert hub.seen("PUT") == hub.seen("POST", "/commit/") == []


def test_a_pull_request_leaves_the_branch_alone(hub: Hub) -> None:
    hub.add_repo("you/model", {"README.md": "old"})
    commit(add("README.md", b"new"), create_pr=True)
    assert hub.files("you/model") == {"README.md": b"old"}
    assert hub.files("you/model", "refs/pr/1") == {"README.md": b"new"}


def test_a_download_that_breaks_off_is_gone_on_with(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)  # bytes, not 10 MB
    hub.add_repo("you/model", {"model.safetensors": WEIGHTS})
    hub.fail("GET", "/resolve/", drop_after=1000)
    folder = Path(snapshot_download("you/model"))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.seen("GET", "/resolve/")[-1].headers["range"] == "bytes=1000-"


def test_an_upload_that_breaks_off_is_tried_again(hub: Hub) -> None:
    hub.add_repo("you/model")
    hub.fail("PUT", "/lfs/", drop_after=1000)
    commit(add("model.safetensors", WEIGHTS))
    assert [call.status for call in hub.seen("PUT")] == [0, 200]
    assert hub.files("you/model")["model.safetensors"] == WEIGHTS


def test_its_refusals_are_those_of_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("you/model", {"README.md": "text"})
    hub.add_repo("other/gated", {"README.md": "text"}, gated=True)
    hub.add_repo("other/secret", private=True)
    for name in ("other/secret", "other/missing"):
        with pytest.raises(RepositoryNotFoundError):
            HfApi().model_info(name)
    with pytest.raises(GatedRepoError):
        HfApi().hf_hub_download("other/gated", "README.md")
    with pytest.raises(RevisionNotFoundError):
        HfApi().model_info("you/model", revision="gone")
    for status in (401, 403, 404, 429, 500):
        hub.fail("GET", "/api/models/you/model", status)
        with pytest.raises(HfHubHTTPError) as caught:
            HfApi().model_info("you/model")
        assert caught.value.response.status_code == status
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(HfHubHTTPError) as caught:
        commit(add("README.md", b"new"))
    assert caught.value.response.status_code == 403
