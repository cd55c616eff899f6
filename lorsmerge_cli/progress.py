"""The hook by which code below the console, such as a download, shows its progress.

Such code may not import the console; the console sets `show` here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

# label and unit -> a context that gives a function of the units just done, and of all
Show = Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]

show: Show | None = None  # None if nothing is shown, or the work has a bar of its own
