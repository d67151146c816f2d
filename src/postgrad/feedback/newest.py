"""Pages of a long table, newest first, without counting it or passing over what was seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

BUDGET_S: Final = 2.0
_NARROWEST: Final = 1_000
_WIDEST: Final = 16_000
_BATCH: Final = 50


def newest(
    session: Session,
    ids: Select[Any],
    number: Any,
    *,
    before: int | None,
    limit: int,
    check: Callable[[Sequence[int]], Sequence[int]] = lambda found: found,
) -> tuple[list[int], int | None]:
    """Up to `limit` numbers below `before`, and below which to go on; None where the table ends.

    Looks through the primary key window by window, so that a page costs the same wherever it begins, and gives up after
    `BUDGET_S`, perhaps with nothing, where little matches.

    Args:
        session: to read from.
        ids: selects numbers.
        number: the column that they come from, which is the primary key.
        before: the newest where it is None.
        limit: of the page.
        check: which of so many numbers count, in their order, where that is not for SQL to say.
    """
    top = before if before is not None else (session.scalar(select(func.max(number))) or 0) + 1
    found: list[int] = []
    width, deadline = _NARROWEST, time.monotonic() + BUDGET_S
    while top > 1:
        bottom = max(1, top - width)
        window = list(session.scalars(ids.where(number < top, number >= bottom).order_by(number.desc())))
        for start in range(0, len(window), _BATCH):
            batch = window[start : start + _BATCH]
            found += check(batch)
            if len(found) > limit:
                return found[:limit], found[limit - 1]
            if time.monotonic() > deadline:
                return found, batch[-1] if batch[-1] > 1 else None
        top, width = bottom, min(2 * width, _WIDEST)
        if top > 1 and time.monotonic() > deadline:
            return found, top
    return found, None
