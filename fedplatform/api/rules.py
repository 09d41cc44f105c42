"""An aggregation rule without a federation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedplatform.core.messages import Aggregate
from fedplatform.experiments.rule_text import parse_rule
from fedplatform.federated.aggregation.aggregator import Aggregator, as_updates, default_evidence


def aggregate(
    rule: Aggregator | str, updates: npt.ArrayLike, *, f: int = 0, root_update: npt.ArrayLike | None = None
) -> Aggregate:
    """Apply an aggregation rule to n updates: ``updates`` (n, d) as lists, numpy or torch, one row a hospital.

    ``rule`` is an object (``TrimmedMean(f=2)``) or its text (``"nnm+trimmed_mean"``), for which ``f`` is the number of
    Byzantine hospitals to withstand. ``root_update`` (d,) is the server's own, for rules that compare with it
    (FLTrust). Returns the step ``delta`` (d,), each hospital's ``weights`` (n,) and who was shut out, ``hostile`` (n,).
    Raises ValueError where n and f are infeasible.

    >>> import fedplatform as fp
    >>> fp.aggregate(fp.TrimmedMean(f=1), [[0.0], [1.0], [2.0], [99.0]]).delta.tolist()
    [1.5]
    """
    rows = as_updates(updates)
    evidence = default_evidence(rows)
    if root_update is not None:
        evidence = replace(evidence, root_delta=np.asarray(root_update, dtype=np.float32))
    chosen = parse_rule(rule, f=f) if isinstance(rule, str) else rule
    return chosen(rows, evidence)
