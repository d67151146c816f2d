"""The queue over HTTP, for pages, scripts and other people's front ends. Every body is JSON.

An answer is acknowledged after its transaction is on disk, and sending it again with the same `client_key` is safe:
that is all a client needs to lose nothing.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from postgrad.feedback.codec import conversation_to_json
from postgrad.feedback.conversation import Conversations
from postgrad.feedback.people import Account
from postgrad.feedback.queue import LABELER_KINDS
from postgrad.feedback.tasks import Assigned, Nothing, Receipt
from postgrad.feedback.turns import TALKED
from postgrad.feedback.values import KINDS, MAX_CHARACTERS, Kind

MAX_RATIONALE = 20_000


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Answer(_Body):
    value: dict[str, Any]
    client_key: Annotated[str, Field(min_length=8, max_length=100)]
    milliseconds: Annotated[int, Field(ge=0, le=86_400_000)] | None = None
    rationale: Annotated[str, Field(max_length=MAX_RATIONALE)] = ""


class Draft(_Body):
    draft: dict[str, Any]
    version: Annotated[int, Field(ge=0)]


class Message(_Body):
    message: Annotated[str, Field(max_length=MAX_CHARACTERS)]
    version: Annotated[int, Field(ge=0)]


class Choice(_Body):
    place: Annotated[int, Field(ge=0)]
    version: Annotated[int, Field(ge=0)]
    strength: Annotated[int, Field(ge=1, le=3)] | None = None


def queue_router(talks: Conversations, labeler: Callable[[Request], Account]) -> APIRouter:
    """Routes below /api.

    Args:
        talks: in the queue whose tasks are handed out.
        labeler: a dependency that says who asks, or refuses.
    """
    queue = talks.queue
    router = APIRouter(prefix="/api")
    Labeler = Annotated[Account, Depends(labeler)]

    @router.post("/claim")
    def claim(labeler: Labeler) -> dict[str, Any]:
        return offered(queue.claim(labeler.id, kinds=kinds_for(labeler, talks)))

    @router.post("/assignments/{assignment_id}/heartbeat")
    def heartbeat(assignment_id: str, labeler: Labeler) -> dict[str, Any]:
        return {"lease_until": queue.heartbeat(assignment_id, labeler.id).isoformat()}

    @router.put("/assignments/{assignment_id}/draft")
    def save_draft(assignment_id: str, body: Draft, labeler: Labeler) -> dict[str, Any]:
        return {"version": queue.save_draft(assignment_id, labeler.id, body.draft, version=body.version)}

    @router.post("/assignments/{assignment_id}/say")
    async def say(assignment_id: str, body: Message, labeler: Labeler) -> dict[str, Any]:
        heard = await talks.say(assignment_id, labeler.id, body.message, version=body.version)
        return offered(heard.task) | {"note": heard.note}

    @router.post("/assignments/{assignment_id}/choose")
    def choose(assignment_id: str, body: Choice, labeler: Labeler) -> dict[str, Any]:
        return offered(
            talks.choose(assignment_id, labeler.id, body.place, version=body.version, strength=body.strength)
        )

    @router.post("/assignments/{assignment_id}/submit")
    def submit(assignment_id: str, body: Answer, labeler: Labeler) -> dict[str, Any]:
        receipt = queue.submit(
            assignment_id,
            labeler.id,
            body.value,
            client_key=body.client_key,
            milliseconds=body.milliseconds,
            rationale=body.rationale,
        )
        return _receipt(receipt)

    @router.post("/assignments/{assignment_id}/skip")
    def skip(assignment_id: str, labeler: Labeler, reason: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        queue.skip(assignment_id, labeler.id, reason)
        return {"skipped": assignment_id}

    @router.post("/undo")
    def undo(labeler: Labeler) -> dict[str, Any]:
        back = queue.undo(labeler.id)
        return offered(Nothing("there is no answer to take back") if back is None else back)

    @router.get("/guideline")
    def guideline(labeler: Labeler) -> dict[str, Any]:
        found = queue.guideline()
        return {"version": None, "text": ""} if found is None else {"version": found[0], "text": found[1]}

    return router


def offered(task: Assigned | Nothing) -> dict[str, Any]:
    """What a browser may know of a task: texts by their place on the screen, not their numbers."""
    if isinstance(task, Nothing):
        return {"task": None, "reason": task.reason}
    votes = {"votes": [{"said": vote.said, "remark": vote.remark} for vote in task.votes]}
    return {
        "task": {
            "assignment_id": task.id,
            "kind": task.kind,
            "prompt": conversation_to_json(task.prompt),
            "answers": list(task.answers),
            "details": dict(task.details),
            "lease_until": task.lease_until.isoformat(),
            "draft": task.draft,
            "draft_version": task.draft_version,
            **(votes if task.kind == "adjudicate" else {}),
            "turns": [asdict(turn) for turn in task.turns],
        }
    }


def kinds_for(account: Account, talks: Conversations) -> frozenset[Kind]:
    """Kinds of task that an account may do here: conversations only where there is somebody to talk with."""
    allowed = frozenset(KINDS) if "adjudicate" in account.permissions else LABELER_KINDS
    return allowed if talks.is_open else allowed - TALKED


def _receipt(receipt: Receipt) -> dict[str, Any]:
    return {
        "label_id": receipt.label_id,
        "assignment_id": receipt.assignment_id,
        "created_at": receipt.created_at.isoformat(),
    }
