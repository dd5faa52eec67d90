"""Dense checkpoint -> checkpoint whose parts are mixtures of experts."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava_compete.moe import MoEConfig


def main(argv: Sequence[str]) -> None:
    args = _parser().parse_args(argv)

    from llava_compete.checkpoint import load, refuse_non_empty, save, upcycle_model

    refuse_non_empty(args.output)
    configs = _moe_configs(args)
    model, processor = load(args.checkpoint, dtype=args.dtype)
    report = upcycle_model(model, configs, perturbation=args.perturbation, seed=args.seed)
    save(model, processor, args.output)
    for part, layers in model.moe_layers().items():
        config = configs[part]
        print(
            f"{part}: {len(layers)} layers of {config.num_experts} experts, top {config.top_k}, "
            f"router {config.router}"
        )
    print(
        f"largest difference of a logit, before and after: {report.largest_difference:.2e} "
        f"(largest logit {report.largest_logit:.2f})"
    )
    for name, parameters in (("dense", report.before), ("experts", report.after)):
        print(f"{name:8} {parameters.total:14,} parameters {parameters.active:14,} active")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-compete upcycle",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="dense checkpoint directory")
    add("--output", type=Path, required=True)
    add(
        "--parts",
        nargs="+",
        default=None,
        help="of vision, projector, language_model; None: language_model projector",
    )
    add(
        "--moe",
        type=Path,
        default=None,
        help="YAML file that maps each part to values of its own, MoEConfig's, in place of "
        "--parts and --layers; what it does not name comes from the flags",
    )
    add("--num_experts", type=int, default=4)
    add("--top_k", type=int, default=2)
    add("--router", default="compete", help="a name in ROUTERS, such as topk")
    add(
        "--layers",
        type=int,
        nargs="+",
        default=None,
        help="decoder layers to turn into experts; None: all",
    )
    add(
        "--perturbation",
        type=float,
        default=0.0,
        help="noise on the copies, in standard deviations of the weight; 0 keeps the output",
    )
    add("--seed", type=int, default=42, help="of the gates and the perturbation")
    add("--dtype", default="float32", choices=["float32", "bfloat16"])
    return parser


def _moe_configs(args: argparse.Namespace) -> dict[str, "MoEConfig"]:
    """Of each part to upcycle: what ``--moe`` says of it, and what the flags say of all."""
    from llava_compete.config import read_recipe
    from llava_compete.moe import MoEConfig
    from llava_compete.names import nearest

    flags = {name: getattr(args, name) for name in ("num_experts", "top_k", "router", "seed")}
    if args.moe is None:
        parts = args.parts or ["language_model", "projector"]
        if args.layers and "language_model" not in parts:
            raise ValueError(f"layers={args.layers} are of the language model; parts={parts}")
        layers = {"language_model": args.layers}
        return {part: MoEConfig(**flags, layers=layers.get(part)) for part in parts}
    if args.parts or args.layers:
        raise ValueError(f"moe={args.moe} names parts and their layers: no --parts, no --layers")
    configs = {}
    known = [item.name for item in dataclasses.fields(MoEConfig)]
    for part, values in read_recipe(args.moe).items():
        if not isinstance(values, dict):
            raise ValueError(f"{args.moe}: {part} must be a mapping, such as {{num_experts: 8}}")
        for key in values:
            if key not in known:
                raise ValueError(f"{args.moe}: {part}: unknown key {key!r}{nearest(key, known)}")
        try:
            configs[part] = MoEConfig(**{**flags, **values})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{args.moe}: {part}: {error}") from error
    return configs
