"""Frozen linear maps kept in 4 bits while adapters are trained beside them (QLoRA, 2305.14314).

A weight is stored by blocks of 64 numbers as NormalFloat4 codes and the block's largest magnitude
in float32, by bitsandbytes. The magnitudes are not quantised again, as the paper's double
quantisation does: so storing what was restored changes nothing, and a checkpoint holds the restored
weights, is an ordinary one, loads without bitsandbytes and computes the same to the bit.

O outputs, D inputs of a map.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 64
KIND = "nf4"


class QuantizedLinear(nn.Module):
    """What ``linear`` computes, of its weight in 4 bits; in a state dict it is a linear map."""

    packed: nn.Parameter  # uint8, two codes to a byte
    # The float32 magnitudes' bits as int32: a model that is cast must leave them alone. Parameters,
    # because DDP sends every buffer from rank 0 in every forward.
    magnitude_bits: nn.Parameter

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.dtype = linear.weight.dtype
        self.bias = linear.bias
        packed, magnitude_bits = _quantize(linear.weight.detach())
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.magnitude_bits = nn.Parameter(magnitude_bits, requires_grad=False)

    def restored(self) -> Tensor:
        """The weight (O, D) in the dtype that it came in."""
        shape = (self.out_features, self.in_features)
        return _restore(self.packed, self.magnitude_bits, shape, self.dtype)

    def restored_bytes(self) -> int:
        """Bytes of the weight in a state dict."""
        return self.out_features * self.in_features * self.dtype.itemsize

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device):  # autocast does not know the product below
            x = x.to(torch.get_autocast_dtype(device))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _Product.apply(x, bias, self)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[f"{prefix}weight"] = self.restored()
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()

    @torch.no_grad()
    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        shape = (self.out_features, self.in_features)
        name = f"{prefix}weight"
        if name not in state_dict:
            missing_keys.append(name)
        elif state_dict[name].shape != shape:
            error_msgs.append(f"{name} is {list(state_dict[name].shape)}, not {list(shape)}")
        else:
            weight_OD = state_dict[name].to(self.packed.device, self.dtype)
            for own, value in zip(
                (self.packed, self.magnitude_bits), _quantize(weight_OD), strict=True
            ):
                own.copy_(value)
        if self.bias is not None:
            if f"{prefix}bias" in state_dict:
                self.bias.copy_(state_dict[f"{prefix}bias"])
            else:
                missing_keys.append(f"{prefix}bias")


class _Product(torch.autograd.Function):
    """``x @ weight.T + bias`` that keeps the 4 bits for its backward, not the restored weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, linear: QuantizedLinear) -> Tensor:
        ctx.linear = linear
        return F.linear(x, linear.restored().to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ ctx.linear.restored().to(gradient.dtype), None, None


def sizes_in_4_bits(model: nn.Module) -> dict[nn.Parameter, int]:
    """How many numbers of a weight stand in each parameter of maps in 4 bits."""
    return {
        parameter: size
        for module in model.modules()
        if isinstance(module, QuantizedLinear)
        for parameter, size in (
            (module.packed, module.out_features * module.in_features),
            (module.magnitude_bits, 0),
        )
    }


@torch.no_grad()
def quantize_frozen(model: nn.Module, device: torch.device) -> int:
    """Put the maps that stand beside adapters into 4 bits, in place, on ``device``; how many.

    ValueError where bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "lora: quantize needs bitsandbytes: pip install 'llava-compete[qlora]'"
        ) from error
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        base = layer.get_base_layer()
        layer.base_layer = QuantizedLinear(base.requires_grad_(False).to(device))
    return len(layers)


def _quantize(weight_OD: Tensor) -> tuple[Tensor, Tensor]:
    from bitsandbytes.functional import quantize_4bit

    # Flat: on CPU bitsandbytes takes a block that goes over the end of a row for one of the next.
    packed, state = quantize_4bit(
        weight_OD.flatten(), blocksize=BLOCK, quant_type=KIND, compress_statistics=False
    )
    return packed, state.absmax.float().view(torch.int32)


def _restore(
    packed: Tensor, magnitude_bits: Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type

    state = QuantState(
        absmax=magnitude_bits.detach().view(torch.float32),
        shape=torch.Size([shape[0] * shape[1]]),
        code=get_4bit_type(KIND, device=packed.device),
        blocksize=BLOCK,
        quant_type=KIND,
        dtype=dtype,
    )
    return dequantize_4bit(packed.detach(), state).view(shape)
