"""Files for the servers and judges that score what is not scored here, from a run's replies.

    python -m eval submit RUN

writes ``RUN/submissions/TASK.EXT`` for each task of the run that has a form below. The answers are
those of ``samples/TASK.jsonl``, so ``eval score RUN`` has been run; a task that lacks any is
refused. Forms follow LLaVA's scripts, which the servers took, and were not put to a server:

vqav2_testdev              JSON ``[{question_id, answer}]`` over all of test2015, "" where not
                           asked; m4c form (convert_vqav2_for_submission.py)
vizwiz_vqa_test            JSON ``[{image, answer}]``, m4c form (convert_vizwiz_for_submission.py)
docvqa_test                JSON ``[{questionId, answer}]``
mmbench_en, mmbench_cn     xlsx of the TSV with a column ``prediction``, without its pictures and
                           categories (convert_mmbench_for_submission.py)
mm_vet                     JSON ``{v1_i: answer}`` (convert_mmvet_for_eval.py)
llava_w                    JSON lines as model_vqa.py writes them, for eval_gpt_review_bench.py
hallusionbench             JSON, the questions asked with ``model_prediction`` (eval/judge_rows.py)
mathvista                  JSON, the problems by pid with ``response`` (the same)
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from eval.judge_rows import hallusionbench_rows, mathvista_rows
from eval.metrics.vqa_accuracy import normalise_m4c
from eval.plan import RIGHT
from eval.readers import find, read_jsonl
from eval.readers.fields import label
from eval.readers.tables import read_tsv
from eval.store import Record, read_results, read_run
from eval.tasks.mmbench import Language
from eval.tasks.mmbench_cn import CHINESE
from eval.tasks.mmbench_en import ENGLISH
from eval.xlsx import write_xlsx

ALL_OF_TEST2015 = "vqav2/llava_vqav2_mscoco_test2015.jsonl"
DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")
PREDICTION_AT = 6  # behind index, question and four options

Writer = Callable[[Path, list[Record], Path], Path]  # stem of the file, samples, data root -> file


def write_submissions(run_dir: Path, data_root: Path | None = None) -> list[Path]:
    """Write a file for each task of the run that has a form; the paths, in the run's order.

    ``data_root`` is where the data lies now, if it was moved. ValueError where no task has a form,
    or one lacks replies or samples.
    """
    arguments, results = read_run(run_dir)["arguments"], read_results(run_dir)
    names = [name for name in arguments["tasks"] if name in WRITERS]
    if not names:
        raise ValueError(
            f"{run_dir} has no task with a form of submission; those with one are "
            f"{', '.join(WRITERS)}"
        )
    root = data_root or Path(arguments["data_root"])
    samples = {name: _answered(run_dir, name, results["tasks"][name]) for name in names}
    folder = run_dir / "submissions"
    folder.mkdir(exist_ok=True)
    return [WRITERS[name](folder / name, samples[name], root) for name in names]


def _answered(run_dir: Path, name: str, result: Record) -> list[Record]:
    if not result["complete"]:
        raise ValueError(
            f"{name} is not complete: {result['n']} of {result['expected_n']} samples have an "
            f"answer; run it again, without --limit, before its answers go anywhere"
        )
    path = run_dir / "samples" / f"{name}.jsonl"
    if not path.is_file():
        raise ValueError(f"no {path}: `python -m eval score {run_dir}` writes it")
    return [row for _, row in read_jsonl(path) if row["condition"] == RIGHT]


def _vqav2(stem: Path, samples: list[Record], root: Path) -> Path:
    answers = {sample["id"]: normalise_m4c(sample["text"]) for sample in samples}
    asked = find(root, [ALL_OF_TEST2015], f"  DATA_ROOT/{ALL_OF_TEST2015}, of LLaVA's eval.zip")
    ids = [label(where, row, "question_id") for where, row in read_jsonl(asked)]
    if strange := sorted(set(answers) - set(ids)):
        raise ValueError(f"{asked} lacks question {strange[0]}, which was answered")
    return _json(stem, [{"question_id": int(id), "answer": answers.get(id, "")} for id in ids])


def _vizwiz(stem: Path, samples: list[Record], root: Path) -> Path:
    return _json(
        stem,
        [{"image": f"{s['id']}.jpg", "answer": normalise_m4c(s["text"])} for s in samples],
    )


def _docvqa(stem: Path, samples: list[Record], root: Path) -> Path:
    return _json(stem, [{"questionId": int(s["id"]), "answer": s["text"].strip()} for s in samples])


def _mm_vet(stem: Path, samples: list[Record], root: Path) -> Path:
    return _json(stem, {sample["id"]: sample["text"].strip() for sample in samples})


def _llava_w(stem: Path, samples: list[Record], root: Path) -> Path:
    return _write(
        stem.with_suffix(".jsonl"),
        (
            json.dumps(
                {
                    "question_id": int(sample["id"]),
                    "prompt": sample["prompt"],
                    "text": sample["text"].strip(),
                    "answer_id": f"llava_w-{sample['id']}",
                    "model_id": "llava_compete",
                    "metadata": {},
                }
            )
            for sample in samples
        ),
    )


def _hallusionbench(stem: Path, samples: list[Record], root: Path) -> Path:
    return _json(stem, hallusionbench_rows(samples, root))


def _mathvista(stem: Path, samples: list[Record], root: Path) -> Path:
    return _json(stem, mathvista_rows(samples, root))


def _mmbench(language: Language) -> Writer:
    def write(stem: Path, samples: list[Record], root: Path) -> Path:
        answers = {sample["id"]: sample["text"].strip() for sample in samples}
        tsv = find(
            root,
            [f"mmbench/{language.tsv}"],
            f"  DATA_ROOT/mmbench/{language.tsv}, whose rows go up",
        )
        table: list[list[str | int]] = []
        for where, row in read_tsv(tsv, ("index", "question", "answer")):
            kept = {name: cell for name, cell in row.items() if name not in DROPPED}
            if row["index"] not in answers:
                raise ValueError(f"{where}: index {row['index']} has no answer in the run")
            if not table:
                table.append(_with([*kept], "prediction"))
            table.append(
                _with([int(row["index"]), *list(kept.values())[1:]], answers[row["index"]])
            )
        path = stem.with_suffix(".xlsx")
        write_xlsx(path, table)
        return path

    return write


def _with(cells: list[str | int], prediction: str) -> list[str | int]:
    return [*cells[:PREDICTION_AT], prediction, *cells[PREDICTION_AT:]]


def _json(stem: Path, value: object) -> Path:
    return _write(stem.with_suffix(".json"), [json.dumps(value, ensure_ascii=False)])


def _write(path: Path, lines: Iterable[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


WRITERS: dict[str, Writer] = {
    "vqav2_testdev": _vqav2,
    "vizwiz_vqa_test": _vizwiz,
    "docvqa_test": _docvqa,
    "mmbench_en": _mmbench(ENGLISH),
    "mmbench_cn": _mmbench(CHINESE),
    "mm_vet": _mm_vet,
    "llava_w": _llava_w,
    "hallusionbench": _hallusionbench,
    "mathvista": _mathvista,
}
