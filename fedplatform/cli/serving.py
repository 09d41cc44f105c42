"""Commands of a trained model in use: publish, serve, export."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedplatform.cli.limits import limit_options
from fedplatform.cli.terminal import console, one_line_errors

if TYPE_CHECKING:
    from actors.endpoint.arguments import EndpointArguments

RUN_OR_REGISTRY = "RUN|models:/NAME"


@click.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--preset",
    "defence",
    default="full",
    show_default=True,
    metavar="NAME",
    help="full, fast, or another row of 'fedplatform evaluate' that has a purifier network",
)
@click.option(
    "--healthy",
    metavar="CLASS",
    help="the class of scans without a finding [default: the one called healthy, normal, no tumour or the like]",
)
@click.option("--registry", metavar="NAME", help="register the version in MLflow under this name, too")
@click.option("--champion", metavar="N", help="publish nothing: make version N the one that is served")
def publish(run_folder: Path, *, defence: str, healthy: str | None, registry: str | None, champion: str | None) -> None:
    """Publish the defence of a finished run as a new version, and make it the champion.

    RUN is a folder whose defence is trained. A version holds the bundle of every hospital: networks as safetensors and
    all that was fitted on its clean scans, but no scan and no secret. A running server of this run switches to the
    champion by itself, within seconds and without losing a request; --champion N takes it back.

    \b
    Examples:
      fedplatform publish runs/scan
      fedplatform publish runs/scan --preset fast
      fedplatform publish runs/scan --registry scan
      fedplatform publish runs/scan --champion 1
    """
    with one_line_errors():
        from fedplatform.core.specification import nearest
        from fedplatform.defence.presets import DEFENCES
        from fedplatform.experiments.defence.load import DefendedRun
        from fedplatform.experiments.experiment import ExperimentError
        from fedplatform.serving.publishing import publish_run
        from fedplatform.serving.versions import RegistryVersions, RunVersions, registry_uri

        versions = RunVersions(run_folder)
        in_registry = registry and RegistryVersions(registry, registry_uri(run_folder.parent), run_folder)
        if champion is not None:
            chosen = in_registry or versions
            chosen.promote(champion)
            console.print(f"champion: version {champion}")
            return
        if defence not in DEFENCES:
            raise ExperimentError(f"no defence is called {defence!r}{nearest(defence, DEFENCES)}")
        number = publish_run(DefendedRun(run_folder), defence=defence, healthy=healthy, progress=say_fitting)
        console.print(f"version {number}: {versions.folder(number)}", soft_wrap=True)
        if in_registry:
            registered = in_registry.add(versions.folder(number))
            in_registry.promote(registered)
            console.print(f"registered: models:/{registry}, version {registered}")


@click.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["torch", "onnx", "timm"]),
    default="onnx",
    show_default=True,
    help="torch: a program of torch.export; onnx; timm: a checkpoint, for a network of timm",
)
@click.option("--hospital", metavar="NAME", help="this hospital's own model [default: the one that all share]")
@click.option("--best", is_flag=True, help="the model of the best round on validation scans, not that of the last")
def export(run_folder: Path, folder: Path, *, form: str, hospital: str | None, best: bool) -> None:
    """Write the trained classifier for programs that do not know this one, into a new FOLDER.

    RUN is a finished run. FOLDER gets the model and model.json: classes, size, which pixels it takes, and the line of
    Python that uses it. The defence of a scan is not part of it: 'publish' and 'serve' are for that.

    \b
    Examples:
      fedplatform export runs/lesions lesions-onnx --hospital hospital-00
      fedplatform export runs/lesions lesions-timm --format timm --best
    """
    with one_line_errors():
        from fedplatform.serving.export import export as write

        use = write(run_folder, folder, form=form, hospital_id=hospital, best=best)  # type: ignore[arg-type]
        console.print(f"written: {folder}", soft_wrap=True)
        console.print(use, soft_wrap=True, markup=False)


@click.command()
@click.argument("run_or_registry", metavar=RUN_OR_REGISTRY)
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="port; 0 takes a free one")
@click.option("--tls-cert", type=click.Path(path_type=Path), metavar="FILE", help="certificate, for https")
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="its private key")
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="API keys ('fedplatform keys add'); without them, only this machine may ask",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="where the audit log and the hospitals' secrets are kept [default: RUN]",
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="X", help="scans a second for each key")
@click.option(
    "--gpus",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="X",
    help="GPUs that each of the two parts with networks takes; .5 lets them share one, 0 uses ONNX Runtime on CPUs",
)
@click.option("--root-path", default="", metavar="/PREFIX", help="path prefix under which a reverse proxy shows it")
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="web page that may ask from a browser, as https://pacs.example",
)
@limit_options("bytes", "pixels", "picture", "scans", "slices", "files", "header")
@click.option("--build", type=click.Path(path_type=Path), metavar="FILE", help="write the config for 'serve deploy'")
def serve(
    run_or_registry: str,
    *,
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    keys: Path | None,
    state: Path | None,
    rate: float | None,
    gpus: float,
    root_path: str,
    allow_origin: tuple[str, ...],
    build: Path | None,
    **limits: int,
) -> None:
    """Serve a finished run: a page to drop a scan on, and an API behind it.

    RUN is a folder whose defence is trained; where it has no published version yet, the first one is published. Or
    models:/NAME of MLflow's registry. The alias champion says which version is served.

    \b
    Examples:
      fedplatform serve runs/scan
      fedplatform keys add hospital-00 --keys keys.json
      openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj /CN=scan.example -keyout key.pem -out cert.pem
      fedplatform serve runs/scan --host 0.0.0.0 --keys keys.json --tls-cert cert.pem --tls-key key.pem
      fedplatform serve runs/scan --build serve.yaml
    """
    with one_line_errors():
        from fedplatform.experiments.experiment import ExperimentError
        from fedplatform.serving.publishing import published
        from fedplatform.serving.versions import REGISTRY, registry_uri

        tls = tls_pair(tls_cert, tls_key)
        if keys is None and not is_loopback(host):
            raise ExperimentError(f"without --keys only this machine may ask: --host 127.0.0.1, got {host}")
        named = run_or_registry.startswith(REGISTRY)
        if named and state is None:
            raise ExperimentError(f"{run_or_registry} says not where the audit log is kept: --state FOLDER")
        if not named:
            published(Path(run_or_registry), progress=say_fitting)
        arguments: dict[str, Any] = {
            "versions": run_or_registry if named else str(Path(run_or_registry).resolve()),
            "registry": registry_uri(Path("runs")) if named else "",
            "state": str((state or Path(run_or_registry)).resolve()),
            "keys": str(keys.resolve()) if keys else "",
            "gpus": gpus,
            "root_path": root_path,
            "allow_origins": list(allow_origin),
            **limits,
        }
        if rate is not None:
            arguments |= {"rate": rate, "burst": max(64, limits["max_scans"], int(4 * rate))}
        _serve(arguments, host=host, port=port, tls=tls, build=build)


def _serve(settings: dict[str, Any], *, host: str, port: int, tls: tuple[str, str] | None, build: Path | None) -> None:
    from actors.endpoint.arguments import EndpointArguments
    from actors.endpoint.config_file import config_of, text_of

    arguments = EndpointArguments.from_settings(settings)
    if build is not None:
        build.write_text(text_of(config_of(arguments, host=host, port=port, tls=tls)))
        console.print(f"config: {build}, for 'serve deploy {build}'", soft_wrap=True)
        return
    check_state(arguments)
    from actors.endpoint.server import free_port, served, wait_for_the_end

    port = port or free_port(host)
    address = f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"
    with served(arguments, host=host, port=port, tls=tls) as metrics:
        asked = "an API key is needed" if arguments.keys else "no key is needed: this machine alone may ask"
        console.print(f"page: {address}/ ({asked})", soft_wrap=True)
        console.print(f"API: {address}/docs", soft_wrap=True)
        console.print(f"metrics: {metrics}", soft_wrap=True)
        console.print(f"audit log: {arguments.audit_log}", soft_wrap=True)
        console.print("Research software and no medical device. Ctrl-C ends it.")
        wait_for_the_end()


def check_state(arguments: EndpointArguments) -> None:
    """Say in one line what would keep a server from answering, before Ray is started; warn of doubtful keys."""
    from fedplatform.serving.api_keys import Keys, doubts, today
    from fedplatform.serving.audit_log import AuditLog
    from fedplatform.serving.versions import hospitals_in

    AuditLog(arguments.audit_log).close()
    versions = arguments.where()
    hospitals = hospitals_in(versions.folder(versions.champion()))
    for hospital_id in hospitals:
        arguments.secret(hospital_id)
    if arguments.keys:
        for doubt in doubts(Keys.load(Path(arguments.keys)), hospitals, day=today()):
            click.echo(f"warning: {doubt}", err=True)


def say_fitting(hospital_id: str, done: int, total: int) -> None:
    """Tell how far the fitting of a version is."""
    console.print(f"fitting {hospital_id} ({done + 1} of {total})")


def tls_pair(certificate: Path | None, key: Path | None) -> tuple[str, str] | None:
    """What --tls-cert and --tls-key ask for. Raises :class:`ExperimentError` where one is missing."""
    from fedplatform.experiments.experiment import ExperimentError

    if (certificate is None) != (key is None):
        raise ExperimentError("TLS needs both --tls-cert and --tls-key")
    return (str(certificate.resolve()), str(key.resolve())) if certificate and key else None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
