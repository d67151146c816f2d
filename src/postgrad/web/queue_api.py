"""The queue over HTTP, for pages, scripts and other people's front ends. Every body is JSON.

An answer is acknowledged after its transaction is on disk, and sending it again with the same `client_key` is safe:
that is all a client needs to lose nothing.
"""

from collections.abc import Callable, Collection
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from postgrad.errors import DataError, StaleError, StoreError
from postgrad.feedback.codec import conversation_to_json
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.tasks import Assigned, Nothing, Receipt
from postgrad.feedback.values import Kind

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


def queue_router(
    queue: LabelQueue, rater_of: Callable[[Request], str], kinds_of: Callable[[Request], Collection[Kind]]
) -> APIRouter:
    """Routes below /api.

    Args:
        queue: whose tasks are handed out.
        rater_of: the rater who asks, or an error of FastAPI's.
        kinds_of: kinds of task that this rater may do.
    """
    router = APIRouter(prefix="/api")
    Rater = Annotated[str, Depends(rater_of)]
    Kinds = Annotated[Collection[Kind], Depends(kinds_of)]

    @router.post("/claim")
    def claim(rater: Rater, kinds: Kinds) -> dict[str, Any]:
        return offered(queue.claim(rater, kinds=kinds))

    @router.post("/assignments/{assignment_id}/heartbeat")
    def heartbeat(assignment_id: str, rater: Rater) -> dict[str, Any]:
        return {"lease_until": queue.heartbeat(assignment_id, rater).isoformat()}

    @router.put("/assignments/{assignment_id}/draft")
    def save_draft(assignment_id: str, body: Draft, rater: Rater) -> dict[str, Any]:
        return {"version": queue.save_draft(assignment_id, rater, body.draft, version=body.version)}

    @router.post("/assignments/{assignment_id}/submit")
    def submit(assignment_id: str, body: Answer, rater: Rater) -> dict[str, Any]:
        receipt = queue.submit(
            assignment_id,
            rater,
            body.value,
            client_key=body.client_key,
            milliseconds=body.milliseconds,
            rationale=body.rationale,
        )
        return _receipt(receipt)

    @router.post("/assignments/{assignment_id}/skip")
    def skip(assignment_id: str, rater: Rater, reason: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        queue.skip(assignment_id, rater, reason)
        return {"skipped": assignment_id}

    @router.post("/undo")
    def undo(rater: Rater) -> dict[str, Any]:
        back = queue.undo(rater)
        return offered(Nothing("there is no answer to take back") if back is None else back)

    @router.get("/guideline")
    def guideline(rater: Rater) -> dict[str, Any]:
        found = queue.guideline()
        return {"version": None, "text": ""} if found is None else {"version": found[0], "text": found[1]}

    return router


def offered(task: Assigned | Nothing) -> dict[str, Any]:
    """What a browser may know of a task: texts by their place on the screen, not their numbers."""
    if isinstance(task, Nothing):
        return {"task": None, "reason": task.reason}
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
        }
    }


def explain_errors(app: FastAPI) -> None:
    """Our errors as JSON with the status that fits: 409 for what came too late, 400 for the rest."""

    def stale(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": {"message": str(error), "code": "stale"}}, 409)

    def refused(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": {"message": str(error), "code": "invalid"}}, 400)

    app.add_exception_handler(StaleError, stale)
    app.add_exception_handler(StoreError, refused)
    app.add_exception_handler(DataError, refused)


def _receipt(receipt: Receipt) -> dict[str, Any]:
    return {
        "label_id": receipt.label_id,
        "assignment_id": receipt.assignment_id,
        "created_at": receipt.created_at.isoformat(),
    }
