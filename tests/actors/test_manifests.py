"""What deploys the platform is real: schemas accept it, and so are the commands, import paths and ports in it."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import ray
import yaml
from jsonschema import Draft202012Validator, ValidationError
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT, DEFAULT_DASHBOARD_PORT, DEFAULT_PORT
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema
from referencing import Registry, Resource

from actors.cluster.kubernetes import LIVENESS, render
from actors.endpoint.arguments import EndpointArguments
from fedplatform.cli import fedplatform
from fedplatform.experiments.experiment import Experiment, ExperimentError, load_settings
from fedplatform.experiments.places import LABEL

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy/kuberay"
FEDERATION = ROOT / "deploy/federation.yaml"
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "tests/schemas/kuberay").glob("*.json")}
REGISTRY: Registry = Registry().with_resources(
    (f"{name}.json", Resource.from_contents({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}))
    for name, schema in SCHEMAS.items()
)
OVERLAYS = ("one-machine", "cpu", "gpu")


def documents(*files: Path) -> list[dict[str, Any]]:
    return [found for file in files for found in yaml.safe_load_all(file.read_text())]


def check(document: dict[str, Any]) -> None:
    """Raise ValidationError where Kubernetes' own schemas or KubeRay's do not know a field, or want another."""
    if document["apiVersion"] == "ray.io/v1":
        schema = {"$ref": f"{document['kind']}.json"}
        Draft202012Validator(schema, registry=REGISTRY).validate(document)  # type: ignore[call-arg]
    else:
        try:
            kubernetes_validate.validate(document, "1.37", strict=True)
        except kubernetes_validate.ValidationError as error:
            raise ValidationError(str(error)) from error


def built(overlay: str) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here, so no overlay can be put together")
    done = subprocess.run(
        ["kubectl", "kustomize", KUBERAY / "overlays" / overlay], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def one(found: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    (only,) = (each for each in found if each["kind"] == kind and name in (None, each["metadata"]["name"]))
    return only


def base() -> list[dict[str, Any]]:
    return documents(*(path for path in sorted((KUBERAY / "base").glob("*.yaml")) if path.name != "kustomization.yaml"))


def pods(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All pod templates in a document."""
    for key, value in document.items():
        if key in ("template", "submitterPodTemplate"):
            yield value
        elif isinstance(value, dict):
            yield from pods(value)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    yield from pods(item)


def parse(words: list[str]) -> dict[str, Any]:
    """The options of a fedplatform command; click complains about one that does not exist."""
    command: click.Command = fedplatform
    while isinstance(command, click.Group) and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    context = click.Context(command)
    options, rest, _ = command.make_parser(context).parse_args(list(words))
    assert not rest or command.params[-1].nargs == -1
    return options


@pytest.mark.parametrize("document", base(), ids=lambda found: f"{found['kind']}-{found['metadata']['name']}")
def test_the_manifests_pass_their_schemas(document: dict[str, Any]) -> None:
    check(document)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_passes_its_schemas_and_has_a_node_for_each_hospital(overlay: str) -> None:
    found = built(overlay)
    for document in found:
        check(document)
    groups = one(found, "RayCluster")["spec"]["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == ["trials", "st-mary", "charite"]
    images = {container["image"] for each in found for pod in pods(each) for container in pod["spec"]["containers"]}
    assert "fedplatform" not in images, "an image without a registry or a tag is left"


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayCluster", ("spec", "headGroupSpec", "rayStartParam"), {}),
        ("RayCluster", ("spec", "authOptions", "mode"), "tokens"),
        ("RayJob", ("spec", "entryPoint"), "fedplatform"),
        ("RayService", ("spec", "rayClusterConfig", "workerGroupSpecs", 0, "minReplicas"), "one"),
        ("NetworkPolicy", ("spec", "ingres"), []),
    ],
)
def test_a_mistake_in_a_manifest_is_found(kind: str, path: tuple[str | int, ...], value: object) -> None:
    document = copy.deepcopy(next(found for found in base() if found["kind"] == kind))
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        check(document)


def test_the_hospitals_in_the_repository_are_those_of_the_federation_file(tmp_path: Path) -> None:
    experiment = Experiment.from_settings(load_settings(str(FEDERATION)))
    written = render(experiment, tmp_path)
    assert {path.name for path in written} == {path.name for path in (KUBERAY / "hospitals").iterdir()}
    for path in written:
        assert path.read_text() == (KUBERAY / "hospitals" / path.name).read_text(), (
            "render deploy/kuberay/hospitals anew"
        )
    assert Experiment.from_settings(load_settings(str(tmp_path / "federation.yaml"))) == experiment


def test_each_hospital_has_a_group_a_volume_and_a_policy_that_are_nobody_elses() -> None:
    (patch,) = documents(KUBERAY / "hospitals/groups.yaml")
    for operation in patch:
        group = operation["value"]
        name, pod = group["groupName"], group["template"]
        own = documents(KUBERAY / f"hospitals/{name}.yaml")
        for document in own:
            check(document)
        assert group["minReplicas"] == group["maxReplicas"] == 1
        assert group["labels"] == {LABEL: name}
        assert (
            one(own, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        )
        claims = {each["metadata"]["name"] for each in own if each["kind"] == "PersistentVolumeClaim"}
        volumes = [volume for volume in pod["spec"]["volumes"] if "persistentVolumeClaim" in volume]
        assert {volume["persistentVolumeClaim"]["claimName"] for volume in volumes} == claims
        shard = next(mount for mount in pod["spec"]["containers"][0]["volumeMounts"] if mount["name"] == "shard")
        assert shard["readOnly"]
        disk = one(own, "PersistentVolume")["spec"]
        assert disk["local"]["path"] == shard["mountPath"]
        (term,) = disk["nodeAffinity"]["required"]["nodeSelectorTerms"]
        assert [rule["key"] for rule in term["matchExpressions"]] == list(pod["spec"]["nodeSelector"])


@pytest.mark.parametrize("hospitals", [3, ["a", "b"], [{"name": "a", "shard": "/shard.parquet"}]])
def test_a_federation_that_kubernetes_cannot_place_is_refused(hospitals: object, tmp_path: Path) -> None:
    settings = {**load_settings(str(FEDERATION)), "hospitals": hospitals}
    with pytest.raises(ExperimentError):
        render(Experiment.from_settings(settings), tmp_path)


def test_no_pod_is_root_and_every_container_has_limits_and_a_probe() -> None:
    (patch,) = documents(KUBERAY / "hospitals/groups.yaml")
    everything = [*base(), *(operation["value"] for operation in patch)]
    found = [pod for document in everything for pod in pods(document)]
    assert len(found) == 8
    for pod in found:
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        for container in pod["spec"]["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
            if container["name"] != "submitter":  # it comes and goes
                assert {"readinessProbe", "livenessProbe"} <= container.keys()


def test_every_claim_and_config_map_that_is_used_is_there(tmp_path: Path) -> None:
    found = built("cpu")
    there = {(each["kind"], each["metadata"]["name"]) for each in found}
    text = json.dumps(found)
    for claim in set(re.findall(r'"claimName": "([^"]+)"', text)):
        assert ("PersistentVolumeClaim", claim) in there
    for reference in set(re.findall(r'"configMap(?:Ref)?": \{"name": "([^"]+)"', text)):
        assert ("ConfigMap", reference) in there


@pytest.mark.parametrize("kind", ["RayCluster", "RayService"])
def test_the_token_is_asked_for_and_ray_is_of_the_version_that_was_tested(kind: str) -> None:
    spec = one(base(), kind)["spec"]
    spec = spec.get("rayClusterConfig", spec)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == ray.__version__
    assert f"ray=={ray.__version__}\n" in (ROOT / "constraints.txt").read_text()


def test_ports_are_those_on_which_ray_listens() -> None:
    spec = one(base(), "RayCluster")["spec"]
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    assert ports["gcs"] == DEFAULT_PORT
    assert ports["dashboard"] == head["readinessProbe"]["httpGet"]["port"] == DEFAULT_DASHBOARD_PORT
    worker = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert worker["readinessProbe"]["httpGet"] == LIVENESS
    assert LIVENESS["port"] == DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    policy = one(base(), "NetworkPolicy", "fedplatform-head")["spec"]
    guarded = [port["port"] for rule in policy["ingress"] for port in rule.get("ports", [])]
    assert guarded == [DEFAULT_DASHBOARD_PORT]


def test_the_endpoint_is_built_from_what_the_service_names() -> None:
    config = yaml.safe_load(one(base(), "RayService")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(import_module(module), name))
    arguments = EndpointArguments.from_settings(application["args"])
    pod = next(pods(one(base(), "RayService")))["spec"]["containers"][0]
    mounted = [mount["mountPath"] for mount in pod["volumeMounts"]]
    for path in (arguments.versions, arguments.state, arguments.keys):
        assert any(path.startswith(f"{mount}/") for mount in mounted), f"{path} lies on no volume"
    assert config["http_options"]["port"] in [port["containerPort"] for port in pod["ports"]]


def test_on_the_gpu_overlay_the_endpoint_is_the_same_and_takes_the_gpus_of_its_node() -> None:
    overlay = yaml.safe_load((KUBERAY / "overlays" / "gpu" / "kustomization.yaml").read_text())
    changes = [change for patch in overlay["patches"] for change in yaml.safe_load(patch["patch"])]
    (config,) = [yaml.safe_load(change["value"]) for change in changes if change["path"] == "/spec/serveConfigV2"]
    expected = yaml.safe_load(one(base(), "RayService")["spec"]["serveConfigV2"])
    expected["applications"][0]["args"]["gpus"] = 0.5  # of the one GPU that the overlay gives the node
    assert config == expected


def test_the_jobs_command_is_one_of_ours_on_paths_that_are_mounted() -> None:
    spec = one(base(), "RayJob")["spec"]
    program, *words = shlex.split(spec["entrypoint"])
    assert program == "fedplatform"
    options = parse(words)
    assert options["recipe"] == "/etc/fedplatform/federation/federation.yaml"
    cluster = one(base(), "RayCluster")
    assert spec["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    mounted = [mount["mountPath"] for mount in head["volumeMounts"]]
    for path in (options["recipe"], options["shards"], f"{options['runs']}/"):
        assert any(path.startswith(f"{mount}/") for mount in mounted), f"{path} lies on no volume"


def test_tls_is_made_by_a_command_of_ours() -> None:
    for document in base():
        for pod in pods(document):
            for container in pod["spec"].get("initContainers", []):
                _, _, command = container["command"][2].partition("exec fedplatform ")
                options = parse(shlex.split(command))
                assert options["authority"] == "/etc/fedplatform/authority"
                assert options["to"] == "/etc/fedplatform/tls"


def cluster_yaml() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())  # type: ignore[no-any-return]


def test_rays_cluster_launcher_takes_cluster_yaml() -> None:
    filled = prepare_config(cluster_yaml())
    validate_config(filled)
    assert filled["available_node_types"]["local.cluster.node"]["min_workers"] == 2


@pytest.mark.parametrize("key", ["max_worker", "head_start_ray_command", "initial_workers"])
def test_rays_cluster_launcher_refuses_a_mistyped_cluster_yaml(key: str) -> None:
    with pytest.raises(Exception, match=key):
        validate_config(prepare_config({**cluster_yaml(), key: 1}))


@pytest.mark.parametrize("which", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_nodes_of_cluster_yaml_are_started_by_a_command_of_ours(which: str) -> None:
    *_, line = cluster_yaml()[which]
    program, *words = shlex.split(line)
    assert program.endswith("/.venv/bin/fedplatform")
    options = parse(words)
    assert options["background"]
    assert bool(options.get("head")) == (which == "head_start_ray_commands")
    more = [word for word in line.partition(" -- ")[2].split() if word]
    ray_program = Path(sys.executable).parent / "ray"
    known = subprocess.run([ray_program, "start", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(word.partition("=")[0] in (*known.split(), "--autoscaling-config") for word in more)


def test_cluster_yaml_installs_by_a_target_of_the_makefile() -> None:
    assert "make .venv/.ready" in cluster_yaml()["setup_commands"][-1]
    subprocess.run(["make", "-n", ".venv/.ready"], cwd=ROOT, capture_output=True, check=True)


def test_the_image_is_built_from_files_that_are_there_and_runs_as_nobody_special() -> None:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    allowed = (ROOT / ".dockerignore").read_text().split()
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in allowed or f"!{name}/**" in allowed
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= set(copied)
    (user,) = (line.split()[1] for line in lines if line.startswith("USER "))
    pod = next(pods(one(base(), "RayCluster")))["spec"]["securityContext"]
    assert user == f"{pod['runAsUser']}:{pod['runAsGroup']}"
    assert any("--constraint constraints.txt" in line for line in lines)


def test_a_linter_of_dockerfiles_finds_nothing() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
