"""Message passing on graphs, whose edges are pairs of node numbers [2, E]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class MeanLayer(nn.Module):
    """GraphSAGE: Hamilton et al., 2017 (https://arxiv.org/abs/1706.02216), with the mean of the neighbours."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.own = nn.Linear(before, after)
        self.neighbours = nn.Linear(before, after, bias=False)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, target = edges
        messages = x.index_select(0, source)
        total = torch.zeros_like(x).index_add(0, target, messages)
        count = x.new_zeros(x.shape[0]).scatter_add(0, target, torch.ones_like(target, dtype=x.dtype))
        return self.own(x) + self.neighbours(total / count.clamp(min=1)[:, None])


class AttentionLayer(nn.Module):
    """GAT: Veličković et al., 2018 (https://arxiv.org/abs/1710.10903), with one head."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.project = nn.Linear(before, after, bias=False)
        self.score = nn.Linear(2 * after, 1, bias=False)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, target = edges
        y = self.project(x)
        scores = F.leaky_relu(self.score(torch.cat((y[source], y[target]), dim=1)).squeeze(1), 0.2)
        nodes = x.shape[0]
        largest = scores.new_full((nodes,), -torch.inf).scatter_reduce(0, target, scores, "amax")
        weights = (scores - largest[target]).exp()
        total = weights.new_zeros(nodes).scatter_add(0, target, weights)
        messages = y[source] * (weights / total[target])[:, None]
        return torch.zeros_like(y).index_add(0, target, messages)


class GraphNet(nn.Module):
    """Node features [V, before] and edges [2, E] to a score for each class [classes], of the whole graph."""

    def __init__(self, layer: type[MeanLayer] | type[AttentionLayer], before: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer(before, 32), layer(32, 32)])
        self.head = nn.Linear(32, classes)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = F.elu(layer(x, edges))
        return self.head(x.mean(0))
