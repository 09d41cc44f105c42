"""The application: ingress, diagnostician, purifying and auditor put together."""

# No "from __future__ import annotations" here: Serve reads the type of the builder's argument, not its name.

from ray.serve import Application

from actors.endpoint.arguments import EndpointArguments
from actors.endpoint.auditor import Auditor
from actors.endpoint.diagnostician import Diagnostician
from actors.endpoint.ingress import Ingress
from actors.endpoint.purifying import Purifying


def app(arguments: EndpointArguments) -> Application:
    """Build the application; ``serve deploy`` calls this with the ``args`` of its config file."""
    return Ingress.bind(arguments, Diagnostician.bind(arguments), Purifying.bind(arguments), Auditor.bind(arguments))
