"""A masked autoencoder that knows how sure it is: what it did not expect of the hidden pixels is suspicious.

The plain pixel error hardly sees a perturbation of a few grey levels, because texture that nobody could guess makes
up nearly all of it. So every hidden pixel gets a mean and a scale, and the error is weighed by that scale: a flat
region, where a perturbation shows, counts for what it is worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from fedplatform.learning.models.torchvision_ops import import_timm

MASKS = 4  # complementary masks: one shows a quarter of the patches, as in He et al.
LONGEST_GRID = 8  # patches a side where the size of a patch is left to us: 16 trained worse and cost four times more
GREY_LEVEL = 1 / 255  # also the finest scale: a scan is not known better than it was stored
MLP_RATIO = 2.0


@dataclass(frozen=True)
class MaskedAutoencoder:
    """Masked autoencoder (He et al., CVPR 2022) with timm's blocks, and a Laplace scale for every hidden pixel.

    ``width`` and ``depth`` are of the encoder, ``decoder_width`` and ``decoder_depth`` of the decoder; ``heads`` must
    divide both widths, and each width be a multiple of 4. ``patch`` is in pixels; 0 takes the smallest that makes at
    most 8 patches a side.
    """

    width: int = 128
    depth: int = 4
    heads: int = 4
    decoder_width: int = 64
    decoder_depth: int = 2
    patch: int = 0

    def __call__(self, *, channels: int, num_classes: int, size: int) -> MaskedAutoencoderVit:  # noqa: ARG002
        """About 620,000 parameters at 64 pixels; raises ValueError where no patch makes an even number a side."""
        even = [patch for patch in range(1, size // 2 + 1) if size % (2 * patch) == 0]
        fitting = [patch for patch in even if size // patch <= LONGEST_GRID]
        patch = self.patch or min(fitting, default=0)
        if patch not in even:
            raise ValueError(f"a masked autoencoder needs an even number of patches a side, got {patch=}, {size=}")
        return MaskedAutoencoderVit(self, channels=channels, grid=size // patch, patch=patch)


class MaskedAutoencoderVit(nn.Module):
    """The network: images (n, channels, size, size) in [0, 1], cut into ``grid`` x ``grid`` patches, row by row.

    A mask (patches,) is True where the patch is shown. Of every 2 x 2 patches one is shown, drawn for each anew: a
    hidden patch then always has a visible neighbour, and what cannot be guessed is due to the scan, not to the mask.
    """

    masks: torch.Tensor
    shown: torch.Tensor
    positions: torch.Tensor
    decoder_positions: torch.Tensor

    def __init__(self, setting: MaskedAutoencoder, *, channels: int, grid: int, patch: int) -> None:
        super().__init__()
        import_timm()
        from timm.models.vision_transformer import Block

        def blocks(width: int, depth: int) -> nn.Sequential:
            layers = [Block(width, setting.heads, mlp_ratio=MLP_RATIO, qkv_bias=True) for _ in range(depth)]
            return nn.Sequential(*layers, nn.LayerNorm(width))

        self.grid, self.patch = grid, patch
        pixels = channels * patch**2
        self.embed = nn.Linear(pixels, setting.width)
        self.encoder = blocks(setting.width, setting.depth)
        self.narrow = nn.Linear(setting.width, setting.decoder_width)
        self.hidden_token = nn.Parameter(torch.zeros(setting.decoder_width))
        self.decoder = blocks(setting.decoder_width, setting.decoder_depth)
        self.head = nn.Linear(setting.decoder_width, 2 * pixels)
        # Constants of the architecture: the same in every hospital, so they are neither trained nor sent.
        self.register_buffer("positions", sine_positions(grid, setting.width), persistent=False)
        self.register_buffer("decoder_positions", sine_positions(grid, setting.decoder_width), persistent=False)
        self.register_buffer("masks", draw_masks(1, grid, torch.Generator().manual_seed(0))[0], persistent=False)
        self.register_buffer("shown", _shown(self.masks), persistent=False)  # what they show, (4, patches / 4)

    def loss(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mean negative Laplace log-likelihood (nats a pixel) of the hidden pixels, one random mask a scan."""
        visible = draw_masks(len(images), self.grid, generator)[:, 0]
        # Counted where they are drawn: on a GPU, the host would wait for as many numbers at every step.
        hidden = (~visible).flatten().nonzero().squeeze(1).to(images.device)
        patches = self._patches(images)
        mean, scale = self._predict(patches, _shown(visible).to(images.device))
        costs = functional.l1_loss(patches, mean, reduction="none") / scale + torch.log(2 * scale)
        return costs.flatten(0, 1).index_select(0, hidden).mean()

    def reconstruct(self, images: torch.Tensor, visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and scale, both (n, c, h, w), of every pixel, seen from the ``visible`` (n, patches) bool patches.

        Only in the hidden patches do they mean anything. Raises ValueError unless all scans show equally many.
        """
        mean, scale = self._predict(self._patches(images), _shown(visible))
        return self._images(mean), self._images(scale)

    def complementary_masks(self) -> torch.Tensor:
        """The four fixed masks (4, patches) bool: each shows a quarter, and each patch is shown by exactly one."""
        return self.masks

    def patch_errors(self, images: torch.Tensor) -> torch.Tensor:
        """How much better each patch is explained by scales that are one grey level wider, (n, patches) in nats.

        The log-likelihood ratio of "noise was added" to "nothing was", summed over the pixels of a patch and averaged
        over the three complementary masks that hide it: below 0 on average where the scan is as expected. Of all
        scores it finds most (Neyman and Pearson, 1933), because flat regions decide and texture keeps out of it; the
        plain error in units of the scale weighs all pixels alike. Differentiable in the images.
        """
        patches = self._patches(images).repeat_interleave(MASKS, dim=0)
        # Not len(images): that is a number, and an exported graph would take batches of that one size.
        mean, scale = self._predict(patches, self.shown.repeat(images.shape[0], 1))
        wider = (scale.square() + GREY_LEVEL**2).sqrt()
        ratios = (patches - mean).abs() * (1 / scale - 1 / wider) + torch.log(scale / wider)
        hidden = (~self.masks).to(ratios)
        ratio: torch.Tensor = (ratios.sum(dim=2).unflatten(0, (-1, MASKS)) * hidden).sum(dim=1) / hidden.sum(dim=0)
        return ratio

    def _predict(self, patches: torch.Tensor, shown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and scale (n, patches, pixels) of such patches; ``shown`` (n, k) are the numbers of those to see."""
        visible = patches.gather(1, shown[:, :, None].expand(-1, -1, patches.shape[2]))
        tokens = self.embed(visible) + self.positions[shown]
        narrow = self.narrow(self.encoder(tokens))
        everywhere = self.hidden_token.expand(*patches.shape[:2], -1)
        seen = everywhere.scatter(1, shown[:, :, None].expand_as(narrow), narrow.to(everywhere.dtype))
        mean, raw = self.head(self.decoder(seen + self.decoder_positions)).chunk(2, dim=2)
        return mean, GREY_LEVEL + functional.softplus(raw - 2)  # about 1/8 before it has learned anything

    def _patches(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, c, h, w) as patches (n, patches, c * patch * patch)."""
        return functional.pixel_unshuffle(images, self.patch).flatten(2).transpose(1, 2)

    def _images(self, patches: torch.Tensor) -> torch.Tensor:
        """The other way round."""
        folded = patches.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        images: torch.Tensor = functional.pixel_shuffle(folded, self.patch)
        return images


def _shown(visible: torch.Tensor) -> torch.Tensor:
    """The numbers (n, k) of the patches that masks (n, patches) show; raises ValueError where k differs."""
    counts = visible.sum(dim=1)
    if (counts != counts[0]).any():
        raise ValueError(f"every scan must show equally many patches, got {sorted(set(counts.tolist()))}")
    return visible.nonzero()[:, 1].view(len(visible), -1)


def draw_masks(n: int, grid: int, generator: torch.Generator) -> torch.Tensor:
    """Complementary masks (n, 4, grid * grid) bool: the four patches of every 2 x 2 are dealt out to the four masks."""
    order = torch.rand(n, MASKS, grid // 2, grid // 2, generator=generator).argsort(dim=1)
    owner = functional.pixel_shuffle(order, 2).flatten(1)
    return owner.unsqueeze(1) == torch.arange(MASKS).view(1, -1, 1)


def sine_positions(grid: int, width: int) -> torch.Tensor:
    """Sines and cosines of row and column, (grid * grid, width), as in He et al.; ``width`` is a multiple of 4."""
    rates = torch.exp(-math.log(10_000) * torch.arange(width // 4) / (width // 4))
    angles = torch.arange(grid).unsqueeze(1) * rates
    along = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, width / 2)
    rows, columns = along.repeat_interleave(grid, dim=0), along.repeat(grid, 1)
    return torch.cat([rows, columns], dim=1)
