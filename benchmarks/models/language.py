"""Language and speech models from transformers, from their configurations alone; no caches are returned.

Some in their published sizes, and some of few layers, which leave time for many builds.
"""

from __future__ import annotations

from torch import nn

_LLAMA = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "use_cache": False,
}


def gpt2() -> nn.Module:
    """GPT-2, 124 million parameters; ``input_ids`` [N, L] to logits."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(use_cache=False)).eval()


def gpt2_4_layers() -> nn.Module:
    """Four layers of the sizes of GPT-2; ``input_ids`` [N, L] to states."""
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(GPT2Config(n_layer=4, use_cache=False)).eval()


def llama_1b() -> nn.Module:
    """The sizes of Llama 3.2 1B; ``input_ids`` [N, L] to logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128_256,
        num_hidden_layers=16,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        **_LLAMA,
    )
    return LlamaForCausalLM(config).eval()


def llama_2_layers() -> nn.Module:
    """Two layers of the sizes of Llama 3.2 1B, with a smaller vocabulary; ``input_ids`` [N, L] to states."""
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(LlamaConfig(vocab_size=32_000, num_hidden_layers=2, **_LLAMA)).eval()


def t5_2_layers() -> nn.Module:
    """Two layers of the sizes of T5 small in encoder and decoder; ``input_ids``, ``decoder_input_ids`` [N, L]."""
    from transformers import T5Config, T5Model

    return T5Model(T5Config(num_layers=2, num_decoder_layers=2, use_cache=False)).eval()


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
