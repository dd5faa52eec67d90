"""Three rows of each choice benchmark, in each of its layouts."""

import base64
import csv
import io

from tests.eval.tasks.files import cell, picture, put, put_json, put_lines, put_table

LETTER = "Answer with the option's letter from the given choices directly."

SCIENCEQA = [  # pid, hint, question, choices, answer, picture or None
    ("4", "", "Which is a plant?", ["fern", "stone"], 0, 1),
    ("7", "A magnet pulls iron.", "What does it pull?", ["wood", "iron", "glass"], 1, 2),
    ("8", "", "Which has no picture?", ["this", "that"], 0, None),
    ("9", "", "Which is a stone?", ["fern", "granite"], 1, 3),
]


def problem(hint, question, choices, answer, i):
    image = None if i is None else "image.png"
    asked = {"question": question, "choices": choices, "answer": answer, "hint": hint}
    return {**asked, "image": image, "subject": "natural science"}


def scienceqa_official(root):
    problems = {pid: problem(*rest) for pid, *rest in SCIENCEQA}
    put_json(root / "scienceqa/problems.json", {"1": problem("", "?", ["a"], 0, 1), **problems})
    put_json(root / "scienceqa/pid_splits.json", {"train": ["1"], "test": [*problems]})
    for pid, *_, i in SCIENCEQA:
        if i is not None:
            put(root / f"scienceqa/images/test/{pid}/image.png", picture(i))


def scienceqa_llava(root):
    scienceqa_official(root)
    rows = []
    for pid, hint, question, choices, answer, i in SCIENCEQA:
        context = f"Context: {hint}\n" if hint else ""
        options = "\n".join(f"{'ABC'[n]}. {choice}" for n, choice in enumerate(choices))
        asked = f"{context}{question}\n{options}" + ("\n<image>" if i else "")
        said = [{"from": "human", "value": asked}, {"from": "gpt", "value": "ABC"[answer]}]
        shown = {"image": f"{pid}/image.png"} if i else {}
        rows.append({"id": pid, "conversations": said, **shown})
    put_json(root / "scienceqa/llava_test_CQM-A.json", rows)


def scienceqa_hub(root):
    rows = []
    for _, *rest, i in SCIENCEQA:
        if i is not None:
            rows.append({**problem(*rest, i), "image": cell(picture(i))})
    put_table(root / "hub/scienceqa/ScienceQA-IMG/test-00000-of-00001.parquet", rows)


MMBENCH = [  # index, hint, options, answer, picture
    (241, "The sky is up.", ["red", "blue", "green", "grey"], "B", 1),
    (1_000_241, "The sky is up.", ["blue", "green", "grey", "red"], "A", 1),
    (252, "", ["yes", "no", "", ""], "A", 2),
]


def mmbench_rows(absent):
    for index, hint, options, answer, i in MMBENCH:
        yield (
            {
                "index": index,
                "question": "Which colour is it?",
                "hint": hint or absent,
                **dict(zip("ABCD", (option or absent for option in options), strict=True)),
                "answer": answer,
                "category": "attribute_recognition",
                "source": "ours",
            },
            i,
        )


def mmbench_tsv(name):
    def write(root):
        rows = [
            {
                **row,
                "image": base64.b64encode(picture(i, "JPEG")).decode(),
                "l2-category": "finegrained_perception",
                "split": "dev",
            }
            for row, i in mmbench_rows("")
        ]
        file = io.StringIO()
        writer = csv.DictWriter(file, fieldnames=[*rows[0]], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
        put(root / "mmbench" / name, file.getvalue())

    return write


def mmbench_hub(name):
    def write(root):
        rows = [
            {**row, "image": cell(picture(i, "JPEG")), "L2-category": "finegrained_perception"}
            for row, i in mmbench_rows("nan")
        ]
        put_table(root / f"hub/{name}/dev-00000-of-00001.parquet", rows)

    return write


SEED = [  # id, data_type, options, answer, pictures, place of LLaVA's picture
    ("101669", "image", ["One", "Two", "Three", "Four"], "A", [1], 0),
    ("v1738", "video", ["lift", "drop", "poke", "throw"], "C", [2, 3, 4], 1),
    ("101670", "image", ["Red", "Blue", "Grey", "Pink"], "D", [5], 0),
]


def seed_rows(form):
    for name, kind, options, answer, pictures, middle in SEED:
        choices = {f"choice_{'abcd'[n]}": option for n, option in enumerate(options)}
        row = {"question_id": name, "question": "What is seen?", **choices, "answer": answer}
        yield {**row, "data_type": kind, "question_type_id": 5}, pictures, middle, options


def seed_llava(root):
    asked, rows = [], []
    for row, pictures, middle, options in seed_rows("llava"):
        file = f"SEED-Bench-{row['data_type']}/{row['question_id']}"
        put(root / "seed_bench" / file, picture(pictures[middle]))
        lines = "\n".join(f"{'ABCD'[n]}. {option}" for n, option in enumerate(options))
        text = f"{row['question']}\n{lines}\n{LETTER}"
        asked.append({"question_id": row["question_id"], "image": file, "text": text})
        rows.append({**row, "data_id": "x"})
    put_lines(root / "seed_bench/llava-seed-bench.jsonl", asked)
    put_json(root / "seed_bench/SEED-Bench.json", {"questions": rows[::-1]})


def seed_hub(root):
    rows = [
        {**row, "image": [cell(picture(i)) for i in pictures]}
        for row, pictures, *_ in seed_rows("hub")
    ]
    put_table(root / "hub/seed_bench/data/test-00000-of-00001.parquet", rows)


def seed_plus_rows():
    for number, (kind, answer) in enumerate((("Chart", "A"), ("Map", "D"), ("Web", "B")), start=1):
        yield {
            "question_id": f"{number}_0",
            "question": "Which is highest?",
            **{f"choice_{name}": f"bar {name}" for name in "ABCD"},
            "answer": answer,
            "data_id": f"text_rich/{number}.png",
            "question_image_type": kind,
        }


def seed_plus_official(root):
    rows = list(seed_plus_rows())
    folder = root / "seed_bench_2_plus"
    put_json(folder / "SEED-Bench-2-plus-text-rich.json", {"questions": rows})
    for number, row in enumerate(rows):
        put(folder / row["data_id"], picture(number))


def seed_plus_hub(root):
    rows = [{**row, "image": cell(picture(i))} for i, row in enumerate(seed_plus_rows())]
    put_table(root / "hub/seed_bench_2_plus/data/test-00000-of-00001.parquet", rows)


MMMU = [  # id, question, options, answer, type, pictures
    (
        "validation_Art_Theory_2",
        "Who made <image 1>?",
        "['Ann', 'Bob']",
        "B",
        "multiple-choice",
        [1],
    ),
    (
        "validation_Art_Theory_10",
        "Which is like <image 1>?",
        "['<image 3>', '<image 2>']",
        "A",
        "multiple-choice",
        [2, 3, 4],
    ),
    ("validation_Math_1", "Solve <image 1>.", "[]", "['24', '24.0']", "open", [5]),
]


def mmmu_rows():
    for name, question, options, answer, kind, pictures in MMMU:
        images = [cell(picture(i)) for i in pictures] + [None] * (7 - len(pictures))
        asked = {"id": name, "question": question, "options": options, "answer": answer}
        shown = {f"image_{n}": image for n, image in enumerate(images, start=1)}
        yield {**asked, "question_type": kind, **shown}


def mmmu_release(root):
    for row in mmmu_rows():
        subject, number = row["id"].split("_", 1)[1].rsplit("_", 1)
        put_table(root / f"mmmu/{subject}/validation-{number}.parquet", [row])


def mmmu_hub(root):
    rows = list(mmmu_rows())[::-1]
    put_table(root / "hub/mmmu/data/validation-00000-of-00001.parquet", rows)


def mmmu_pro_hub(root):
    rows = [
        {
            **row,
            "id": row["id"].replace("validation", "test"),
            "options": str([f"the {n}" for n in range(9)] + ["<image 1>"]),
            "answer": "J",
            "subject": "Art_Theory",
        }
        for row in mmmu_rows()
    ]
    put_table(root / "hub/mmmu_pro/standard (10 options)/test-00000-of-00002.parquet", rows)


CHOICES = ["(A) One", "(B) Two", "(C) Three", "(D) Four", "(E) The image does not show it"]
REALWORLD = [  # task, subtask, question, answer
    ("Perception", "Monitoring", "How many cars?", "B"),
    ("Reasoning", "Monitoring", "How many will there be?", "E"),
    ("Perception", "Remote Sensing", "How many boats?", "A"),
]


def realworld_official(folder, file):
    def write(root):
        rows = [
            {
                "Question_id": f"{task}/{n}",
                "Image": f"pictures/{n}.jpg",
                "Text": question,
                "Answer choices": CHOICES,
                "Ground truth": answer,
                "Category": "count",
                "Task": task,
                "Subtask": subtask,
            }
            for n, (task, subtask, question, answer) in enumerate(REALWORLD)
        ]
        put_json(root / folder / file, rows)
        for n in range(len(rows)):
            put(root / folder / f"pictures/{n}.jpg", picture(n, "JPEG"))

    return write


def realworld_hub(name):
    def write(root):
        rows = [
            {
                "index": n,
                "question": question,
                "multi-choice options": CHOICES,
                "answer": answer,
                "category": f"{task}/{subtask}",
                "l2-category": "count",
                "bytes": base64.b64encode(picture(n, "JPEG")).decode(),
            }
            for n, (task, subtask, question, answer) in enumerate(REALWORLD)
        ]
        put_table(root / f"hub/{name}/data/train-00000-of-00001.parquet", rows)

    return write


def ai2d_hub(root):
    rows = [
        {
            "question": f"What is part {n}?",
            "options": ["root", "stem", "leaf", "seed"],
            "answer": str(n),
            "image": cell(picture(n)),
        }
        for n in range(3)
    ]
    put_table(root / "hub/ai2d/data/test-00000-of-00001.parquet", rows)


def mmstar_hub(root):
    rows = [
        {
            "index": n,
            "question": "Which is it?\nOptions: A: cat, B: dog, C: cow, D: hen",
            "answer": "BAD"[n],
            "category": ("math", "math", "coarse perception")[n],
            "l2_category": ("geometry", "statistical reasoning", "image emotion")[n],
            "image": cell(picture(n)),
        }
        for n in range(3)
    ]
    put_table(root / "hub/mmstar/mmstar.parquet", rows)


ASKED = (
    "Where is it?\n\nA. Left.\nB. Right.\n"
    "Please answer directly with only the letter of the correct option and nothing else."
)


def realworldqa_hub(root):
    questions = [(ASKED, "B"), ("Is it red? Please answer yes or no.", "Yes"), ("How many?", "3")]
    rows = [
        {"question": question, "answer": answer, "image": cell(picture(n, "WEBP"))}
        for n, (question, answer) in enumerate(questions)
    ]
    put_table(root / "hub/realworldqa/data/test-00000-of-00002.parquet", rows)


LITE = ("mme_realworld_lite", "MME-RealWorld-Lite.json")
CHINESE = ("mme_realworld_cn", "MME_RealWorld_CN.json")
# name -> what writes each of its layouts, the one that goes first in front, the hub copy last
LAYOUTS = {
    "scienceqa_img": (scienceqa_llava, scienceqa_official, scienceqa_hub),
    "mmbench_en": (mmbench_tsv("mmbench_dev_20230712.tsv"), mmbench_hub("mmbench_en")),
    "mmbench_cn": (mmbench_tsv("mmbench_dev_cn_20231003.tsv"), mmbench_hub("mmbench_cn")),
    "seed_bench": (seed_llava, seed_hub),
    "seed_bench_2_plus": (seed_plus_official, seed_plus_hub),
    "mmmu": (mmmu_release, mmmu_hub),
    "mmmu_pro": (mmmu_pro_hub,),
    "mme_realworld_lite": (realworld_official(*LITE), realworld_hub(LITE[0])),
    "mme_realworld_cn": (realworld_official(*CHINESE), realworld_hub(CHINESE[0])),
    "ai2d": (ai2d_hub,),
    "mmstar": (mmstar_hub,),
    "realworldqa": (realworldqa_hub,),
}
SEVERAL = [name for name, layouts in LAYOUTS.items() if len(layouts) > 1]
