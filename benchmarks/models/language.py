"""Language models from transformers in sizes that leave time for many builds, from their configurations alone."""

from __future__ import annotations

from torch import nn


def llama() -> nn.Module:
    """Two layers of the sizes of Llama 3.2 1B, with grouped queries; ``input_ids`` [N, L]."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=2,
        num_attention_heads=32,
        num_key_value_heads=8,
        use_cache=False,
    )
    return LlamaModel(config).eval()


def gpt2() -> nn.Module:
    """Four layers of the sizes of GPT-2; ``input_ids`` [N, L]."""
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(GPT2Config(n_layer=4, use_cache=False)).eval()


def t5() -> nn.Module:
    """Two layers of the sizes of T5 small in encoder and decoder; ``input_ids``, ``decoder_input_ids`` [N, L]."""
    from transformers import T5Config, T5Model

    return T5Model(T5Config(num_layers=2, num_decoder_layers=2, use_cache=False)).eval()
