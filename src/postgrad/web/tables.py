"""Tables and choices as the pages for leads draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui


def plain_table(
    columns: Sequence[tuple[str, str]], rows: list[dict[str, Any]], *, sortable: bool = False, **options: Any
) -> ui.table:
    """All rows at once; columns are (key, title), and rows have an `id`.

    Only a table that is whole is worth sorting.
    """
    described = [
        {"name": key, "label": label, "field": key, "align": "left", "sortable": sortable} for key, label in columns
    ]
    table = ui.table(columns=described, rows=rows, row_key="id", **options)
    return table.props("flat dense wrap-cells hide-pagination").classes("pg-table")


def cell_links(table: ui.table, column: str, path: str) -> None:
    """Let a column's cells lead to `path` followed by what they show."""
    table.add_slot(
        f"body-cell-{column}",
        f'<q-td :props="props"><a class="pg-link" :href="\'{path}\' + props.value">{{{{ props.value }}}}</a></q-td>',
    )


def choice(title: str, options: Sequence[str] | Mapping[str, str], value: str) -> ui.select:
    """One of a few; the empty one stands for all, and what is not among them is shown as well."""
    known = dict(options) if isinstance(options, Mapping) else {name: name or "all" for name in options}
    return ui.select({**known, value: known.get(value, value)}, label=title, value=value)
