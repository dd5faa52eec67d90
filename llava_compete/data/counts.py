"""What a training takes of its data file, by source: printed, and kept beside the checkpoint."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_compete.data.dataset import LlavaDataset
from llava_compete.data.table import SourceCounts


def data_record(
    dataset: LlavaDataset, missing: Counter[str], exclude: Path | None
) -> dict[str, Any]:
    """The content of data.json; ``missing`` are rows by source whose images are not there."""
    sources = {
        source: {**counts._asdict(), "missing_images": missing[source]}
        for source, counts in dataset.table.summary().items()
    }
    return {
        "data": str(dataset.file.resolve()),
        "image_folder": str(dataset.images.root.resolve()),
        "max_length": dataset.max_length,
        "broken_images": dataset.broken_images,
        "exclude": None if exclude is None else str(exclude.resolve()),
        "total": _total(sources),
        "sources": sources,
    }


def counts_table(record: Mapping[str, Any]) -> str:
    """Its counts as lines of text, a source each."""
    names = [*SourceCounts._fields, "missing_images"]
    rows = [*record["sources"].items(), ("total", record["total"])]
    width = max(len(source) for source, _ in rows)
    lines = [f"{'source':{width}}" + "".join(f"{name.replace('_', ' '):>16}" for name in names)]
    lines += [f"{source:{width}}" + "".join(f"{c[n]:16,}" for n in names) for source, c in rows]
    return "\n".join(lines)


def _total(sources: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counts in sources.values():
        total.update(counts)
    return dict(total)
