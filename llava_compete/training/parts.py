"""The parts of a model that a recipe trains, each at a learning rate of its own."""

from collections.abc import Mapping
from typing import Any

from llava_compete.lora import MARK, LoraSettings
from llava_compete.model import LlavaCompeteForConditionalGeneration as Model
from llava_compete.moe import Experts
from llava_compete.names import nearest
from llava_compete.quantized import sizes_in_4_bits

COARSE_PARTS = ("vision", "projector", "language_model")
FINE_PARTS = {"experts": ".experts.", "routers": ".router.", "lora": MARK}


def part_names(parameter: str) -> tuple[str, ...]:
    """The parts a parameter belongs to, the narrowest first."""
    fine = tuple(part for part, mark in FINE_PARTS.items() if mark in parameter)
    # A projector of experts has them directly below it: projector.experts.up_proj.
    return (*fine, parameter.split(".", 1)[0])


def check_parts(parts: Mapping[str, Any] | list[str], key: str, model: Model) -> None:
    """ValueError for a part that does not exist, or experts asked of a dense model."""
    known = (*COARSE_PARTS, *FINE_PARTS)
    for part in parts:
        if part not in known:
            raise ValueError(f"{key}: unknown part {part!r}{nearest(part, known)}")
        if part == "lora":
            if model.config.lora is None:
                raise ValueError(f"{key}: 'lora', but the model has no adapters; give lora")
        elif part in FINE_PARTS and not model.moe_layers():
            raise ValueError(
                f"{key}: {part!r} of a dense checkpoint; `llava-compete upcycle` makes experts"
            )


def set_trainable(model: Model, parts: list[str]) -> None:
    """Train the parameters of these parts and no others.

    Of parts with adapters these are trained too, and experts and routers, whole. ValueError where
    such a part is to be trained whole itself.
    """
    check_parts(parts, "trainable", model)
    adapted = LoraSettings.of(model.config.lora).parts if model.config.lora else ()
    if both := sorted({*parts} & {*adapted}):
        raise ValueError(
            f"trainable={parts} and lora's parts={list(adapted)} both name {both}: a part is "
            f"trained whole or by adapters"
        )
    for name, parameter in model.named_parameters():
        *fine, coarse = part_names(name)
        trained = coarse in parts or any(part in parts for part in fine)
        parameter.requires_grad_(trained or (coarse in adapted and bool(fine)))


def tune_experts(model: Model, args: Any) -> None:
    """How the experts compute, as a recipe's TrainArgs have it.

    ValueError where they are to be compiled for a CPU and there is no C++ compiler.
    """
    if args.compile_experts and args.device.type == "cpu":
        _check_compiler()
    for module in model.modules():
        if isinstance(module, Experts):
            if args.compile_experts:
                module.compile_elementwise()
            if args.competition_memory is not None:
                module.competition_budget = int(args.competition_memory * 2**20)


def _check_compiler() -> None:
    from torch._inductor import cpp_builder, exc  # seconds

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise ValueError(
            "compile_experts=true: there is no C++ compiler; install g++, name yours in CXX, or "
            "leave it out"
        ) from error


def count_trainable(model: Model) -> dict[str, tuple[int, int]]:
    """(trainable, all) parameters of each part, experts and routers apart."""
    counts: dict[str, tuple[int, int]] = {}
    in_4_bits = sizes_in_4_bits(model)
    for name, parameter in model.named_parameters():
        part = "/".join(reversed(part_names(name)))
        size = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 holds shards
        size = in_4_bits.get(parameter, size)
        trained, total = counts.get(part, (0, 0))
        counts[part] = (trained + size * parameter.requires_grad, total + size)
    return counts
