"""Long work far from any command, such as a download, and whoever shows how far it is.

What does the work may not know of the console; the console says here how it shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

# label and unit -> what is told how many are newly done, and how many there are in all
Show = Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]

show: Show | None = None  # None where nobody looks, or the work has a bar of its own
