"""HopSkipJump: knows only the final answer to a scan, and walks along the decision boundary."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedplatform.attacks.evasion.attack import Decide, EvasionAttack, check_settings
from fedplatform.attacks.evasion.draws import normal, uniform
from fedplatform.attacks.evasion.projection import Norm, each, norm_of, project

STARTS = 30  # pictures tried as a start, half of them other scans, half noise
SHORTENINGS = 12  # of a step along the boundary until it is given up
FEWEST_PROBES = 10
REACH = 0.5  # of a pixel's share of the distance

Fooled = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Candidates (m, c, h, w) for the scans ``rows`` (m,) to whether the answer is wrong (m,); a referral is not."""


@dataclass(frozen=True)
class HopSkipJump(EvasionAttack):
    """HopSkipJump (Chen et al., S&P 2020) on the final decision, where -1 (referred) counts as not fooled.

    ``queries`` is what a scan may ask at most; a scan that is fooled within ``epsilon`` asks no more. It starts from
    other scans of the batch with another label, else from noise, which a detector flags. ``probes`` is how
    many pictures the first gradient estimate asks; it grows with the root of the round.
    """

    epsilon: float
    norm: Norm = "linf"
    queries: int = 2000
    probes: int = 100

    def __post_init__(self) -> None:
        check_settings(self, "queries", "probes", norm=self.norm)

    def perturb(
        self, decide: Decide, images: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator
    ) -> torch.Tensor:
        """Attacked images within ``epsilon`` in ``norm``; scans for which no start was found stay as they are."""
        used = 0

        @torch.no_grad()
        def fooled(candidates: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            nonlocal used
            used += 1
            answers = decide(candidates)
            return (answers != labels[rows]) & (answers != -1)

        attacked, rows = self._start(fooled, images, labels, generator)
        halvings = math.ceil(math.log2(images[0].numel()) / 2) + 5  # to a sixteenth of how far the probes reach
        if used + halvings > self.queries:
            return project(attacked, images, self.epsilon, self.norm)
        attacked[rows] = self._to_boundary(fooled, images[rows], attacked[rows], rows, halvings)
        for number in range(1, self.queries):
            rows = rows[norm_of(attacked[rows] - images[rows], self.norm) > self.epsilon]
            affordable = self.queries - used - SHORTENINGS - halvings
            if len(rows) == 0 or affordable < FEWEST_PROBES:
                break
            probes = min(round(self.probes * number**0.5), affordable)
            scans, edge = images[rows], attacked[rows]
            distance = norm_of(edge - scans, self.norm)
            direction = self._direction(fooled, edge, norm_of(edge - scans, "l2"), rows, probes, generator)
            moved = self._leap(fooled, edge, direction, distance / number**0.5, rows)
            attacked[rows] = self._to_boundary(fooled, scans, moved, rows, halvings)
        return project(attacked, images, self.epsilon, self.norm)

    def _start(
        self, fooled: Fooled, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Wrongly answered pictures in place of the scans, and the scans (m,) for which one was found."""
        everyone = torch.arange(len(images), device=images.device)
        attacked = images.clone()
        missing = everyone[~fooled(images, everyone)]
        begun = torch.zeros_like(everyone, dtype=torch.bool)
        for turn in range(1, min(STARTS, self.queries)):
            if len(missing) == 0:
                break
            noise = (uniform(images[missing].shape, images, generator) + 1) / 2
            liking = uniform((len(missing), len(images)), images, generator)
            liking, other = torch.where(labels == labels[missing, None], -torch.inf, liking).max(dim=1)
            borrowed = (turn <= STARTS // 2) & (liking > -torch.inf)
            candidates = torch.where(each(borrowed), images[other], noise)
            hit = fooled(candidates, missing)
            attacked[missing[hit]] = candidates[hit]
            begun[missing[hit]] = True
            missing = missing[~hit]
        return attacked, everyone[begun]

    def _to_boundary(
        self, fooled: Fooled, scans: torch.Tensor, wrong: torch.Tensor, rows: torch.Tensor, halvings: int
    ) -> torch.Tensor:
        """The nearest wrongly answered picture between scan and ``wrong``, by bisection of the distance."""
        distance = norm_of(wrong - scans, self.norm)
        low, high = torch.zeros_like(distance), distance

        def between(radius: torch.Tensor) -> torch.Tensor:
            if self.norm == "linf":
                return torch.clamp(wrong, scans - each(radius), scans + each(radius))
            return scans + (wrong - scans) * each(radius / distance.clamp_min(1e-12))

        for _ in range(halvings if len(rows) else 0):
            middle = (low + high) / 2
            hit = fooled(between(middle), rows)
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
        return between(high)

    def _direction(
        self,
        fooled: Fooled,
        edge: torch.Tensor,
        span: torch.Tensor,
        rows: torch.Tensor,
        probes: int,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """The direction (m, c, h, w) into the wrong answer at the boundary, from ``probes`` answers round it.

        They lie in L2 at REACH * ``span`` / sqrt(d), where ``span`` is the L2 distance of the scan and d the number of
        pixels. The paper asks far nearer by (span / d, in linf less still), where rounding begins to answer; on smooth
        pictures of 40 pixels this reach took a quarter off the distance that 1,500 queries come to.
        """
        reach = each(REACH * span / math.sqrt(edge[0].numel()))
        plain, weighted, wrong = torch.zeros_like(edge), torch.zeros_like(edge), torch.zeros_like(span)
        draw = uniform if self.norm == "linf" else normal
        for _ in range(probes):
            noise = draw(edge.shape, edge, generator)
            noise = noise / each(norm_of(noise, "l2"))
            candidates = (edge + reach * noise).clamp(0, 1)
            noise = (candidates - edge) / reach.clamp_min(1e-12)
            answer = torch.where(fooled(candidates, rows), 1.0, -1.0)
            plain += noise
            weighted += each(answer) * noise
            wrong += answer
        # Less the mean answer as a baseline, unless all answers are alike.
        baseline = torch.where(wrong.abs() == probes, 0.0, wrong / probes)
        slope = weighted - each(baseline) * plain
        return slope.sign() if self.norm == "linf" else slope / each(norm_of(slope, "l2").clamp_min(1e-12))

    @staticmethod
    def _leap(
        fooled: Fooled, edge: torch.Tensor, direction: torch.Tensor, size: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """As far along the direction as the answer stays wrong; halved until it does, else not at all."""
        landed, open_ = edge.clone(), torch.ones_like(size, dtype=torch.bool)
        for _ in range(SHORTENINGS):
            index = open_.nonzero().squeeze(1)
            if len(index) == 0:
                break
            candidates = (edge[index] + each(size[index]) * direction[index]).clamp(0, 1)
            hit = fooled(candidates, rows[index])
            landed[index[hit]] = candidates[hit]
            open_[index[hit]] = False
            size = size / 2
        return landed
