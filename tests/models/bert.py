"""A small BERT from transformers, made from its configuration alone."""

from __future__ import annotations

import torch
from torch import nn


def bert() -> nn.Module:
    """Token ids [N, L] and an attention mask [N, L] to a last hidden state [N, L, 64] and a pooled one [N, 64]."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        # An initial deviation of 0.02 leaves nothing of so narrow a model.
        initializer_range=0.2,
        return_dict=True,
    )
    return BertModel(config).eval()


def bert_inputs(batch: int = 2, length: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and a mask that hides the end of every second row."""
    ids = torch.arange(batch * length).reshape(batch, length) * 7 % 100
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[1::2, length // 2 :] = 0
    return ids, mask
