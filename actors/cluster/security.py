"""Who gets in: Ray's token in every launch path, TLS by one setting, and a knock that says what is wrong at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.cluster.certificates import AUTHORITY, CERTIFICATE, KEY
from fedplatform.core.errors import FedplatformError

TOKEN_FILE = Path("~/.ray/auth_token")
TLS = "FEDPLATFORM_TLS"
KNOCK_S = 15.0


class ClusterError(FedplatformError, RuntimeError):
    """Something about a cluster that stops a command; the message is one line for the person who gave it."""


class AccessError(ClusterError):
    """A cluster that cannot be joined, or invalid credentials; one line, with what to do."""


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that are to be set for Ray, given those that are.

    The token is asked for unless somebody said ``RAY_AUTH_MODE=disabled``; ``FEDPLATFORM_TLS`` names a folder with
    tls.crt, tls.key and ca.crt, as a Kubernetes TLS secret has them, and turns TLS on for all of Ray's connections.
    """
    wanted = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    wanted = {name: environment.get(name, value) for name, value in wanted.items()}
    folder = environment.get(TLS)
    if folder:
        place = Path(folder).expanduser().resolve()
        files = {name: place / name for name in (CERTIFICATE, KEY, AUTHORITY)}
        missing = [str(path) for path in files.values() if not os.access(path, os.R_OK)]
        if missing:
            raise AccessError(f"{TLS}={folder} lacks {', '.join(missing)}: 'fedplatform certificate' makes them")
        wanted |= {
            TLS: str(place),  # jobs and workers inherit it, and stand in other folders
            "RAY_USE_TLS": "1",
            "RAY_TLS_SERVER_CERT": str(files[CERTIFICATE]),
            "RAY_TLS_SERVER_KEY": str(files[KEY]),
            "RAY_TLS_CA_CERT": str(files[AUTHORITY]),
        }
    return wanted


def secure() -> None:
    """Set them for this process and all that it starts."""
    os.environ.update(settings(os.environ))
    if "ray" in sys.modules:  # it read them when it was imported, and has to read them again
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")


def asks_for_token() -> bool:
    """Whether this process shows, and a Ray that it starts demands, the token."""
    return os.environ.get("RAY_AUTH_MODE") == "token"


def token() -> str:
    """The token as Ray finds it: in the environment, in the file that it names, in ~/.ray/auth_token; or empty."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return os.environ["RAY_AUTH_TOKEN"].strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", TOKEN_FILE)).expanduser()
    return path.read_text().strip() if path.is_file() else ""


def require_token(*, make: bool = False) -> None:
    """See that there is a token where one is asked for; ``make`` writes a new one, for its owner's eyes only."""
    if not asks_for_token() or token():
        return
    if not make:
        raise AccessError(
            f"the cluster asks for a token and none is here: copy {TOKEN_FILE} of its head node, or set RAY_AUTH_TOKEN"
        )
    from ray._private.authentication.authentication_token_generator import generate_new_authentication_token

    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", TOKEN_FILE)).expanduser()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(generate_new_authentication_token())
    except OSError as error:
        chosen = "RAY_AUTH_TOKEN_PATH" if "RAY_AUTH_TOKEN_PATH" in os.environ else "HOME"
        raise AccessError(
            f"cannot write Ray's token to {path}, which {chosen} chose: {error.strerror}; "
            "set RAY_AUTH_TOKEN_PATH to a file that can be written"
        ) from error


def knock(address: str) -> None:
    """Ask the cluster at HOST:PORT for its name, as Ray would do for half a minute without saying why it failed.

    Raises :class:`AccessError` where nobody answers, the token is wrong or missing, or one side speaks TLS alone.
    """
    import grpc  # type: ignore[import-untyped]

    refused = _name_of_cluster(address, {"authorization": f"Bearer {token()}"} if asks_for_token() else {})
    if refused is None:
        return
    if refused is grpc.StatusCode.UNAUTHENTICATED:
        raise AccessError(f"the cluster at {address} refuses the token: copy {TOKEN_FILE} from its head node")
    tls = "on" if os.environ.get("RAY_USE_TLS") == "1" else "off"
    raise AccessError(f"no Ray cluster answers at {address} with TLS {tls} ({TLS}): {refused.name.lower()}")


def is_open_to_all(address: str) -> bool:
    """Whether the cluster at HOST:PORT answers to somebody without a token."""
    return _name_of_cluster(address, {}) is None


def _name_of_cluster(address: str, metadata: Mapping[str, str]) -> Any:
    """None where the cluster answers, else the gRPC status code with which it did not."""
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    if os.environ.get("RAY_USE_TLS") == "1":
        authority, key, certificate = (
            Path(os.environ[f"RAY_TLS_{name}"]).read_bytes() for name in ("CA_CERT", "SERVER_KEY", "SERVER_CERT")
        )
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, certificate))
    else:
        channel = grpc.insecure_channel(address)
    with channel:
        try:
            service = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            service.GetClusterId(
                gcs_service_pb2.GetClusterIdRequest(),  # type: ignore[attr-defined]
                timeout=KNOCK_S,
                metadata=tuple(metadata.items()),
            )
        except grpc.RpcError as error:
            return error.code()
    return None
