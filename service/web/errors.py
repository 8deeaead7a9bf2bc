"""Errors as answers: the sentence that a command would print, as JSON to programs and as a page to people."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from models.errors import ModelError
from service.errors import ConfigurationError, TamisError, UsageError
from service.logs import fields
from service.storage.database.open import trouble
from service.web.security import API
from service.web.site import NotFound, Site

log = logging.getLogger(__name__)


def add_error_answers(app: FastAPI, site: Site) -> None:
    """Make `app` answer every error in the same form."""

    def answer(request: Request, status: int, message: str, headers: dict[str, str] | None = None) -> Response:
        if request.url.path.startswith(API):
            return JSONResponse({"error": message}, status, headers)
        response = site.page(request, "error.html", status, title=HTTPStatus(status).phrase, message=message)
        response.headers.update(headers or {})
        return response

    async def of_tamis(request: Request, error: Exception) -> Response:
        if isinstance(error, ConfigurationError):
            log.error("request failed", extra=fields(path=request.url.path, reason=error))
        return answer(request, _status(error), str(error))

    async def of_validation(request: Request, error: Any) -> Response:
        return answer(request, 422, "; ".join(_sentence(problem) for problem in error.errors()[:5]))

    async def of_http(request: Request, error: Any) -> Response:
        message = str(error.detail)
        if error.status_code == 404:
            message = f"page: expected a known address; found {request.url.path[:100]!r}"
        return answer(request, error.status_code, message, error.headers)

    async def of_database(request: Request, error: Any) -> Response:
        if (why := trouble(error)) is not None:
            said = "locked by another program for too long" if why == "locked" else "its server does not answer"
            return answer(request, 503, f"database: {said}; try again", {"retry-after": "5"})
        log.error("request failed", exc_info=error, extra=fields(path=request.url.path))
        return answer(request, 500, "the database could not answer; the log of `tamis web` says why")

    async def of_anything(request: Request, error: Exception) -> Response:
        log.error("request failed", exc_info=error, extra=fields(path=request.url.path))
        return answer(request, 500, "something went wrong; the log of `tamis web` says what")

    for kind, handler in {
        TamisError: of_tamis,
        ModelError: of_tamis,
        RequestValidationError: of_validation,
        HTTPException: of_http,
        DBAPIError: of_database,
        Exception: of_anything,
    }.items():
        app.add_exception_handler(kind, handler)


def _status(error: Exception) -> int:
    if isinstance(error, NotFound):
        return 404
    if isinstance(error, UsageError):
        return 400
    return 500 if isinstance(error, ConfigurationError) else 409


def _sentence(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    found = problem.get("input")
    return f"{name}: {problem['msg']}; found {str(found)[:100]!r}"
