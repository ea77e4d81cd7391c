"""A net, and what TensorRT's inspector writes of its engine, of its compiler's kernels, and in TensorRT 11."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from torch2trt import api
from torch2trt.graph.program import Program
from torch2trt.settings import Settings

LINEAR = "Row major linear FP16 format"
HWC8 = "Channel major FP16 format where channel % 8 == 0"


def tensor(name: str, shape: list[int], format: str, **more: Any) -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": shape, "Format/Datatype": format, **more}


def layer(name: str, kind: str, read: list[Any], written: list[Any], metadata: str = "", **more: Any) -> dict[str, Any]:
    own = {"TacticValue": "0x00000000000003e8", "StreamId": 0, "Metadata": metadata}
    return {"Name": name, "LayerType": kind, "Inputs": read, "Outputs": written, **more, **own}


def information(*layers: Any) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": ["x", "output"]})


# A convolution with its activation, another with a residual sum, and copies at both ends, as 10.6 writes them.
STEM = "[t2t conv_block_default stem]"
BLOCK = "[t2t conv_block_default_1 blocks.0.conv]"
TO_STEM = "Reformatting CopyNode for Input Tensor 0 to conv_block_default + conv_block_default.1"
FROM_HEAD = "Reformatting CopyNode for Output Tensor 0 to mean"
_NAMES = ("x", "Reformatted Input Tensor 0 to conv_block_default + conv_block_default.1", "stem out", "block out")
CONVOLUTIONS = information(
    layer(
        TO_STEM,
        "Reformat",
        [tensor(_NAMES[0], [2, 3, 10, 10], LINEAR)],
        [tensor(_NAMES[1], [2, 3, 10, 10], HWC8)],
        ParameterType="Reformat",
        Origin="REFORMAT",
    ),
    layer(
        "conv_block_default + conv_block_default.1",
        "CaskConvolution",
        [tensor(_NAMES[1], [2, 3, 10, 10], HWC8)],
        [tensor(_NAMES[2], [2, 8, 8, 8], HWC8)],
        f"{STEM}\x1e{STEM}",
        Weights={"Type": "Half", "Count": 216},
        Bias={"Type": "Half", "Count": 8},
        Activation="RELU",
        TacticName="sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x64x64",
    ),
    layer(
        "conv_block_default_1 + conv_block_default_1.1 + conv_block_default_1.2",
        "CaskConvolution",
        [tensor(_NAMES[2], [2, 8, 8, 8], HWC8), tensor(_NAMES[2], [2, 8, 8, 8], HWC8)],
        [tensor(_NAMES[3], [2, 8, 8, 8], HWC8)],
        f"{BLOCK}\x1e{BLOCK}\x1e{BLOCK}",
        Weights={"Type": "Half", "Count": 576},
        Bias={"Type": "Half", "Count": 8},
        TacticName="sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x64x64",
    ),
    layer(
        "mean",
        "Reduce",
        [tensor(_NAMES[3], [2, 8, 8, 8], HWC8)],
        [tensor("mean out", [2, 8], "Row major linear FP16 format")],
        "[t2t mean ]",
    ),
    layer(FROM_HEAD, "Reformat", [tensor("mean out", [2, 8], LINEAR)], [tensor("output", [2, 8], LINEAR)]),
)

# Kernels that TensorRT's compiler makes: short dtypes, weights among the inputs, names of its own.
COMPILED = information(
    layer(
        "__myl_CastMulSumAdd_myl0_0",
        "kgen",
        [tensor("x", [2, 5, 16], "Float"), tensor("__mye1_dconst", [1, 1, 16], "Half")],
        [tensor("__mye2", [10, 16], "Half")],
        "[t2t layer_norm norm]\x1e[t2t add_1 ]",
        TacticName="__myl_CastMulSumAdd_0x5a",
    ),
    layer(
        "linear_block_default_myl0_1",
        "gemm",
        [tensor("__mye2", [10, 16], "Half"), tensor("__mye3_dconst", [32, 16], "Half")],
        [tensor("__mye4", [10, 32], "Half")],
        "[t2t linear_block_default mlp.0][t2t linear_block_default mlp.0]",
        TacticName="sm80_xmma_gemm_f16f16_f16f16_f16_tn_n_tilesize64x64x64",
    ),
    layer(
        "__myl_Move_myl0_2",
        "kgen",
        [tensor("__mye4", [10, 32], "Half")],
        [tensor("output", [2, 5, 32], "Half"), tensor("size", [3], "Int64", Location="Host")],
    ),
)

# 11 tells format and dtype apart.
ELEVEN = json.dumps(
    {
        "Layers": [
            {
                "Name": "relu",
                "LayerType": "PointWiseV2",
                "Inputs": [{"Name": "x", "Dimensions": [2, 5], "Format": "Row major linear", "Datatype": "BFloat16"}],
                "Outputs": [{"Name": "y", "Dimensions": [2, 5], "Format": "Row major linear", "Datatype": "Float"}],
            }
        ],
        "I/O Tensors": ["x", "y"],
    }
)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + x)


class Net(nn.Module):
    """Its calls are those of the sample of convolutions, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Conv2d(3, 8, 3), nn.Sequential(Block(8)), nn.Linear(8, 5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


X = torch.randn(2, 3, 10, 10)


def program_of(module: nn.Module, *inputs: Tensor, shapes: Any = None, **settings: Any) -> Program:
    return api.optimize(api.capture(module.eval(), inputs, dynamic_shapes=shapes), Settings.make(**settings))
