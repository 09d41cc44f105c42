"""The one interface of every aggregation rule."""

from __future__ import annotations

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar, Self, final

import numpy as np
import torch

from fedplatform.core.coordinates import row_blocks
from fedplatform.core.messages import Aggregate, Evidence, Layer
from fedplatform.core.usable import unusable

SIMILAR = 0.75  # of difflib's ratio: from here on an undeclared name counts as a mistyped one
TRIED_LAYERS = (Layer("last.weight", (2, 3)), Layer("last.bias", (2,)))
TRIED_COORDINATES = sum(layer.size for layer in TRIED_LAYERS)


class Aggregator(ABC):
    """Turns the n updates of a round into the server's step.

    A rule is a frozen dataclass that subclasses this and implements :meth:`aggregate`; its fields are its settings. The
    other names below say what the rule needs and can do; each has a default. A subclass that mistypes one of them is
    refused with a TypeError.

    ``needs_root``: the rule compares with the server's own update, ``Evidence.root_delta``; others are spared its cost.
    ``memory_kinds``: the dataclasses that its memory (``Aggregate.memory``) is made of, for checkpoints; plain values,
    arrays and tensors need not be named.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class First(Aggregator):
    ...     def aggregate(self, deltas, evidence):
    ...         weights = np.eye(len(deltas))[0]
    ...         return Aggregate(deltas[0], weights, weights == 0)
    >>> First()([[1.0, 2.0], [3.0, 4.0]]).delta
    array([1., 2.], dtype=float32)
    """

    needs_root: ClassVar[bool] = False
    memory_kinds: ClassVar[tuple[type, ...]] = ()

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "__call__" in vars(cls):
            raise TypeError(f"{cls.__name__} overrides __call__; an Aggregator implements aggregate(deltas, evidence)")
        for name in _undeclared(cls):
            if close := difflib.get_close_matches(name, CAPABILITIES, n=1, cutoff=SIMILAR):
                raise TypeError(f"{cls.__name__}.{name} is no capability of an Aggregator; did you mean {close[0]!r}?")

    @abstractmethod
    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        """The step of a round.

        ``deltas`` is (n, d) float32, finite and of norms up to ``LONGEST`` (:mod:`fedplatform.core.usable`), one row a
        hospital in a fixed order, and is never written to;
        ``evidence`` is what else the server knows. Raises ValueError, with the rule and the numbers got, where n and f
        are infeasible.
        """

    @final
    def __call__(self, deltas: object, evidence: Evidence | None = None) -> Aggregate:
        """Aggregate updates given as lists, NumPy arrays or PyTorch tensors, (n, d).

        Without ``evidence`` every hospital claims one example, the previous step is zero, there is no root update, and
        the generator is seeded 0. Raises ValueError where the updates are no (n, d) numbers, or a row holds such that
        no rule can compute with. In a federation nothing is raised: the server refuses such an update as it arrives,
        names its sender and asks the rule about the others.
        """
        updates = as_updates(deltas)
        return self.aggregate(updates, default_evidence(updates) if evidence is None else evidence)

    def require(self, *, hospitals: int, has_root: bool) -> None:
        """Raise ValueError where the rule cannot work with so many hospitals, or without a root set.

        By default the rule is tried on random updates; a rule that these cannot try overrides this.
        """
        on_random_updates(self, hospitals=hospitals, has_root=has_root)

    def expecting(self, refused: int) -> Self:
        """The rule where so many of the hospitals that it counts on as hostile have been refused before it sees them.

        By default a field ``f`` is so much smaller, and at least 0; a rule without one stays as it is.
        """
        f = getattr(self, "f", None)
        if f is None or not hasattr(type(self), "__dataclass_fields__"):
            return self
        rule: Any = self
        lowered: Self = replace(rule, f=max(f - refused, 0))
        return lowered

    def forgetting(self, memory: object, hospital_id: str) -> object:
        """The memory without what it holds of a hospital that has withdrawn: by default, the entries under its name.

        A rule that remembers hospitals otherwise than as keys of dicts overrides this.
        """
        return without_entry(memory, hospital_id)

    def without(self, attack: str) -> Self:
        """The rule as one that was never taught this attack: itself, unless it rehearses attacks."""
        return self


CAPABILITIES = tuple(name for name in vars(Aggregator) if not name.startswith("_"))


def _undeclared(cls: type) -> Iterator[str]:
    """The public names that a class defines itself and that are neither its fields nor declared by Aggregator."""
    annotated = inspect.get_annotations(cls)
    fields = {name for name, kind in annotated.items() if "ClassVar" not in str(kind)}
    for name in {**vars(cls), **annotated}:
        if not name.startswith("_") and name not in fields and name not in CAPABILITIES:
            yield name


def without_entry(memory: object, name: str) -> object:
    """A memory without the entries that dicts in it have under a name; anything else stays as it is.

    >>> without_entry({"standings": {"a": 1, "b": 2}, "rounds": [3]}, "a")
    {'standings': {'b': 2}, 'rounds': [3]}
    """
    if isinstance(memory, dict):
        return {key: without_entry(value, name) for key, value in memory.items() if key != name}
    if type(memory) is list:
        return [without_entry(value, name) for value in memory]
    if type(memory) is tuple:
        return tuple(without_entry(value, name) for value in memory)
    if is_dataclass(memory) and not isinstance(memory, type):
        return replace(
            memory, **{field.name: without_entry(getattr(memory, field.name), name) for field in fields(memory)}
        )
    return memory


def as_updates(deltas: object) -> np.ndarray:
    """Updates as a float32 array (n, d) in C order; one that is such an array already is not copied.

    Takes lists, NumPy arrays and PyTorch tensors. Raises ValueError for another shape, and for the first row whose
    numbers cannot be used (:func:`fedplatform.core.usable.unusable`).

    >>> as_updates([[1, 2], [3, 4]])
    array([[1., 2.],
           [3., 4.]], dtype=float32)
    """
    try:
        found = np.asarray(_without_tensors(deltas))
    except ValueError:  # rows of different lengths
        found = np.empty(0, dtype=object)
    if found.dtype.kind not in "biuf":
        raise ValueError(f"updates are n rows of d numbers each, got a {type(deltas).__name__} that is not")
    if found.ndim != 2:
        raise ValueError(f"updates have shape (n, d), got {found.shape}")
    with np.errstate(over="ignore"):  # what overflows float32 is refused below
        updates = np.ascontiguousarray(found, dtype=np.float32)
    complaints = (
        f"{complaint}, in row {row}"
        for rows in row_blocks(updates)
        for row in range(rows.start, rows.stop)
        if (complaint := unusable(updates[row]))
    )
    if first := next(complaints, ""):
        raise ValueError(first)
    return updates


def _without_tensors(deltas: object) -> object:
    if isinstance(deltas, torch.Tensor):
        return deltas.detach().cpu().to(torch.float32).numpy()
    if isinstance(deltas, Sequence) and any(isinstance(row, torch.Tensor) for row in deltas):
        return [_without_tensors(row) for row in deltas]
    return deltas


def default_evidence(deltas: np.ndarray) -> Evidence:
    """What a rule is told of updates (n, d) that come from no federation."""
    n, d = deltas.shape
    return Evidence(
        hospital_ids=tuple(map(str, range(n))),
        num_examples=np.ones(n, dtype=np.int64),
        previous_delta=np.zeros(d, dtype=np.float32),
        generator=torch.Generator().manual_seed(0),
    )


def aggregate_usable(rule: Aggregator, deltas: np.ndarray, evidence: Evidence, *, refused: int) -> Aggregate:
    """What a rule makes of the usable updates (n, d) of a round in which so many were refused for their numbers.

    Where the rule has too few updates left, those that were refused are taken as some of its f hostile ones: otherwise
    three hospitals of ten could stop Krum with f = 3 for ever, each with one NaN. Raises ValueError where that does not
    help.
    """
    try:
        return rule(deltas, evidence)
    except ValueError:
        if not refused:
            raise
        return rule.expecting(refused)(deltas, evidence)


def on_random_updates(rule: Aggregator, *, hospitals: int, has_root: bool) -> Aggregate:
    """What a rule makes of random updates; raises ValueError where it cannot work with so many of them."""
    generator = torch.Generator().manual_seed(0)
    return rule(
        torch.randn(hospitals, TRIED_COORDINATES, generator=generator),
        Evidence(
            hospital_ids=tuple(map(str, range(hospitals))),
            num_examples=np.ones(hospitals, dtype=np.int64),
            previous_delta=np.zeros(TRIED_COORDINATES, dtype=np.float32),
            generator=generator,
            root_delta=torch.randn(TRIED_COORDINATES, generator=generator).numpy() if has_root else None,
            weights=np.ones(TRIED_COORDINATES, dtype=np.float32),
            layers=TRIED_LAYERS,
        ),
    )


def try_rule(rule: Aggregator, *, hospitals: int, has_root: bool) -> Aggregate | None:
    """Try a rule before anybody trains; raises ValueError where it cannot work.

    Returns what it made of random updates, None where it overrides :meth:`Aggregator.require` and so was only asked.
    """
    if type(rule).require is Aggregator.require:
        return on_random_updates(rule, hospitals=hospitals, has_root=has_root)
    rule.require(hospitals=hospitals, has_root=has_root)
    return None


def as_rule(value: object) -> Aggregator:
    """The value, where it is a rule. Raises ValueError in one line otherwise."""
    if isinstance(value, Aggregator):
        return value
    if isinstance(value, type) and issubclass(value, Aggregator):
        raise ValueError(f"an aggregation rule is an object, {value.__name__}(...), got the class {value.__name__}")
    got = getattr(value, "__name__", type(value).__name__)
    raise ValueError(
        f"{got} is no aggregation rule: it must subclass fedplatform.Aggregator "
        "(fedplatform.federated.aggregation.Aggregator)"
    )
