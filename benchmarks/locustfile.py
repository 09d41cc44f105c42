"""Locust's users of the load test (:mod:`benchmarks.load`): each sends scan after scan and checks every answer."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

from locust import FastHttpUser, LoadTestShape, constant, task

PLAN = json.loads(Path(os.environ["LOAD_PLAN"]).read_text())
RECORDS = Path(PLAN["records"]).open("w", buffering=1)  # noqa: SIM115 - open as long as the users are
BOUNDARY = "fedplatformload"
TOLERANCE = 1e-4
chance = random.Random(0)


def body_of(scan: dict) -> bytes:
    data = Path(scan["file"]).read_bytes()
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="scan"; filename="scan.png"\r\n\r\n'
    return head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


BODIES = {scan["file"]: body_of(scan) for scan in PLAN["scans"]}
CLEAN = [scan for scan in PLAN["scans"] if not scan["attacked"]]
ATTACKED = [scan for scan in PLAN["scans"] if scan["attacked"]]


def is_right(answer: dict, scan: dict) -> bool:
    """Whether it is what the library says of this scan."""
    expected = scan["expected"]
    apart = [abs(answer["probabilities"][name] - share) for name, share in expected["probabilities"].items()]
    return max(apart) <= TOLERANCE and answer["flagged"] == expected["flagged"]


class Hospital(FastHttpUser):
    """Asks as soon as it has its answer; where it is told to come back, it does so then."""

    wait_time = constant(0)
    connection_timeout = network_timeout = 60

    @task
    def diagnose(self) -> None:
        scan = chance.choice(ATTACKED if chance.random() < PLAN["attacked_share"] else CLEAN)
        started = time.perf_counter()
        with self.client.post(
            f"/v1/diagnose?hospital={scan['hospital']}",
            data=BODIES[scan["file"]],
            headers={
                "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
                "X-API-Key": PLAN["keys"][scan["hospital"]],
            },
            catch_response=True,
        ) as response:
            record = {
                "at": time.time(),
                "status": response.status_code,
                "client": 1000 * (time.perf_counter() - started),
                "retry_after": response.headers.get("retry-after") if response.headers else None,
            }
            if response.status_code == 200:
                (answer,) = response.json()["answers"]
                record |= {"right": is_right(answer, scan), "flagged": answer["flagged"], **answer["milliseconds"]}
            RECORDS.write(json.dumps(record) + "\n")
            response.success()  # what counts as a failure is said in the table, not by Locust
        if response.status_code == 503:
            time.sleep(float(record["retry_after"] or 1))


class Shape(LoadTestShape):
    """So many users for so many seconds, one step after the other."""

    def tick(self) -> tuple[int, float] | None:
        gone = self.get_run_time()
        for seconds, users in PLAN["steps"]:
            if gone < seconds:
                return users, 200
            gone -= seconds
        return None
