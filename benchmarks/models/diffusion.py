"""Latent diffusion: a conditioned U-Net and the autoencoder around it.

Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022 (https://arxiv.org/abs/2112.10752).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


def embed_times(times: torch.Tensor, width: int) -> torch.Tensor:
    """Times [N] as sines and cosines [N, width] of geometric frequencies."""
    steps = torch.arange(width // 2, device=times.device, dtype=torch.float32)
    angles = times[:, None].float() * torch.exp(-math.log(10_000) * steps / (width // 2))
    return torch.cat((angles.cos(), angles.sin()), dim=1)


class Residual(nn.Module):
    """Two convolutions of normalised maps, between which the time is added."""

    def __init__(self, before: int, after: int, time: int | None = None, groups: int = 8) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, eps=1e-6)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.time = nn.Linear(time, after) if time else None
        self.norm2 = nn.GroupNorm(groups, after, eps=1e-6)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor | None = None) -> torch.Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        if self.time is not None and time is not None:
            y = y + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class Attention(nn.Module):
    """Attention of tokens [N, L, width] to a context [N, M, context], or to themselves."""

    def __init__(self, width: int, context: int | None = None, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context or width, width, bias=False)
        self.value = nn.Linear(context or width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        context = x if context is None else context
        query, key, value = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.query, x), (self.key, context), (self.value, context))
        )
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """A map's pixels as tokens: self-attention, attention to the text, and a gated feed-forward layer."""

    def __init__(self, width: int, context: int, heads: int = 4, groups: int = 8) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.before = nn.Conv2d(width, width, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.to_self = Attention(width, heads=heads)
        self.to_text = Attention(width, context, heads)
        self.wide = nn.Linear(width, 8 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.after = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        y = self.before(self.norm(x)).flatten(2).transpose(1, 2)
        y = y + self.to_self(self.norms[0](y))
        y = y + self.to_text(self.norms[1](y), text)
        value, gate = self.wide(self.norms[2](y)).chunk(2, dim=-1)
        y = y + self.narrow(value * F.gelu(gate))
        return x + self.after(y.transpose(1, 2).unflatten(2, (height, width)))


class DownBlock(nn.Module):
    """The first level of Stable Diffusion 1's U-Net on the way down, in its own sizes.

    Maps [N, 320, H, W], the time's states [N, 1280] and the text's [N, L, 768] to maps [N, 320, H / 2, W / 2].
    """

    def __init__(self, width: int = 320, time: int = 1280, context: int = 768) -> None:
        super().__init__()
        self.residuals = nn.ModuleList(Residual(width, width, time, groups=32) for _ in range(2))
        self.looks = nn.ModuleList(Transformer(width, context, heads=8, groups=32) for _ in range(2))
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, maps: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        for residual, look in zip(self.residuals, self.looks, strict=True):
            maps = look(residual(maps, time), text)
        return self.down(maps)


class DiffusionUNet(nn.Module):
    """Latents [N, 4, H, W], times [N] and text states [N, L, context] to the noise in the latents."""

    def __init__(self, width: int = 32, context: int = 24, channels: int = 4) -> None:
        super().__init__()
        time = 4 * width
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.fine = Residual(width, width, time)
        self.look_fine = Transformer(width, context)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.coarse = Residual(width, 2 * width, time)
        self.look_coarse = Transformer(2 * width, context)
        self.middle = Residual(2 * width, 2 * width, time)
        self.up_coarse = Residual(4 * width, 2 * width, time)
        self.up = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up_fine = Residual(3 * width, width, time)
        self.norm = nn.GroupNorm(8, width)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, latents: torch.Tensor, times: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        time = self.time(embed_times(times, self.width))
        fine = self.look_fine(self.fine(self.first(latents), time), text)
        coarse = self.look_coarse(self.coarse(self.down(fine), time), text)
        y = self.middle(coarse, time)
        y = self.up_coarse(torch.cat((y, coarse), dim=1), time)
        y = self.up(F.interpolate(y, size=fine.shape[2:], mode="nearest"))
        y = self.up_fine(torch.cat((y, fine), dim=1), time)
        return self.last(F.silu(self.norm(y)))


class PixelAttention(nn.Module):
    """Attention of a map's pixels to each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width, eps=1e-6)
        self.attention = Attention(width, heads=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.attention(self.norm(x).flatten(2).transpose(1, 2))
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class Halve(nn.Module):
    """A strided convolution, padded at the right and at the bottom alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Autoencoder(nn.Module):
    """Images [N, 3, H, W] to themselves, through the mean and the deviation of latents [N, 4, H / 4, W / 4]."""

    def __init__(self, width: int = 32, latents: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            *(Residual(width, width), Halve(width), Residual(width, 2 * width), Halve(2 * width)),
            *(Residual(2 * width, 2 * width), PixelAttention(2 * width), Residual(2 * width, 2 * width)),
            *(nn.GroupNorm(8, 2 * width), nn.SiLU(), nn.Conv2d(2 * width, 2 * latents, 3, padding=1)),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latents, 2 * width, 3, padding=1),
            *(Residual(2 * width, 2 * width), PixelAttention(2 * width), Residual(2 * width, 2 * width)),
            *(nn.Upsample(scale_factor=2.0), nn.Conv2d(2 * width, 2 * width, 3, padding=1), Residual(2 * width, width)),
            *(nn.Upsample(scale_factor=2.0), nn.Conv2d(width, width, 3, padding=1), Residual(width, width)),
            *(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1)),
        )

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        deviation = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
        return {"mean": mean, "deviation": deviation, "images": self.decoder(mean + deviation * noise)}
