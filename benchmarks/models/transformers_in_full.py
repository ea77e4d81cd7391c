"""Models from transformers in their published sizes, from their configurations alone; no caches are returned."""

from __future__ import annotations

from torch import nn


def gpt2() -> nn.Module:
    """GPT-2, 124 million parameters; ``input_ids`` [N, L] to logits."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(use_cache=False)).eval()


def llama() -> nn.Module:
    """The sizes of Llama 3.2 1B; ``input_ids`` [N, L] to logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval()


def whisper_encoder() -> nn.Module:
    """The encoder of Whisper tiny; ``input_features`` [N, 80, 3000] to states."""
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig(
        d_model=384,
        encoder_layers=4,
        encoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_layers=1,
        decoder_attention_heads=6,
        decoder_ffn_dim=1536,
    )
    return WhisperModel(config).encoder.eval()
