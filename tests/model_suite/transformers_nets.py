"""transformers, made from configurations of a few narrow layers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from tests.model_suite.model import Inputs, Model, ids

# An initial deviation of 0.02 leaves nothing of so narrow a model.
_COMMON = {"return_dict": True, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT = {
    **_COMMON,
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "use_cache": False,
}
_GROUPED = {**_TEXT, "num_key_value_heads": 2}
_IMAGE = {
    **_TEXT,
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 3,
}
_SEQ2SEQ = {
    **_COMMON,
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "use_cache": False,
    "decoder_start_token_id": 2,
    "init_std": 0.2,
}
_RESNET = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 24, 32, 48],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage4"],
}
_DETR = {
    **_SEQ2SEQ,
    "num_queries": 6,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": _RESNET,
}
_CLIP_TEXT = {**_TEXT, "projection_dim": 16}
_CLIP_IMAGE = {**_IMAGE, "projection_dim": 16}


def _make(kind: str, config: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, kind)(getattr(transformers, config)(**options))


def _words(length: int = 10) -> Inputs:
    """Two sentences, the second shorter."""
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[1, length // 2 :] = 0
    return (), {"input_ids": ids(2, length), "attention_mask": mask}


def _words_alone() -> Inputs:
    return (), {"input_ids": ids(2, 10)}


def _sentences() -> Inputs:
    _, kwargs = _words()
    return (), {**kwargs, "decoder_input_ids": ids(2, 7)}


def _image(side: int = 32) -> Callable[[], Inputs]:
    return lambda: ((), {"pixel_values": torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))})


def _image_and_words() -> Inputs:
    return (), {**_words()[1], **_image()()[1]}


def _speech() -> Inputs:
    features = torch.randn(1, 16, 40, generator=torch.Generator().manual_seed(1))
    return (), {"input_features": features, "decoder_input_ids": ids(1, 7)}


def _wave() -> Inputs:
    return (), {"input_values": torch.randn(1, 800, generator=torch.Generator().manual_seed(1))}


def _model(
    name: str, options: dict[str, Any], inputs: Callable[[], Inputs] = _words, kind: str = "Model", family: str = ""
) -> Model:
    return Model(f"transformers:{name}{kind}", _make(f"{name}{kind}", f"{name}Config", options), inputs, family)


def _encoders() -> list[Model]:
    wave = {"num_feat_extract_layers": 2, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
    wave |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    found = [
        _model("Bert", _TEXT),
        _model("Bert", _TEXT, kind="ForSequenceClassification"),
        _model("Roberta", _TEXT),
        _model("DistilBert", {**_COMMON, "vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
        _model("Albert", {**_TEXT, "embedding_size": 16}),
        _model("Electra", {**_TEXT, "embedding_size": 16}),
        _model("Deberta", {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
        _model("DebertaV2", {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
        _model("MobileBert", {**_TEXT, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}),
        _model("FNet", _TEXT, _words_alone),
        _model("Funnel", {**_COMMON, "vocab_size": 100, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64,
                          "block_sizes": [1, 1], "num_decoder_layers": 1}),
        _model("XLNet", {**_COMMON, "vocab_size": 100, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}),
        _model("Esm", {**_TEXT, "position_embedding_type": "rotary", "mask_token_id": 3}),
        _model("LayoutLM", _TEXT),
        _model("Longformer", {**_TEXT, "attention_window": 8}, lambda: _words(16)),
        _model("Wav2Vec2", {**_TEXT, **wave}, _wave, family="speech"),
        _model("Hubert", {**_TEXT, **wave}, _wave, family="speech"),
    ]  # fmt: skip
    return found


def _decoders() -> list[Model]:
    experts = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    gpt = {**_COMMON, "vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False}
    return [
        _model("GPT2", gpt),
        _model("GPT2", gpt, kind="LMHeadModel"),
        _model("GPTJ", {**gpt, "rotary_dim": 4}),
        _model("GPTNeoX", _TEXT),
        _model("OPT", {**_TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32}),
        _model("Bloom", {**_COMMON, "vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4,
                         "use_cache": False}),
        _model("Falcon", _TEXT),
        _model("Phi", _TEXT),
        _model("Phi3", _GROUPED),
        _model("Llama", _GROUPED),
        _model("Llama", _GROUPED, kind="ForCausalLM"),
        _model("Qwen2", _GROUPED),
        _model("Qwen3", {**_GROUPED, "head_dim": 8}),
        _model("Mistral", {**_GROUPED, "sliding_window": 4}),
        _model("Mixtral", {**_GROUPED, **experts}),
        _model("Qwen2Moe", {**_GROUPED, **experts, "shared_expert_intermediate_size": 32}),
        _model("Gemma", {**_GROUPED, "head_dim": 8}),
        _model("Gemma2", {**_GROUPED, "head_dim": 8, "sliding_window": 4}),
        _model("StableLm", _GROUPED),
        _model("Olmo", _GROUPED),
        _model("Cohere", _GROUPED),
        _model("Granite", _GROUPED),
        _model("Mamba", {**_TEXT, "state_size": 4}, _words_alone, family="state space"),
        _model("Mamba2", {**_TEXT, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
               _words_alone, family="state space"),
    ]  # fmt: skip


def _translators() -> list[Model]:
    t5 = {**_COMMON, "vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
          "use_cache": False, "decoder_start_token_id": 2}  # fmt: skip
    whisper = {**_SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 20}
    return [
        _model("T5", t5, _sentences),
        _model("T5", t5, _sentences, kind="ForConditionalGeneration"),
        _model("Bart", _SEQ2SEQ, _sentences),
        _model("Marian", _SEQ2SEQ, _sentences),
        _model("Pegasus", _SEQ2SEQ, _sentences),
        _model("MBart", _SEQ2SEQ, _sentences),
        _model("Whisper", whisper, _speech, family="speech"),
        _model("Whisper", whisper, _speech, kind="ForConditionalGeneration", family="speech"),
    ]


def _viewers() -> list[Model]:
    stages = {**_COMMON, "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
              "window_size": 4}  # fmt: skip
    swin = {**stages, "model_type": "swin", "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 2}
    deformable = {**_DETR, "encoder_n_points": 2, "decoder_n_points": 2, "num_feature_levels": 2,
                  "backbone_config": {**_RESNET, "out_features": ["stage3", "stage4"]}}  # fmt: skip
    rt = {"return_dict": True, "encoder_hidden_dim": 32, "d_model": 32, "num_queries": 6, "decoder_layers": 2,
          "encoder_in_channels": [24, 32, 48], "encoder_attention_heads": 4, "decoder_attention_heads": 4,
          "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_in_channels": [32, 32, 32], "decoder_n_points": 2,
          "backbone_config": {**_RESNET, "model_type": "rt_detr_resnet",
                              "out_features": ["stage2", "stage3", "stage4"]},
          "use_pretrained_backbone": False, "use_timm_backbone": False, "num_labels": 5, "num_denoising": 0,
          "hidden_expansion": 1.0, "disable_custom_kernels": True}  # fmt: skip
    sam = {
        "vision_config": {**_IMAGE, "image_size": 64, "output_channels": 16, "num_pos_feats": 8, "mlp_ratio": 2.0,
                          "window_size": 3, "global_attn_indexes": [1], "mlp_dim": 64},
        "prompt_encoder_config": {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4},
        "mask_decoder_config": {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    }  # fmt: skip

    def prompted() -> Inputs:
        points = torch.tensor([[[[20.0, 30.0], [40.0, 10.0]]]])
        return (), {**_image(64)()[1], "input_points": points}

    return [
        _model("ViT", _IMAGE, _image()),
        _model("DeiT", _IMAGE, _image()),
        _model("Dinov2", {**_IMAGE, "mlp_ratio": 2}, _image()),
        _model("Beit", _IMAGE, _image()),
        _model("Swin", stages, _image()),
        _model("ConvNext", {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}, _image()),
        _model("Segformer", {**_COMMON, "hidden_sizes": [16, 32], "depths": [1, 1], "num_encoder_blocks": 2,
                             "num_attention_heads": [1, 2], "sr_ratios": [4, 2], "patch_sizes": [7, 3],
                             "strides": [4, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 32},
               _image(64), kind="ForSemanticSegmentation"),
        _model("DPT", {**_IMAGE, "neck_hidden_sizes": [16, 16, 16, 16], "fusion_hidden_size": 16,
                       "backbone_out_indices": [0, 1, 2, 3], "num_hidden_layers": 4}, _image(), "ForDepthEstimation"),
        _model("Detr", _DETR, _image(64), "ForObjectDetection"),
        _model("ConditionalDetr", _DETR, _image(64), "ForObjectDetection"),
        _model("DeformableDetr", deformable, _image(64), "ForObjectDetection"),
        _model("RTDetr", rt, _image(64), "ForObjectDetection"),
        _model("Yolos", {**_IMAGE, "num_detection_tokens": 5, "image_size": [32, 32]}, _image(), "ForObjectDetection"),
        _model("MaskFormer", {"fpn_feature_size": 32, "mask_feature_size": 32, "backbone_config": swin,
                              "decoder_config": {**_DETR, "model_type": "detr"}}, _image(64)),
        _model("Sam", sam, prompted),
        _model("CLIP", {"text_config": _CLIP_TEXT, "vision_config": _CLIP_IMAGE, "projection_dim": 16},
               _image_and_words),
        _model("CLIPText", _CLIP_TEXT),
        _model("CLIPVision", _CLIP_IMAGE, _image()),
        _model("Siglip", {"text_config": _TEXT, "vision_config": _IMAGE}, _image_and_words),
        _model("Blip", {"text_config": {**_TEXT, "encoder_hidden_size": 32}, "vision_config": _IMAGE,
                        "projection_dim": 16, "image_text_hidden_size": 16}, _image_and_words),
    ]  # fmt: skip


MODELS = [*_encoders(), *_decoders(), *_translators(), *_viewers()]
