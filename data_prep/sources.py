"""What `fetch` can fetch: sets of sources, each with its place, sizes and licence.

Sizes are bytes. ``Web.size`` is exact and checked; ``download`` and ``installed`` are approximate
and only serve the listing, the check of the free disk and the bound on an archive. None: not known
before the hub is asked. The folders are those that LLaVA's annotation names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MB, GB = 10**6, 10**9


@dataclass(frozen=True, kw_only=True)
class Web:
    """A file over HTTP."""

    url: str
    size: int | None = None
    checksum: str | None = None  # "sha256:..." or "md5:..."


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Files of a data set on the Hugging Face hub that match one of ``files``."""

    repo: str
    files: tuple[str, ...]  # patterns; * also matches /
    revision: str = "main"
    endpoint: str | None = None  # another hub than HF_ENDPOINT or huggingface.co


@dataclass(frozen=True, kw_only=True)
class ByHand:
    """A file that only a person can get, to be put at ``file`` below the root."""

    url: str
    file: str
    steps: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """One download and where it ends up."""

    name: str
    get: Web | Hub | ByHand
    licence: str
    into: str = "."  # folder below the root, for the file or for what the archive holds
    unpack: bool = False  # the file is an archive
    flatten: bool = False  # drop the folders inside the archive
    download: int | None = None
    installed: int | None = None  # what `download` is where None
    note: str = ""  # what may be missing or surprise

    def on_disk(self) -> int | None:
        return self.download if self.installed is None else self.installed


@dataclass(frozen=True)
class DataSet:
    """Sources that belong below one root."""

    what: str
    root: str  # where the recipes look for it
    sources: tuple[Source, ...]


SEE = "see its page"

COCO = Source(
    name="coco",
    get=Web(
        url="http://images.cocodataset.org/zips/train2017.zip",
        size=19_336_861_798,
        checksum="md5:cced6f7f71b7629ddf16f17bbcfab6b2",
    ),
    licence="pictures: Flickr's terms of use (cocodataset.org/#termsofuse)",
    into="coco",
    unpack=True,
    download=19_336_861_798,
    installed=19 * GB + 500 * MB,
)
GQA_IMAGES = Source(
    name="gqa",
    get=Web(url="https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip"),
    licence="GQA's page; pictures of COCO and Flickr",
    into="gqa",
    unpack=True,
    download=21_800 * MB,
    installed=22 * GB,
)
OCR_VQA = Source(
    name="ocr_vqa",
    get=Hub(
        repo="weizhiwang/llava_v15_instruction_images",
        files=("ocr_vqa_images_llava_v15.zip",),
        revision="93689de3e0900704659955ecf0e458d048b93836",
    ),
    licence="none stated; covers of books, for research (ocr-vqa.github.io)",
    into="ocr_vqa",
    unpack=True,
    download=8_971_611_056,
    installed=9_200 * MB,
    note="the authors give no archive, only links to a shop that takes pictures down: this is "
    "another user's copy, under LLaVA's names. `check` lists what is missing, and `check --repair` "
    "mends the GIF and PNG files that are named .jpg",
)
TEXTVQA = Source(
    name="textvqa",
    get=Web(
        url="https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
        size=7_072_297_970,
    ),
    licence="CC BY 4.0; pictures of Open Images, CC BY 2.0",
    into="textvqa",
    unpack=True,
    download=7_072_297_970,
    installed=7_200 * MB,
)
VISUAL_GENOME = tuple(
    Source(
        name=name,
        get=Web(url=f"https://cs.stanford.edu/people/rak248/VG_100K_2/{file}", size=size),
        licence="CC BY 4.0; pictures of Flickr",
        into="vg",
        unpack=True,
        download=size,
        installed=size + 200 * MB,
    )
    for name, file, size in (
        ("vg_part1", "images.zip", 9_731_705_982),
        ("vg_part2", "images2.zip", 5_471_658_058),
    )
)

LLAVA_PRETRAIN = DataSet(
    "LLaVA-Pretrain, 558K captioned pictures of LAION, CC and SBU (stage 1)",
    "data/LLaVA-Pretrain",
    (
        Source(
            name="annotation",
            get=Hub(repo="liuhaotian/LLaVA-Pretrain", files=("blip_laion_cc_sbu_558k.json",)),
            licence="terms of CC-3M, LAION, SBU and BLIP, for research",
            download=181 * MB,
        ),
        Source(
            name="images",
            get=Hub(repo="liuhaotian/LLaVA-Pretrain", files=("images.zip",)),
            licence="terms of CC-3M, LAION and SBU, for research",
            unpack=True,
            download=27_400 * MB,
            installed=28 * GB,
        ),
    ),
)

ALLAVA = "FreedomIntelligence/ALLaVA-4V"
ALLAVA_LAION = DataSet(
    "ALLaVA-Caption, LAION part (stage 2)",
    "data/ALLaVA",
    (
        Source(
            name="annotation",
            get=Hub(repo=ALLAVA, files=("allava_laion/ALLaVA-Caption-LAION-4V.json",)),
            licence="Apache-2.0 by its card; made with GPT-4V, OpenAI's terms",
            download=1_150 * MB,
        ),
        *(
            Source(
                name=f"images_{chunk}",
                get=Hub(repo=ALLAVA, files=(f"allava_laion/image_chunks/images_{chunk}.zip",)),
                licence="pictures of LAION, their owners' terms",
                into="allava_laion/images",
                unpack=True,
                flatten=True,
                download=9_300 * MB,
                installed=9_500 * MB,
            )
            for chunk in range(10)
        ),
    ),
)
ALLAVA_VFLAN = DataSet(
    "ALLaVA-Caption, Vision-FLAN part (stage 2)",
    "data/ALLaVA",
    (
        Source(
            name="annotation",
            get=Hub(repo=ALLAVA, files=("allava_vflan/ALLaVA-Caption-VFLAN-4V.json",)),
            licence="Apache-2.0 by its card; made with GPT-4V, OpenAI's terms",
            download=389 * MB,
        ),
        Source(
            name="images",
            get=Hub(repo="Vision-Flan/vision-flan_191-task_1k", files=("image_191-task_1k.zip",)),
            licence="pictures of 101 data sets, each under its own licence",
            into="allava_vflan/images",
            unpack=True,
            download=36_300 * MB,
            installed=37 * GB,
        ),
    ),
)

LLAVA_MIX665K = DataSet(
    "LLaVA-1.5's instruction mix of 665,298 rows and its five picture sets (stage 3)",
    "data/LLaVA-Instruct",
    (
        Source(
            name="annotation",
            get=Hub(repo="liuhaotian/LLaVA-Instruct-150K", files=("llava_v1_5_mix665k.json",)),
            licence="CC BY 4.0; partly made with GPT-4, OpenAI's terms",
            download=1_030 * MB,
        ),
        COCO,
        GQA_IMAGES,
        OCR_VQA,
        TEXTVQA,
        *VISUAL_GENOME,
    ),
)


def elsewhere(source: Source, name: str, into: str) -> Source:
    """The same download under another name and in another folder."""
    return replace(source, name=name, into=into)
