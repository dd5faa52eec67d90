"""LLaVA rows -> messages -> tensors."""

from llava_compete.data.collate import Collator, Packing
from llava_compete.data.counts import counts_table, data_record
from llava_compete.data.dataset import BROKEN_IMAGES, LlavaDataset
from llava_compete.data.encode import (
    IGNORED,
    Measure,
    Tokens,
    TooLongError,
    encode,
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
    "encode",
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
