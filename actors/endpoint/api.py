"""The FastAPI application that the ingress hangs its routes on: its description, its errors, its documentation page."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException

from actors.endpoint.authentication import TooFast
from actors.endpoint.pipeline import Unavailable
from actors.endpoint.web_clients import WebClients
from actors.http.guard import RETRY_AFTER_S, Guard
from fedplatform.serving.answer import ErrorAnswer
from fedplatform.serving.intake import Refused

MEANINGS = {
    400: "The upload is broken.",
    401: "The API key is missing, unknown, revoked or expired.",
    403: "The API key opens another hospital's model.",
    404: "There is no such hospital, example or page.",
    405: "The page does not take this method.",
    413: "The upload is too large.",
    415: "The upload is of no kind that is read here.",
    422: "The upload is complete but not a scan, or a parameter is invalid.",
    429: "Too many scans in too short a time; the header Retry-After says when to come back.",
    503: "The server is busy, a part of it is being started, or its keys or its audit log cannot be used now; "
    "the header Retry-After says when to come back.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": meaning} for status, meaning in MEANINGS.items()
}
OPEN: dict[int | str, dict[str, Any]] = {
    status: ERRORS[status] for status in (404, 405, 413, 422, 503)
}  # of what needs no key
LOCKED = [
    Security(APIKeyHeader(name="X-API-Key", auto_error=False)),
    Security(HTTPBearer(auto_error=False)),
]
UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["scan"],
                    "properties": {
                        "scan": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                            "description": "PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI files; the bytes say which",
                        }
                    },
                }
            }
        },
    }
}
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self' 'unsafe-inline'",
        "style-src 'self' 'unsafe-inline'",
        "img-src data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)

api = FastAPI(
    title="fedplatform",
    summary="The diagnosis of a scan, its doubt and its evidence.",
    description="Research software and no medical device: no answer may guide the care of a patient.",
    version="1",
    docs_url=None,
    redoc_url=None,
)
api.add_middleware(WebClients)
api.add_middleware(Guard)


def request_id_of(request: Request) -> str:
    """The id that the gateway gave a request."""
    found: str = request.state.request_id
    return found


def error_response(
    request: Request, status: int, sentence: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """One sentence as the whole answer."""
    said = ErrorAnswer(request_id=request_id_of(request), error=sentence)
    return JSONResponse(said.model_dump(), status_code=status, headers=dict(headers or {}))


@api.exception_handler(Refused)
def _refused(request: Request, refusal: Refused) -> Response:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(RETRY_AFTER_S)}}
    return error_response(request, refusal.status, refusal.sentence, headers.get(refusal.status))


@api.exception_handler(TooFast)
def _too_fast(request: Request, limit: TooFast) -> Response:
    sentence = "Too many scans in too short a time."
    return error_response(request, 429, sentence, {"Retry-After": str(limit.retry_after_s)})


@api.exception_handler(Unavailable)
def _unavailable(request: Request, _: Unavailable) -> Response:
    sentence = "The server is busy or a part of it is being started; try again."
    return error_response(request, 503, sentence, {"Retry-After": str(RETRY_AFTER_S)})


@api.exception_handler(RequestValidationError)
def _will_not_do(request: Request, problem: RequestValidationError) -> Response:
    first = problem.errors()[0]
    where = first["loc"][-1]
    return error_response(request, 422, f"Invalid parameter {where}: {first['msg']}.")


@api.exception_handler(HTTPException)
def _http(request: Request, problem: HTTPException) -> Response:
    return error_response(
        request, problem.status_code, MEANINGS.get(problem.status_code, problem.detail), problem.headers
    )


@api.get("/docs", include_in_schema=False)
def docs(request: Request) -> HTMLResponse:
    """The OpenAPI description as a page that asks nobody else for anything."""
    root = request.scope["root_path"]
    html = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="fedplatform: API",
        swagger_js_url=f"{root}/docs/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/docs/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    html.headers["content-security-policy"] = POLICY
    return html


@api.get("/docs/{asset}", include_in_schema=False)
def docs_asset(asset: str) -> Response:
    """The code of that page, from the package that brings it."""
    kinds = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
    if asset not in kinds:
        raise Refused(404, MEANINGS[404])
    file = resources.files("fastapi_swagger") / "resources" / asset
    return Response(file.read_bytes(), media_type=kinds[asset], headers={"cache-control": "max-age=86400"})
