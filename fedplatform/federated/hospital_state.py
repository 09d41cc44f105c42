"""What a hospital keeps for itself from round to round, on its own disk; it never leaves the hospital."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from fedplatform.core.errors import FedplatformError
from fedplatform.core.files import write_durably

KEPT_ROUNDS = 3  # rounds that a federation can go back, and so the checkpoints of its server
EARLIER = "earlier"  # the folder of the states before the newest
LABEL = "round, launch"


class SupersededError(FedplatformError, RuntimeError):
    """This process belongs to a launch of the federation after which there was another; it may not write any more."""


@dataclass(frozen=True)
class Launch:
    """A launch of the federation: its sequence number and the last round completed before it."""

    number: int
    resumed_from: int


class OwnState:
    """The newest state in ``file``, labelled with its round, and those of some rounds before in a folder beside it.

    A federation that lost its server in a round goes back to the round before, and each hospital with it, whether it
    is there at that moment or not: whoever opens its state first in a new ``launch`` discards what came after the round
    from which that goes on. Without a launch, nobody goes back, and only the newest state is kept.
    """

    def __init__(self, file: Path, *, launch: Launch | None) -> None:
        self._file = file
        self._launch = launch
        if launch is not None:
            self._go_back(launch)
        self.round_number = self._label()[0] if file.exists() else 0

    def load(self) -> dict[str, torch.Tensor] | None:
        """The newest state; None where there is none."""
        return load_file(self._file) if self._file.exists() else None

    def keep(self, state: Mapping[str, torch.Tensor], *, round_number: int) -> None:
        """Write the state that the hospital has now, in or after this round. Raises :class:`SupersededError`."""
        # One entry, because safetensors writes several in no fixed order, and the same state is the same file.
        label = {LABEL: json.dumps([round_number, self._launch.number if self._launch else 0])}
        if self._launch is not None and self._file.exists():
            there, _ = self._belongs_to(self._launch)
            if there != round_number:
                self._earlier(there).parent.mkdir(parents=True, exist_ok=True)
                self._file.replace(self._earlier(there))
        write_durably(self._file, save(dict(state), metadata=label))
        self.round_number = round_number
        reachable = [kept for kept in self._kept() if kept <= round_number - KEPT_ROUNDS]
        for kept in reachable[:-1]:
            self._earlier(kept).unlink()

    def _go_back(self, launch: Launch) -> None:
        if self._file.exists():
            there, written_in = self._belongs_to(launch)
            if written_in == launch.number:
                return
            if there > launch.resumed_from:
                self._file.unlink()
        for kept in self._kept():
            if kept > launch.resumed_from:
                self._earlier(kept).unlink()
        if not self._file.exists() and (kept_rounds := self._kept()):
            self._earlier(kept_rounds[-1]).replace(self._file)

    def _belongs_to(self, launch: Launch) -> tuple[int, int]:
        there, written_in = self._label()
        if written_in > launch.number:
            raise SupersededError(f"{self._file} is of launch {written_in}, and this process of launch {launch.number}")
        return there, written_in

    def _label(self) -> tuple[int, int]:
        """The round after which the newest state was, and the launch that wrote it."""
        with safe_open(self._file, framework="pt") as file:
            round_number, launch = json.loads((file.metadata() or {}).get(LABEL, "[0, 0]"))
        return round_number, launch

    def _earlier(self, round_number: int) -> Path:
        return self._file.parent / EARLIER / self._file.stem / f"round-{round_number:06d}.safetensors"

    def _kept(self) -> list[int]:
        folder = self._earlier(0).parent
        return sorted(int(path.stem.removeprefix("round-")) for path in folder.glob("round-*.safetensors"))
