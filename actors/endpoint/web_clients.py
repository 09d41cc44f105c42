"""What clients beside the page need: HEAD requests, a path prefix of a reverse proxy, and CORS for other origins."""

from __future__ import annotations

from dataclasses import dataclass, replace

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True)
class WebSettings:
    """``root_path`` is the prefix ("" or "/scan") under which a reverse proxy shows the endpoint; ``origins`` may ask
    from a browser ("*" for all)."""

    root_path: str = ""
    origins: tuple[str, ...] = ()


# Serve packs the FastAPI application before the arguments are known; the replica sets this before its first request.
_settings = WebSettings()


def configure(*, root_path: str, origins: tuple[str, ...]) -> None:
    """Set what the middleware of this process does from now on."""
    global _settings
    _settings = replace(_settings, root_path=root_path.rstrip("/"), origins=origins)


class WebClients:
    """ASGI middleware, see the module."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._shared: tuple[tuple[str, ...], CORSMiddleware] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, as a GET where it is a HEAD."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"
        # Starlette takes the prefix off where the proxy left it on, and leaves a path alone where it did not.
        scope = {
            **scope,
            "method": "GET" if is_head else scope["method"],
            "root_path": scope.get("root_path", "") + _settings.root_path,
        }

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._behind()(scope, receive, without_body if is_head else send)

    def _behind(self) -> ASGIApp:
        origins = _settings.origins
        if not origins:
            return self._app
        if self._shared is None or self._shared[0] != origins:
            middleware = CORSMiddleware(
                self._app,
                allow_origins=list(origins),
                allow_methods=["GET", "HEAD", "POST"],
                allow_headers=["Authorization", "X-API-Key", "X-Request-Id"],
                expose_headers=["X-Request-Id", "Retry-After"],
            )
            self._shared = (origins, middleware)
        return self._shared[1]
