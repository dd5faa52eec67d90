"""Train a checkpoint by a recipe; RECIPE --help lists all keys."""

from collections.abc import Callable, Sequence


def main(argv: Sequence[str]) -> Callable[[], None]:
    """The training, ready to begin; ValueError for whatever is wrong by then."""
    if not argv or argv[0] in ("-h", "--help"):
        _print_keys()

    from llava_compete.training.dry_run import describe
    from llava_compete.training.prepare import prepare, run

    trainer, resume_from = prepare(argv)
    if trainer.args.dry_run:
        return lambda: print(describe(trainer)) if trainer.is_world_process_zero() else None
    return lambda: run(trainer, resume_from)


def _print_keys() -> None:
    """All keys of a recipe, and end; of what a training imports only what has keys."""
    from llava_compete.config import DataArgs, ModelArgs, parse
    from llava_compete.training.args import TrainArgs

    parse((ModelArgs, DataArgs, TrainArgs), ["--help"], prog="llava-compete train")
