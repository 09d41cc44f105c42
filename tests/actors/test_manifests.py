"""What deploys the platform is real: schemas accept it, and so are the commands, import paths and ports in it."""

from __future__ import annotations

import copy
import ipaddress
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
from click.testing import CliRunner
from jsonschema import Draft202012Validator, ValidationError
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT, DEFAULT_DASHBOARD_PORT, DEFAULT_PORT
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema
from referencing import Registry, Resource

from actors.cluster.kubernetes import (
    LIVENESS,
    NAMESPACE,
    PULL_SECRET,
    RAYS_CPUS,
    RAYS_CPUS_AT_MOST,
    SEARCHES,
    priority,
    render,
)
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
PARTS = ("", "job", "endpoint")  # the cluster, and what is applied apart from it
CLUSTER_SCOPED = ("Namespace", "PersistentVolume", "PriorityClass")


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


def built(overlay: str, part: str = "", *, kuberay: Path = KUBERAY) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here, so no overlay can be put together")
    done = subprocess.run(
        ["kubectl", "kustomize", kuberay / "overlays" / overlay / part], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def one(found: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    (only,) = (each for each in found if each["kind"] == kind and name in (None, each["metadata"]["name"]))
    return only


def manifests(*folders: str) -> list[dict[str, Any]]:
    """What stands in folders of deploy/kuberay; without any, the cluster, the job and the endpoint."""
    files = [
        path for folder in folders or ("base", "job", "endpoint") for path in sorted((KUBERAY / folder).glob("*.yaml"))
    ]
    return documents(*(path for path in files if path.name != "kustomization.yaml"))


def optional() -> list[dict[str, Any]]:
    return manifests("components/monitoring", "components/gateway")


def groups() -> list[dict[str, Any]]:
    """The worker groups of the hospitals in the repository."""
    (patch,) = documents(KUBERAY / "hospitals/groups.yaml")
    return [operation["value"] for operation in patch]


def identities(found: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Kind, namespace (none for what a whole Kubernetes cluster shares) and name of each."""
    return [(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in found]


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


@pytest.mark.parametrize(
    "document",
    [*manifests(), *(each for each in optional() if each["kind"] != "PodMonitor")],
    ids=lambda found: f"{found['kind']}-{found['metadata']['name']}",
)
def test_the_manifests_pass_their_schemas(document: dict[str, Any]) -> None:
    check(document)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_every_overlay_passes_its_schemas_and_has_its_image(overlay: str, part: str) -> None:
    found = built(overlay, part)
    for document in found:
        check(document)
    images = {container["image"] for each in found for pod in pods(each) for container in pod["spec"]["containers"]}
    assert "fedplatform" not in images, "an image without a registry or a tag is left"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_has_a_node_for_each_hospital(overlay: str) -> None:
    found = one(built(overlay), "RayCluster")["spec"]["workerGroupSpecs"]
    assert [group["groupName"] for group in found] == [SEARCHES, "st-mary", "charite"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_cluster_the_job_and_the_endpoint_are_applied_apart(overlay: str) -> None:
    parts = [built(overlay, part) for part in PARTS]
    rays = [{each["kind"] for each in found if each["apiVersion"] == "ray.io/v1"} for found in parts]
    assert rays == [{"RayCluster"}, {"RayJob"}, {"RayService"}]
    together = [named for found in parts for named in identities(found)]
    assert len(together) == len(set(together)), "an object is in two parts, so that to delete one harms the other"


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
    document = copy.deepcopy(next(found for found in manifests() if found["kind"] == kind))
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        check(document)


def test_the_hospitals_in_the_repository_are_those_of_the_federation_file(tmp_path: Path) -> None:
    experiment = Experiment.from_settings(load_settings(str(FEDERATION)))
    written = render(experiment, tmp_path)
    there = [path for path in (KUBERAY / "hospitals").rglob("*") if path.is_file()]
    names = sorted(path.relative_to(tmp_path) for path in written)
    assert names == sorted(path.relative_to(KUBERAY / "hospitals") for path in there)
    for name in names:
        assert (tmp_path / name).read_text() == (KUBERAY / "hospitals" / name).read_text(), (
            "render deploy/kuberay/hospitals anew"
        )
    assert Experiment.from_settings(load_settings(str(tmp_path / "federation.yaml"))) == experiment


def test_each_hospital_has_a_group_a_volume_and_a_policy_that_are_nobody_elses() -> None:
    for group in groups():
        name, pod = group["groupName"], group["template"]
        own = documents(KUBERAY / f"hospitals/hospital-{name}.yaml")
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


@pytest.mark.parametrize(
    "hospitals",
    [3, ["a", "b"], [{"name": "a", "shard": "/shard.parquet"}], [{"name": SEARCHES, "shard": "/srv/shard.parquet"}]],
)
def test_a_federation_that_kubernetes_cannot_place_is_refused(hospitals: object, tmp_path: Path) -> None:
    settings = {**load_settings(str(FEDERATION)), "hospitals": hospitals}
    with pytest.raises(ExperimentError):
        render(Experiment.from_settings(settings), tmp_path)


def test_no_pod_is_root_and_every_container_has_limits_and_a_probe() -> None:
    everything = [*manifests(), *groups()]
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


def test_every_claim_and_config_map_that_is_used_is_there() -> None:
    found = [each for part in PARTS for each in built("cpu", part)]
    there = {(each["kind"], each["metadata"]["name"]) for each in found}
    text = json.dumps(found)
    for claim in set(re.findall(r'"claimName": "([^"]+)"', text)):
        assert ("PersistentVolumeClaim", claim) in there
    for reference in set(re.findall(r'"configMap(?:Ref)?": \{"name": "([^"]+)"', text)):
        assert ("ConfigMap", reference) in there


@pytest.mark.parametrize("kind", ["RayCluster", "RayService"])
def test_the_token_is_asked_for_and_ray_is_of_the_version_that_was_tested(kind: str) -> None:
    spec = one(manifests(), kind)["spec"]
    spec = spec.get("rayClusterConfig", spec)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == ray.__version__
    assert f"ray=={ray.__version__}\n" in (ROOT / "constraints.txt").read_text()


def test_ports_are_those_on_which_ray_listens() -> None:
    spec = one(manifests(), "RayCluster")["spec"]
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    assert ports["gcs"] == DEFAULT_PORT
    assert ports["dashboard"] == head["readinessProbe"]["httpGet"]["port"] == DEFAULT_DASHBOARD_PORT
    worker = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert worker["readinessProbe"]["httpGet"] == LIVENESS
    assert LIVENESS["port"] == DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    policy = one(manifests(), "NetworkPolicy", "fedplatform-head")["spec"]
    guarded = [port["port"] for rule in policy["ingress"] for port in rule.get("ports", [])]
    assert guarded == [DEFAULT_DASHBOARD_PORT]


def test_the_endpoint_is_built_from_what_the_service_names() -> None:
    config = yaml.safe_load(one(manifests(), "RayService")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(import_module(module), name))
    arguments = EndpointArguments.from_settings(application["args"])
    pod = next(pods(one(manifests(), "RayService")))["spec"]["containers"][0]
    mounted = [mount["mountPath"] for mount in pod["volumeMounts"]]
    for path in (arguments.versions, arguments.state, arguments.keys):
        assert any(path.startswith(f"{mount}/") for mount in mounted), f"{path} lies on no volume"
    assert config["http_options"]["port"] in [port["containerPort"] for port in pod["ports"]]


def test_on_the_gpu_overlay_the_endpoint_is_the_same_and_takes_the_gpus_of_its_node() -> None:
    overlay = yaml.safe_load((KUBERAY / "overlays/gpu/endpoint/kustomization.yaml").read_text())
    changes = [change for patch in overlay["patches"] for change in yaml.safe_load(patch["patch"])]
    (config,) = [yaml.safe_load(change["value"]) for change in changes if change["path"] == "/spec/serveConfigV2"]
    expected = yaml.safe_load(one(manifests(), "RayService")["spec"]["serveConfigV2"])
    expected["applications"][0]["args"]["gpus"] = 0.5  # of the one GPU that the overlay gives the node
    assert config == expected


def test_the_jobs_command_is_one_of_ours_on_paths_that_are_mounted() -> None:
    spec = one(manifests(), "RayJob")["spec"]
    program, *words = shlex.split(spec["entrypoint"])
    assert program == "fedplatform"
    options = parse(words)
    assert options["recipe"] == "/etc/fedplatform/federation/federation.yaml"
    cluster = one(manifests(), "RayCluster")
    assert spec["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    mounted = [mount["mountPath"] for mount in head["volumeMounts"]]
    for path in (options["recipe"], options["shards"], f"{options['runs']}/"):
        assert any(path.startswith(f"{mount}/") for mount in mounted), f"{path} lies on no volume"


def test_tls_is_made_by_a_command_of_ours() -> None:
    for document in [*manifests(), *groups()]:
        for pod in pods(document):
            for container in pod["spec"].get("initContainers", []):
                _, _, command = container["command"][2].partition("exec fedplatform ")
                options = parse(shlex.split(command))
                assert options["authority"] == "/etc/fedplatform/authority"
                assert options["to"] == "/etc/fedplatform/tls"
                known = {variable["name"] for variable in container["env"]}
                assert set(re.findall(r"\$(\w+)", command)) <= known, "a variable in the command is not set"


@pytest.fixture
def two_federations(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """Two federations of the same file as docs/cluster.md has them: rendered apart, each with an overlay of its own."""
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    found = {}
    for namespace in ("first", "second"):
        render(the_experiment(), tmp_path / "kuberay" / namespace, namespace=namespace)
        overlay = shutil.copytree(tmp_path / "kuberay/overlays/cpu", tmp_path / "kuberay/overlays" / namespace)
        for path in overlay.rglob("kustomization.yaml"):
            path.write_text(path.read_text().replace("/hospitals", f"/{namespace}"))
        found[namespace] = [each for part in PARTS for each in built(namespace, part, kuberay=tmp_path / "kuberay")]
    return found


def the_experiment() -> Experiment:
    return Experiment.from_settings(load_settings(str(FEDERATION)))


def test_two_federations_in_one_kubernetes_cluster_share_no_name(
    two_federations: dict[str, list[dict[str, Any]]],
) -> None:
    first, second = (identities(found) for found in two_federations.values())
    assert len(first) == len(set(first)) == len(second)
    assert not set(first) & set(second)
    for namespace, found in two_federations.items():
        for document in found:
            check(document)
        for kind, where, name in identities(found):
            if kind in CLUSTER_SCOPED:
                assert where == ""
                assert name.split(".")[0] == namespace
            else:
                assert where == namespace


def test_a_federation_names_nothing_of_another(two_federations: dict[str, list[dict[str, Any]]]) -> None:
    for namespace, found in two_federations.items():
        words = set(re.findall(r"[a-z0-9][-a-z0-9./]*", json.dumps(found)))
        (other,) = two_federations.keys() - {namespace}
        assert not [word for word in words if re.search(rf"\b{other}\b", word)]
        assert "fedplatform.svc.cluster.local" not in json.dumps(found)
        classes = {each["metadata"]["name"] for each in found if each["kind"] == "PriorityClass"}
        used = {
            pod["spec"]["priorityClassName"]
            for each in found
            for pod in pods(each)
            if "priorityClassName" in pod["spec"]
        }
        assert used == classes == {priority(namespace)}


def test_a_namespace_and_a_hospital_never_make_the_name_of_another_federations_volume(tmp_path: Path) -> None:
    volumes = []
    for namespace, hospital in (("a", "b-c"), ("a-b", "c")):
        settings = {
            **load_settings(str(FEDERATION)),
            "hospitals": [{"name": hospital, "shard": "/srv/scans/a.parquet"}],
        }
        settings |= {"quorum": 1}
        render(Experiment.from_settings(settings), tmp_path / namespace, namespace=namespace)
        (path,) = (tmp_path / namespace).glob("hospital-*.yaml")
        volumes.append(one(documents(path), "PersistentVolume")["metadata"]["name"])
    assert len(set(volumes)) == 2


def test_a_volume_is_kept_for_its_federations_claim(tmp_path: Path) -> None:
    render(the_experiment(), tmp_path, namespace="second")
    for path in tmp_path.glob("hospital-*.yaml"):
        volume = one(documents(path), "PersistentVolume")
        claim = one(documents(path), "PersistentVolumeClaim", volume["spec"]["claimRef"]["name"])
        assert volume["spec"]["claimRef"]["namespace"] == "second"
        assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
        assert claim["spec"]["storageClassName"] == volume["spec"]["storageClassName"]


@pytest.mark.parametrize("namespace", ["", "Second", "a.b", "-a", "a" * 64, "default", "kube-system"])
def test_a_namespace_that_kubernetes_would_refuse_or_that_is_its_own_is_refused(namespace: str, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="namespace"):
        render(the_experiment(), tmp_path, namespace=namespace)
    assert not list(tmp_path.iterdir())


def test_ordinary_namespaces_are_taken() -> None:
    assert all(re.fullmatch(NAMESPACE, name) for name in ("fedplatform", "a", "default-2", "kube", "a" * 63))


def test_the_command_renders_into_a_namespace(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        fedplatform, ["k8s", "render", str(FEDERATION), "--to", str(tmp_path / "second"), "--namespace", "second"]
    )
    assert done.exit_code == 0, done.output
    assert one(documents(tmp_path / "second/namespace.yaml"), "Namespace")["metadata"]["name"] == "second"


def test_a_hospitals_pod_has_room_for_ray_beside_its_actor_and_tells_ray_only_of_the_actors_cpus(
    tmp_path: Path,
) -> None:
    settings = load_settings(str(FEDERATION))
    settings["hospitals"] = [
        {"name": "whole", "shard": "/srv/a/a.parquet", "cpus": 2},
        {"name": "half", "shard": "/srv/b/b.parquet", "cpus": 0.5, "gpus": 0.5},
    ]
    experiment = Experiment.from_settings(settings)
    render(experiment, tmp_path)
    (patch,) = documents(tmp_path / "groups.yaml")
    for place, operation in zip(experiment.places, patch, strict=True):
        group = operation["value"]
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert float(resources["requests"]["cpu"]) == place.cpus + RAYS_CPUS
        assert float(resources["limits"]["cpu"]) == place.cpus + RAYS_CPUS_AT_MOST
        assert place.cpus <= int(group["rayStartParams"]["num-cpus"]) < place.cpus + 1
        assert resources["limits"].get("nvidia.com/gpu") == (None if place.gpus == 0 else "1")


def test_a_hospitals_pod_alone_tolerates_the_taint_of_its_machine() -> None:
    for group in groups():
        spec = group["template"]["spec"]
        (key,) = spec["nodeSelector"]
        assert key == f"hospital.fedplatform/{group['groupName']}"
        assert spec["tolerations"] == [{"key": key, "operator": "Exists", "effect": "NoSchedule"}]
    assert "tolerations" not in json.dumps(manifests())


def test_every_pod_of_ours_may_come_from_a_private_registry() -> None:
    for document in [*manifests(), *groups()]:
        for pod in pods(document):
            assert pod["spec"]["imagePullSecrets"] == [{"name": PULL_SECRET}]


def test_what_a_federation_cannot_miss_comes_before_the_nodes_of_a_search() -> None:
    found = [each for part in PARTS for each in built("cpu", part)]
    assert one(found, "PriorityClass")["value"] > 0
    assert not one(found, "PriorityClass").get("globalDefault")
    cluster, service = one(found, "RayCluster")["spec"], one(found, "RayService")["spec"]["rayClusterConfig"]
    searches, *hospitals = cluster["workerGroupSpecs"]
    first = [*hospitals, cluster["headGroupSpec"], service["headGroupSpec"], *service["workerGroupSpecs"]]
    first.append(one(found, "StatefulSet")["spec"])
    for group in first:
        assert group["template"]["spec"]["priorityClassName"] == priority("fedplatform")
    assert "priorityClassName" not in searches["template"]["spec"]


def test_draining_nodes_leaves_the_head_redis_the_endpoint_and_a_quorum_of_hospitals() -> None:
    found = [each for part in PARTS for each in built("cpu", part)]
    budgets = {each["metadata"]["name"]: each["spec"] for each in found if each["kind"] == "PodDisruptionBudget"}
    hospitals = budgets.pop("fedplatform-hospitals")
    assert hospitals["minAvailable"] == the_experiment().quorum
    assert hospitals["selector"] == {"matchExpressions": [{"key": LABEL, "operator": "Exists"}]}
    cluster, service = one(found, "RayCluster"), one(found, "RayService")["spec"]["rayClusterConfig"]
    head = {"ray.io/cluster": cluster["metadata"]["name"], "ray.io/node-type": "head"}  # as KubeRay labels its pods
    endpoint = service["headGroupSpec"]["template"]["metadata"]["labels"]
    kept = [
        head,
        one(found, "StatefulSet")["spec"]["template"]["metadata"]["labels"],
        endpoint | {"ray.io/node-type": "head"},
        endpoint | {"ray.io/node-type": "worker", "ray.io/group": service["workerGroupSpecs"][0]["groupName"]},
    ]
    for labels in kept:
        (budget,) = [each for each in budgets.values() if each["selector"]["matchLabels"].items() <= labels.items()]
        assert budget["minAvailable"] == 1, "for pods that an operator owns Kubernetes takes no percentage"
    assert len(budgets) == len(kept)


def test_nobody_may_talk_to_every_address_and_only_heads_to_the_kubernetes_api() -> None:
    every = [*built("cpu"), *built("cpu", "job"), *built("cpu", "endpoint"), *optional()]
    policies = [each for each in every if each["kind"] == "NetworkPolicy"]
    beyond = []
    for each in policies:
        for rule in each["spec"].get("egress", []):
            assert rule["to"], f"{each['metadata']['name']} lets pods talk to everybody"
            beyond += [(each, peer["ipBlock"]["cidr"]) for peer in rule["to"] if "ipBlock" in peer]
    assert {policy["metadata"]["name"] for policy, _ in beyond} == {"fedplatform-api-server"}
    assert beyond[0][0]["spec"]["podSelector"]["matchLabels"] == {"ray.io/node-type": "head"}
    assert all(ipaddress.ip_network(cidr).num_addresses == 1 for _, cidr in beyond)


def ingress_of(name: str) -> dict[str, Any]:
    policy = one(optional(), "NetworkPolicy", name)["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    (rule,) = policy["ingress"]
    assert all(
        peer["namespaceSelector"]["matchLabels"].keys() == {"kubernetes.io/metadata.name"} for peer in rule["from"]
    )
    return {"pods": policy["podSelector"]["matchLabels"], "ports": [port["port"] for port in rule["ports"]]}


def test_prometheus_reaches_the_metrics_of_every_ray_pod_and_nothing_else() -> None:
    monitor = one(
        optional(), "PodMonitor"
    )  # by hand: the schemas of the Prometheus operator are not in this repository
    assert monitor.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"].keys() == {"selector", "podTargetLabels", "podMetricsEndpoints"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "metrics", "path": "/metrics", "interval": "15s"}
    policy = ingress_of("fedplatform-metrics")
    assert policy["pods"] == monitor["spec"]["selector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}  # KubeRay's
    every = [pod for each in [*manifests("base", "endpoint"), *groups()] for pod in pods(each)]
    rays = [pod["spec"]["containers"][0] for pod in every if pod["spec"]["containers"][0]["name"].startswith("ray-")]
    assert len(rays) == 6
    for container in rays:
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert policy["ports"] == [ports[endpoint["port"]]] == [8080]


@pytest.fixture
def with_everything(tmp_path: Path) -> Path:
    """deploy/kuberay where the overlay cpu takes in all that is optional."""
    kuberay = shutil.copytree(KUBERAY, tmp_path / "kuberay")
    for path in (kuberay / "overlays/cpu").rglob("kustomization.yaml"):
        path.write_text(path.read_text().replace("# - ../", "- ../"))
    return kuberay


def test_what_is_optional_goes_with_an_overlay_into_its_namespace(with_everything: Path) -> None:
    render(the_experiment(), with_everything / "hospitals", namespace="second")
    found = [each for part in PARTS for each in built("cpu", part, kuberay=with_everything)]
    for document in found:
        if document["kind"] != "PodMonitor":
            check(document)
    assert {each["metadata"]["namespace"] for each in found if each["kind"] not in CLUSTER_SCOPED} == {"second"}
    assert len(identities(found)) == len(set(identities(found)))


def test_hospitals_outside_reach_the_gateway_that_the_job_opens_on_the_head(with_everything: Path) -> None:
    entrypoint = one(built("cpu", "job", kuberay=with_everything), "RayJob")["spec"]["entrypoint"]
    options = parse(shlex.split(entrypoint)[1:])
    plain = parse(shlex.split(one(manifests(), "RayJob")["spec"]["entrypoint"])[1:])
    of_the_gateway = {"gateway", "roster", "tls_cert", "tls_key"}
    assert {name: value for name, value in options.items() if name not in of_the_gateway} == {
        name: value for name, value in plain.items() if name not in of_the_gateway
    }
    found = built("cpu", kuberay=with_everything)
    head = one(found, "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    container = head["containers"][0]
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "gateway")
    (volume,) = (each for each in head["volumes"] if each["name"] == "gateway")
    assert volume["secret"]["secretName"] == "fedplatform-gateway"
    assert mount["readOnly"]
    for name in of_the_gateway - {"gateway"}:
        assert str(options[name]).startswith(f"{mount['mountPath']}/")
    (port,) = (each["containerPort"] for each in container["ports"] if each["name"] == "gateway")
    assert options["gateway"] == f"0.0.0.0:{port}"
    policy = ingress_of("fedplatform-gateway")
    service = one(found, "Service", "fedplatform-gateway")["spec"]
    assert policy["ports"] == [port]
    assert policy["pods"] == service["selector"] == {"ray.io/cluster": "fedplatform", "ray.io/node-type": "head"}
    assert [each["targetPort"] for each in service["ports"]] == ["gateway"]


def test_the_example_of_an_ingress_hands_tls_on_to_the_gateways_service() -> None:
    ingress = one(optional(), "Ingress")
    assert ingress["metadata"]["annotations"] == {"nginx.ingress.kubernetes.io/ssl-passthrough": "true"}
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    service = one(optional(), "Service")
    backend = path["backend"]["service"]
    assert backend["name"] == service["metadata"]["name"]
    assert backend["port"]["name"] in [port["name"] for port in service["spec"]["ports"]]
    assert ingress["spec"]["tls"] == [{"hosts": [rule["host"]]}]


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
    pod = next(pods(one(manifests(), "RayCluster")))["spec"]["securityContext"]
    assert user == f"{pod['runAsUser']}:{pod['runAsGroup']}"
    assert any("--constraint constraints.txt" in line for line in lines)


def test_a_linter_of_dockerfiles_finds_nothing() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
