"""Square: random search with squares, which needs the logits and no gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fedplatform.attacks.evasion.ascent import Highest, mean_value
from fedplatform.attacks.evasion.attack import EvasionAttack, Target, check_settings
from fedplatform.attacks.evasion.draws import signs
from fedplatform.attacks.evasion.losses import loss_of
from fedplatform.attacks.evasion.projection import project

FIRST_SHARE = 0.8  # of the picture that the first squares cover
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of the share, on a scale of 10,000 tries


@dataclass(frozen=True)
class Square(EvasionAttack):
    """The square attack (Andriushchenko et al., ECCV 2020), linf, with the schedule of AutoAttack.

    ``queries`` is what a scan may ask at most; a scan that is fooled asks no more. For a stochastic target each
    candidate is asked ``eot`` times, all of which count, lest a lucky draw pass for success.
    """

    epsilon: float
    queries: int = 5000
    eot: int = 1

    def __post_init__(self) -> None:
        check_settings(self, "queries", "eot")

    def perturb(
        self, target: Target, images: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator
    ) -> torch.Tensor:
        """Attacked images within ``epsilon`` (linf)."""
        return self.search(target, images, labels, generator=generator)[0]

    def search(
        self, target: Target, images: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attacked images and the queries (n,) int64 that each took.

        Every scan has its own squares, drawn whether it still needs them or not: what happens to it does not depend on
        the luck of the others.
        """
        n, channels, height, width = images.shape
        asked = torch.zeros(n, dtype=torch.int64, device=images.device)
        highest = Highest(images)
        tries = self.queries // self.eot
        for attempt in range(tries):
            if attempt == 0:
                candidates = images + self.epsilon * signs((n, channels, 1, width), images, generator)
            else:
                side = side_of_square(attempt - 1, tries, height, width)
                inside = _squares(n, side, height, width, generator).to(images.device)
                paint = 2 * self.epsilon * signs((n, channels, 1, 1), images, generator)
                candidates = highest.images + paint * inside
            candidates = project(candidates, images, self.epsilon)
            rows = (highest.values <= 0).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            values = torch.full_like(highest.values, -torch.inf)
            values[rows] = mean_value(loss_of("margin", target, labels[rows]), candidates[rows], self.eot)
            highest.offer(candidates, values)
            asked[rows] += self.eot
        return highest.images, asked


def side_of_square(attempt: int, tries: int, height: int, width: int) -> int:
    """How wide the squares of a try are, in pixels: their share of the picture is halved on a fixed schedule."""
    place = attempt * 10_000 // tries
    share: float = FIRST_SHARE * 0.5 ** sum(place > halving for halving in HALVINGS)
    return max(1, min(round(math.sqrt(share * height * width)), height, width))


def _squares(n: int, side: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """One square a scan as a mask (n, 1, height, width)."""
    top = torch.randint(height - side + 1, (n, 1, 1, 1), generator=generator, device=generator.device)
    left = torch.randint(width - side + 1, (n, 1, 1, 1), generator=generator, device=generator.device)
    row = torch.arange(height, device=generator.device).view(1, 1, -1, 1)
    column = torch.arange(width, device=generator.device).view(1, 1, 1, -1)
    return (row >= top) & (row < top + side) & (column >= left) & (column < left + side)
