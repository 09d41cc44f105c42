"""A federation's hospitals as Kubernetes has them: a group of one node, a volume and a network policy each."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.places import LABEL, Place

CLUSTER = "fedplatform"
IMAGE = "fedplatform"
RUNS = "/home/fedplatform/runs"  # where the image's user has them
TLS_FOLDER, AUTHORITY_FOLDER = "/etc/fedplatform/tls", "/etc/fedplatform/authority"
SETTINGS = "fedplatform-ray"  # the config map of deploy/kuberay/base
PART_OF = {"app.kubernetes.io/part-of": CLUSTER}
LIVENESS = {"path": "/api/local_raylet_healthz", "port": 52365}  # of Ray's agent on every node
HEADING = "# Written by 'fedplatform k8s render'; change the federation file and render again.\n"
OWN_STATE_GIB, SHARD_GIB = 1, 50


def render(experiment: Experiment, folder: Path) -> list[Path]:
    """Write a Kustomize component with all hospitals into ``folder``; the files that were written.

    Raises :class:`ExperimentError` where the federation lists no hospitals, or one has no shard of its own.
    """
    if not experiment.places:
        raise ExperimentError("a federation on Kubernetes lists its hospitals: 'hospitals:' with '- name: ...' entries")
    for place in experiment.places:
        if len(PurePosixPath(place.shard).parts) < 3:
            raise ExperimentError(f"{place.name} needs a shard in a folder of its node's disk, got {place.shard!r}")
    folder.mkdir(parents=True, exist_ok=True)
    documents: dict[str, list[Any]] = {f"{place.name}.yaml": hospital(place) for place in experiment.places}
    documents["groups.yaml"] = [
        [{"op": "add", "path": "/spec/workerGroupSpecs/-", "value": group(place)} for place in experiment.places]
    ]
    documents["federation.yaml"] = [experiment.settings()]
    documents["kustomization.yaml"] = [component(experiment.places)]
    for name, contents in documents.items():
        (folder / name).write_text(HEADING + _text(contents), encoding="utf-8")
    return [folder / name for name in documents]


def component(places: Iterable[Place]) -> dict[str, Any]:
    """What an overlay takes in under ``components``."""
    return {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "resources": [f"{place.name}.yaml" for place in places],
        "generatorOptions": {"disableNameSuffixHash": True},
        "configMapGenerator": [{"name": "fedplatform-federation", "files": ["federation.yaml"]}],
        "patches": [{"path": "groups.yaml", "target": {"kind": "RayCluster", "name": CLUSTER}}],
    }


def hospital(place: Place) -> list[dict[str, Any]]:
    """A hospital's volumes and its network policy."""
    shard, state = f"{place.name}-shard", f"{place.name}-state"
    size = {"storage": f"{SHARD_GIB}Gi"}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{CLUSTER}-{shard}", "labels": PART_OF},
            "spec": {
                "capacity": size,
                "accessModes": ["ReadOnlyMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": f"{CLUSTER}-shards",
                "local": {"path": _folder(place)},
                "nodeAffinity": {
                    "required": {
                        "nodeSelectorTerms": [{"matchExpressions": [{"key": node_label(place), "operator": "Exists"}]}]
                    }
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": shard, "labels": PART_OF},
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": f"{CLUSTER}-shards",
                "volumeName": f"{CLUSTER}-{shard}",
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
        "metadata": {"name": f"{CLUSTER}-{place.name}", "labels": PART_OF},
        "spec": {
            "podSelector": {"matchLabels": {LABEL: place.node}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [cluster]}],
            "egress": [{"to": [cluster]}],
        },
    }


def group(place: Place) -> dict[str, Any]:
    """The worker group of one hospital: one node, which Ray knows by the hospital's label."""
    resources = {"cpu": f"{place.cpus:g}", "memory": f"{place.memory_gib:g}Gi"}
    if place.gpus:
        resources["nvidia.com/gpu"] = f"{place.gpus:g}"
    return {
        "groupName": place.name,
        "labels": {LABEL: place.node},
        "replicas": 1,
        "minReplicas": 1,
        "maxReplicas": 1,
        "rayStartParams": {},
        "template": {
            "metadata": {"labels": PART_OF | {LABEL: place.node}},
            "spec": {
                "automountServiceAccountToken": False,
                "nodeSelector": {node_label(place): "yes"},
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
                        "resources": {"requests": resources, "limits": resources},
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


def node_label(place: Place) -> str:
    """The label of the hospital's Kubernetes node; a key of its own, so that one machine can bear several."""
    return f"hospital.fedplatform/{place.node}"


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


def _text(documents: list[Any]) -> str:
    stream = io.StringIO()
    yaml.dump_all(documents, stream, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)
    return stream.getvalue()
