from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from ray.serve.schema import ServeDeploySchema
from starlette.requests import Request

from actors.endpoint.arguments import EndpointArguments, UserConfiguration
from actors.endpoint.catalogue import Catalogue
from actors.endpoint.config_file import config_of, text_of
from actors.endpoint.door import Door, TooFast, Visitor
from actors.endpoint.shelf import ModelName
from fedplatform.cli import fedplatform
from fedplatform.defended_run import DefendedRun
from fedplatform.serving.intake import Refused
from fedplatform.serving.keys import Keys
from fedplatform.serving.versions import RunVersions, write_bundles
from fedplatform.settings import ExperimentError


def request(**headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw})


def test_a_door_without_keys_lets_everybody_in_and_wants_to_know_the_hospital(tmp_path: Path) -> None:
    door = Door(EndpointArguments(versions="", state=str(tmp_path)))
    visitor = door.visitor(request())
    assert visitor.chosen("b", ("a", "b")) == "b"
    assert visitor.chosen(None, ("a",)) == "a"
    with pytest.raises(Refused, match="Say which hospital"):
        visitor.chosen(None, ("a", "b"))


def test_a_revoked_key_opens_nothing_from_then_on(tmp_path: Path) -> None:
    keys = Keys.load(tmp_path / "keys.json")
    secret = keys.add("a")
    door = Door(EndpointArguments(versions="", state=str(tmp_path), keys=str(tmp_path / "keys.json")))
    assert door.visitor(request(x_api_key=secret)).hospital_id == "a"
    assert door.visitor(request(authorization=f"bearer {secret}")).hospital_id == "a"
    (key,) = Keys.load(tmp_path / "keys.json")
    Keys.load(tmp_path / "keys.json").revoke(key.key_id)
    with pytest.raises(Refused, match="opens nothing") as refusal:
        door.visitor(request(x_api_key=secret))
    assert refusal.value.status == 401


def test_a_visitor_who_sends_too_much_is_told_when_to_come_back() -> None:
    door = Door(EndpointArguments(versions="", state="", rate=1, burst=64))
    visitor = Visitor("k", "a")
    door.count(visitor, 64)
    with pytest.raises(TooFast) as limit:
        door.count(visitor, 10)
    assert 1 <= limit.value.retry_after_s <= 10
    door.count(Visitor("another", "a"), 10)
    with pytest.raises(Refused, match="At most 64 scans"):
        door.count(visitor, 65)


@dataclass
class Warmed:
    """What a catalogue had made ready."""

    names: list[str] = field(default_factory=list)

    async def __call__(self, name: ModelName) -> None:
        self.names.append(str(name))


@pytest.fixture
def arguments(defended: Path, tmp_path: Path) -> EndpointArguments:
    """Two versions in a folder, the first of them the champion."""
    versions = RunVersions(tmp_path)
    versions.add(lambda folder: write_bundles(DefendedRun(defended), folder, defence="no_defence"))
    first = versions.folder("1")
    versions.add(lambda folder: shutil.copytree(first, folder, dirs_exist_ok=True))
    versions.crown("1")
    return EndpointArguments(versions=str(tmp_path), state=str(tmp_path))


def test_a_catalogue_makes_ready_what_is_in_use_before_it_goes_over(arguments: EndpointArguments) -> None:
    async def story() -> None:
        warmed = Warmed()
        catalogue = Catalogue(arguments, warmed)
        await catalogue.configure(UserConfiguration(version="champion"))
        assert catalogue.edition.version == "1"
        assert str(catalogue.model("hospital-01")[0]) == "hospital-01@1"
        await catalogue.configure(UserConfiguration(version="2"))
        assert (catalogue.edition.version, warmed.names) == ("2", ["hospital-01@2"])
        # What cannot be served is left alone, and what was served goes on.
        await catalogue.configure(UserConfiguration(version="3"))
        assert catalogue.edition.version == "2"
        arguments.where().crown("2")
        await catalogue.configure(UserConfiguration(version="champion"))
        assert catalogue.edition.version == "2"
        with pytest.raises(Refused, match="no model of this hospital"):
            catalogue.model("nobody")

    asyncio.run(story())


def test_a_catalogue_with_nothing_to_serve_says_so_at_once(tmp_path: Path) -> None:
    catalogue = Catalogue(EndpointArguments(versions=str(tmp_path), state=""), Warmed())
    with pytest.raises(ExperimentError, match="has no published version"):
        asyncio.run(catalogue.configure(UserConfiguration(version="champion")))


def test_the_config_file_is_one_that_serve_deploy_takes(tmp_path: Path) -> None:
    arguments = EndpointArguments(versions=str(tmp_path), state=str(tmp_path), rate=7)
    config = yaml.safe_load(text_of(config_of(arguments, host="127.0.0.1", port=8123, tls=("c.pem", "k.pem"))))
    assert config["http_options"]["host"] == "127.0.0.1"
    (application,) = config["applications"]
    assert application["import_path"] == "actors.endpoint:app"
    assert EndpointArguments.from_settings(application["args"]) == arguments
    # Serve's schema takes words that it does not know: all of these are its own.
    schema = ServeDeploySchema.model_validate(config)
    assert set(config) <= set(ServeDeploySchema.model_fields)
    assert set(application) <= set(type(schema.applications[0]).model_fields)
    for deployment in application["deployments"]:
        assert set(deployment) <= set(type(schema.applications[0].deployments[0]).model_fields)


def said_by(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(fedplatform, words)
    return done.exit_code, " ".join(done.output.split())


def test_without_keys_nobody_but_this_machine_may_ask(tmp_path: Path) -> None:
    code, said = said_by("serve", str(tmp_path), "--host", "0.0.0.0")
    assert (code, said) == (
        1,
        "fedplatform: without --keys only this machine may ask: --host 127.0.0.1, got 0.0.0.0",
    )


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    assert said_by("serve", str(tmp_path), "--tls-cert", "cert.pem")[1].endswith("needs both --tls-cert and --tls-key")


def test_a_registry_says_not_where_the_log_is_kept() -> None:
    assert said_by("serve", "models:/spots")[1].endswith("the audit log is kept: --state FOLDER")


def test_build_writes_a_file_that_listens_on_this_machine_alone(arguments: EndpointArguments, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    code, said = said_by("serve", arguments.versions, "--build", str(file), "--port", "8123")
    assert code == 0, said
    config = yaml.safe_load(file.read_text())
    assert (config["http_options"]["host"], config["http_options"]["port"]) == ("127.0.0.1", 8123)
    assert "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH" in file.read_text()


def test_an_earlier_version_is_made_the_champion_by_a_command(arguments: EndpointArguments) -> None:
    assert said_by("publish", arguments.versions, "--champion", "2") == (0, "champion: version 2")
    assert arguments.where().champion() == "2"
    assert said_by("publish", arguments.versions, "--champion", "9")[0] == 1


def test_an_argument_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ExperimentError, match="unknown setting 'version'; did you mean 'versions'"):
        EndpointArguments.from_settings({"version": "x", "state": "y"})
