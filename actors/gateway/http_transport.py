"""A hospital's way to the gateway: HTTPS, outgoing only, through the proxy that the environment names."""

from __future__ import annotations

import json
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from fedplatform.core.settings import ExperimentError
from fedplatform.outside.agent import Unreachable
from fedplatform.outside.refusal import Reason, Refusal

TIMEOUT_S = (10, 60)  # to connect; between two pieces of an answer
# What OpenSSL says of a certificate, and what that means for whoever joins.
DISTRUST = {
    "certificate has expired": "has expired; the operator of the federation has to renew it",
    "not yet valid": "is not valid yet; is this machine's clock right?",
    "mismatch": "is for another name than the one in the URL; the operator says which name it bears",
}


class HttpTransport:
    """The :class:`fedplatform.outside.agent.GatewayTransport` to a URL.

    ``authority`` is a file of certificates to trust instead of the machine's.

    Raises :class:`ExperimentError` where the server's certificate is not trusted or the URL lacks https: that will not
    be better in a moment, as whatever else fails may.
    """

    def __init__(self, url: str, *, authority: Path | None) -> None:
        self._url = url.rstrip("/")
        self._session = requests.Session()
        self._authority = str(authority) if authority else None

    def hello(self) -> bytes:
        """See :class:`fedplatform.outside.gateway_server.GatewayServer`, for this and all below."""
        return self._ask("GET", "federation")

    def enter(self, greeting: bytes) -> str:
        return str(self._value("token", self._ask("POST", "sessions", data=greeting)))

    def terms(self, token: str) -> bytes:
        return self._ask("GET", "terms", token)

    def work(self, token: str) -> bytes:
        return self._ask("GET", "work", token)

    def weights(self, token: str, base: str, offset: int) -> bytes:
        return self._ask("GET", "weights", token, params={"base": base, "offset": offset})

    def announce(self, token: str, envelope: bytes) -> int:
        return int(self._value("received", self._ask("POST", "messages", token, data=envelope)))

    def append(self, token: str, digest: str, offset: int, piece: bytes) -> int:
        where = {"digest": digest, "offset": offset}
        return int(self._value("received", self._ask("PUT", "messages", token, params=where, data=piece)))

    def _ask(self, method: str, path: str, token: str = "", **what: Any) -> bytes:
        headers = {"authorization": token} if token else {}
        url = f"{self._url}/v1/{path}"
        try:
            answer = self._session.request(
                method,
                url,
                headers=headers,
                timeout=TIMEOUT_S,
                allow_redirects=False,
                verify=self._authority,  # here and not in the session, where REQUESTS_CA_BUNDLE would overrule it
                **what,
            )
        except requests.exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ExperimentError(_distrust(self._url, str(error))) from error
            raise Unreachable(f"{self._url}: {_reason(error)}") from error
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise ExperimentError(f"{self._url} is no address: {error}") from error
        except requests.exceptions.RequestException as error:
            if _speaks_tls(self._url):
                raise ExperimentError(f"{self._url} speaks TLS: https{self._url.removeprefix('http')}") from error
            raise Unreachable(f"{self._url}: {_reason(error)}") from error
        if answer.status_code == 200:
            body: bytes = answer.content
            return body
        said = _json_of(answer)
        if said.get("reason") in set(Reason):
            raise Refusal(Reason(said["reason"]), str(said.get("error", ""))[:500])
        if answer.status_code in (404, 405):
            raise ExperimentError(f"{self._url} is no gateway of a federation")
        raise Unreachable(f"{self._url} answered with status {answer.status_code}")

    def _value(self, name: str, answer: bytes) -> Any:
        try:
            return json.loads(answer)[name]
        except (ValueError, KeyError, TypeError) as error:
            raise Unreachable(f"{self._url} sent an answer that is none") from error


def _distrust(url: str, said: str) -> str:
    """Why a certificate is not trusted, and whose turn it is."""
    for words, sentence in DISTRUST.items():
        if words in said:
            return f"the certificate of {url} {sentence}"
    return f"the certificate of {url} is not trusted; --ca FILE names the authority that signed it"


def _speaks_tls(url: str) -> bool:
    """Whether there is TLS where a URL says http."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return False
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only whether it answers; nothing is sent
    try:
        with (
            socket.create_connection((parts.hostname, parts.port or 80), timeout=TIMEOUT_S[0]) as line,
            context.wrap_socket(line),
        ):
            return True
    except (OSError, ValueError):
        return False


def _json_of(answer: requests.Response) -> dict[str, Any]:
    try:
        said = answer.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _reason(error: Exception) -> str:
    cause = " ".join(str(error).split())
    return cause.rpartition("] ")[2].rstrip("'\")") or type(error).__name__
