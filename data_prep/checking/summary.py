"""Counts of a check: report.json, and what of it is printed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from data_prep.checking.findings import ChunkFindings
from data_prep.checking.report import Line
from data_prep.checking.splits import SPLITS

EXAMPLES = 3  # of each kind
SOURCES = 20  # that are printed; LLaVA-Pretrain has 660 folders


class Tally:
    """Counts and first examples by kind of the lines that pass.

    ``faulty`` counts by source the rows that have a fault which is not repaired.
    """

    def __init__(self) -> None:
        self.kinds: dict[str, Line] = {}
        self.faulty: Counter[str] = Counter()
        self._last_faulty: int | None = None

    def watch(self, lines: Iterable[Line]) -> Iterator[Line]:
        for line in lines:
            kind = self.kinds.setdefault(line["kind"], {"count": 0, "repaired": 0, "examples": []})
            kind["count"] += 1
            kind["repaired"] += line.get("repaired", False)
            if len(kind["examples"]) < EXAMPLES:
                kind["examples"].append(line)
            if "row" in line and not line.get("repaired", False):
                self.faulty[line["source"]] += line["row"] != self._last_faulty
                self._last_faulty = line["row"]
            yield line

    @property
    def left(self) -> int:
        """Lines that are not repaired."""
        return sum(kind["count"] - kind["repaired"] for kind in self.kinds.values())


def rows_by_source(journal: Iterable[ChunkFindings]) -> Counter[str]:
    return Counter(row.source for chunk in journal for row in chunk.rows)


def count_faults(counts: Mapping[str, int], split: str | None) -> Iterator[Line]:
    """A fault of the whole file for each source whose number of rows is not that of ``split``."""
    if split is None:
        return
    expected = SPLITS[split]
    for source in sorted(counts.keys() | expected.keys()):
        has, should = counts.get(source, 0), expected.get(source, 0)
        if has != should:
            message = f"source {source} has {has} rows, {split} has {should}"
            yield {"kind": "source_count", "source": source, "message": message}


def source_table(
    counts: Mapping[str, int], faulty: Mapping[str, int], split: str | None
) -> dict[str, dict[str, int]]:
    """Source -> rows, faulty rows, and the rows expected where a split is known."""
    expected = SPLITS[split] if split else {}
    table = {}
    for source in sorted(counts.keys() | expected.keys()):
        table[source] = {"rows": counts.get(source, 0), "faulty": faulty.get(source, 0)}
        if split:
            table[source]["expected"] = expected.get(source, 0)
    return table


def as_text(report: Mapping[str, Any]) -> str:
    """What a person wants to know first."""
    lines = [f"{report['data']}: {report['rows']} rows, {report['pictures']} pictures", ""]
    lines += _shown_sources(report["sources"])
    for title in ("faults", "notes"):
        lines += ["", f"{title}: {'' if report[title] else 'none'}".rstrip()]
        for kind, found in report[title].items():
            repaired = f", {found['repaired']} of them repaired" if found["repaired"] else ""
            lines.append(f"  {kind}: {found['count']}{repaired}")
            lines += [f"    {_shown(example)}" for example in found["examples"]]
    repairs = report["repairs"]
    if any(repairs.values()):
        counts = ", ".join(f"{count} {status}" for status, count in repairs.items() if count)
        lines += ["", f"repairs: {counts}" + (" (--repair)" if repairs["possible"] else "")]
    return "\n".join(lines)


def _shown_sources(sources: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """A line a source, the largest ones; one more for all others."""
    by_size = sorted(sources, key=lambda source: -sources[source]["rows"])
    for source in sorted(by_size[:SOURCES]):
        row = sources[source]
        expected = f"   expected {row['expected']:>9}" if "expected" in row else ""
        yield f"  {source:14} {row['rows']:>9} rows {row['faulty']:>9} faulty{expected}"
    if others := by_size[SOURCES:]:
        rows, faulty = (
            sum(sources[source][key] for source in others) for key in ("rows", "faulty")
        )
        yield f"  {f'{len(others)} others':14} {rows:>9} rows {faulty:>9} faulty"


def _shown(line: Line) -> str:
    """One line of a list, short enough for a terminal."""
    where = f"{line['file']}: " if "file" in line else ""
    if "row" in line:
        where = f"row {line['row']} ({line['id']}): "
    what = line.get("message") or json.dumps({k: v for k, v in line.items() if k != "kind"})
    return (where + what.splitlines()[0])[:200]
