"""One hospital in one run: what it brings, what leaves it, and what it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from fedplatform.core.compute import Compute
from fedplatform.core.files import write_durably
from fedplatform.core.settings import ExperimentError
from fedplatform.data.shards import Shard
from fedplatform.data.splits import Role
from fedplatform.federated.hospital import Hospital
from fedplatform.federated.hospital_state import Launch
from fedplatform.federated.transport import TRANSPORTS
from fedplatform.learning.training import Trainer
from fedplatform.outside.body import update_bytes
from fedplatform.outside.terms import Terms

THIS_MACHINE = Compute()


class Membership:
    """A hospital that has read the terms and made its shard ready; ``folder`` is its own and private.

    ``start`` is the file of the weights to start from, where the terms have any; ``compute`` is what it trains with,
    whatever the server and other hospitals have. Raises :class:`ExperimentError` where the weights do not fit the
    network.
    """

    def __init__(
        self,
        hospital_id: str,
        terms: Terms,
        shard: Shard,
        folder: Path,
        start: Path | None = None,
        *,
        compute: Compute = THIS_MACHINE,
    ) -> None:
        torch.set_num_threads(1)  # as everywhere: the order of a parallel sum depends on the number of threads
        self._hospital_id = hospital_id
        self._terms = terms
        self._shard = shard
        self._folder = folder / terms.run
        try:
            self._trainer = Trainer(terms.local_training(compute, start))
        except ValueError as error:
            raise ExperimentError(f"the server's terms do not fit together: {error}") from error
        self.transport = TRANSPORTS[terms.transport]

    def admit(self, launch: Launch | None) -> Hospital:
        """Bring the hospital up, with what it kept of the rounds before."""
        file = self._folder / "personal.safetensors"
        return Hospital(self._hospital_id, self._shard, trainer=self._trainer, state_file=file, launch=launch)

    def what_leaves(self) -> Iterator[str]:
        """The terms, and field by field what leaves the house, in words."""
        terms, experiment, size = self._terms, self._terms.experiment(), self._trainer.layout.size
        classes = len(terms.classes)
        findings = classes if self._shard.is_multilabel else 0
        scans = {role: len(self._shard.labels(role)) for role in (Role.TRAIN, Role.VALIDATION, Role.TEST)}
        shown = scans[Role.VALIDATION] + scans[Role.TEST]
        yield f"federation: {terms.data}, {terms.hospitals} hospitals, run {terms.run}"
        yield f"classes: {', '.join(terms.classes)}"
        yield (
            f"training: {terms.training['model']} by {terms.training['algorithm']}, {experiment.rounds} rounds of "
            f"{experiment.local_epochs} epochs"
        )
        if terms.start is not None:
            start = terms.start
            frozen = f"; {', '.join(start.frozen)} stay as they are" if start.frozen else ""
            yield f"starts from: the server's weights, {start.size:,} bytes, SHA-256 {start.sha256[:16]}{frozen}"
        yield (
            f"own scans: {scans[Role.TRAIN]} for training, {scans[Role.VALIDATION]} for validation, "
            f"{scans[Role.TEST]} for testing; no picture leaves this machine"
        )
        yield "What leaves it in every round, signed by this hospital:"
        yield f"  update, at most {update_bytes(size, self.transport):,} bytes:"
        controls = " and of as many control variates" if self._trainer.layout.num_controls else ""
        yield f"    delta         {size:,} numbers ({self.transport.words}): the change of the shared weights{controls}"
        yield f"    num_examples  1 number: {scans[Role.TRAIN]}"
        yield "    train_loss    1 number: the mean loss of training"
        yield "    seconds       1 number: how long training took"
        width = 4 * classes + 8 * (findings or 1) + 8
        yield f"  predictions, about {shown * width:,} bytes, of validation and test scans:"
        yield f"    probabilities {shown} rows of {classes} numbers: the model's answers"
        if findings:
            yield f"    labels        {shown} rows of {findings} numbers: which findings each of these scans truly has"
        else:
            yield f"    labels        {shown} numbers: the true class of each of these scans"
        yield f"    groups        {shown} numbers: which of these scans are of one patient, numbered from 0"
        yield "    loss          1 number for each of the two: the mean loss of these answers"
        if self._trainer.layout.personal:
            own = len(self._trainer.layout.personal)
            yield f"What stays here beside the scans: {own} arrays of the model's own part"

    def write_model(self, weights: np.ndarray) -> Path:
        """The federation's shared part of the model (d,) beside this hospital's own part, as safetensors."""
        file = self._folder / "global.safetensors"
        tensors = {name: torch.from_numpy(value) for name, value in self._trainer.layout.unflatten(weights).items()}
        write_durably(file, save(tensors))
        return file
