"""LLaVA rows -> messages -> tensors.

The names below are imported when they are first asked for: files and pictures need no torch.
``encode``, which bears its module's name, is imported from there.
"""

from typing import TYPE_CHECKING

from llava_compete.lazy import lazy_names

if TYPE_CHECKING:
    from llava_compete.data.collate import Collator, Packing
    from llava_compete.data.counts import counts_table, data_record
    from llava_compete.data.dataset import BROKEN_IMAGES, LlavaDataset
    from llava_compete.data.encode import (
        IGNORED,
        Measure,
        Tokens,
        TooLongError,
        image_tokens,
        measure,
        processor_fingerprint,
        tokenise,
    )
    from llava_compete.data.exclude import Exclusion, read_exclusions, write_exclusions
    from llava_compete.data.files import read_rows
    from llava_compete.data.images import ImageFolder
    from llava_compete.data.rows import image_files, to_messages
    from llava_compete.data.table import RowTable, SourceCounts
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "llava_compete.data.collate": ["Collator", "Packing"],
            "llava_compete.data.counts": ["counts_table", "data_record"],
            "llava_compete.data.dataset": ["BROKEN_IMAGES", "LlavaDataset"],
            "llava_compete.data.encode": [
                "IGNORED",
                "Measure",
                "Tokens",
                "TooLongError",
                "image_tokens",
                "measure",
                "processor_fingerprint",
                "tokenise",
            ],
            "llava_compete.data.exclude": ["Exclusion", "read_exclusions", "write_exclusions"],
            "llava_compete.data.files": ["read_rows"],
            "llava_compete.data.images": ["ImageFolder"],
            "llava_compete.data.rows": ["image_files", "to_messages"],
            "llava_compete.data.table": ["RowTable", "SourceCounts"],
        },
    )

__all__ = [
    "BROKEN_IMAGES",
    "IGNORED",
    "Collator",
    "Exclusion",
    "ImageFolder",
    "LlavaDataset",
    "Measure",
    "Packing",
    "RowTable",
    "SourceCounts",
    "Tokens",
    "TooLongError",
    "counts_table",
    "data_record",
    "image_files",
    "image_tokens",
    "measure",
    "processor_fingerprint",
    "read_exclusions",
    "read_rows",
    "to_messages",
    "tokenise",
    "write_exclusions",
]
