"""Language model + image tower -> dense checkpoint directory."""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image


def main(argv: Sequence[str]) -> None:
    args = _parser().parse_args(argv)

    import torch

    from llava_compete.checkpoint import compose, count_parameters, refuse_non_empty, save
    from llava_compete.vision import describe_tower

    refuse_non_empty(args.output)
    vision = describe_tower(
        args.vision,
        _vision_layer(args.vision_layer),
        scales=tuple(args.scales),
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
        calibration_images=_first_images(
            args.calibration_data, args.image_folder, vision.image_size
        ),
        dtype=getattr(torch, args.dtype),
        seed=args.seed,
    )
    save(model, processor, args.output)
    print(
        f"{args.output}: {type(model.language_model).__name__}, {vision.name} "
        f"({vision.num_patches} tokens of {vision.width} an image), projector {args.projector}, "
        f"{count_parameters(model).total:,} parameters"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-compete compose",
        description=__doc__,
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
    add(
        "--scales",
        type=int,
        nargs="+",
        default=[1],
        help="sizes at which a picture is looked at; 1 3: also at three times its size, in crops",
    )
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
    return parser


def _vision_layer(text: str) -> int | Literal["final"]:
    if text == "final":
        return "final"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"vision_layer={text!r} must be a block's index or 'final'") from None


def _first_images(file: Path | None, root: Path | None, side: int, most: int = 64) -> list["Image"]:
    from llava_compete.data import ImageFolder, image_files, read_rows

    if file is None:
        return []
    if root is None:
        raise ValueError(f"calibration_data={file} needs image_folder, the root of its images")
    rows = list(itertools.islice((row for row in read_rows(file) if image_files(row)), most))
    images = ImageFolder(root)
    return [images.open(image_files(row)[0], str(row.get("id")), side) for row in rows]
