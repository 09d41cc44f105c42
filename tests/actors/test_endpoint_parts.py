from __future__ import annotations

import asyncio
import math
import shutil
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from other_device import CPU, ELSEWHERE, OtherDevice
from ray.serve.schema import ServeDeploySchema
from starlette.requests import Request

from actors.endpoint.application import deployments
from actors.endpoint.arguments import EndpointArguments, UserConfiguration
from actors.endpoint.authentication import Authenticator, Caller, TooFast
from actors.endpoint.catalogue import Catalogue
from actors.endpoint.config_file import config_of, text_of
from actors.endpoint.model_store import Model, ModelName
from actors.http.guard import BODY_VARIABLE, allowed_body
from fedplatform.cli import fedplatform
from fedplatform.cli.limits import OPTIONS
from fedplatform.core.compute import Compute
from fedplatform.core.settings import ExperimentError
from fedplatform.defence import Diagnosis, KeyedNoise
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.serving.api_keys import Keys
from fedplatform.serving.intake import Limits, Refused
from fedplatform.serving.versions import RunVersions, bundle_of


def request(**headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw})


def test_a_door_without_keys_lets_everybody_in_and_wants_to_know_the_hospital(tmp_path: Path) -> None:
    authenticator = Authenticator(EndpointArguments(versions="", state=str(tmp_path)))
    caller = authenticator.caller(request())
    assert caller.chosen("b", ("a", "b")) == "b"
    assert caller.chosen(None, ("a",)) == "a"
    with pytest.raises(Refused, match="Say which hospital"):
        caller.chosen(None, ("a", "b"))


def test_a_revoked_key_opens_nothing_from_then_on(tmp_path: Path) -> None:
    keys = Keys.load(tmp_path / "keys.json")
    secret = keys.add("a")
    authenticator = Authenticator(EndpointArguments(versions="", state=str(tmp_path), keys=str(tmp_path / "keys.json")))
    assert authenticator.caller(request(x_api_key=secret)).hospital_id == "a"
    assert authenticator.caller(request(authorization=f"bearer {secret}")).hospital_id == "a"
    (key,) = Keys.load(tmp_path / "keys.json")
    Keys.load(tmp_path / "keys.json").revoke(key.key_id)
    with pytest.raises(Refused, match="opens nothing") as refusal:
        authenticator.caller(request(x_api_key=secret))
    assert refusal.value.status == 401


def test_a_visitor_who_sends_too_much_is_told_when_to_come_back() -> None:
    authenticator = Authenticator(EndpointArguments(versions="", state="", rate=1, burst=64))
    caller = Caller("k", "a")
    authenticator.count(caller, 64)
    with pytest.raises(TooFast) as limit:
        authenticator.count(caller, 10)
    assert 1 <= limit.value.retry_after_s <= 10
    authenticator.count(Caller("another", "a"), 10)
    with pytest.raises(Refused, match="At most 64 scans"):
        authenticator.count(caller, 65)


@dataclass
class Warmed:
    """What a catalogue had made ready."""

    names: list[str] = field(default_factory=list)

    async def __call__(self, name: ModelName) -> None:
        self.names.append(str(name))


@pytest.fixture
def arguments(bare_version: Path, tmp_path: Path) -> EndpointArguments:
    """Two versions in a folder, the first of them the champion."""
    versions = RunVersions(tmp_path)
    for _ in range(2):
        versions.add(lambda folder: shutil.copytree(bare_version, folder, dirs_exist_ok=True))
    versions.promote("1")
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
        arguments.where().promote("2")
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


def test_the_limits_of_an_upload_are_options_of_serve_and_reach_the_proxy(
    arguments: EndpointArguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "serve.yaml"
    code, said = said_by(
        "serve", arguments.versions, "--max-bytes", "1000", "--max-slices", "3", "--rate", "1", "--build", str(file)
    )
    assert code == 0, said
    (application,) = yaml.safe_load(file.read_text())["applications"]
    found = EndpointArguments.from_settings(application["args"])
    assert found.limits == Limits(bytes=1000, slices=3)
    assert found.burst >= found.limits.scans, "a key may send one file with as many scans as it may hold"
    assert f"{BODY_VARIABLE}={1000 + 2**20}" in file.read_text()
    monkeypatch.setenv(BODY_VARIABLE, "12345")
    assert allowed_body() == 12345


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_an_option_has_the_default_of_its_limit(name: str) -> None:
    default = getattr(Limits(), name)
    assert OPTIONS[name][0] == default
    assert getattr(EndpointArguments(versions="", state="").limits, name) == default


def test_both_parts_that_hold_networks_ask_for_their_share_of_a_gpu(arguments: EndpointArguments) -> None:
    shared = arguments.model_copy(update={"gpus": 0.5})
    wanted = {"Ingress": 0, "Diagnostician": 0.5, "Purifying": 0.5, "Auditor": 0}
    assert {part.name: part.ray_actor_options.get("num_gpus", 0) for part in deployments(shared)} == wanted
    assert not any(part.ray_actor_options.get("num_gpus") for part in deployments(arguments))


def test_a_gpu_that_is_not_there_is_not_waited_for(arguments: EndpointArguments) -> None:
    code, said = said_by("serve", arguments.versions, "--port", "0", "--gpus", "64")
    assert code == 1, said
    assert said.startswith("fedplatform: two parts take 64 GPUs each, and this machine has")


def same_answers(some: tuple[Diagnosis | None, ...], others: tuple[Diagnosis | None, ...]) -> None:
    """To 1e-4, and the same scans go to the purifier."""
    for one, other in zip(some, others, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert replace(one, confidence=0, probabilities=(), anomaly_score=0) == replace(
                other, confidence=0, probabilities=(), anomaly_score=0
            )
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
            assert one.anomaly_score == pytest.approx(other.anomaly_score, abs=1e-4)


def test_a_model_on_another_device_answers_as_on_the_cpu(published: Path) -> None:
    run = DefendedRun(published)
    bundle = bundle_of(RunVersions(published).folder("1"), "hospital-00")
    scans = (run.hospital("hospital-00").test[0][:24] * 255).round().byte().numpy()

    def model_on(device: torch.device) -> Model:
        whole = bundle.defended(KeyedNoise(b"secret"))
        return Model(
            bundle, replace(whole, gate=replace(whole.gate, threshold=middle)).to(device), Compute(str(device))
        )

    middle = -math.inf
    examination, _ = model_on(CPU).examine(scans)
    middle = float(examination.scores.quantile(0.5))  # between two scores: one on the threshold may fall either way
    here = model_on(CPU)
    examination, spoken = here.examine(scans)
    with OtherDevice() as card:
        there = model_on(ELSEWHERE)
        examination_there, spoken_there = there.examine(scans)
        assert examination_there.scores.device == CPU
        torch.testing.assert_close(examination_there.scores, examination.scores)
        same_answers(spoken_there, spoken)
        flagged = examination.flagged.nonzero().flatten()
        assert 0 < len(flagged) < len(scans)
        deep, rows = examination[flagged], flagged.numpy()
        diagnoses, purified = there.treat(scans[rows], deep)
        assert there.certify(scans[:1], sigma=0.25, samples=50, seed=0) == here.certify(
            scans[:1], sigma=0.25, samples=50, seed=0
        )
        errors = there.patch_errors(scans)
    assert card.computed > 1000, "the networks ran there"
    expected, cleaned = here.treat(scans[rows], deep)
    same_answers(diagnoses, expected)
    np.testing.assert_allclose(purified, cleaned, atol=1e-4)
    np.testing.assert_allclose(errors, here.patch_errors(scans), atol=1e-4)


def test_a_defence_of_which_a_part_stayed_behind_is_found_out(defended: Path) -> None:
    parts = DefendedRun(defended).hospital("hospital-00")
    with OtherDevice(), torch.no_grad(), pytest.raises(RuntimeError, match="all tensors on one device"):
        parts.defended("full").logits(parts.test[0][:2].to(ELSEWHERE))


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
