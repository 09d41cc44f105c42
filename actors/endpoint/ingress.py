"""The deployment that speaks HTTP: who asks, what is sent, what is answered."""

# No "from __future__ import annotations" here: under serve.ingress FastAPI would not find what the names mean. And no
# function below the class: the decorator packs the class, and with it what this module holds at that moment.

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any

import numpy as np
from fastapi import Query, Request
from fastapi.responses import HTMLResponse, Response
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartParser

from actors.endpoint.api import ERRORS, LOCKED, OPEN, POLICY, UPLOAD, api, request_id_of
from actors.endpoint.arguments import EndpointArguments, UserConfiguration
from actors.endpoint.authentication import Door, Visitor
from actors.endpoint.catalogue import Catalogue
from actors.endpoint.diagnosis_request import Matter, Place, model_answer, png_text, recent_answer, study_answers
from actors.endpoint.metrics import EndpointMetrics
from actors.endpoint.model_store import ModelName
from actors.endpoint.page import page
from actors.endpoint.pipeline import Pipeline, Stopwatch, Unavailable
from actors.endpoint.wire import (
    CertifyAnswer,
    DiagnoseAnswer,
    ExampleAnswer,
    ExamplesAnswer,
    ModelsAnswer,
    RecentsAnswer,
    StateAnswer,
)
from actors.http.guard import allowed_body
from fedplatform.serving.bundle import Bundle
from fedplatform.serving.examples import FOLDER, read_examples
from fedplatform.serving.intake import Refused, read_study
from fedplatform.serving.versions import CHAMPION

Hospital = Annotated[
    str | None, Query(description="whose model is to answer; a key opens one hospital's only", max_length=100)
]
Slice = Annotated[
    int | None, Query(alias="slice", ge=0, le=100_000, description="of a NIfTI volume, counted from the feet")
]


@dataclass(frozen=True, eq=False)
class Upload:
    """One file of a request: its hash, and the scans (n, c, h, w) uint8 in it, of a volume with their numbers."""

    digest: str
    scans: np.ndarray
    slices: tuple[int, ...] | None

    @property
    def places(self) -> list[Place]:
        """Where each scan stands."""
        numbers = self.slices or (None,) * len(self.scans)
        return [Place(self.digest, scan, number) for scan, number in enumerate(numbers)]


@serve.deployment(
    max_ongoing_requests=256,
    max_queued_requests=256,
    health_check_period_s=2,
    health_check_timeout_s=30,
    user_config=UserConfiguration(version=CHAMPION).settings(),
    ray_actor_options={"num_cpus": 0},  # it reads files and waits
)
@serve.ingress(api)
class Ingress:
    """Lets visitors in, reads what they send, has it diagnosed and written down, and answers."""

    def __init__(
        self,
        arguments: EndpointArguments,
        diagnostician: DeploymentHandle[Any],
        purifying: DeploymentHandle[Any],
        auditor: DeploymentHandle[Any],
    ) -> None:
        # A patient's scan does not go to a temporary file: an upload stays in memory, bounded by the gateway.
        MultiPartParser.spool_max_size = allowed_body()
        self._arguments = arguments
        self._door = Door(arguments)
        self._metrics = EndpointMetrics()
        self._pipeline = Pipeline(diagnostician, purifying, auditor, self._metrics)
        self._catalogue = Catalogue(arguments, self._pipeline.warm)
        self._readers = asyncio.Semaphore(os.cpu_count() or 1)
        self._under_way = 0

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Roll a version out or back; called by Serve whenever ``user_config`` changes."""
        await self._catalogue.configure(UserConfiguration.from_settings(user_config))

    @api.get("/", include_in_schema=False)
    async def page(self) -> HTMLResponse:
        """The page to drop a scan on."""
        return HTMLResponse(page(asks_for_a_key=self._door.asks_for_a_key), headers={"content-security-policy": POLICY})

    @api.get("/healthz", responses=OPEN)
    async def healthz(self) -> StateAnswer:
        """Whether the server is alive."""
        return StateAnswer(state="alive")

    @api.get("/readyz", responses=OPEN)
    async def readyz(self) -> StateAnswer:
        """Whether scans can be diagnosed now, and by which version."""
        if not await self._pipeline.is_ready():
            raise Unavailable
        return StateAnswer(state="ready", version=self._catalogue.edition.version)

    @api.get("/v1/models", responses=ERRORS, dependencies=LOCKED)
    async def models(self, request: Request) -> ModelsAnswer:
        """The models that the key opens."""
        visitor = self._door.visitor(request)
        edition = self._catalogue.edition
        return ModelsAnswer(models=[model_answer(*edition.model(name)) for name in visitor.opens(edition.hospitals)])

    @api.post("/v1/diagnose", responses=ERRORS, dependencies=LOCKED, openapi_extra=UPLOAD)
    async def diagnose(
        self,
        request: Request,
        hospital: Hospital = None,
        slice_number: Slice = None,
        pictures: Annotated[bool, Query(description="answer with the anomaly map and the purified scan, too")] = False,
    ) -> DiagnoseAnswer:
        """Diagnose the scans in one or many files: PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI."""
        request_id = request_id_of(request)
        watch = Stopwatch(self._metrics)
        async with self._admitted("diagnose", request) as visitor:
            with watch.stage("total"):
                name, bundle = self._model(visitor, hospital)
                matter = Matter(request_id, visitor, name, bundle, slice_number)
                with watch.stage("read"):
                    uploads = await self._uploads(request, matter)
                scans = np.concatenate([upload.scans for upload in uploads])
                outcomes = await self._pipeline.diagnose(name, scans, watch, wants_pictures=pictures)
                places = [place for upload in uploads for place in upload.places]
                with watch.stage("record"):
                    await self._pipeline.write_down(
                        tuple(matter.entry(place, outcome) for place, outcome in zip(places, outcomes, strict=True))
                    )
        answers = [
            matter.answer(place, outcome, watch.milliseconds) for place, outcome in zip(places, outcomes, strict=True)
        ]
        for answer in answers:
            self._metrics.diagnosed(answer)
        scans_by_file = [len(upload.scans) for upload in uploads]
        return DiagnoseAnswer(
            request_id=request_id,
            answers=answers,
            scans_by_file=scans_by_file,
            studies=study_answers(answers, scans_by_file, bundle),
            seen=[png_text(scan) for scan in scans] if pictures else None,
        )

    @api.post("/v1/certify", responses=ERRORS, dependencies=LOCKED, openapi_extra=UPLOAD)
    async def certify(
        self,
        request: Request,
        hospital: Hospital = None,
        slice_number: Slice = None,
        sigma: Annotated[float, Query(gt=0, le=1, description="noise, in pixels of [0, 1]")] = 0.25,
        samples: Annotated[int, Query(ge=1, le=1024, description="noisy copies that the proof rests on")] = 256,
    ) -> CertifyAnswer:
        """Prove for one scan within which L2 radius no change at all alters the class."""
        request_id = request_id_of(request)
        watch = Stopwatch(self._metrics)
        async with self._admitted("certify", request) as visitor:
            with watch.stage("total"):
                name, bundle = self._model(visitor, hospital)
                matter = Matter(request_id, visitor, name, bundle, slice_number)
                with watch.stage("read"):
                    uploads = await self._uploads(request, matter)
                if [len(upload.scans) for upload in uploads] != [1]:
                    raise Refused(422, "One scan at a time is certified; of a volume, name the slice.")
                (upload,) = uploads
                seed = secrets.randbits(63)
                with watch.stage("certify"):
                    try:
                        certificate = await self._pipeline.certify(
                            name, upload.scans, sigma=sigma, samples=samples, seed=seed
                        )
                    except ValueError as error:
                        raise Refused(422, "The purifier has not learned noise of this sigma.") from error
                with watch.stage("record"):
                    entry = matter.certificate_entry(upload.digest, certificate, seed=seed)
                    await self._pipeline.write_down((entry,))
        return CertifyAnswer(
            request_id=request_id, certificate=matter.certificate_answer(certificate, watch.milliseconds)
        )

    @api.get("/v1/requests", responses=ERRORS, dependencies=LOCKED)
    async def requests(self, request: Request) -> RecentsAnswer:
        """The latest diagnoses for the hospitals that the key opens, newest first."""
        edition = self._catalogue.edition
        entries = await self._pipeline.recent(self._door.visitor(request).opens(edition.hospitals))
        return RecentsAnswer(requests=[recent_answer(entry, edition.bundles[entry.hospital_id]) for entry in entries])

    @api.get("/v1/examples", responses=ERRORS, dependencies=LOCKED)
    async def examples(self, request: Request, hospital: Hospital = None) -> ExamplesAnswer:
        """The server's own scans to try a hospital's model with."""
        name, bundle = self._model(self._door.visitor(request), hospital)
        found = read_examples(bundle.folder.parent / FOLDER, name.hospital_id)
        return ExamplesAnswer(
            examples=[ExampleAnswer(name=one.name, truth=one.truth, attacked=one.attacked) for one in found]
        )

    @api.get(
        "/v1/examples/{example}",
        responses={**ERRORS, 200: {"content": {"image/png": {}}, "description": "The scan."}},
        response_class=Response,
        dependencies=LOCKED,
    )
    async def example(self, request: Request, example: str, hospital: Hospital = None) -> Response:
        """One of these scans as a PNG file."""
        name, bundle = self._model(self._door.visitor(request), hospital)
        folder = bundle.folder.parent / FOLDER
        if example not in {one.name for one in read_examples(folder, name.hospital_id)}:
            raise Refused(404, "There is no example of this name.")
        return Response((folder / name.hospital_id / example).read_bytes(), media_type="image/png")

    @asynccontextmanager
    async def _admitted(self, route: str, request: Request) -> AsyncIterator[Visitor]:
        """Who asks, and a place among the requests under way; counts how it ended."""
        status = 200
        self._under_way += 1
        self._metrics.under_way("all", self._under_way)
        try:
            visitor = self._door.visitor(request)
            if self._under_way > self._arguments.waiting:
                raise Unavailable
            yield visitor
        except Refused as refusal:
            status = refusal.status
            raise
        except Unavailable:
            status = 503
            raise
        except BaseException:
            status = 500
            raise
        finally:
            self._under_way -= 1
            self._metrics.under_way("all", self._under_way)
            self._metrics.answered(route, status)

    def _model(self, visitor: Visitor, hospital: str | None) -> tuple[ModelName, Bundle]:
        return self._catalogue.model(visitor.chosen(hospital, self._catalogue.edition.hospitals))

    async def _uploads(self, request: Request, matter: Matter) -> list[Upload]:
        """The files of a request, read; raises :class:`Refused`, or :class:`TooFast`."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise Refused(415, "Scans are sent as files called scan in multipart/form-data.")
        limits = self._arguments.limits
        async with request.form(max_files=limits.files, max_fields=0) as form:
            files = form.getlist("scan")
            if not files or len(files) != len(form.multi_items()):
                raise Refused(422, "A request holds files called scan, at least one, and nothing else.")
            datas = [await file.read() for file in files if isinstance(file, UploadFile)]
        self._door.count(matter.visitor, len(datas))
        card = matter.bundle.card
        uploads = []
        for data in datas:
            async with self._readers:
                study = await asyncio.to_thread(
                    read_study,
                    data,
                    size=card.size,
                    channels=card.channels,
                    limits=limits,
                    slice_number=matter.slice_number,
                )
            uploads.append(Upload(sha256(data).hexdigest(), study.scans, study.slices))
        total = sum(len(upload.scans) for upload in uploads)
        if total > limits.scans:
            raise Refused(413, f"A request may hold {limits.scans} scans at most.")
        if total > len(uploads):
            self._door.count(matter.visitor, total - len(uploads))
        return uploads
