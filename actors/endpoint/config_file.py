"""The file that ``serve deploy`` and a RayService take: the same application, on a cluster."""

from __future__ import annotations

from typing import Any

import yaml
from ray.serve.schema import ServeDeploySchema

from actors.endpoint.arguments import EndpointArguments, UserConfiguration
from actors.http.guard import BODY_BYTES, BODY_VARIABLE
from actors.http.start import MIDDLEWARES, REQUEST_TIMEOUT_S, VARIABLE
from fedplatform.serving.versions import CHAMPION

NAME = "fedplatform"
APPLICATION = "actors.endpoint:app"
HEADING = f"""\
# fedplatform's endpoint for 'serve deploy FILE' or the serveConfigV2 of a RayService.
# The nodes need a file system in common for the folders below. Where the head was not started by 'fedplatform node',
# Ray needs this variable there, or a request whose replica dies gets a bare 500 and no 503:
#   {VARIABLE}={MIDDLEWARES}
# Requests may hold {BODY_BYTES // 2**20} MiB there; for the largest files that the arguments allow, all nodes need
#   {BODY_VARIABLE}={{body_bytes}}
# A version is rolled out, or back, by 'fedplatform publish'; or by its number under user_config and 'serve deploy'.
"""


def config_of(
    arguments: EndpointArguments, *, host: str, port: int, tls: tuple[str, str] | None, replicas: int = 1
) -> dict[str, Any]:
    """The config as plain values; Serve's own schema has accepted it."""
    http: dict[str, Any] = {"host": host, "port": port, "request_timeout_s": REQUEST_TIMEOUT_S}
    if tls is not None:
        http |= {"ssl_certfile": tls[0], "ssl_keyfile": tls[1]}
    config = {
        "proxy_location": "HeadOnly",
        "http_options": http,
        "logging_config": {"enable_access_log": False},
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": APPLICATION,
                "args": arguments.settings(),
                "deployments": [
                    {"name": "Ingress", "user_config": UserConfiguration(version=CHAMPION).settings()},
                    {"name": "Diagnostician", "num_replicas": replicas},
                    {"name": "Purifying", "num_replicas": 1},
                ],
            }
        ],
    }
    ServeDeploySchema.model_validate(config)
    return config


def text_of(config: dict[str, Any]) -> str:
    """The config as the text of its file."""
    (application,) = config["applications"]
    most = application["args"]["max_bytes"] + 2**20
    return HEADING.format(body_bytes=most) + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
