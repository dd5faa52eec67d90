"""LLaVA rows -> messages -> tensors."""

from llava_compete.data.collate import Collator, Packing
from llava_compete.data.dataset import LlavaDataset
from llava_compete.data.encode import IGNORED, encode
from llava_compete.data.files import read_rows
from llava_compete.data.images import ImageFolder
from llava_compete.data.rows import image_files, to_messages

__all__ = [
    "IGNORED",
    "Collator",
    "ImageFolder",
    "LlavaDataset",
    "Packing",
    "encode",
    "image_files",
    "read_rows",
    "to_messages",
]
