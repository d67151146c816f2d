"""An append-only record of who did what: each event is hashed together with the one before it.

Changing or removing an event breaks every digest after it. What people wrote is in it as a digest alone, so that a
person's data can be erased and the chain stays whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from postgrad.db.tables import EventRow

_CHAIN_LOCK: Final = 7_235_041_981
"""Key of the PostgreSQL advisory lock under which the chain grows; SQLite has one writer anyway."""
_START: Final = "0" * 64
_LAST = select(EventRow.seq, EventRow.digest).order_by(EventRow.seq.desc()).limit(1)


def digest_of(value: Any) -> str:
    """SHA-256 of canonical JSON."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    ).hexdigest()


def record(session: Session, *, actor: str, action: str, about: str, at: datetime, **details: Any) -> None:
    """Add an event to the caller's transaction; best as its last act, because others wait for it to end."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CHAIN_LOCK})
    last = session.execute(_LAST).first()
    seq, previous = (1, _START) if last is None else (last.seq + 1, last.digest)
    content = {
        "seq": seq, "at": _instant(at), "actor": actor, "action": action, "object": about, "details": details,
        "previous": previous,
    }  # fmt: skip
    event = {"seq": seq, "at": at, "actor": actor, "action": action, "object": about, "details": details}
    session.execute(insert(EventRow), event | {"previous": previous, "digest": digest_of(content)})


def first_broken(session: Session) -> int | None:
    """Number of the first event that is not what was recorded, or None where the chain holds.

    Events cut off at the end leave a shorter chain that holds: keep the last digest elsewhere to notice that.
    """
    previous, expected = _START, 1
    # Closed by hand: a server's cursor that is left half-read says so when it is collected.
    with session.scalars(select(EventRow).order_by(EventRow.seq).execution_options(yield_per=1000)) as rows:
        for row in rows:
            if row.seq != expected or row.previous != previous or row.digest != digest_of(_content(row)):
                return min(row.seq, expected)
            previous, expected = row.digest, row.seq + 1
    return None


def events(session: Session, *, after: int = 0, limit: int = 100) -> Iterator[EventRow]:
    """Newest first when `after` is 0, else those that follow it."""
    query = select(EventRow).limit(limit)
    query = query.where(EventRow.seq > after).order_by(EventRow.seq) if after else query.order_by(EventRow.seq.desc())
    yield from session.scalars(query)


def _content(row: EventRow) -> Mapping[str, Any]:
    return {
        "seq": row.seq, "at": _instant(row.at), "actor": row.actor, "action": row.action, "object": row.object,
        "details": row.details, "previous": row.previous,
    }  # fmt: skip


def _instant(at: datetime) -> str:
    return at.isoformat(timespec="microseconds")
