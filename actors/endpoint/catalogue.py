"""Which version is served now, and what its models are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from actors.endpoint.arguments import EndpointArguments, UserConfiguration
from actors.endpoint.model_store import ModelName
from fedplatform.core.settings import ExperimentError
from fedplatform.serving.bundle import Bundle
from fedplatform.serving.intake import Refused
from fedplatform.serving.secret import fingerprint
from fedplatform.serving.versions import CHAMPION, bundle_of, hospitals_in

LOOK_EVERY_S = 2.0  # at the alias

log = logging.getLogger("ray.serve")  # of which Serve keeps the files


@dataclass(frozen=True)
class Edition:
    """A version as it is served: a bundle of every hospital and the fingerprint of its noise, read once."""

    version: str
    bundles: dict[str, Bundle]
    noise_fingerprints: dict[str, str]

    @property
    def hospitals(self) -> tuple[str, ...]:
        """The hospitals that have a model."""
        return tuple(self.bundles)

    def model(self, hospital_id: str) -> tuple[ModelName, Bundle]:
        """A hospital's model; raises :class:`Refused` where it has none."""
        if hospital_id not in self.bundles:
            raise Refused(404, "There is no model of this hospital.")
        return ModelName(hospital_id, self.version), self.bundles[hospital_id]


class Catalogue:
    """Follows the champion, or stays with the version that it was told.

    A new version is opened, and ``warm`` awaited for every model of it that is in use, before the first request gets
    it. Requests that are under way end with the version with which they began. A version that cannot be opened is
    logged and left alone: the one before goes on.
    """

    def __init__(self, arguments: EndpointArguments, warm: Callable[[ModelName], Awaitable[None]]) -> None:
        self._arguments = arguments
        self._versions = arguments.where()
        self._warm = warm
        self._wanted = CHAMPION
        self._edition: Edition | None = None
        self._failed = ""
        self._used: set[str] = set()
        self._follower: asyncio.Task[None] | None = None

    @property
    def edition(self) -> Edition:
        """The version that new requests get."""
        assert self._edition is not None
        return self._edition

    def model(self, hospital_id: str) -> tuple[ModelName, Bundle]:
        """The model of a hospital that new requests get; raises :class:`Refused`."""
        found = self.edition.model(hospital_id)
        self._used.add(hospital_id)
        return found

    async def configure(self, configuration: UserConfiguration) -> None:
        """Serve what the configuration says from now on; raises :class:`ExperimentError` at first."""
        self._wanted = configuration.version
        await self._look()
        if self._edition is None:
            raise ExperimentError(self._failed)
        if self._follower is None:
            self._follower = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        try:
            version = await asyncio.to_thread(self._versions.champion) if self._wanted == CHAMPION else self._wanted
            if self._edition is not None and self._edition.version == version:
                return
            edition = await asyncio.to_thread(self._opened, version)
            for hospital_id in sorted(self._used & set(edition.hospitals)):
                await self._warm(ModelName(hospital_id, version))
            self._edition = edition
            log.info("version %s is served", version)
        except Exception as error:  # whatever a registry, a disk or a replica may raise: the served version goes on
            if str(error) != self._failed:
                log.warning("the version that is wanted cannot be served: %s", error)
            self._failed = str(error)

    def _opened(self, version: str) -> Edition:
        folder = self._versions.folder(version)
        hospitals = hospitals_in(folder)
        fingerprints = {name: fingerprint(self._arguments.secret(name)) for name in hospitals}
        return Edition(version, {name: bundle_of(folder, name) for name in hospitals}, fingerprints)
