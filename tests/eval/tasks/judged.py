"""Three rows of POPE, MME, HallusionBench, MathVista, MM-Vet and LLaVA-W in both their layouts."""

from tests.eval.tasks.files import cell, picture, put, put_json, put_lines, put_table

SHORT = "Answer the question using a single word or phrase."

POPE = [  # category, number, picture, question, answer
    ("random", 1, 1, "Is there a dog in the image?", "yes"),
    ("popular", 1, 1, "Is there a dog in the image?", "yes"),
    ("adversarial", 7, 2, "Is there a fork in the image?", "no"),
]


def pope_official(root):
    for kind in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": n, "image": f"COCO_val2014_{i}.jpg", "text": text, "label": answer}
            for category, n, i, text, answer in POPE
            if category == kind
        ]
        put_lines(root / f"pope/coco/coco_pope_{kind}.json", rows)
    questions = [
        {
            "question_id": place,
            "image": f"COCO_val2014_{i}.jpg",
            "text": f"{text}\n{SHORT}",
            "category": kind,
        }
        for place, (kind, _, i, text, _) in enumerate(POPE)
    ]
    put_lines(root / "pope/llava_pope_test.jsonl", questions)
    for i in (1, 2):
        put(root / f"pope/val2014/COCO_val2014_{i}.jpg", picture(i, "JPEG"))


def pope_hub(root):
    rows = [
        {
            "id": str(place),
            "question_id": str(n),
            "question": text,
            "answer": answer,
            "image_source": f"COCO_val2014_{i}",
            "image": cell(picture(i, "JPEG")),
            "category": kind,
        }
        for place, (kind, n, i, text, answer) in enumerate(POPE)
    ]
    put_table(root / "hub/pope/data/test-00000-of-00001.parquet", rows)


ASKED = "Please answer yes or no."
MME = [  # id, folder of the pictures, question, answer
    ("artwork/10002.jpg", "artwork/images", f"Is it a painting? {ASKED}", "Yes"),
    ("artwork/10002.jpg", "artwork/images", f"Is it a glass?  {ASKED}", "No"),
    ("code_reasoning/0020.png", "code_reasoning", f"Is it Python? {ASKED}", "Yes"),
]


def mme_official(root):
    base = root / "MME/MME_Benchmark_release_version"
    questions = [
        {
            "question_id": name,
            "image": f"{folder}/{name.split('/')[1]}",
            "text": f"{text.removesuffix(ASKED).strip()}\n{SHORT}",
            "category": name.split("/")[0],
        }
        for name, folder, text, _ in MME
    ]
    put_lines(root / "MME/llava_mme.jsonl", questions)
    lines = [f"{text}\t{answer}\n" for _, _, text, answer in MME]
    put(base / "artwork/questions_answers_YN/10002.txt", "".join(lines[:2]))
    put(base / "code_reasoning/0020.txt", lines[2])
    put(base / "eval_tool/Your_Results/OCR.txt", "left by the tool")
    put(base / "artwork/images/10002.jpg", picture(1))
    put(base / "code_reasoning/0020.png", picture(2))


def mme_hub(root):
    rows = [
        {
            "question_id": name,
            "image": cell(picture(1 if name.startswith("art") else 2)),
            "question": text,
            "answer": answer,
            "category": name.split("/")[0],
        }
        for name, _, text, answer in reversed(MME)
    ]
    put_table(root / "hub/mme/data/test-00000-of-00001.parquet", rows)


HALLUSION = [  # category, subcategory, visual_input, set, figure, question, wording, answer
    ("VD", "illusion", "1", "0", "0", "0", "Is the left circle as large as the right?", "1"),
    ("VD", "illusion", "1", "0", "1", "0", "Is the left circle as large as the right?", "0"),
    ("VS", "chart", "2", "3", "1", "0", "Is China first in this chart?", "0"),
]
WITHOUT = ("VS", "chart", "0", "3", "0", "0", "Is China first?", "1")
HALLUSION_NAMES = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id")


def _hallusion(row):
    return dict(zip((*HALLUSION_NAMES, "question", "gt_answer"), row, strict=True)) | {
        "gt_answer_details": "so it is",
        "sample_note": "",
    }


def hallusionbench_official(root):
    rows = [_hallusion(WITHOUT) | {"filename": None}]
    for i, row in enumerate(HALLUSION):
        name = f"./{row[0]}/{row[1]}/{row[3]}_{row[4]}.png"
        rows.append(_hallusion(row) | {"filename": name})
        put(root / "hallusionbench/hallusion_bench" / name, picture(i))
    put_json(root / "hallusionbench/HallusionBench.json", rows)


def hallusionbench_hub(root):
    rows = [_hallusion(row) | {"image": cell(picture(i))} for i, row in enumerate(HALLUSION)]
    put_table(root / "hub/hallusionbench/data/image-00000-of-00001.parquet", rows)
    other = [_hallusion(WITHOUT)]
    put_table(root / "hub/hallusionbench/data/non_image-00000-of-00001.parquet", other)


MATHVISTA = [
    {
        "pid": "1",
        "question": "How heavy is it?",
        "choices": None,
        "unit": "g",
        "precision": 1.0,
        "answer": "1.2",
        "question_type": "free_form",
        "answer_type": "float",
        "query": "Hint: give a number.\nQuestion: How heavy is it? (Unit: g)",
        "metadata": {"task": "math word problem"},
    },
    {
        "pid": "2",
        "question": "Which is longer?",
        "choices": ["left", "right"],
        "unit": None,
        "precision": None,
        "answer": "left",
        "question_type": "multi_choice",
        "answer_type": "text",
        "query": "Hint: give a letter.\nQuestion: Which is longer?\nChoices:\n(A) left\n(B) right",
        "metadata": {"task": "figure question answering"},
    },
    {
        "pid": "3",
        "question": "How many?",
        "choices": None,
        "unit": None,
        "precision": None,
        "answer": "4",
        "question_type": "free_form",
        "answer_type": "integer",
        "query": "Hint: give a number.\nQuestion: How many?",
        "metadata": {"task": "figure question answering"},
    },
]


def mathvista_official(root):
    rows = {row["pid"]: row | {"image": f"images/{row['pid']}.jpg"} for row in MATHVISTA}
    put_json(root / "mathvista/data/testmini.json", rows)
    for row in MATHVISTA:
        put(root / f"mathvista/images/{row['pid']}.jpg", picture(int(row["pid"])))


def mathvista_hub(root):
    rows = [row | {"decoded_image": cell(picture(int(row["pid"])))} for row in MATHVISTA]
    put_table(root / "hub/mathvista/data/testmini-00000-of-00001.parquet", rows)


MM_VET = [  # question, answer, capabilities
    ("What is x in the equation?", "-1<AND>-5", ["ocr", "math"]),
    ("How many pieces?", "6<OR>six", ["rec"]),
    ("Which one is next?", "the left", ["rec", "spat"]),
]


def mm_vet_official(root):
    answers = {
        f"v1_{i}": {
            "imagename": f"v1_{i}.png",
            "question": question,
            "answer": answer,
            "capability": abilities,
        }
        for i, (question, answer, abilities) in enumerate(MM_VET)
    }
    put_json(root / "mm-vet/mm-vet.json", answers)
    questions = [
        {"question_id": i, "image": f"v1_{i}.png", "text": question}
        for i, (question, _, _) in enumerate(MM_VET)
    ]
    put_lines(root / "mm-vet/llava-mm-vet.jsonl", questions)
    for i in range(3):
        put(root / f"mm-vet/images/v1_{i}.png", picture(i))


def mm_vet_hub(root):
    rows = [
        {
            "question_id": f"v1_{i}",
            "question": question,
            "answer": answer,
            "capability": ",".join(abilities),
            "image": cell(picture(i)),
        }
        for i, (question, answer, abilities) in enumerate(MM_VET)
    ]
    put_table(root / "hub/mm_vet/data/test-00000-of-00001.parquet", rows)


LLAVA_W = [  # picture, category, question
    (1, "conv", "What is its name?"),
    (1, "detail", "Describe it."),
    (2, "complex", "Why is it so?"),
]


def llava_w_official(root):
    folder = root / "llava-bench-in-the-wild"
    questions = [
        {"question_id": i, "image": f"00{n}.jpg", "category": kind, "text": question}
        for i, (n, kind, question) in enumerate(LLAVA_W)
    ]
    put_lines(folder / "questions.jsonl", questions)
    answers = [{"question_id": i, "answer_id": "a", "text": f"It is {i}."} for i in range(3)]
    put_lines(folder / "answers_gpt4.jsonl", answers)
    contexts = [{"id": f"00{n}", "image": f"00{n}.jpg", "caption": f"Thing {n}."} for n in (1, 2)]
    put_lines(folder / "context.jsonl", contexts)
    for n in (1, 2):
        put(folder / f"images/00{n}.jpg", picture(n, "JPEG"))


def llava_w_hub(root):
    rows = [
        {
            "question_id": i,
            "question": question,
            "gpt_answer": f"It is {i}.",
            "category": kind,
            "caption": f"Thing {n}.",
            "image_id": f"00{n}",
            "image": cell(picture(n, "JPEG")),
        }
        for i, (n, kind, question) in enumerate(LLAVA_W)
    ]
    put_table(root / "hub/llava_w/data/train-00000-of-00001.parquet", rows)


BOTH = {
    "pope": (pope_official, pope_hub),
    "mme": (mme_official, mme_hub),
    "hallusionbench": (hallusionbench_official, hallusionbench_hub),
    "mathvista": (mathvista_official, mathvista_hub),
    "mm_vet": (mm_vet_official, mm_vet_hub),
    "llava_w": (llava_w_official, llava_w_hub),
}
