"""A diffusion model for purification: a small UNet that predicts the noise of a scan, at the depths it is used at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fedplatform.learning.models.tiles import Tiling
from fedplatform.learning.models.torchvision_ops import import_timm

STEPS = 1000  # T of the schedule, as in Ho et al.
GROUPS = 8  # of GroupNorm
MOST_SNR = 5.0  # gamma of min-SNR weighting
OVERLAP = 32  # pixels that neighbouring tiles share: about as far as a predicted pixel looks


@dataclass(frozen=True)
class NoisePredictor:
    """The noise predictor of a DDPM (Ho et al., NeurIPS 2020): diffusers' UNet without attention.

    It works on ``fold`` x ``fold`` pixels folded into channels, which makes it ``fold``^2 times cheaper, and halves
    the picture ``halvings`` times: ``width`` channels at the top, a multiple of 8, and twice as many at each halving.
    It learns the depths 1 to ``t_max`` of 1000 only, for purification uses no other. Scans of more than ``tile`` pixels
    a side it sees in tiles of that size: it learns from random ones, and blends what it predicts of all of them.
    """

    width: int = 16
    halvings: int = 2
    fold: int = 2
    t_max: int = 200
    tile: int = 128

    def __call__(self, *, channels: int, num_classes: int, size: int) -> NoiseUnet:  # noqa: ARG002
        """About 620,000 parameters, for any size; raises ValueError for an invalid ``width`` or ``t_max``."""
        if self.width % GROUPS:
            raise ValueError(f"noise_predictor needs a width that is a multiple of {GROUPS}, got {self.width}")
        if not 1 <= self.t_max <= STEPS:
            raise ValueError(f"noise_predictor needs t_max from 1 to {STEPS}, got {self.t_max}")
        if self.tile <= OVERLAP:
            raise ValueError(f"noise_predictor needs a tile of more than {OVERLAP} pixels, got {self.tile}")
        return NoiseUnet(self, channels=channels)


class NoiseUnet(nn.Module):
    """The network, and the diffusion it belongs to.

    Two scales meet here. ``images`` are (n, c, h, w) in [0, 1], as everywhere. ``noisy`` pictures live where the
    diffusion does: x_t = sqrt(abar_t) x + sqrt(1 - abar_t) e with x = 2 * image - 1 in [-1, 1] and e standard normal.
    Depths t are (n,) int64, a depth for each scan, counted as in the paper: 0 is the scan, 1 the first step of noise;
    diffusers counts the same steps from 0.
    """

    abar: torch.Tensor

    def __init__(self, setting: NoisePredictor, *, channels: int) -> None:
        super().__init__()
        import_timm()  # diffusers imports torchvision too, and fails in the same way beside a CPU-only torch
        from diffusers import DDPMScheduler, UNet2DModel

        levels = setting.halvings + 1
        folded = channels * setting.fold**2
        self.fold, self.t_max = setting.fold, setting.t_max
        self.multiple = setting.fold * 2**setting.halvings
        self.tiling = Tiling(setting.tile, OVERLAP)
        self.unet = UNet2DModel(
            in_channels=folded,
            out_channels=folded,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            block_out_channels=tuple(setting.width * 2**level for level in range(levels)),
            layers_per_block=1,
            norm_num_groups=GROUPS,
            add_attention=False,
        )
        schedule = DDPMScheduler(num_train_timesteps=STEPS, beta_schedule="linear").alphas_cumprod
        self.register_buffer("abar", torch.cat([torch.ones(1), schedule]), persistent=False)  # abar[t], t = 0 to T

    def loss(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mean squared error of the predicted noise (Ho et al., L_simple) at a random depth for each scan."""
        (images,) = self._cropped((images,), generator)
        t, noise = self._draw(images, generator)
        return functional.mse_loss(self(self.diffuse(images, t, noise), t), noise)

    def bridge_loss(self, clean: torch.Tensor, attacked: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The same from an attacked scan back to its clean twin (bridge of ADBM, Li et al., ICLR 2025).

        The target is the noise that, taken off the diffused attacked scan, leaves the clean one; so the error is that
        of the clean scan times the signal-to-noise ratio, here at most 5 (min-SNR, Hang et al., ICCV 2023), or the
        shallow depths, where no noise hides the perturbation, would be all that counts.
        """
        clean, attacked = self._cropped((clean, attacked), generator)
        t, noise = self._draw(clean, generator)
        noisy = self.diffuse(attacked, t, noise)
        signal, spread = self.signal(t), self.spread(t)
        snr = (signal / spread).square()
        target = (noisy - signal * (2 * clean - 1)) / spread
        error = functional.mse_loss(self(noisy, t), target, reduction="none")
        return (error * snr.clamp(max=MOST_SNR) / snr).mean()

    def diffuse(self, images: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The noisy pictures at depths ``t`` of images in [0, 1] under standard normal ``noise`` (n, c, h, w)."""
        return self.signal(t) * (2 * images - 1) + self.spread(t) * noise

    def forward(self, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The predicted noise (n, c, h, w) of noisy pictures at depths ``t`` of at least 1.

        In tiles it takes the memory of one tile a picture, also where a gradient is asked for: each is then predicted
        once more on the way back.
        """
        if not self.tiling.cuts(noisy):
            return self._predict(noisy, t)
        tiles = self.tiling.cut(noisy)
        if torch.compiler.is_exporting():  # the network once in the graph, and not once for each tile
            predicted = self._predict(torch.cat(tiles), t.repeat(len(tiles))).unflatten(0, (len(tiles), -1)).unbind()
        elif torch.is_grad_enabled():
            predicted = tuple(checkpoint(self._predict, tile, t, use_reentrant=False) for tile in tiles)
        else:
            predicted = tuple(self._predict(tile, t) for tile in tiles)
        return self.tiling.blend(predicted, *noisy.shape[2:])

    def _predict(self, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        height, width = noisy.shape[2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        padded = functional.pad(noisy, padding, mode="replicate")
        folded = functional.pixel_unshuffle(padded, self.fold).contiguous(memory_format=torch.channels_last)
        predicted = functional.pixel_shuffle(self.unet(folded, t - 1, return_dict=False)[0], self.fold)
        cropped: torch.Tensor = predicted[:, :, :height, :width]
        return cropped

    def denoise(self, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The scan x in one shot, in about [-1, 1], from noisy pictures at depths ``t`` of at least 1."""
        noise: torch.Tensor = self(noisy, t)
        return (noisy - self.spread(t) * noise) / self.signal(t)

    def signal(self, t: torch.Tensor) -> torch.Tensor:
        """What a scan is multiplied by at depths ``t``, (n, 1, 1, 1)."""
        return self.abar[t].sqrt().view(-1, 1, 1, 1)

    def spread(self, t: torch.Tensor) -> torch.Tensor:
        """Standard deviation of the noise at depths ``t``, (n, 1, 1, 1)."""
        return (1 - self.abar[t]).sqrt().view(-1, 1, 1, 1)

    def _cropped(self, pictures: Sequence[torch.Tensor], generator: torch.Generator) -> Sequence[torch.Tensor]:
        """What is trained on: pictures (n, c, h, w) that are no larger than a tile, or a tile of each."""
        return self.tiling.crop(pictures, generator) if self.tiling.cuts(pictures[0]) else pictures

    def _draw(self, images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        t = torch.randint(1, self.t_max + 1, (len(images),), generator=generator)
        noise = torch.randn(images.shape, generator=generator)
        return t.to(images.device), noise.to(images.device)
