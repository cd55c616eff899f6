"""Parsing of sizes in options."""

from __future__ import annotations

import pytest

from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.options import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500mb", 5 * 10**8), ("1.5KB", 1500), ("16GiB", 16 * 2**30),
     ("1kib", 1024), ("2TB", 2 * 10**12)],
)  # fmt: skip
def test_decimal_and_binary_units(text: str, size: int) -> None:
    assert parse_size("--memory", text) == size


@pytest.mark.parametrize(
    "text", ["", "5", "GB", "0GB", "nanGB", "-1GB", "5 GB", "1.2.3GB", "5iB", "50%"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageFault, match="is not a size"):
        parse_size("--memory", text)
