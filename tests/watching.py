"""What the watch says of a whole run."""

from collections.abc import Iterable

from postgrad.watch import Row, RunWarning, Watcher


def find_warnings(rows: Iterable[Row]) -> list[RunWarning]:
    """All warnings of a run, in the order in which they would have been given."""
    watcher = Watcher()
    return [warning for row in rows for warning in watcher.push(row)]
