"""What was made of a file: counted, shown, written beside it."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, NamedTuple

from transformers import LlavaProcessor

from data_prep.normalising.work import Dropped, Kept
from llava_compete.data import image_tokens, processor_fingerprint
from llava_compete.model import LlavaCompeteConfig


class MeasuredBy(NamedTuple):
    """What the lengths hold for."""

    tokenizer: str  # of the language model that the checkpoint was composed of
    tower: str
    image_tokens: int
    fingerprint: str  # the rows' length_by


def measured_by(processor: LlavaProcessor, config: LlavaCompeteConfig) -> MeasuredBy:
    return MeasuredBy(
        config.text_config._name_or_path,
        config.vision.name,
        image_tokens(processor),
        processor_fingerprint(processor),
    )


class Stats:
    """Counts over the rows of a file; they grow with the names of sources and keys alone."""

    def __init__(self) -> None:
        self.written = 0
        self.tokens = 0
        self.longest = 0
        self.cut: Counter[str] = Counter()
        self.sources: dict[str, Counter[str]] = defaultdict(Counter)
        self.left_out: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.first_dropped: dict[str, Dropped] = {}

    def add(self, result: Kept | Dropped) -> None:
        if isinstance(result, Dropped):
            self.dropped[result.reason] += 1
            self.first_dropped.setdefault(result.reason, result._replace(row={}))
            return
        length = result.row["length"]
        self.written += 1
        self.tokens += length
        self.longest = max(self.longest, length)
        self.left_out.update(result.left_out)
        self.sources[result.row["source"]].update(rows=1, images=result.num_images, tokens=length)
        self.cut.update(
            rows_that_lose_turns=result.exchanges_dropped > 0,
            exchanges_lost=result.exchanges_dropped,
            answers_cut=result.answer_cut,
        )

    def to_dict(self) -> dict[str, Any]:
        """For OUTPUT.stats.json."""
        dropped = self.dropped.total()
        mean = round(self.tokens / self.written, 1) if self.written else None
        return {
            "rows": {"read": self.written + dropped, "written": self.written, "dropped": dropped},
            "dropped": {
                reason: {"rows": rows, "first": _first(self.first_dropped[reason])}
                for reason, rows in self.dropped.most_common()
            },
            "length": {"mean": mean, "longest": self.longest, "total": self.tokens},
            "cut_in_training": dict(self.cut),
            "sources": {name: dict(counts) for name, counts in sorted(self.sources.items())},
            "keys_left_out": dict(self.left_out.most_common()),
        }

    def summary(self) -> str:
        """A few lines for the terminal."""
        counts = self.to_dict()
        rows, tokens = counts["rows"], counts["length"]
        lines = [
            f"{rows['written']:,} of {rows['read']:,} rows written, {rows['dropped']:,} dropped",
        ]
        if self.written:
            lines.append(
                f"  {tokens['total']:,} tokens, {tokens['mean']} a row, {tokens['longest']} at most"
            )
        for reason, entry in counts["dropped"].items():
            first = entry["first"]
            lines.append(f"  dropped: {entry['rows']:,} {reason}")
            lines.append(f"    first: row {first['row']}: {first['detail']}")
        if lost := counts["keys_left_out"]:
            named = ", ".join(f"{key} ({rows:,})" for key, rows in lost.items())
            lines.append(f"  keys left out: {named}")
        if self.cut["rows_that_lose_turns"] or self.cut["answers_cut"]:
            lines.append(
                f"  at max_length {self.cut['rows_that_lose_turns']:,} rows lose turns, "
                f"{self.cut['answers_cut']:,} the end of an answer"
            )
        return "\n".join(lines)


def _first(dropped: Dropped) -> dict[str, Any]:
    return {"row": dropped.number, "id": dropped.id, "detail": dropped.detail}
