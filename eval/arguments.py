"""The options of ``python -m eval run``."""

import argparse
import json
from pathlib import Path
from typing import Any

from eval.task import DEFAULT_PROFILE, TASKS


def make_parser() -> argparse.ArgumentParser:
    """What a run is told."""
    parser = argparse.ArgumentParser(
        prog="python -m eval run",
        description="Ask a checkpoint, then score.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="checkpoint directory")
    add("--tasks", type=_names, required=True, help=f"of {','.join(TASKS)}")
    add("--data_root", type=Path, required=True, help="where the questions lie")
    add("--out", type=Path, required=True, help="run directory; resumed if it exists")
    add("--profile", default=DEFAULT_PROFILE, help="whose prompts and rules: llava15, lmms, libmoe")
    add("--batch_size", type=_positive, default=64, help="questions, at most")
    add(
        "--batch_tokens",
        type=_positive,
        default=16384,
        help="tokens of a batch, at most: padding, pictures and replies counted",
    )
    add("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    add("--limit", type=_positive, help="ask only so many samples of each task")
    add("--seed", type=int, default=0, help="of the shuffled pictures")
    add(
        "--shuffled_control",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask again with another sample's picture",
    )
    add("--workers", type=_positive, default=2, help="threads that decode pictures")
    add(
        "--patience",
        type=_positive,
        default=600,
        help="seconds without a reply until the other ranks are given up",
    )
    add("--expert_load", action="store_true", help="count the tokens that each expert is given")
    _add_inference(parser)
    return parser


def _add_inference(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("another routing or decoding, the weights as they are")
    group.add_argument("--router", help="instead of the checkpoint's, by its name in ROUTERS")
    group.add_argument(
        "--router_options", type=_object, metavar="JSON", help='such as {"scope": "token"}'
    )
    group.add_argument("--top_k", type=_positive, help="experts of a token")
    group.add_argument(
        "--router_parts", nargs="+", metavar="PART", help="where; default: all with experts"
    )
    group.add_argument(
        "--self_contrast",
        type=_object,
        metavar="JSON",
        help='decode by self-contrast (SCMoE); {} or other values than {"alpha": 0.1, '
        '"beta": 0.5, "weak_rank": 2}',
    )
    group.add_argument("--num_beams", type=_positive, help="beam search instead of greedy decoding")
    group.add_argument(
        "--sampling",
        type=_object,
        metavar="JSON",
        help='draw the answers; {} or other values than {"temperature": 1.0, "top_p": 1.0, '
        '"top_k": 0, "seed": 0}',
    )
    group.add_argument(
        "--rank_options",
        action="store_true",
        help="answer choice questions by the option's letter of the lowest loss, not in words",
    )


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} must be a JSON object, as {{"name": 1}}')
    return value


def _names(text: str) -> list[str]:
    names = text.split(",")
    if len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(f"{text!r} names a task twice")
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")
    return int(text)
