from __future__ import annotations

import schemathesis
from endpoint_process import Endpoint
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import pytest

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture
def api(endpoint: Endpoint) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{endpoint.url}/openapi.json", headers=endpoint.headers())


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_the_schema_allows_is_answered_as_the_schema_says(case: schemathesis.Case, endpoint: Endpoint) -> None:
    case.call_and_validate(headers=endpoint.headers(), checks=CHECKS)


def test_the_schema_names_every_page_and_every_way_to_be_refused(endpoint: Endpoint) -> None:
    import requests

    said = requests.get(f"{endpoint.url}/openapi.json", timeout=60).json()
    assert {"/v1/diagnose", "/v1/certify", "/v1/models", "/healthz", "/readyz"} <= set(said["paths"])
    refusals = set(said["paths"]["/v1/diagnose"]["post"]["responses"])
    assert {"200", "400", "401", "403", "404", "413", "415", "422", "429", "503"} <= refusals
