"""A progress bar where a person is looking; nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Takes what is done so far, and how many there are (``None``: unknown).
Progress = Callable[[int, int | None], None]


@contextmanager
def progress_bar(label: str, wanted: bool | None = None) -> Iterator[Progress]:
    """``wanted=None``: when stderr is a terminal."""
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
