"""A bidirectional LSTM that tags words: Huang et al., 2015 (https://arxiv.org/abs/1508.01991), without its CRF."""

from __future__ import annotations

import torch
from torch import nn


class Tagger(nn.Module):
    """Word ids [N, L] to a score for each tag [N, L, tags]."""

    def __init__(self, words: int = 100, tags: int = 7, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, tags)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.embed(ids))
        return self.head(states)
