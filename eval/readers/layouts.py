"""Which layout of a benchmark lies below the data root.

A layout names the files that it consists of, each by the glob patterns under which it may lie. A
layout is there when each of its files is; the first that is there decides.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

SHOWN = 5  # of many absent files
TABLES = (".parquet", ".arrow")

Layout = Mapping[str, tuple[str, ...]]  # what a file is -> patterns below the root, best first


class Found(NamedTuple):
    """A layout that is there: its name and, of each of its files, the paths in order."""

    layout: str
    files: Mapping[str, tuple[Path, ...]]

    def one(self, what: str) -> Path:
        """The path of a file that is one file; of several matches the first."""
        return self.files[what][0]


def hub(name: str, *files: str) -> tuple[str, ...]:
    """Patterns of a hub copy's tables below ``hub/NAME``; ``files`` are globs without a suffix."""
    return tuple(f"hub/{name}/**/{file}{suffix}" for file in files for suffix in TABLES)


def find_layout(root: Path, task: str, layouts: Mapping[str, Layout]) -> Found:
    """The first of ``layouts`` that is there; ValueError names every path that was looked for."""
    for name, layout in layouts.items():
        files = {what: _matches(root, patterns) for what, patterns in layout.items()}
        if all(files.values()):
            return Found(name, files)
    raise ValueError(_nothing(root, task, layouts))


def find(root: Path, candidates: Iterable[str], layout: str) -> Path:
    """The first of ``candidates`` that is a file below ``root``."""
    paths = [root / candidate for candidate in candidates]
    for path in paths:
        if path.is_file():
            return path
    raise ValueError(absent(paths, layout))


def absent(paths: list[Path], layout: str) -> str:
    """The text that says which files are absent and what belongs where."""
    shown = [f"  {path}" for path in paths[:SHOWN]]
    if len(paths) > SHOWN:
        shown.append(f"  ... and {len(paths) - SHOWN} more")
    return "\n".join(["no such file; looked for", *shown, "expected layout:", layout])


def all_there(paths: Iterable[Path], layout: str) -> None:
    """ValueError naming those of ``paths``, each looked at once, that are no files."""
    missing = sorted(path for path in set(paths) if not path.is_file())
    if missing:
        raise ValueError(absent(missing, layout))


def _matches(root: Path, patterns: tuple[str, ...]) -> tuple[Path, ...]:
    for pattern in patterns:
        if paths := tuple(sorted(path for path in root.glob(pattern) if path.is_file())):
            return paths
    return ()


def _nothing(root: Path, task: str, layouts: Mapping[str, Layout]) -> str:
    lines = [f"{task}: no layout of it is complete below {root}; either of these is needed"]
    for name, layout in layouts.items():
        lines.append(f"  {name}:")
        for what, patterns in layout.items():
            state = "found" if _matches(root, patterns) else "absent"
            places = " or ".join(str(root / pattern) for pattern in patterns)
            lines.append(f"    {what} ({state}): {places}")
    lines.append("python -m data_prep fetch eval_hub (or eval_llava) gets them")
    return "\n".join(lines)
