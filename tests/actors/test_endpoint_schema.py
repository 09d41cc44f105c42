from __future__ import annotations

import pytest
import requests
import schemathesis
from endpoint_process import Endpoint
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
PAGES = [
    ("POST", "/v1/diagnose"),
    ("POST", "/v1/certify"),
    ("GET", "/v1/models"),
    ("GET", "/v1/requests"),
    ("GET", "/v1/examples"),
    ("GET", "/v1/examples/{example}"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
]


PLAIN = ("/v1/models", "/v1/requests", "/healthz", "/readyz")  # they take nothing that could be wrong
CASES = [(*page, "positive") for page in PAGES] + [(*page, "negative") for page in PAGES if page[1] not in PLAIN]


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_whatever_is_asked_is_answered_as_the_schema_says(
    endpoint: Endpoint, method: str, path: str, mode: str
) -> None:
    schema = schemathesis.openapi.from_url(f"{endpoint.url}/openapi.json")
    operation = schema[path][method]
    kind = schemathesis.GenerationMode(mode)

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(generation_mode=kind))
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=endpoint.headers(), checks=CHECKS)

    ask()


def test_the_schema_names_every_page_and_every_way_to_be_refused(endpoint: Endpoint) -> None:
    said = requests.get(f"{endpoint.url}/openapi.json", timeout=60).json()
    assert {(method.upper(), path) for path, methods in said["paths"].items() for method in methods} == set(PAGES)
    refusals = set(said["paths"]["/v1/diagnose"]["post"]["responses"])
    assert {"200", "400", "401", "403", "404", "413", "415", "422", "429", "503"} <= refusals
