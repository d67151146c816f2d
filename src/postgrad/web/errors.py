"""Refusals as JSON, `{"error": {"message", "code"}}`: the message is a sentence for the person who asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from postgrad.errors import AccessError, DataError, StaleError, StoreError

_STATUS: Final[Mapping[type[Exception], tuple[int, str]]] = {
    AccessError: (403, "forbidden"),
    DataError: (400, "invalid"),
    StaleError: (409, "stale"),
    StoreError: (503, "store_unavailable"),
}
"""Only what may go away by itself is a 5xx, on which clients send the same again."""


class Refused(Exception):
    """A request that is turned down before anything is asked of the store."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = {} if retry_after_s is None else {"retry-after": str(math.ceil(retry_after_s))}

    def response(self) -> JSONResponse:
        return _response(self.status, self.code, str(self), self.headers)


def explain_refusals(app: FastAPI) -> None:
    """Let an application answer in this shape; what was sent, perhaps a password, is never repeated."""
    app.add_exception_handler(Refused, _on_refused)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    for kind in _STATUS:
        app.add_exception_handler(kind, _on_error)


async def _on_refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return error.response()


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    status, code = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    return _response(status, code, str(error), {})


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return _response(400, "invalid", f"{where or 'body'}: {first['msg'].removeprefix('Value error, ')}", {})


def _response(status: int, code: str, message: str, headers: Mapping[str, str]) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": code}}, status, headers)
