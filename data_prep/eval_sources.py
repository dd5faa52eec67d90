"""The benchmarks' files: parquet copies on the hub, and the files that LLaVA's eval.zip joins.

Both sets go below one root; the copies lie in its folder `hub`.
"""

from __future__ import annotations

from data_prep.sources import (
    COCO,
    GB,
    GQA_IMAGES,
    MB,
    SEE,
    TEXTVQA,
    ByHand,
    DataSet,
    Hub,
    Source,
    Web,
    elsewhere,
)

LMMS = "lmms-lab-encoder"  # where lmms-eval 0.7.3 looks


def copy(
    name: str, repo: str, files: str | tuple[str, ...], licence: str, size: int | None = None
) -> Source:
    """Parquet files of a benchmark, below hub/NAME."""
    patterns = (files,) if isinstance(files, str) else files
    return Source(
        name=name,
        get=Hub(repo=repo, files=patterns),
        licence=licence,
        into=f"hub/{name}",
        download=size,
    )


EVAL_HUB = DataSet(
    "parquet copies of the benchmarks, with pictures",
    "data/eval",
    (
        copy(
            "vqav2", f"{LMMS}/VQAv2", ("*validation-*.parquet", "*testdev-*.parquet"), "CC BY 4.0"
        ),
        copy("gqa", f"{LMMS}/GQA", "testdev_balanced_*/*.parquet", "MIT by its card", 70 * MB),
        copy(
            "vizwiz",
            f"{LMMS}/VizWiz-VQA",
            ("*val-*.parquet", "*test-*.parquet"),
            "CC BY 4.0",
            6_050 * MB,
        ),
        copy("scienceqa", f"{LMMS}/ScienceQA", "ScienceQA-IMG/test-*", "CC BY-NC-SA 4.0", 130 * MB),
        copy("textvqa", f"{LMMS}/textvqa", "*validation-*.parquet", "CC BY 4.0", 920 * MB),
        copy("pope", f"{LMMS}/POPE", "data/*.parquet", "MIT; pictures of COCO", 255 * MB),
        copy("mme", f"{LMMS}/MME", "*.parquet", "for research only", 865 * MB),
        copy("mmbench_en", f"{LMMS}/MMBench", "en/dev-*", "Apache-2.0", 97 * MB),
        copy("mmbench_cn", f"{LMMS}/MMBench", "cn/dev-*", "Apache-2.0", 97 * MB),
        copy("seed_bench", f"{LMMS}/SEED-Bench", "*.parquet", "CC BY-NC 4.0"),
        copy("seed_bench_2_plus", "doolayer/SEED-Bench-2-Plus", "*.parquet", SEE, 228 * MB),
        copy("mm_vet", f"{LMMS}/MMVet", "*.parquet", SEE),
        copy("llava_w", f"{LMMS}/llava-bench-in-the-wild", "*.parquet", SEE),
        copy("ai2d", f"{LMMS}/ai2d", "*.parquet", SEE),
        copy("chartqa", f"{LMMS}/ChartQA", "*.parquet", "GPL-3.0", 73 * MB),
        copy(
            "docvqa",
            f"{LMMS}/DocVQA",
            ("DocVQA/validation-*", "DocVQA/test-*"),
            "RRC's terms, for research",
        ),
        copy(
            "infovqa", f"{LMMS}/DocVQA", "InfographicVQA/validation-*", "RRC's terms, for research"
        ),
        copy("ocrbench", "echo840/OCRBench", "*.parquet", SEE),
        copy("mmmu", f"{LMMS}/MMMU", "*validation-*.parquet", "Apache-2.0", 341 * MB),
        copy(
            "mmmu_pro", "MMMU/MMMU_Pro", "standard (10 options)/*.parquet", "Apache-2.0", 678 * MB
        ),
        copy("mmstar", "Lin-Chen/MMStar", "*.parquet", SEE),
        copy("mathvista", "AI4Math/MathVista", "*testmini-*.parquet", "CC BY-SA 4.0"),
        copy("hallusionbench", f"{LMMS}/HallusionBench", "*.parquet", "BSD-3-Clause"),
        copy("mme_realworld_lite", "yifanzhang114/MME-RealWorld-lite-lmms-eval", "*.parquet", SEE),
        copy("mme_realworld_cn", "yifanzhang114/MME-RealWorld-CN-Lmms-eval", "*.parquet", SEE),
        copy("realworldqa", f"{LMMS}/RealWorldQA", "*.parquet", "CC BY-ND 4.0"),
    ),
)


def web(
    name: str,
    url: str,
    into: str,
    licence: str,
    download: int | None,
    installed: int | None = None,
    *,
    size: int | None = None,
    checksum: str | None = None,
) -> Source:
    """A file, or an archive if its name ends in .zip."""
    return Source(
        name=name,
        get=Web(url=url, size=size, checksum=checksum),
        licence=licence,
        into=into,
        unpack=url.endswith(".zip"),
        download=download,
        installed=installed,
    )


POPE_FILES = (
    "https://raw.githubusercontent.com/AoiDragon/POPE/e3e39262c85a6a83f26cf5094022a782cb0df58d"
)
OPENMMLAB = "https://download.openmmlab.com/mmclassification/datasets/mmbench"
VQA = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
VIZWIZ = "https://vizwiz.cs.colorado.edu/VizWiz_final"

EVAL_LLAVA = DataSet(
    "LLaVA-1.5's question files (eval.zip, by hand) and the official files that they join",
    "data/eval",
    (
        Source(
            name="eval_zip",
            get=ByHand(
                url="https://drive.google.com/file/d/1atZSBBrAX54yYpxtVVW33zFvcnaHeFPy/view",
                file="eval.zip",
                steps="it is on Google Drive only, which serves people: open the link in a browser",
            ),
            licence="LLaVA's Apache-2.0; each benchmark's own terms",
            unpack=True,
            installed=1 * GB,
        ),
        web(
            "vqav2_test2015",
            "http://images.cocodataset.org/zips/test2015.zip",
            "vqav2",
            COCO.licence,
            13_300 * MB,
            13_500 * MB,
        ),
        web(
            "vqav2_val_questions",
            f"{VQA}/v2_Questions_Val_mscoco.zip",
            "vqav2",
            "CC BY 4.0",
            4 * MB,
            40 * MB,
        ),
        web(
            "vqav2_val_answers",
            f"{VQA}/v2_Annotations_Val_mscoco.zip",
            "vqav2",
            "CC BY 4.0",
            11 * MB,
            200 * MB,
        ),
        web(
            "gqa_questions",
            "https://downloads.cs.stanford.edu/nlp/data/gqa/questions1.2.zip",
            "gqa/data",
            GQA_IMAGES.licence,
            1_400 * MB,
            15 * GB,
        ),
        elsewhere(GQA_IMAGES, "gqa_images", "gqa/data"),
        web(
            "vizwiz_annotations",
            f"{VIZWIZ}/vqa_data/Annotations.zip",
            "vizwiz",
            "CC BY 4.0",
            5 * MB,
            60 * MB,
        ),
        web("vizwiz_val", f"{VIZWIZ}/images/val.zip", "vizwiz", "CC BY 4.0", 3 * GB, 3_200 * MB),
        web("vizwiz_test", f"{VIZWIZ}/images/test.zip", "vizwiz", "CC BY 4.0", 6 * GB, 6_300 * MB),
        web(
            "textvqa_val",
            "https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_0.5.1_val.json",
            "textvqa",
            "CC BY 4.0",
            16 * MB,
        ),
        elsewhere(TEXTVQA, "textvqa_images", "textvqa"),
        *(
            web(
                f"pope_{kind}",
                f"{POPE_FILES}/output/coco/coco_pope_{kind}.json",
                "pope/coco",
                "MIT",
                1 * MB,
            )
            for kind in ("random", "popular", "adversarial")
        ),
        web(
            "pope_val2014",
            "http://images.cocodataset.org/zips/val2014.zip",
            "pope",
            COCO.licence,
            6_645_013_297,
            6_700 * MB,
            size=6_645_013_297,
            checksum="md5:a3d79f5ed8d289b7a7554ce06a5782b3",
        ),
        web(
            "mmbench_en", f"{OPENMMLAB}/mmbench_dev_20230712.tsv", "mmbench", "Apache-2.0", 150 * MB
        ),
        web(
            "mmbench_cn",
            f"{OPENMMLAB}/mmbench_dev_cn_20231003.tsv",
            "mmbench",
            "Apache-2.0",
            150 * MB,
        ),
        web(
            "mm_vet",
            "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip",
            ".",
            SEE,
            67 * MB,
            80 * MB,
        ),
        Source(
            name="llava_w",
            get=Hub(repo="liuhaotian/llava-bench-in-the-wild", files=("*",)),
            licence=SEE,
            into="llava-bench-in-the-wild",
            download=20 * MB,
        ),
    ),
)
