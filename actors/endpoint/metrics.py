"""What the endpoint counts, for Prometheus: on every node Ray exports it, each name with ``ray_`` in front."""

from __future__ import annotations

from typing import Any

from ray.serve import metrics

from fedplatform.serving.answer import Answer

MILLISECONDS: list[float] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]


class EndpointMetrics:
    """The counters of one ingress replica."""

    def __init__(self) -> None:
        def keys(*names: str) -> Any:  # Ray's annotation says one, and means any number
            return names

        self._requests = metrics.Counter(
            "fedplatform_requests", description="Requests answered.", tag_keys=keys("route_name", "status")
        )
        self._scans = metrics.Counter(
            "fedplatform_scans",
            description="Scans diagnosed.",
            tag_keys=keys("hospital", "flagged", "purified", "referred"),
        )
        self._stages = metrics.Histogram(
            "fedplatform_stage_milliseconds",
            description="How long each stage of a request took.",
            boundaries=MILLISECONDS,
            tag_keys=keys("stage"),
        )
        self._under_way = metrics.Gauge(
            "fedplatform_under_way",
            description="Requests under way, by the stage they are in.",
            tag_keys=keys("stage"),
        )

    def answered(self, route: str, status: int) -> None:
        """A request got its answer."""
        self._requests.inc(tags={"route_name": route, "status": str(status)})

    def diagnosed(self, answer: Answer) -> None:
        """A scan got its diagnosis."""
        said = {"flagged": answer.flagged, "purified": answer.purified, "referred": answer.referral is not None}
        tags = {name: str(value).lower() for name, value in said.items()}
        self._scans.inc(tags={"hospital": answer.hospital_id, **tags})

    def took(self, stage: str, milliseconds: float) -> None:
        """A stage of a request is over."""
        self._stages.observe(milliseconds, tags={"stage": stage})

    def under_way(self, stage: str, requests: int) -> None:
        """So many requests are in a stage now."""
        self._under_way.set(requests, tags={"stage": stage})
