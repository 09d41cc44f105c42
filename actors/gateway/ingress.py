"""The deployment that hospitals outside speak to: bytes go to the gateway's server, sentences come back."""

# No "from __future__ import annotations" here: under serve.ingress FastAPI would not find what the names mean. And no
# function below the class: the decorator packs the class, and with it what this module holds at that moment.

from collections.abc import Awaitable
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from starlette.exceptions import HTTPException

from actors.http.guard import RETRY_AFTER_S, Guard
from fedplatform.outside.refusal import Reason, Refusal
from fedplatform.outside.work import CHUNK

STATUS = {
    Reason.STRANGER: 403,
    Reason.FORGED: 403,
    Reason.FOREIGN: 403,
    Reason.NO_SESSION: 401,
    Reason.HERE_ALREADY: 409,
    Reason.OVERSIZE: 413,
    Reason.LATE: 409,
    Reason.NOT_ASKED: 409,
    Reason.STALE: 409,
    Reason.REPLAYED: 409,
}  # 422 for all others
Token = Annotated[str, Header(alias="authorization", max_length=200)]
Digest = Annotated[str, Query(max_length=64)]
Offset = Annotated[int, Query(ge=0, le=2**40)]

api = FastAPI(title="fedplatform gateway", version="1", docs_url=None, redoc_url=None, openapi_url=None)
api.add_middleware(Guard)


@api.exception_handler(Refusal)
def _refused(_: Request, refusal: Refusal) -> Response:
    said = {"reason": refusal.reason, "error": refusal.sentence}
    # What is left of a message that is too large is not read, so its connection is of no use.
    headers = {"connection": "close"} if refusal.reason is Reason.OVERSIZE else None
    return JSONResponse(said, status_code=STATUS.get(refusal.reason, 422), headers=headers)


@api.exception_handler(HTTPException)
def _http(_: Request, problem: HTTPException) -> Response:
    return JSONResponse({"error": problem.detail}, status_code=problem.status_code)


@serve.deployment(
    max_ongoing_requests=64,
    max_queued_requests=256,
    health_check_period_s=2,
    health_check_timeout_s=30,
    ray_actor_options={"num_cpus": 0},  # it waits
)
@serve.ingress(api)
class Ingress:
    """Carries messages to the gateway's server and decides nothing: a piece at a time, and none is ever unpickled."""

    def __init__(self, gateway: Any) -> None:
        self._gateway = gateway

    @api.get("/v1/federation")
    async def hello(self) -> Response:
        """A challenge for whoever knocks."""
        return Response(await self._or_refusal(self._gateway.hello.remote()), media_type="application/json")

    @api.post("/v1/sessions")
    async def enter(self, request: Request) -> dict[str, str]:
        """Let a hospital in that has signed the challenge."""
        return {"token": await self._or_refusal(self._gateway.enter.remote(await self._body(request)))}

    @api.get("/v1/terms")
    async def terms(self, token: Token = "") -> Response:
        """What the federation asks of a hospital."""
        return Response(await self._or_refusal(self._gateway.terms.remote(token)), media_type="application/json")

    @api.get("/v1/work")
    async def work(self, token: Token = "") -> Response:
        """What there is to do now."""
        return Response(await self._or_refusal(self._gateway.work.remote(token)), media_type="application/json")

    @api.get("/v1/weights")
    async def weights(self, base: Digest, offset: Offset, token: Token = "") -> Response:
        """The next piece of the weights."""
        piece = await self._or_refusal(self._gateway.weights.remote(token, base, offset))
        return Response(piece, media_type="application/octet-stream")

    @api.post("/v1/messages")
    async def announce(self, request: Request, token: Token = "") -> dict[str, int]:
        """Announce a message; how much of it is here."""
        return {"received": await self._or_refusal(self._gateway.announce.remote(token, await self._body(request)))}

    @api.put("/v1/messages")
    async def append(self, request: Request, digest: Digest, offset: Offset, token: Token = "") -> dict[str, int]:
        """Add a piece to a message; how much of it is here now."""
        piece = await self._body(request)
        return {"received": await self._or_refusal(self._gateway.append.remote(token, digest, offset, piece))}

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > CHUNK:
                sentence = f"a piece has at most {CHUNK} bytes"
                await self._gateway.refuse.remote(Reason.OVERSIZE, sentence)
                raise Refusal(Reason.OVERSIZE, sentence)
        return bytes(body)

    async def _or_refusal(self, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except RayTaskError as error:
            if isinstance(error.cause, Refusal):
                raise error.cause from None
            raise
        except RayActorError:
            sentence = "The gateway is being started again; try again."
            raise HTTPException(503, sentence, {"retry-after": str(RETRY_AFTER_S)}) from None
