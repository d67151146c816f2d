"""Refusals as JSON, `{"error": {"message", "code"}}`: the message is a sentence for the person who asked."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from postgrad.errors import AccessError, DataError


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
    app.add_exception_handler(AccessError, _on_access_error)
    app.add_exception_handler(DataError, _on_data_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)


async def _on_refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return error.response()


async def _on_access_error(request: Request, error: Exception) -> JSONResponse:
    return _response(403, "forbidden", str(error), {})


async def _on_data_error(request: Request, error: Exception) -> JSONResponse:
    return _response(400, "invalid", str(error), {})


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return _response(400, "invalid", f"{where or 'body'}: {first['msg'].removeprefix('Value error, ')}", {})


def _response(status: int, code: str, message: str, headers: Mapping[str, str]) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": code}}, status, headers)
