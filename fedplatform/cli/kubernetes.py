"""Commands of Kubernetes: k8s render."""

from __future__ import annotations

from pathlib import Path

import click

from fedplatform.cli.terminal import SuggestingGroup, console, one_line_errors


@click.group(cls=SuggestingGroup)
def k8s() -> None:
    """Write what Kubernetes needs to run a federation."""


@k8s.command()
@click.argument("federation", metavar="FEDERATION.yaml")
@click.option("--to", type=click.Path(path_type=Path, file_okay=False), default=Path("hospitals"), show_default=True,
              metavar="FOLDER", help="folder of the component; files of the same name are replaced")  # fmt: skip
@click.option("--namespace", metavar="NAME", default="fedplatform", show_default=True,
              help="the federation's namespace; each federation of a Kubernetes cluster needs its own")  # fmt: skip
def render(federation: str, *, to: Path, namespace: str) -> None:
    """Write a federation's hospitals as a Kustomize component.

    Each hospital gets a Ray worker group of one node that bears its label, a read-only volume of the folder in which
    its shard lies on that node's disk, a disk for its own state, and a network policy. FEDERATION.yaml is the file that
    'fedplatform run' takes; it goes along as a config map. deploy/kuberay/ has the cluster around it.

    A hospital's node needs the label 'hospital.NAMESPACE/NODE=yes'; the taint of the same name keeps other pods away.

    \b
    Example:
      fedplatform k8s render federation.yaml --to deploy/kuberay/hospitals
      kubectl label node NODE hospital.fedplatform/st-mary=yes
      kubectl taint node NODE hospital.fedplatform/st-mary=yes:NoSchedule
      kubectl apply -f deploy/kuberay/hospitals/namespace.yaml
      kubectl apply -k deploy/kuberay/overlays/cpu
    """
    with one_line_errors():
        from actors.cluster.kubernetes import render as write
        from fedplatform.experiments.experiment import Experiment, load_settings

        for path in write(Experiment.from_settings(load_settings(federation)), to, namespace=namespace):
            console.print(str(path), soft_wrap=True)
