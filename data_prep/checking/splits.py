"""Row counts per source of data sets whose split is published."""

from collections.abc import Mapping

# Rows of llava_v1_5_mix665k.json by the first folder of their picture (LLaVA-1.5, arXiv:2310.03744,
# table 7, names the sources; the counts are the file's).
SPLITS: Mapping[str, Mapping[str, int]] = {
    "llava_mix665k": {
        "coco": 364_100,
        "gqa": 72_140,
        "ocr_vqa": 80_000,
        "textvqa": 21_953,
        "vg": 86_417,
        "text": 40_688,
    }
}
KNOWN_FILES = {"llava_v1_5_mix665k.json": "llava_mix665k"}
