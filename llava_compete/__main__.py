"""The command line: ``llava-compete VERB ...`` or ``python -m llava_compete VERB ...``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image


def compose_verb(argv: Sequence[str]) -> None:
    """Language model + image tower -> dense checkpoint directory."""
    parser = argparse.ArgumentParser(
        prog="llava-compete compose",
        description=compose_verb.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--language_model", required=True, help="Hugging Face folder or id of a causal LM")
    add("--vision", required=True, help="open_clip model name, or timm/NAME")
    add(
        "--vision_weights",
        required=True,
        help="weight file, or a pretrained tag of an open_clip model",
    )
    add("--vision_layer", default="-2", help="block whose output is used, or 'final'")
    add("--image_size", type=int, default=None, help="pixels; None: the model's own")
    add("--image_mean", type=float, nargs=3, default=None, help="of pixels in 0..1")
    add("--image_std", type=float, nargs=3, default=None, help="of pixels in 0..1")
    add("--quick_gelu", action=argparse.BooleanOptionalAction, default=None)
    add("--projector", default="mlp2x_gelu", help="linear or mlp2x_gelu")
    add("--chat_format", default=None, help="None: by the tokenizer's own tokens")
    add(
        "--calibration_data",
        type=Path,
        default=None,
        help="LLaVA file by whose first pictures the projector's initial scale is set",
    )
    add("--image_folder", type=Path, default=None, help="root of calibration_data's images")
    add("--dtype", default="float32", choices=["float32", "bfloat16"])
    add("--seed", type=int, default=0, help="of the projector's initial values")
    add("--output", type=Path, required=True)
    args = parser.parse_args(argv)

    import torch

    from llava_compete.checkpoint import compose, count_parameters, refuse_non_empty, save
    from llava_compete.vision import describe_tower

    refuse_non_empty(args.output)
    vision = describe_tower(
        args.vision,
        _vision_layer(args.vision_layer),
        pretrained=args.vision_weights,
        image_size=args.image_size,
        mean=args.image_mean and tuple(args.image_mean),
        std=args.image_std and tuple(args.image_std),
        quick_gelu=args.quick_gelu,
    )
    model, processor = compose(
        args.language_model,
        vision,
        args.vision_weights,
        projector=args.projector,
        chat_format=args.chat_format,
        calibration_images=_first_images(args.calibration_data, args.image_folder),
        dtype=getattr(torch, args.dtype),
        seed=args.seed,
    )
    save(model, processor, args.output)
    print(
        f"{args.output}: {type(model.language_model).__name__}, {vision.name} "
        f"({vision.num_patches} tokens of {vision.width} an image), projector {args.projector}, "
        f"{count_parameters(model).total:,} parameters"
    )


def _vision_layer(text: str) -> int | Literal["final"]:
    if text == "final":
        return "final"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"vision_layer={text!r} must be a block's index or 'final'") from None


def _first_images(file: Path | None, root: Path | None, most: int = 64) -> list["Image"]:
    from llava_compete.data import image_files, open_image, read_rows

    if file is None:
        return []
    if root is None:
        raise ValueError(f"calibration_data={file} needs image_folder, the root of its images")
    rows = [row for row in read_rows(file) if image_files(row)][:most]
    return [open_image(root, image_files(row)[0], str(row.get("id"))) for row in rows]


def upcycle_verb(argv: Sequence[str]) -> None:
    """Dense checkpoint -> checkpoint whose parts are mixtures of experts."""
    parser = argparse.ArgumentParser(
        prog="llava-compete upcycle",
        description=upcycle_verb.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="dense checkpoint directory")
    add("--output", type=Path, required=True)
    add("--parts", nargs="+", default=["language_model", "projector"])
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
    args = parser.parse_args(argv)

    from llava_compete.checkpoint import load, refuse_non_empty, save, upcycle_model
    from llava_compete.moe import MoEConfig

    refuse_non_empty(args.output)
    shape = {
        "num_experts": args.num_experts,
        "top_k": args.top_k,
        "router": args.router,
        "seed": args.seed,
    }
    if args.layers and "language_model" not in args.parts:
        raise ValueError(f"layers={args.layers} are of the language model; parts={args.parts}")
    configs = {
        part: MoEConfig(**shape, layers=args.layers if part == "language_model" else None)
        for part in args.parts
    }
    model, processor = load(args.checkpoint, dtype=args.dtype)
    report = upcycle_model(model, configs, perturbation=args.perturbation, seed=args.seed)
    save(model, processor, args.output)
    for part, layers in model.moe_layers().items():
        print(f"{part}: {len(layers)} layers of {args.num_experts} experts, top {args.top_k}")
    print(
        f"largest difference of a logit, before and after: {report.largest_difference:.2e} "
        f"(largest logit {report.largest_logit:.2f})"
    )
    for name, parameters in (("dense", report.before), ("experts", report.after)):
        print(f"{name:8} {parameters.total:14,} parameters {parameters.active:14,} active")


def train_verb(argv: Sequence[str]) -> Callable[[], None]:
    """Train a checkpoint by a recipe; RECIPE --help lists all keys."""
    from llava_compete.train import describe, prepare, run

    trainer, resume_from = prepare(argv)
    if trainer.args.dry_run:
        return lambda: print(describe(trainer)) if trainer.is_world_process_zero() else None
    return lambda: run(trainer, resume_from)


VERBS = {"compose": compose_verb, "upcycle": upcycle_verb, "train": train_verb}


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="llava-compete",
        description="Compose, upcycle and train LLaVA-style models with mixtures of experts. "
        "Evaluation: python -m eval. Data: python -m data_prep.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:10} {verb.__doc__}" for name, verb in VERBS.items()),
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="one of the below")
    args = parser.parse_args(argv[:1])
    try:
        work = VERBS[args.verb](argv[1:])
    except (ValueError, OSError) as error:  # transformers says OSError where a model is not found
        sys.exit(f"llava-compete {args.verb}: error: {error}")
    if work is not None:
        # Outside the try: a failure in the middle of training keeps its traceback.
        work()


if __name__ == "__main__":
    main()
