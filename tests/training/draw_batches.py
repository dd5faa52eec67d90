"""The batches of each rank, ours and those of transformers' loader, for test_batches.py.

    torchrun --nproc-per-node 2 -m tests.training.draw_batches OUTPUT RECIPE FLAG...

Writes OUTPUT/rank-R.json: by batching, and of transformers, the input_ids of each batch of two
epochs.
"""

import json
import sys
from pathlib import Path
from typing import Any

from transformers import Trainer

from llava_compete.data.batches import BATCHINGS
from llava_compete.training.prepare import prepare


def ids(loader: Any) -> list[list[list[list[int]]]]:
    """``input_ids`` of the batches of each epoch."""
    drawn = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        drawn.append([batch["input_ids"].tolist() for batch in loader])
    return drawn


def main(argv: list[str]) -> None:
    """Draw and write."""
    output, *words = argv
    trainer, _ = prepare(words)
    found = {"transformers": ids(Trainer.get_train_dataloader(trainer))}
    for batching in BATCHINGS:
        trainer.args.batching = batching
        found[batching] = ids(trainer.get_train_dataloader())
    file = Path(output) / f"rank-{trainer.args.process_index}.json"
    file.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
