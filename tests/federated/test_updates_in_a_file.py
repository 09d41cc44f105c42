"""Updates in a file: every rule gives the same bits as in memory, and a process stays far smaller than they are."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from aggregation_rounds import layers_of

from fedplatform.core import mapped
from fedplatform.core.mapped import file_of, scratch
from fedplatform.experiments.rule_text import parse_rule
from fedplatform.federated.aggregation import RULES, as_updates, default_evidence

HOSPITALS, WEIGHTS, F = 11, 9_001, 2
MIXERS = ("nnm+", "bucketing+", "norm_clip+")
NAMES = [*RULES, *(f"{mixer}median" for mixer in MIXERS)]


def updates() -> np.ndarray:
    return np.random.default_rng(0).normal(1.0, 1.0, (HOSPITALS, WEIGHTS)).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_gives_the_same_bits_from_a_file_as_from_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = parse_rule(name, f=F)
    in_memory = updates()
    told = replace(
        default_evidence(in_memory),
        root_delta=in_memory.mean(axis=0),
        generator=torch.Generator().manual_seed(1),
        weights=in_memory[0],
        layers=layers_of(WEIGHTS),
    )
    expected = rule(in_memory, told)
    monkeypatch.setattr(mapped, "RELEASE_BYTES", 4096)
    in_file = scratch(HOSPITALS, WEIGHTS, at_most=0)
    in_file[:] = in_memory
    assert file_of(as_updates(in_file)) is not None
    found = rule(in_file, replace(told, generator=torch.Generator().manual_seed(1)))
    assert found.delta.tobytes() == expected.delta.tobytes()
    assert found.weights.tobytes() == expected.weights.tobytes()
    assert found.hostile.tolist() == expected.hostile.tolist()
    np.testing.assert_array_equal(in_file, in_memory)


def test_an_array_that_fits_in_memory_has_no_file_and_one_that_does_not_leaves_none(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert file_of(scratch(3, 5)) is None
    large = scratch(3, 5, at_most=59)
    assert file_of(large[1:, ::2]) is not None
    assert large.dtype == np.float32
    assert not list(tmp_path.iterdir())


# In a process of its own, because the peak of a process never falls again.
MEASURE = """
import resource, sys
import numpy as np
from fedplatform.core import mapped
from fedplatform.core.vectors import blocks_of
from fedplatform.experiments.rule_text import parse_rule
from fedplatform.federated.aggregation import default_evidence

mapped.HELD_BYTES = 32 << 20
rows, columns = 100, 1_000_000
updates = mapped.scratch(rows, columns)
draw = np.random.default_rng(0).standard_normal((rows, 4096), np.float32)
for part in blocks_of(updates):
    updates[:, part] = draw[:, : part.stop - part.start]
rule, told = parse_rule(sys.argv[1], f=3), default_evidence(updates)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rule(updates, told)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean", "median", "krum", "geometric_median", "dnc", "nnm+trimmed_mean"])
def test_a_rule_over_400_megabytes_in_a_file_takes_half_of_it_at_most(name: str) -> None:
    output = subprocess.run([sys.executable, "-c", MEASURE, name], capture_output=True, text=True, check=True)
    assert float(output.stdout) < 200
