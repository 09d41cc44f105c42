"""The command line: it reads words, calls the library and prints; it decides nothing."""

from __future__ import annotations

import sys

import click

from fedplatform.cli.bench import bench
from fedplatform.cli.cluster import certificate, doctor, jobs, node, ray, submit
from fedplatform.cli.data import data
from fedplatform.cli.defence import certify, defend, evaluate
from fedplatform.cli.gateway import gateway
from fedplatform.cli.intake import audit, diagnose, keys
from fedplatform.cli.kubernetes import k8s
from fedplatform.cli.outside import join, keygen
from fedplatform.cli.runs import runs
from fedplatform.cli.serving import export, publish, serve
from fedplatform.cli.sites import cross_site, withdraw
from fedplatform.cli.terminal import SuggestingGroup, complain
from fedplatform.cli.training import compare, report, run
from fedplatform.cli.tune import tune
from fedplatform.core.logs import FORMATS, LEVELS, to_terminal
from fedplatform.core.specification import nearest


@click.group(
    cls=SuggestingGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda word: word.replace("_", "-"),
    },
)
@click.version_option(package_name="fedplatform")
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    default="warning",
    show_default=True,
    envvar="FEDPLATFORM_LOG_LEVEL",
    show_envvar=True,
    help="log lines from this level on to standard error; a run's folder has run.log with all from info on",
)
@click.option(
    "--log-format",
    type=click.Choice(FORMATS),
    default="plain",
    show_default=True,
    envvar="FEDPLATFORM_LOG_FORMAT",
    show_envvar=True,
    help="plain: the message; words: with time, level, round and hospital; json: the same as an object a line",
)
def fedplatform(*, log_level: str, log_format: str) -> None:
    """Trustworthy federated learning for medical imaging.

    Hospitals train one diagnostic model without sharing their scans, while some of them may be Byzantine. This program
    runs such a federation on Ray, compares aggregation rules under attack, defends and serves the model, and audits
    data for leaks between training and test scans.

    \b
    First steps:
      fedplatform run lesions                        one run on the embedded data
      fedplatform run lesions --attack alie --rule multi_krum
      fedplatform compare lesions --rules mean,median --attacks none,sign_flip
      fedplatform data audit my_scans/               can this data be split safely?
    """
    to_terminal(log_level, log_format)


COMMANDS = (
    *(run, defend, evaluate, certify),
    *(join, keygen, gateway),
    *(publish, serve, keys, diagnose, audit, export),
    *(compare, tune, data, bench, report, runs),
    *(cross_site, withdraw),
    *(doctor, node, certificate, submit, jobs, ray, k8s),
)
for command in COMMANDS:
    fedplatform.add_command(command)


def main() -> None:
    """The console command: a mistyped word costs one line and status 2."""
    try:
        sys.exit(fedplatform(prog_name="fedplatform", standalone_mode=False))
    except click.NoSuchOption as error:
        complain(f"no option {error.option_name}{nearest(error.option_name, error.possibilities or ())}", error.ctx)
    except click.UsageError as error:
        complain(error.format_message(), error.ctx)
    except click.Abort:
        sys.exit(130)
