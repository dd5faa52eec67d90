"""Parameters and FLOPs of checkpoints or of named models, without their weights."""

import argparse
import json
from collections.abc import Sequence

from llava_compete.named import NAMED


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="llava-compete count",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:12} {model.what}" for name, model in NAMED.items()),
    )
    parser.add_argument("models", nargs="+", help="checkpoint directories, or names of the below")
    parser.add_argument("--json", action="store_true", help="a list of JSON objects, no table")
    args = parser.parse_args(argv)

    from llava_compete.count import LEGEND, as_json, as_table, read_model

    models = {name: read_model(name) for name in args.models}
    if args.json:
        print(json.dumps([as_json(name, config) for name, config in models.items()], indent=2))
        return
    for name, config in models.items():
        print(as_table(name, config), end="\n\n")
    print(LEGEND)
