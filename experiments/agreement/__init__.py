"""Does the router learn what the competition decides, and what makes it learn?"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

PARTS = ("synthetic", "layers", "training")


def main(argv: Sequence[str]) -> None:
    """Run the parts that are asked for and write agreement.json, tables and figures."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments agreement",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="directory of the results; what is there is kept")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="experiments to run")
    add("--recipe", default="scripts/recipes/agreement.yaml", help="of the model and its training")
    add(
        "--held_out",
        type=Path,
        default=Path("~/.cache/llava_compete/quickstart/heldout/short.jsonl"),
        help="questions whose tokens the gates have not seen (data_prep quickstart writes them)",
    )
    add("--settings", nargs="+", help="trainings to run; all by default")
    args = parser.parse_args(argv)

    import torch

    from experiments.agreement import report, sweep
    from experiments.agreement.tasks import recipe_args
    from experiments.agreement.training import SETTINGS, train_setting

    for name in args.settings or ():
        if name not in SETTINGS:
            raise SystemExit(f"settings: {name!r} is not known; known: {list(SETTINGS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if "synthetic" in args.parts:
        sweep.synthetic_sweep(args.out / "synthetic.json")
    if "layers" in args.parts:
        sweep.layer_sweep(args.recipe, args.out / "layers.json")
    if "training" in args.parts:
        _, data = recipe_args(args.recipe)
        held_out = held_out_rows(args.held_out.expanduser(), args.out / "held_out.json")
        for name in args.settings or SETTINGS:
            train_setting(
                name, [args.recipe], held_out, Path(data.image_folder), args.out / "training"
            )
    print(report.write(args.out))


def held_out_rows(questions: Path, file: Path, most: int = 26) -> Path:
    """Every so many questions of data_prep's file as LLaVA rows; at most ``most`` rows."""
    if not questions.is_file():
        raise SystemExit(f"held_out {questions} does not exist: `python -m data_prep quickstart`")
    found = [json.loads(line) for line in questions.read_text().splitlines()]
    rows = [
        {
            "id": row["id"],
            "image": row["image"],
            "conversations": [
                {"from": "human", "value": f"<image>\n{row['question']}"},
                {"from": "gpt", "value": row["answer"]},
            ],
        }
        for row in found[:: -(-len(found) // most)]
    ]
    file.write_text(json.dumps(rows))
    return file
