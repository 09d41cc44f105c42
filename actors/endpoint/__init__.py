"""The defence behind HTTP, on Ray Serve: ``actors.endpoint:app`` builds the application."""

from actors.endpoint.application import app
from actors.endpoint.arguments import EndpointArguments

__all__ = ["EndpointArguments", "app"]
