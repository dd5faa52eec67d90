"""Which model answers: the same files anywhere, run alike, have the same fingerprint."""

import hashlib
import json
from pathlib import Path
from typing import Any

from eval.store import Record, write_json

# What decides an answer: weights, shape, tokenizer, template, pixel preprocessing, stop tokens.
PATTERNS = (
    "config.json",
    "generation_config.json",
    "*processor_config.json",
    "chat_template*",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.safetensors",
)


def fingerprint(checkpoint: Path, dtype: str, cache: Path, changes: Record) -> str:
    """Hash of the files that decide an answer and of the number format they are computed in.

    Of ``changes`` too, what differs in routing and decoding from the checkpoint as it is saved.
    Hashes of single files are kept in ``cache``, so that a resumed run need not read the weights.
    """
    if not (checkpoint / "config.json").is_file() or not any(checkpoint.glob("*.safetensors")):
        raise ValueError(
            f"{checkpoint} is not a checkpoint: config.json and *.safetensors are expected in it"
        )
    files = sorted({p for pattern in PATTERNS for p in checkpoint.glob(pattern) if p.is_file()})
    known: dict[str, Any] = json.loads(cache.read_text()) if cache.is_file() else {}
    seen = {}
    total = hashlib.sha256(dtype.encode())
    for path in files:
        stat = path.stat()
        place = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        seen[place] = known[place] if place in known else _digest(path)
        total.update(f"\n{path.name} {seen[place]}".encode())
    if changes:
        total.update(f"\n{json.dumps(changes, sort_keys=True)}".encode())
    write_json(cache, seen)
    return total.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
