"""What the user sees on stderr: notes, tables, and the progress of a training.

On a terminal there is a bar with the time that is left; in a log file there is one line an epoch, and one every
LOG_SECONDS within a long epoch, so that a log neither floods nor falls silent. Standard output is left to `--json -`.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from edgeq.training import Progress

LOG_SECONDS = 30.0
LOG_COLUMNS = 160
QUIET_SECONDS = 10.0  # a mistake found sooner is the only line


class Talk:
    """The only place that writes to stderr while a command runs.

    Args:
        mute: Say nothing; for all processes of several but the first.
    """

    def __init__(self, *, mute: bool = False) -> None:
        from rich.console import Console

        # a log file has no width: tables there shall not be cut to the 80 columns that rich would assume
        width = None if sys.stderr.isatty() else LOG_COLUMNS
        self.console = Console(file=sys.stderr, highlight=False, soft_wrap=True, width=width, quiet=mute)

    def note(self, text: str) -> None:
        """Write one line."""
        self.console.print(text, markup=False)

    @contextlib.contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Say what is being done: with a spinner on a terminal, with a line in a log if it takes long."""
        if self.console.is_terminal:
            with self.console.status(text):
                yield
            return
        timer = threading.Timer(QUIET_SECONDS, self.note, (text,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table, numbers to the right."""
        from rich import box
        from rich.table import Table

        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    @contextlib.contextmanager
    def line(self, text: str) -> "Iterator[Line]":
        """Give out one line that changes while the block runs."""
        if self.console.is_terminal:
            with self.console.status(text) as status:
                yield Line(self.note, status.update)
        else:
            yield Line(self.note, None)

    @contextlib.contextmanager
    def share(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """Give out the function to call with how much is done, and of how much."""
        with self.line(text) as line:
            yield lambda done, total: line.show(f"{text}: {100 * done // total} %")

    @contextlib.contextmanager
    def training(self) -> "Iterator[Callable[[Progress], None]]":
        """Give out the function to call with the progress of a training."""
        if self.console.is_terminal:
            with _bar(self.console) as bar:
                yield _OnBar(bar, bar.add_task("starting", total=None, details="")).take
        else:
            yield _InLog(self.note).take


class Line:
    """One line that changes: a spinner's on a terminal, in a log a new one every LOG_SECONDS."""

    def __init__(self, note: Callable[[str], None], update: Callable[[str], None] | None) -> None:
        self._note, self._update = note, update
        self._last = time.monotonic()

    def show(self, text: str, *, at_once: bool = False) -> None:
        """Change the line; in a log too if `at_once`."""
        if self._update is not None:
            self._update(text)
        elif at_once or time.monotonic() - self._last >= LOG_SECONDS:
            self.keep(text)

    def keep(self, text: str) -> None:
        """Write a line that stays."""
        self._note(text)
        self._last = time.monotonic()


class _OnBar:
    """Progress as a bar."""

    def __init__(self, bar: "Bar", task: "TaskID") -> None:
        self.bar, self.task = bar, task
        self.accuracy = ""
        self.shown = 0.0

    def take(self, progress: "Progress") -> None:
        if progress.accuracy:
            self.accuracy = _accuracies(progress.accuracy)
        now = time.monotonic()
        if now - self.shown < 0.1 and not progress.accuracy:  # redrawing costs more than a small step
            return
        self.shown = now
        done = 1.0 if progress.accuracy else progress.batch / progress.batches
        self.bar.update(
            self.task,
            total=progress.epochs,
            completed=progress.epoch + done,
            description=f"epoch {progress.epoch + 1}/{progress.epochs}",
            details=f"{_losses(progress.losses)}  {self.accuracy}",
        )


class _InLog:
    """Progress as lines."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note
        self.last = time.monotonic()

    def take(self, progress: "Progress") -> None:
        now = time.monotonic()
        if not progress.accuracy and now - self.last < LOG_SECONDS:
            return
        self.last = now
        where = f"epoch {progress.epoch + 1}/{progress.epochs}"
        if not progress.accuracy:
            where += f" batch {progress.batch}/{progress.batches}"
        self.note(f"{where}  {_losses(progress.losses)}  {_accuracies(progress.accuracy)}".rstrip())


def _bar(console) -> "Bar":
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeRemainingColumn(),
        TextColumn("{task.fields[details]}", markup=False),
        console=console,
        transient=True,
    )


def _losses(losses: dict[str, float]) -> str:
    return f"loss {losses['loss']:.3f}" if "loss" in losses else ""


def _accuracies(accuracy: dict[int, float]) -> str:
    """Name the accuracy of each width in percent."""
    return "  ".join(f"{bits}b {100 * value:.1f}%" for bits, value in sorted(accuracy.items(), reverse=True))
