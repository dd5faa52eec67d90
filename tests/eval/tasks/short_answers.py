"""Three rows of each benchmark of short answers, in the official layout and as the hub's copy."""

from tests.eval.tasks.files import cell, picture, put, put_json, put_lines, put_table

SHORT = "Answer the question using a single word or phrase."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
PICTURES = [picture(number, "JPEG") for number in range(3)]
QUESTIONS = ["What is it?", "is it Red?", "How many\nare there?"]
TEN = [["cat"] * 10, ["Yes"] * 7 + ["no"] * 3, ["2"] * 10]


def asked(question, *lines):
    return "\n".join([question, *lines, SHORT])


def gqa_official(root):
    rows = {
        name: {"imageId": image, "question": question, "answer": answer, "types": types}
        for name, image, question, answer, types in GQA
    }
    put_json(root / "gqa/data/testdev_balanced_questions.json", rows)
    lines = [
        {"question_id": name, "image": f"{image}.jpg", "text": asked(question), "category": "x"}
        for name, image, question, _, _ in GQA
    ]
    put_lines(root / "gqa/llava_gqa_testdev_balanced.jsonl", lines)
    for image, content in zip(("n1", "n2"), PICTURES, strict=False):
        put(root / f"gqa/data/images/{image}.jpg", content)


GQA = [
    ("205", "n1", QUESTIONS[0], "cat", {"structural": "query", "semantic": "obj"}),
    ("201", "n1", QUESTIONS[1], "yes", {"structural": "verify", "semantic": "attr"}),
    ("203", "n2", "Is it left?", "left", {"structural": "choose", "semantic": "rel"}),
]


def gqa_hub(root):
    rows = [
        dict(zip(("id", "imageId", "question", "answer", "types"), row, strict=True)) for row in GQA
    ]
    put_table(root / "hub/gqa/testdev_balanced_instructions/testdev-0.parquet", rows)
    pictures = [
        {"id": image, "image": cell(content)}
        for image, content in zip(("n1", "n2"), PICTURES, strict=False)
    ]
    put_table(root / "hub/gqa/testdev_balanced_images/testdev-0.parquet", pictures)


VQAV2 = [
    (number + 7, image, question, [{"answer": a, "answer_id": i + 1} for i, a in enumerate(ten)])
    for number, (image, question, ten) in enumerate(zip((5, 5, 42), QUESTIONS, TEN, strict=True))
]
KINDS = ["other", "yes/no", "number"]


def vqav2_official(root):
    keys = ("question_id", "image_id", "question")
    questions = [dict(zip(keys, row[:3], strict=True)) for row in VQAV2]
    put_json(
        root / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
        {"info": {"year": 2014}, "questions": questions},
    )
    answers = [
        {"question_id": row[0], "image_id": row[1], "answers": row[3], "answer_type": kind}
        for row, kind in zip(VQAV2, KINDS, strict=True)
    ]
    put_json(root / "vqav2/v2_mscoco_val2014_annotations.json", {"annotations": answers[::-1]})
    for image, content in zip((5, 42), PICTURES, strict=False):
        put(root / f"vqav2/val2014/COCO_val2014_{image:012}.jpg", content)


def vqav2_hub(root):
    rows = [
        {"question_id": name, "question": question, "answers": answers, "answer_type": kind}
        | {"image": cell(PICTURES[image == 42])}
        for (name, image, question, answers), kind in zip(VQAV2, KINDS, strict=True)
    ]
    put_table(root / "hub/vqav2/data/validation-0.parquet", rows)


def testdev_official(root):
    lines = [
        {"question_id": n, "image": f"COCO_test2015_{n}.jpg", "text": asked(q), "category": "x"}
        for n, q in enumerate(QUESTIONS)
    ]
    put_lines(root / "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", lines)
    for number, content in enumerate(PICTURES):
        put(root / f"vqav2/test2015/COCO_test2015_{number}.jpg", content)


def testdev_hub(root):
    rows = [
        {"question_id": n, "question": q, "answers": None, "image": cell(PICTURES[n])}
        for n, q in enumerate(QUESTIONS)
    ]
    put_table(root / "hub/vqav2/data/testdev-0.parquet", rows)


def vizwiz_official(root):
    rows = [
        {"image": f"VizWiz_val_{n}.jpg", "question": q, "answerable": 1}
        | {"answers": [{"answer": answer, "answer_confidence": "yes"} for answer in ten]}
        for n, (q, ten) in enumerate(zip(QUESTIONS, TEN, strict=True))
    ]
    put_json(root / "vizwiz/Annotations/val.json", rows)
    for number, content in enumerate(PICTURES):
        put(root / f"vizwiz/val/VizWiz_val_{number}.jpg", content)


def vizwiz_hub(root):
    rows = [
        {"question_id": f"VizWiz_val_{n}", "question": q, "answers": ten}
        | {"image": cell(PICTURES[n])}
        for n, (q, ten) in enumerate(zip(QUESTIONS, TEN, strict=True))
    ]
    put_table(root / "hub/vizwiz/data/val-0.parquet", rows)


def vizwiz_test_official(root):
    lines = [
        {"question_id": n, "image": f"VizWiz_test_{n}.jpg", "text": asked(q, UNANSWERABLE)}
        for n, q in enumerate(QUESTIONS)
    ]
    put_lines(root / "vizwiz/llava_test.jsonl", lines)
    for number, content in enumerate(PICTURES):
        put(root / f"vizwiz/test/VizWiz_test_{number}.jpg", content)


def vizwiz_test_hub(root):
    rows = [
        {"question_id": f"VizWiz_test_{n}.jpg", "question": q, "image": cell(PICTURES[n])}
        for n, q in enumerate(QUESTIONS)
    ]
    put_table(root / "hub/vizwiz/data/test-0.parquet", rows)


TOKENS = [["DAKOTA", "1,5"], [], ["a"]]
TEXTVQA = [
    (34602, "p0", "what is the Brand?", TEN[0], TOKENS[0]),
    (34603, "p0", "is it red?", TEN[1], TOKENS[1]),
    (34604, "p1", "how many?", TEN[2], TOKENS[2]),
]


def textvqa_official(root):
    rows = [
        {"question_id": n, "image_id": image, "question": q, "answers": ten}
        for n, image, q, ten, _ in TEXTVQA
    ]
    put_json(root / "textvqa/TextVQA_0.5.1_val.json", {"data": rows})
    lines = [
        {"question_id": image, "image": f"{image}.jpg"}
        | {"text": asked(q, f"Reference OCR token: {', '.join(tokens)}")}
        for _, image, q, _, tokens in TEXTVQA
    ]
    put_lines(root / "textvqa/llava_textvqa_val_v051_ocr.jsonl", lines)
    for image, content in zip(("p0", "p1"), PICTURES, strict=False):
        put(root / f"textvqa/train_images/{image}.jpg", content)


def textvqa_hub(root):
    rows = [
        {"question_id": n, "question": q, "answers": ten, "ocr_tokens": tokens}
        | {"image": cell(PICTURES[image == "p1"])}
        for n, image, q, ten, tokens in TEXTVQA
    ]
    put_table(root / "hub/textvqa/data/validation-0.parquet", rows)


CHARTQA = [
    ("human", "What share?", "12.5"),
    ("human", "Which year?", "2019"),
    ("augmented", "What colour?", "Blue"),
]


def chartqa_official(root):
    for part in ("human", "augmented"):
        rows = [
            {"imgname": f"{number}.png", "query": q, "label": answer}
            for number, (kind, q, answer) in enumerate(CHARTQA)
            if kind == part
        ]
        put_json(root / f"chartqa/ChartQA Dataset/test/test_{part}.json", rows)
    for number, content in enumerate(PICTURES):
        put(root / f"chartqa/ChartQA Dataset/test/png/{number}.png", content)


def chartqa_hub(root):
    rows = [
        {"type": f"{kind}_test", "question": q, "answer": answer, "image": cell(PICTURES[number])}
        for number, (kind, q, answer) in enumerate(CHARTQA)
    ]
    put_table(root / "hub/chartqa/data/test-0.parquet", rows)


DOCUMENTS = [(65718, ["7.5%", "7.5 %"]), (9, ["Bob"]), (123, ["1 May"])]


def documents_official(path, pictures, image, *, answered=True):
    rows = []
    for number, (name, answers) in enumerate(DOCUMENTS):
        row = {"questionId": name, "question": QUESTIONS[number], image: f"documents/{number}.png"}
        rows.append(row | {"answers": answers} if answered else row)
        put(pictures / f"{number}.png", PICTURES[number])
    put_json(path, {"dataset_name": "x", "data": rows})


def documents_hub(path, *, answered=True):
    rows = [
        {"questionId": str(name), "question": QUESTIONS[number], "image": cell(PICTURES[number])}
        | {"answers": answers if answered else None}
        for number, (name, answers) in enumerate(DOCUMENTS)
    ]
    put_table(path, rows)


def docvqa_official(root):
    path = root / "docvqa/val_v1.0_withQT.json"
    documents_official(path, root / "docvqa/spdocvqa_images", "image")


def docvqa_hub(root):
    documents_hub(root / "hub/docvqa/DocVQA/validation-0.parquet")


def docvqa_test_official(root):
    path = root / "docvqa/test/test_v1.0.json"
    documents_official(path, root / "docvqa/test/documents", "image", answered=False)


def docvqa_test_hub(root):
    documents_hub(root / "hub/docvqa/DocVQA/test-0.arrow", answered=False)


def infovqa_official(root):
    path = root / "infovqa/infographicsVQA_val_v1.0_withQT.json"
    documents_official(path, root / "infovqa/infographicsvqa_images", "image_local_name")


def infovqa_hub(root):
    documents_hub(root / "hub/infovqa/InfographicVQA/validation-0.parquet")


OCRBENCH = [
    ("IIIT5K", "what is written?", ["CENTRE"], "Regular Text Recognition"),
    ("HME100k", " Write the formula. ", ["\\frac { a } { b }"], "Handwritten Expression"),
    ("docVQA", "Who?", ["Bob", "bobby"], "Doc-oriented VQA"),
]


def ocrbench_official(root):
    rows = [
        {"dataset_name": dataset, "question": q, "type": kind, "image_path": f"{dataset}/{n}.jpg"}
        | {"answers": answers[0] if len(answers) == 1 else answers, "id": n}
        for n, (dataset, q, answers, kind) in enumerate(OCRBENCH)
    ]
    put_json(root / "ocrbench/OCRBench.json", rows)
    for number, (dataset, *_) in enumerate(OCRBENCH):
        put(root / f"ocrbench/OCRBench_Images/{dataset}/{number}.jpg", PICTURES[number])


def ocrbench_hub(root):
    rows = [
        {"dataset": dataset, "question": q, "question_type": kind, "answer": answers}
        | {"image": cell(PICTURES[n])}
        for n, (dataset, q, answers, kind) in enumerate(OCRBENCH)
    ]
    put_table(root / "hub/ocrbench/data/test-0.parquet", rows)


BOTH = {
    "vqav2": (vqav2_official, vqav2_hub),
    "vqav2_testdev": (testdev_official, testdev_hub),
    "gqa": (gqa_official, gqa_hub),
    "vizwiz_vqa": (vizwiz_official, vizwiz_hub),
    "vizwiz_vqa_test": (vizwiz_test_official, vizwiz_test_hub),
    "textvqa": (textvqa_official, textvqa_hub),
    "textvqa_no_ocr": (textvqa_official, textvqa_hub),
    "chartqa": (chartqa_official, chartqa_hub),
    "docvqa": (docvqa_official, docvqa_hub),
    "docvqa_test": (docvqa_test_official, docvqa_test_hub),
    "infovqa": (infovqa_official, infovqa_hub),
    "ocrbench": (ocrbench_official, ocrbench_hub),
}
