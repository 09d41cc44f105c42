"""A federation's hospitals as Kubernetes has them: a group of one node, a volume and a network policy each.

Names that a whole Kubernetes cluster shares (of the namespace, volumes, priority and labels of nodes) hold the
federation's namespace; a dot, which neither a namespace nor a hospital's name has, keeps them apart.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.places import LABEL, Place

CLUSTER = "fedplatform"  # of Ray, and the namespace unless another is asked for
IMAGE = "fedplatform"
SEARCHES = "trials"  # the worker group of deploy/kuberay/base that a search fills
PULL_SECRET = "fedplatform-registry"  # the secret of a private one; Kubernetes does without
RUNS = "/home/fedplatform/runs"  # where the image's user has them
TLS_FOLDER, AUTHORITY_FOLDER = "/etc/fedplatform/tls", "/etc/fedplatform/authority"
SETTINGS = "fedplatform-ray"  # the config map of deploy/kuberay/base
PART_OF = {"app.kubernetes.io/part-of": CLUSTER}
LIVENESS = {"path": "/api/local_raylet_healthz", "port": 52365}  # of Ray's agent on every node
HEADING = "# Written by 'fedplatform k8s render'; change the federation file and render again.\n"
OWN_STATE_GIB, SHARD_GIB = 1, 50
RAYS_CPUS, RAYS_CPUS_AT_MOST = 0.5, 1.0  # a hospital's pod has them beside its actor's, for the processes of Ray
PRIORITY = 100_000  # over the nodes of searches, which have none
NAMESPACE = r"(?!(?:default|kube-.*)$)[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"


def render(experiment: Experiment, folder: Path, *, namespace: str = CLUSTER) -> list[Path]:
    """Write a Kustomize component with all hospitals into ``folder``; the files that were written.

    Its folder ``names`` is a component of its own, for the job and the endpoint: it puts them into the namespace.
    Raises :class:`ExperimentError` where the federation lists no hospitals, one has no shard of its own, or the
    namespace is none for a federation.
    """
    if re.fullmatch(NAMESPACE, namespace) is None:
        raise ExperimentError(
            "a namespace is small letters, digits and '-', at most 63, and not one of Kubernetes' own; "
            f"got {namespace!r}"
        )
    if not experiment.places:
        raise ExperimentError("a federation on Kubernetes lists its hospitals: 'hospitals:' with '- name: ...' entries")
    for place in experiment.places:
        if len(PurePosixPath(place.shard).parts) < 3:
            raise ExperimentError(f"{place.name} needs a shard in a folder of its node's disk, got {place.shard!r}")
        if place.name == SEARCHES:
            raise ExperimentError(f"on Kubernetes no hospital is called {SEARCHES!r}: the nodes of a search are")
    groups = [
        {"op": "add", "path": "/spec/workerGroupSpecs/-", "value": group(place, namespace)}
        for place in experiment.places
    ]
    documents: dict[str, list[Any]] = {
        **{f"hospital-{place.name}.yaml": hospital(place, namespace) for place in experiment.places},
        "namespace.yaml": shared(namespace),
        "disruption.yaml": [disruption_budget(experiment)],
        "groups.yaml": [groups],
        "federation.yaml": [experiment.settings()],
        "kustomization.yaml": [component(experiment.places)],
        "names/kustomization.yaml": [names(namespace)],
    }
    for name, contents in documents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(HEADING + _text(contents), encoding="utf-8")
    return [folder / name for name in documents]


def component(places: Iterable[Place]) -> dict[str, Any]:
    """What a cluster's overlay takes in under ``components``."""
    return {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "resources": ["namespace.yaml", "disruption.yaml", *(f"hospital-{place.name}.yaml" for place in places)],
        "generatorOptions": {"disableNameSuffixHash": True},
        "configMapGenerator": [{"name": "fedplatform-federation", "files": ["federation.yaml"]}],
        "patches": [{"path": "groups.yaml", "target": {"kind": "RayCluster", "name": CLUSTER}}],
    }


def names(namespace: str) -> dict[str, Any]:
    """What puts the cluster, the job or the endpoint into the namespace, at the federation's priority."""
    pods = {
        "RayCluster": ["/spec/headGroupSpec/template"],
        "StatefulSet": ["/spec/template"],
        "RayService": [f"/spec/rayClusterConfig/{group}/template" for group in ("headGroupSpec", "workerGroupSpecs/0")],
    }
    patches = {
        kind: [
            {"op": "add", "path": f"{template}/spec/priorityClassName", "value": priority(namespace)}
            for template in templates
        ]
        for kind, templates in pods.items()
    }
    return {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "namespace": namespace,
        "patches": [{"target": {"kind": kind}, "patch": _text([patch])} for kind, patch in patches.items()],
    }


def shared(namespace: str) -> list[dict[str, Any]]:
    """What has to be there before anything else: the namespace and the priority of the federation's pods."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        },
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": priority(namespace), "labels": PART_OF},
            "value": PRIORITY,
            "description": "a federation's head, hospitals, Redis and endpoint, before the nodes of a search",
        },
    ]


def disruption_budget(experiment: Experiment) -> dict[str, Any]:
    """As many hospitals as a round needs stay while nodes are emptied."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": f"{CLUSTER}-hospitals", "labels": PART_OF},
        "spec": {
            "minAvailable": min(experiment.quorum, len(experiment.places)),
            "selector": {"matchExpressions": [{"key": LABEL, "operator": "Exists"}]},
        },
    }


def hospital(place: Place, namespace: str) -> list[dict[str, Any]]:
    """A hospital's volumes and its network policy."""
    shard, state = f"{place.name}-shard", f"{place.name}-state"
    volume, storage_class = f"{namespace}.{shard}", f"{namespace}.shards"
    size = {"storage": f"{SHARD_GIB}Gi"}
    label = node_label(place, namespace)
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume, "labels": PART_OF},
            "spec": {
                "capacity": size,
                "accessModes": ["ReadOnlyMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": storage_class,
                "claimRef": {"namespace": namespace, "name": shard},
                "local": {"path": _folder(place)},
                "nodeAffinity": {
                    "required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": label, "operator": "Exists"}]}]}
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": shard, "labels": PART_OF},
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": storage_class,
                "volumeName": volume,
                "resources": {"requests": size},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": state, "labels": PART_OF},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": f"{OWN_STATE_GIB}Gi"}},
            },
        },
        policy(place),
    ]


def policy(place: Place) -> dict[str, Any]:
    """Who a hospital's pod may talk to: its cluster, and nobody outside."""
    cluster = {"podSelector": {"matchLabels": {"ray.io/cluster": CLUSTER}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"{CLUSTER}-hospital-{place.name}", "labels": PART_OF},
        "spec": {
            "podSelector": {"matchLabels": {LABEL: place.node}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [cluster]}],
            "egress": [{"to": [cluster]}],
        },
    }


def group(place: Place, namespace: str) -> dict[str, Any]:
    """The worker group of one hospital: one node, which Ray knows by the hospital's label."""
    label = node_label(place, namespace)
    resources = {"memory": f"{place.memory_gib:g}Gi"}
    if place.gpus:
        resources["nvidia.com/gpu"] = f"{math.ceil(place.gpus)}"  # Kubernetes does not divide one
    return {
        "groupName": place.name,
        "labels": {LABEL: place.node},
        "replicas": 1,
        "minReplicas": 1,
        "maxReplicas": 1,
        "rayStartParams": {"num-cpus": f"{math.ceil(place.cpus)}"},  # for actors; Ray takes whole ones
        "template": {
            "metadata": {"labels": PART_OF | {LABEL: place.node}},
            "spec": {
                "automountServiceAccountToken": False,
                "priorityClassName": priority(namespace),
                "imagePullSecrets": [{"name": PULL_SECRET}],
                "nodeSelector": {label: "yes"},
                "tolerations": [{"key": label, "operator": "Exists", "effect": "NoSchedule"}],
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 1000,
                    "runAsGroup": 1000,
                    "fsGroup": 1000,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "initContainers": [_certificate()],
                "containers": [
                    {
                        "name": "ray-worker",
                        "image": IMAGE,
                        "envFrom": [{"configMapRef": {"name": SETTINGS}}],
                        "securityContext": _confined(),
                        "ports": [{"name": "metrics", "containerPort": 8080}],
                        "readinessProbe": _probe(initialDelaySeconds=10, periodSeconds=5),
                        "livenessProbe": _probe(initialDelaySeconds=60, periodSeconds=10),
                        "resources": {
                            "requests": {"cpu": f"{place.cpus + RAYS_CPUS:g}", **resources},
                            "limits": {"cpu": f"{place.cpus + RAYS_CPUS_AT_MOST:g}", **resources},
                        },
                        "volumeMounts": [
                            {"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True},
                            {"name": "shard", "mountPath": _folder(place), "readOnly": True},
                            {"name": "state", "mountPath": RUNS},
                        ],
                    }
                ],
                "volumes": [
                    {"name": "tls", "emptyDir": {"medium": "Memory"}},
                    {
                        "name": "authority",
                        "secret": {"secretName": "fedplatform-authority", "optional": True, "defaultMode": 0o440},
                    },
                    {"name": "shard", "persistentVolumeClaim": {"claimName": f"{place.name}-shard", "readOnly": True}},
                    {"name": "state", "persistentVolumeClaim": {"claimName": f"{place.name}-state"}},
                ],
            },
        },
    }


def node_label(place: Place, namespace: str) -> str:
    """The label and taint of the hospital's Kubernetes node; a key of its own, so that one machine can bear several."""
    return f"hospital.{namespace}/{place.node}"


def priority(namespace: str) -> str:
    """The name of the federation's PriorityClass."""
    return f"{namespace}.federation"


def _certificate() -> dict[str, Any]:
    return {
        "name": "certificate",
        "image": IMAGE,
        "command": [
            "sh",
            "-c",
            f'test "$RAY_USE_TLS" = 0 || exec fedplatform certificate {AUTHORITY_FOLDER} --to {TLS_FOLDER} '
            '--address "$POD_IP" --address 127.0.0.1',
        ],
        "envFrom": [{"configMapRef": {"name": SETTINGS}}],
        "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "securityContext": _confined(),
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"cpu": "1", "memory": "512Mi"},
        },
        "volumeMounts": [
            {"name": "tls", "mountPath": TLS_FOLDER},
            {"name": "authority", "mountPath": AUTHORITY_FOLDER, "readOnly": True},
        ],
    }


def _probe(**when: int) -> dict[str, Any]:
    return {"httpGet": dict(LIVENESS), **when, "timeoutSeconds": 5, "failureThreshold": 12}


def _confined() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _folder(place: Place) -> str:
    return str(PurePosixPath(place.shard).parent)


class _Plain(yaml.SafeDumper):
    """YAML without anchors, as people write it."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def _written_in_lines(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _written_in_lines)


def _text(documents: list[Any]) -> str:
    stream = io.StringIO()
    yaml.dump_all(documents, stream, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)
    return stream.getvalue()
