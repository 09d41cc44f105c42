"""The application: ingress, diagnostician, purifying and auditor put together."""

# No "from __future__ import annotations" here: Serve reads the type of the builder's argument, not its name.

from typing import Any

from ray.serve import Application

from actors.endpoint.arguments import EndpointArguments
from actors.endpoint.auditor import Auditor
from actors.endpoint.diagnostician import Diagnostician
from actors.endpoint.ingress import Ingress
from actors.endpoint.purifying import Purifying
from fedplatform.serving.versions import hospitals_in


def app(arguments: EndpointArguments) -> Application:
    """Build the application; ``serve deploy`` calls this with the ``args`` of its config file."""
    versions = arguments.where()
    for hospital_id in hospitals_in(versions.folder(versions.champion())):
        arguments.secret(hospital_id)  # now, and not by two replicas at the same moment
    ingress, *behind = deployments(arguments)
    application: Application = ingress.bind(arguments, *(deployment.bind(arguments) for deployment in behind))
    return application


def deployments(arguments: EndpointArguments) -> list[Any]:
    """What the application is made of, the ingress first; where networks are held, with a share of a GPU."""
    networks: list[Any] = [Diagnostician, Purifying]  # the decorators' types hide what they make
    if arguments.gpus:
        networks = [part.options(ray_actor_options={"num_gpus": arguments.gpus}) for part in networks]
    return [Ingress, *networks, Auditor]
