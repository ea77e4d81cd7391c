"""Rows of torch2trt/converters/fourier.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import torch

from tests.cases import normal, together
from tests.harness import OpCase

fft = torch.fft
X, PAIRS, WINDOW = normal(2, 6, 5), normal(2, 6, 5, 2), torch.hann_window(16)
SOUND, FRAMES = normal(2, 64), torch.view_as_real(torch.stft(normal(2, 64), 16, 4, window=WINDOW, return_complex=True))
NORMS = ("backward", "ortho", "forward")


def real(function: Callable[..., torch.Tensor], *args: object, **kwargs: object) -> Callable[..., torch.Tensor]:
    """A function as one to real numbers, of real ones."""

    def converted(x: torch.Tensor) -> torch.Tensor:
        result = function(x, *args, **kwargs)
        return torch.view_as_real(result.resolve_conj()) if result.is_complex() else result

    return converted


def pairs(function: Callable[..., torch.Tensor], *args: object, **kwargs: object) -> Callable[..., torch.Tensor]:
    """The same, of pairs of parts."""
    return lambda x: real(function, *args, **kwargs)(torch.view_as_complex(x))


OF_REAL = together(
    *(real(function, norm=norm) for function, norm in product((fft.fft, fft.rfft, fft.ifft, fft.ihfft), NORMS)),
    *(real(function, norm=norm) for function, norm in product((fft.rfft2, fft.fft2, fft.ifft2), NORMS)),
    real(fft.fft, dim=0),
    real(fft.rfft, n=8, dim=1),
    real(fft.rfft, n=3, dim=-1),
    real(fft.rfftn),
    real(fft.fftn, s=(3, 8), dim=(0, 1)),
)
OF_COMPLEX = together(
    *(pairs(function, norm=norm) for function, norm in product((fft.fft, fft.ifft, fft.irfft, fft.hfft), NORMS)),
    *(pairs(function, norm=norm) for function, norm in product((fft.fft2, fft.ifft2, fft.irfft2), NORMS)),
    pairs(fft.irfft, n=9),
    pairs(fft.irfft, n=6, dim=1),
    pairs(fft.irfftn),
    pairs(fft.ifftn, dim=(0, 2)),
)
SIZES = (1, 2, 3, 400, 512, 1000, 1021, 2048, 4096)
LONG, LONG_PAIRS = normal(2, 4096), normal(2, 4096, 2)


def at_size(x: torch.Tensor, size: int) -> torch.Tensor:
    return torch.cat([fft.rfft(x, n=size), fft.fft(x, n=size)], 1)


def back_at_size(z: torch.Tensor, size: int) -> torch.Tensor:
    return torch.cat([fft.irfft(z, n=size), fft.ifft(z, n=size).real], 1)


def spectrogram(x: torch.Tensor, window: torch.Tensor, normalized: bool = False) -> torch.Tensor:
    return torch.stft(x, 16, 4, window=window, normalized=normalized, return_complex=True).abs() ** 2


def sound(frames: torch.Tensor, window: torch.Tensor, length: int | None = None) -> torch.Tensor:
    return torch.istft(torch.view_as_complex(frames), 16, 4, window=window, length=length)


CASES = [
    OpCase("fft-of-real", OF_REAL, (X,)),
    OpCase("fft-of-complex", OF_COMPLEX, (PAIRS,)),
    OpCase("fft-vector", together(real(fft.fft), real(fft.rfft), lambda x: fft.irfft(fft.rfft(x), 7)), (normal(7),)),
    OpCase("fft-dynamic-batch", real(fft.rfft), (X,), dynamic={0: {0: (1, 4), 1: (2, 7)}}),
    OpCase("fft-dynamic-inner", real(fft.fft, dim=1), (X,), dynamic={0: {0: (1, 4), 2: (2, 7)}}),
    OpCase("irfft-dynamic-batch", pairs(fft.irfft), (PAIRS,), dynamic={0: {0: (1, 4)}}),
    OpCase("fft-sizes", together(*(real(at_size, size) for size in SIZES)), (LONG,)),
    OpCase("ifft-sizes", together(*(pairs(back_at_size, size) for size in SIZES)), (LONG_PAIRS,)),
    OpCase("fft-large-dynamic", real(fft.fft), (normal(2, 3, 1000),), dynamic={0: {0: (1, 4), 1: (1, 5)}}),
    OpCase("fft-dynamic", real(fft.rfft), (X,), dynamic={0: {2: (4, 8)}}, unsupported="along a dynamic dimension"),
    OpCase("fft-prime", real(fft.fft), (normal(1031),), unsupported="1031 points"),
    OpCase("fft-too-large", lambda x: fft.irfft(fft.fft(x), n=1 << 17), (normal(4),), unsupported="131072 points"),
    OpCase("stft", spectrogram, (SOUND, WINDOW), weights=(1,)),
    OpCase("stft-normalized", partial(spectrogram, normalized=True), (SOUND, WINDOW), weights=(1,)),
    OpCase("stft-dynamic", spectrogram, (SOUND, WINDOW), weights=(1,), dynamic={0: {0: (1, 4)}}),
    OpCase("istft", sound, (FRAMES, WINDOW), weights=(1,)),
    OpCase("istft-length", partial(sound, length=60), (FRAMES, WINDOW), weights=(1,)),
    OpCase("istft-dynamic", sound, (FRAMES, WINDOW), weights=(1,), dynamic={0: {0: (1, 4), 2: (8, 20)}}),
    OpCase("fft-of-none", together(*map(real, (fft.fft, fft.rfft, fft.ifft2, fft.rfft2))), (torch.ones(0, 6, 5),)),
    OpCase("fft-of-no-complex", together(*map(pairs, (fft.fft, fft.irfft2, fft.hfft))), (torch.ones(0, 6, 5, 2),)),
    OpCase("irfft-of-none", together(fft.irfft, fft.irfft2, fft.hfft), (torch.ones(0, 3, 4),)),
]
