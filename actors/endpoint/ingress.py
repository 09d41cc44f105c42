"""The deployment that speaks HTTP: who asks, what is sent, what is answered."""

# No "from __future__ import annotations" here: under serve.ingress FastAPI would not find what the names mean. And no
# function below the class: the decorator packs the class, and with it what this module holds at that moment.

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Annotated, Any

import numpy as np
from fastapi import Query, Request
from fastapi.responses import HTMLResponse, Response
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.formparsers import MultiPartParser

from actors.endpoint.api import ERRORS, LOCKED, OPEN, POLICY, UPLOAD, api, request_id_of
from actors.endpoint.arguments import EndpointArguments, UserConfiguration
from actors.endpoint.authentication import Authenticator, Caller
from actors.endpoint.catalogue import Catalogue
from actors.endpoint.diagnosis_request import (
    DiagnosisRequest,
    Place,
    model_answer,
    png_text,
    recent_answer,
    study_answers,
)
from actors.endpoint.metrics import EndpointMetrics
from actors.endpoint.model_store import ModelName
from actors.endpoint.multipart import files_of
from actors.endpoint.page import page
from actors.endpoint.pipeline import Pipeline, Stopwatch, Unavailable
from actors.endpoint.web_clients import configure
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
from fedplatform.data.origin import Origin
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
    origin: Origin

    @property
    def places(self) -> list[Place]:
        """Where each scan stands."""
        numbers = self.slices or (None,) * len(self.scans)
        return [Place(self.digest, self.origin, scan, number) for scan, number in enumerate(numbers)]


@dataclass(eq=False)
class Admission:
    """A caller who was let in, and whether the request has its place among those under way."""

    caller: Caller
    has_place: bool = False


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
    """Lets callers in, reads what they send, has it diagnosed and written down, and answers."""

    def __init__(
        self,
        arguments: EndpointArguments,
        diagnostician: DeploymentHandle[Any],
        purifying: DeploymentHandle[Any],
        auditor: DeploymentHandle[Any],
    ) -> None:
        # A patient's scan does not go to a temporary file: an upload stays in memory, bounded by the gateway.
        MultiPartParser.spool_max_size = allowed_body()
        configure(root_path=arguments.root_path, origins=tuple(arguments.allow_origins))
        self._arguments = arguments
        self._authenticator = Authenticator(arguments)
        self._metrics = EndpointMetrics()
        self._pipeline = Pipeline(diagnostician, purifying, auditor, self._metrics)
        self._catalogue = Catalogue(arguments, self._pipeline.warm)
        self._readers = asyncio.Semaphore(os.cpu_count() or 1)
        self._under_way = 0

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Roll a version out or back; called by Serve whenever ``user_config`` changes."""
        await self._catalogue.configure(UserConfiguration.from_settings(user_config))

    @api.get("/", include_in_schema=False)
    async def page(self, request: Request) -> HTMLResponse:
        """The page to drop a scan on."""
        shown = page(asks_for_a_key=self._authenticator.asks_for_a_key, root_path=request.scope["root_path"])
        return HTMLResponse(shown, headers={"content-security-policy": POLICY})

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
        caller = self._authenticator.caller(request)
        edition = self._catalogue.edition
        return ModelsAnswer(models=[model_answer(*edition.model(name)) for name in caller.opens(edition.hospitals)])

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
        async with self._admitted("diagnose", request) as admission:
            with watch.stage("total"):
                diagnosis_request = self._request(request_id, admission.caller, hospital, slice_number)
                with watch.stage("read"):
                    uploads = await self._uploads(request, diagnosis_request, admission)
                scans = np.concatenate([upload.scans for upload in uploads])
                outcomes = await self._pipeline.diagnose(diagnosis_request.name, scans, watch, wants_pictures=pictures)
                places = [place for upload in uploads for place in upload.places]
                judged = diagnosis_request.bundle.card.judged
                outcomes = [
                    replace(outcome, diagnosis=judged(outcome.diagnosis, place.origin))
                    for place, outcome in zip(places, outcomes, strict=True)
                ]
                with watch.stage("record"):
                    await self._pipeline.write_down(
                        tuple(
                            diagnosis_request.entry(place, outcome)
                            for place, outcome in zip(places, outcomes, strict=True)
                        )
                    )
        answers = [
            diagnosis_request.answer(place, outcome, watch.milliseconds)
            for place, outcome in zip(places, outcomes, strict=True)
        ]
        for answer in answers:
            self._metrics.diagnosed(answer)
        scans_by_file = [len(upload.scans) for upload in uploads]
        return DiagnoseAnswer(
            request_id=request_id,
            answers=answers,
            scans_by_file=scans_by_file,
            studies=study_answers(answers, scans_by_file, diagnosis_request.bundle),
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
        async with self._admitted("certify", request) as admission:
            with watch.stage("total"):
                diagnosis_request = self._request(request_id, admission.caller, hospital, slice_number)
                with watch.stage("read"):
                    uploads = await self._uploads(request, diagnosis_request, admission)
                if [len(upload.scans) for upload in uploads] != [1]:
                    raise Refused(422, "One scan at a time is certified; of a volume, name the slice.")
                (upload,) = uploads
                seed = secrets.randbits(63)
                with watch.stage("certify"):
                    try:
                        certificate = await self._pipeline.certify(
                            diagnosis_request.name, upload.scans, sigma=sigma, samples=samples, seed=seed
                        )
                    except ValueError as error:
                        raise Refused(422, "The purifier has not learned noise of this sigma.") from error
                with watch.stage("record"):
                    entry = diagnosis_request.certificate_entry(upload.digest, certificate, seed=seed)
                    await self._pipeline.write_down((entry,))
        return CertifyAnswer(
            request_id=request_id, certificate=diagnosis_request.certificate_answer(certificate, watch.milliseconds)
        )

    @api.get("/v1/requests", responses=ERRORS, dependencies=LOCKED)
    async def requests(self, request: Request) -> RecentsAnswer:
        """The latest diagnoses for the hospitals that the key opens, newest first."""
        edition = self._catalogue.edition
        entries = await self._pipeline.recent(self._authenticator.caller(request).opens(edition.hospitals))
        return RecentsAnswer(requests=[recent_answer(entry, edition.bundles[entry.hospital_id]) for entry in entries])

    @api.get("/v1/examples", responses=ERRORS, dependencies=LOCKED)
    async def examples(self, request: Request, hospital: Hospital = None) -> ExamplesAnswer:
        """The server's own scans to try a hospital's model with."""
        name, bundle = self._model(self._authenticator.caller(request), hospital)
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
        name, bundle = self._model(self._authenticator.caller(request), hospital)
        folder = bundle.folder.parent / FOLDER
        if example not in {one.name for one in read_examples(folder, name.hospital_id)}:
            raise Refused(404, "There is no example of this name.")
        return Response((folder / name.hospital_id / example).read_bytes(), media_type="image/png")

    @asynccontextmanager
    async def _admitted(self, route: str, request: Request) -> AsyncIterator[Admission]:
        """Who asks; counts how it ended, and gives back the place among the requests under way."""
        status, admission = 200, None
        try:
            admission = Admission(self._authenticator.caller(request))
            yield admission
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
            if admission is not None and admission.has_place:
                self._under_way -= 1
                self._metrics.under_way("all", self._under_way)
            self._metrics.answered(route, status)

    def _take_place(self, admission: Admission) -> None:
        """A place among the requests under way, once the upload is there: one that stalls takes none from others."""
        if self._under_way >= self._arguments.waiting:
            raise Unavailable
        admission.has_place = True
        self._under_way += 1
        self._metrics.under_way("all", self._under_way)

    def _request(
        self, request_id: str, caller: Caller, hospital: str | None, slice_number: int | None
    ) -> DiagnosisRequest:
        name, bundle = self._model(caller, hospital)
        noise = self._catalogue.edition.noise_fingerprints[name.hospital_id]
        return DiagnosisRequest(request_id, caller, name, bundle, noise, slice_number)

    def _model(self, caller: Caller, hospital: str | None) -> tuple[ModelName, Bundle]:
        return self._catalogue.model(caller.chosen(hospital, self._catalogue.edition.hospitals))

    async def _uploads(
        self, request: Request, diagnosis_request: DiagnosisRequest, admission: Admission
    ) -> list[Upload]:
        """The files of a request, read; raises :class:`Refused`, or :class:`TooFast`."""
        limits = self._arguments.limits
        files = await files_of(request, at_most=limits.files)
        self._take_place(admission)
        self._authenticator.count(diagnosis_request.caller, len(files))
        card = diagnosis_request.bundle.card
        uploads = []
        for file in files:
            async with self._readers:
                try:
                    study = await asyncio.to_thread(
                        read_study,
                        file.data,
                        size=card.size,
                        channels=card.channels,
                        limits=limits,
                        slice_number=diagnosis_request.slice_number,
                    )
                except Refused as refusal:
                    if len(files) == 1:
                        raise
                    raise Refused(refusal.status, f"{file.name}: {refusal.sentence}") from refusal
            uploads.append(Upload(sha256(file.data).hexdigest(), study.scans, study.slices, study.origin))
        total = sum(len(upload.scans) for upload in uploads)
        if total > limits.scans:
            raise Refused(413, f"A request may hold {limits.scans} scans at most.")
        if total > len(uploads):
            self._authenticator.count(diagnosis_request.caller, total - len(uploads))
        return uploads
