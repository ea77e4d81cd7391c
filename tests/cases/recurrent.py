"""Rows of torch2trt/converters/recurrent.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.export import Dim

from tests.cases import normal
from tests.harness import OpCase
from torch2trt.converters.recurrent import UNROLLED

FEW, MANY = normal(5, 2, 4), normal(UNROLLED + 3, 2, 4)
BATCH = Dim("batch", min=1, max=4)
ALL = {0: {0: (2, 12), 1: (1, 3)}}


def seeded(kind: type[nn.Module], *args: Any, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(*args, **options)


def lstm(**options: Any) -> nn.Module:
    return seeded(nn.LSTM, 4, 6, **options)


def gru(**options: Any) -> nn.Module:
    return seeded(nn.GRU, 4, 6, **options)


def rnn(**options: Any) -> nn.Module:
    return seeded(nn.RNN, 4, 6, **options)


BOTH = {"num_layers": 2, "bidirectional": True}
KINDS = {
    "lstm": lstm,
    "gru": gru,
    "rnn-tanh": rnn,
    "rnn-relu": lambda **options: rnn(nonlinearity="relu", **options),
    "lstm-projected": lambda **options: lstm(proj_size=3, **options),
}


def states(*sizes: int, layers: int = 4, batch: int = 2) -> list[torch.Tensor]:
    return [normal(layers, batch, size, seed=place) for place, size in enumerate(sizes)]


class Tagger(nn.Module):
    """The last state decides, as in classifiers of text."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 4)
        self.lstm = nn.LSTM(4, 6, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(12, 3)

    def forward(self, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, (last, _) = self.lstm(self.words(words))
        return self.tags(hidden), last[-1]


CASES = [
    *(OpCase(f"{name}-{len(x)}-steps", kind(), (x,)) for name, kind in KINDS.items() for x in (FEW, MANY)),
    *(
        OpCase(f"{name}-both-ways-{len(x)}-steps", kind(**BOTH), (x,))
        for name, kind in KINDS.items()
        for x in (FEW, MANY)
    ),
    *(OpCase(f"{name}-dynamic", kind(**BOTH), (FEW,), dynamic=ALL) for name, kind in KINDS.items()),
    *(OpCase(f"{name}-without-bias", kind(bias=False, **BOTH), (FEW,)) for name, kind in KINDS.items()),
    OpCase("lstm-dynamic-steps", lstm(), (FEW,), dynamic={0: {0: (1, 12)}}),
    OpCase("gru-dynamic-batch", gru(), (FEW,), dynamic={0: {1: (1, 4)}}),
    *(
        OpCase(f"{name}-{str(dtype)[6:]}", kind(bidirectional=True).to(dtype), (MANY.to(dtype),))
        for name, kind in KINDS.items()
        for dtype in (torch.float16, torch.bfloat16)
    ),
    OpCase("lstm-state", lstm(**BOTH), (FEW, states(6, 6))),
    OpCase(
        "lstm-state-dynamic", lstm(batch_first=True), (MANY, states(6, 6, layers=1, batch=11)), dynamic={0: {1: (1, 9)}}
    ),
    OpCase("lstm-projected-state", lstm(proj_size=3, **BOTH), (MANY, states(3, 6))),
    OpCase("gru-state", gru(**BOTH), (MANY, *states(6))),
    OpCase("rnn-state", rnn(**BOTH), (FEW, *states(6))),
    OpCase("lstm-batch-first", lstm(batch_first=True, **BOTH), (MANY,), dynamic={0: {0: (2, 12), 1: (2, 12)}}),
    OpCase("lstm-unbatched", lstm(), (MANY[:, 0],)),
    OpCase("gru-unbatched", gru(bidirectional=True), (FEW[:, 0],)),
    OpCase("lstm-one-step", lstm(), (FEW[:1],)),
    OpCase("lstm-dropout", lstm(num_layers=3, dropout=0.5), (FEW,)),
    OpCase(
        "lstm-weights-as-inputs",
        torch.lstm,
        (MANY, states(6, 6, layers=1), list(lstm().parameters()), True, 1, 0.0, False, False, False),
    ),
    OpCase("lstm-tagger", seeded(Tagger), (torch.arange(15).reshape(3, 5),), dynamic={0: {0: (1, 4), 1: (2, 30)}}),
    OpCase("lstm-cell", seeded(nn.LSTMCell, 4, 6), (FEW[0],), dynamic={0: {0: (1, 4)}}),
    OpCase("lstm-cell-state", seeded(nn.LSTMCell, 4, 6), (FEW[0], (normal(2, 6), normal(2, 6, seed=1)))),
    OpCase("gru-cell", seeded(nn.GRUCell, 4, 6), (FEW[0], normal(2, 6)), dynamic={0: {0: BATCH}, 1: {0: BATCH}}),
    OpCase("rnn-cell", seeded(nn.RNNCell, 4, 6, bias=False), (FEW[0],)),
    OpCase("rnn-cell-relu", seeded(nn.RNNCell, 4, 6, nonlinearity="relu"), (FEW[0], normal(2, 6))),
]
