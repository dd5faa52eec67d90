"""Files that are there whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(file: Path, *, writer: int = 0) -> Iterator[Path]:
    """A path to write to that takes the name ``file`` when it is whole.

    ``writer`` keeps processes apart that may write the same file at once.
    """
    partial = file.with_name(f".{file.name}.{writer}.partial")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
