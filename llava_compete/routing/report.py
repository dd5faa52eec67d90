"""A checkpoint and rows -> routing.json and routing.html."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from llava_compete.checkpoint import Model, load, new_directory, read_config, refuse_non_empty
from llava_compete.data import LlavaDataset, image_files
from llava_compete.report.html import to_html
from llava_compete.routing.charts import spread
from llava_compete.routing.collect import Collector, batches, choose_rows
from llava_compete.routing.page import blocks
from llava_compete.routing.pictures import Pictures

MAPS = 6  # pictures of which the first choice at every patch is shown


def write_report(
    checkpoint: Path,
    data: Path,
    image_folder: Path,
    output: Path,
    *,
    other: Path | None = None,
    rows: int | None = None,
    batch_size: int = 4,
    dtype: str = "float32",
    max_length: int | None = None,
) -> list[Path]:
    """Collect the figures of ``rows`` rows (None: all) of a LLaVA file and write both files.

    On the GPU if there is one. ValueError for a dense checkpoint, another structure of ``other``,
    data without rows, and an ``output`` that holds something.
    """
    refuse_non_empty(output)
    for path in filter(None, (checkpoint, other)):
        if not read_config(path).moe:
            raise ValueError(
                f"checkpoint {path} is dense: it has no router; `llava-compete upcycle` makes "
                f"experts"
            )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = load(checkpoint, dtype=dtype)
    dataset = LlavaDataset(data, image_folder, processor, max_length)
    chosen = choose_rows(dataset, rows)
    compared: Model | None = None
    if other is not None:
        compared = load(other, dtype=dtype)[0].to(device)
    collector = Collector(model.to(device), compared, _map_files(dataset, chosen))
    for batch, files in batches(dataset, processor, chosen, batch_size):
        collector.add({name: tensor.to(device) for name, tensor in batch.items()}, files)
    figures = {
        "checkpoint": str(checkpoint),
        "other": None if other is None else str(other),
        "data": str(data),
        "rows": len(chosen),
        "rows_of_data": len(dataset),
        "dtype": dtype,
        **collector.figures(processor),
    }
    # The processor pads with the mean colour.
    red, green, blue = (round(255 * value) for value in model.config.vision.mean)
    pictures = Pictures(image_folder, figures["grid"], (red, green, blue))
    with new_directory(output) as partial:
        (partial / "routing.json").write_text(json.dumps(figures, indent=1, allow_nan=False))
        page = to_html(list(blocks(figures, pictures)))
        (partial / "routing.html").write_text(page, encoding="utf-8")
    return [output / "routing.json", output / "routing.html"]


def _map_files(dataset: LlavaDataset, chosen: Sequence[int]) -> list[str]:
    """MAPS pictures, evenly spread over the chosen rows."""
    files = dict.fromkeys(file for index in chosen for file in image_files(dataset.row(index)))
    return spread(list(files), MAPS)
