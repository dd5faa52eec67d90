"""The choice benchmarks: their layouts, prompts by profile, scores, and files that are refused."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from eval.task import Scored, load_task
from tests.eval.tasks import choices
from tests.eval.tasks.choices import LAYOUTS, LETTER, SEVERAL
from tests.eval.tasks.files import put, put_json, put_lines, put_table

PROFILES = ("llava15", "lmms", "libmoe")
EXPECTED_N = {
    "scienceqa_img": 2017,
    "mmbench_en": 4329,
    "mmbench_cn": 4329,
    "seed_bench": None,
    "seed_bench_2_plus": 2277,
    "mmmu": 900,
    "mmmu_pro": 1730,
    "mme_realworld_lite": 1919,
    "mme_realworld_cn": None,
    "ai2d": 3088,
    "mmstar": 1500,
    "realworldqa": 765,
}


def load(name, root, layout=-1, profile="llava15"):
    LAYOUTS[name][layout](root)
    return load_task(name, root, profile)


def shown(sample):
    """A sample with the content of its pictures in place of their paths."""
    return replace(sample, images=tuple(path.read_bytes() for path in sample.images))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", SEVERAL)
def test_every_layout_gives_the_same_samples(name, profile, tmp_path):
    tasks = [
        load(name, tmp_path / str(place), place, profile) for place in range(len(LAYOUTS[name]))
    ]
    samples = [[shown(sample) for sample in task.samples] for task in tasks]
    if name == "seed_bench" and profile != "llava15":
        samples = [[s for s in read if s.group != "video"] for read in samples]
    else:
        assert len(samples[0]) == 3
    assert all(read == samples[0] for read in samples[1:])
    assert len({task.description for task in tasks}) == len(tasks)


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_arrow_copy_reads_as_the_parquet_one(name, tmp_path):
    before = load(name, tmp_path).samples
    for path in (tmp_path / "hub").rglob("*.parquet"):
        rows = pq.read_table(path).to_pylist()
        path.unlink()
        put_table(path.with_suffix(".arrow"), rows)
    assert load_task(name, tmp_path).samples == before


SPLITS = {
    "scienceqa_img": "test",
    "mmbench_en": "dev",
    "seed_bench": "test",
    "seed_bench_2_plus": "test",
    "ai2d": "test",
    "mmmu": "validation",
    "realworldqa": "test",
}


@pytest.mark.parametrize(("name", "split"), SPLITS.items())
def test_a_copy_with_a_folder_for_each_split_is_read(name, split, tmp_path):
    before = load(name, tmp_path).samples
    for path in list((tmp_path / "hub").rglob("*.parquet")):
        folder = next((tmp_path / "hub").iterdir())
        put_table(folder / split / "data-00000-of-00001.arrow", pq.read_table(path).to_pylist())
        put_table(folder / "train" / "data-00000-of-00001.arrow", [{"id": "another split"}])
        path.unlink()
    assert load_task(name, tmp_path).samples == before


@pytest.mark.parametrize("name", SEVERAL)
def test_the_official_files_go_first(name, tmp_path):
    for write in LAYOUTS[name]:
        write(tmp_path)
    task = load_task(name, tmp_path)
    assert "hub copy" not in task.description


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_right_answers_score_one_and_others_zero(name, profile, tmp_path):
    task = load(name, tmp_path, profile=profile)
    right = [Scored(s, task.score(s.references[0], s)) for s in task.samples]
    wrong = [Scored(s, task.score("Q", s)) for s in task.samples]
    assert task.aggregate(right)[task.headline].value == 1.0
    assert task.aggregate(wrong)[task.headline].value == 0.0
    assert task.name == name
    assert task.expected_n == EXPECTED_N[name]


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_unknown_profile_is_refused_with_those_there_are(name, tmp_path):
    with pytest.raises(ValueError, match=f"profile='vlmeval': {name} has llava15, lmms, libmoe"):
        load_task(name, tmp_path, "vlmeval")


@pytest.mark.parametrize("name", LAYOUTS)
def test_absent_files_are_all_named(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}: no layout of it is complete") as error:
        load_task(name, tmp_path)
    assert f"{tmp_path}/hub/" in str(error.value)
    assert str(error.value).count("(absent)") >= len(LAYOUTS[name])


PROMPTS = [  # benchmark, place of the sample, profile, prompt
    ("scienceqa_img", 0, "llava15", f"Which is a plant?\nA. fern\nB. stone\n{LETTER}"),
    (
        "scienceqa_img",
        1,
        "lmms",
        "Context: A magnet pulls iron.\nWhat does it pull?\nA. wood\nB. iron\nC. glass\n" + LETTER,
    ),
    (
        "mmbench_en",
        0,
        "llava15",
        "The sky is up.\nWhich colour is it?\nA. red\nB. blue\nC. green\nD. grey\n" + LETTER,
    ),
    (
        "mmbench_en",
        0,
        "lmms",
        "The sky is up. Which colour is it? There are several options:\n"
        "A. red\nB. blue\nC. green\nD. grey\n\n" + LETTER,
    ),
    ("mmbench_en", 2, "llava15", f"Which colour is it?\nA. yes\nB. no\n{LETTER}"),
    (
        "mmbench_cn",
        2,
        "llava15",
        "Which colour is it?\nA. yes\nB. no\n\u8bf7\u76f4\u63a5\u56de\u7b54\u9009\u9879\u5b57"
        "\u6bcd\u3002",
    ),
    ("seed_bench", 0, "llava15", f"What is seen?\nA. One\nB. Two\nC. Three\nD. Four\n{LETTER}"),
    ("seed_bench", 2, "lmms", f"What is seen?\nA. Red\nB. Blue\nC. Grey\nD. Pink\n{LETTER}"),
    (
        "seed_bench_2_plus",
        0,
        "libmoe",
        f"Which is highest?\nA. bar A\nB. bar B\nC. bar C\nD. bar D\n{LETTER}",
    ),
    ("mmmu", 0, "llava15", f"Who made <image 1>?\n(A) Ann\n(B) Bob\n\n{LETTER}"),
    ("mmmu", 0, "lmms", f"Who made <image 1>?\nA. Ann\nB. Bob\n\n{LETTER}"),
    (
        "mmmu",
        2,
        "llava15",
        "Solve <image 1>.\nAnswer the question using a single word or phrase.",
    ),
    (
        "mmmu",
        2,
        "lmms",
        "Solve <image 1>.\n\nAnswer the question using a single word or phrase.",
    ),
    ("ai2d", 1, "llava15", f"What is part 1?\nA. root\nB. stem\nC. leaf\nD. seed\n{LETTER}"),
    (
        "mmstar",
        0,
        "llava15",
        f"Which is it?\nOptions: A: cat, B: dog, C: cow, D: hen\n{LETTER}",
    ),
    (
        "mmstar",
        0,
        "libmoe",
        f"Which is it?\nOptions: A: cat, B: dog, C: cow, D: hen\n{LETTER.rstrip('.')}",
    ),
    ("realworldqa", 0, "llava15", choices.ASKED),
    (
        "mme_realworld_lite",
        0,
        "lmms",
        "How many cars? The choices are listed below:\n"
        "(A) One\n(B) Two\n(C) Three\n(D) Four\n(E) The image does not show it\n"
        "Select the best answer to the above multiple-choice question based on the image. "
        "Respond with only the letter (A, B, C, D, or E) of the correct option.\n"
        "The best answer is: ",
    ),
]


@pytest.mark.parametrize(("name", "place", "profile", "prompt"), PROMPTS)
def test_prompts(name, place, profile, prompt, tmp_path):
    assert load(name, tmp_path, profile=profile).samples[place].prompt == prompt


def test_the_prompt_of_mmmu_pro(tmp_path):
    options = "\n".join(f"{'ABCDEFGHI'[n]}. the {n}" for n in range(9))
    instruction = "Answer with the option letter from the given choices directly."
    assert load("mmmu_pro", tmp_path).samples[0].prompt == (
        f"Who made <image 1>?\n{options}\nJ. <image 1>\n\n{instruction}"
    )


def test_llava_asks_mme_realworld_with_other_spaces(tmp_path):
    here = load("mme_realworld_lite", tmp_path).samples[0].prompt
    lmms = load_task("mme_realworld_lite", tmp_path, "lmms").samples[0].prompt
    assert here != lmms
    assert here.split() == lmms.split()
    assert not here.endswith(" ")


def test_llavas_file_has_the_last_word_in_its_profile_alone(tmp_path):
    load("scienceqa_img", tmp_path, 0)
    path = tmp_path / "scienceqa/llava_test_CQM-A.json"
    path.write_text(path.read_text().replace("Which is a plant?", "A plant is which?"))
    assert load_task("scienceqa_img", tmp_path).samples[0].prompt.startswith("A plant is which?")
    lmms = load_task("scienceqa_img", tmp_path, "lmms")
    assert lmms.samples[0].prompt.startswith("Which is a plant?")


def test_pictures_that_a_question_names_are_shown_in_their_order(tmp_path):
    sample = load("mmmu", tmp_path).samples[1]
    assert sample.id == "validation_Art_Theory_10"
    assert [path.read_bytes() for path in sample.images] == [
        choices.picture(i) for i in choices.MMMU[1][-1]
    ]


def test_all_frames_of_a_video_are_shown_by_lmms_and_the_middle_one_by_llava(tmp_path):
    lmms = load("seed_bench", tmp_path, profile="lmms")
    assert [len(sample.images) for sample in lmms.samples] == [1, 3, 1]
    middle = load_task("seed_bench", tmp_path).samples[1]
    assert middle.images == (lmms.samples[1].images[1],)


def test_an_open_answer_may_be_one_of_several(tmp_path):
    task = load("mmmu", tmp_path)
    assert task.samples[2].references == ("24", "24.0")
    assert task.samples[2].options == ()


def test_rotations_are_one_question(tmp_path):
    task = load("mmbench_en", tmp_path)
    replies = ("B", "C", "A")  # the second rotation is wrong
    rows = [Scored(s, task.score(reply, s)) for s, reply in zip(task.samples, replies, strict=True)]
    metrics = task.aggregate(rows)
    assert metrics["circular_accuracy"].value == 0.5
    assert metrics["circular_accuracy"].n == 2
    assert metrics["row_accuracy"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize(("profile", "options"), [("llava15", ("One",)), ("lmms", ("One", "None"))])
def test_llava_takes_the_option_none_for_absent(profile, options, tmp_path):
    load("mmbench_en", tmp_path)
    path = next((tmp_path / "hub").rglob("*.parquet"))
    rows = pq.read_table(path).to_pylist()
    rows[2] |= {"A": "One", "B": "None"}
    put_table(path, rows)
    assert load_task("mmbench_en", tmp_path, profile).samples[2].options == options


def test_the_options_of_realworldqa_stand_in_its_question(tmp_path):
    samples = load("realworldqa", tmp_path).samples
    assert [sample.options for sample in samples] == [("Left.", "Right."), (), ()]


def test_the_options_of_mme_realworld_are_without_their_letters(tmp_path):
    sample = load("mme_realworld_lite", tmp_path).samples[0]
    assert sample.options[:2] == ("One", "Two")
    assert sample.meta == {"task": "Perception"}
    assert sample.group == "Monitoring"


def changed(name, root, **fields):
    """The hub copy of a benchmark with other fields in its first row."""
    LAYOUTS[name][-1](root)
    path = next((root / "hub").rglob("*.parquet"))
    rows = pq.read_table(path).to_pylist()
    put_table(path, [rows[0] | fields])


REFUSED = [
    ("ai2d", {"answer": "4"}, "answer=4 must be the place of one of"),
    ("ai2d", {"options": None}, "options=None must be a list of texts"),
    ("mmstar", {"answer": "AB"}, "answer='AB' must be one letter of"),
    ("mmmu_pro", {"options": "['a'"}, "is not the literal of a list"),
    ("mmmu", {"question": "Nothing named"}, "it names the pictures"),
    ("mmmu", {"question": "See <image 8>"}, "some of 1 to 7 were expected"),
    ("mmmu", {"question": "See <image 5>"}, "image_5: the picture's cell is empty"),
    ("mmmu", {"id": "12"}, "must be like validation_Art_Theory_12"),
    ("mmmu_pro", {"answer": "K"}, "answer='K' must be one letter of ABCDEFGHIJ"),
    ("seed_bench", {"image": []}, "the list of its pictures is empty"),
    ("mmbench_en", {"question": " "}, "question=' ' must be a text that is not empty"),
    ("mme_realworld_lite", {"multi-choice options": ["One"]}, r"'One' must begin with \(A\)"),
    ("mme_realworld_cn", {"bytes": "no base64!"}, "the picture is not base64"),
    ("scienceqa_img", {"answer": -1}, "answer=-1 must be the place"),
]


@pytest.mark.parametrize(("name", "fields", "message"), REFUSED)
def test_a_row_that_is_off_is_refused_by_its_place(name, fields, message, tmp_path):
    changed(name, tmp_path, **fields)
    with pytest.raises(ValueError, match=message) as error:
        load_task(name, tmp_path)
    assert ":row 1" in str(error.value)


def test_a_cell_that_is_no_picture_is_refused(tmp_path):
    changed("mmbench_en", tmp_path, image={"bytes": b"text", "path": None})
    with pytest.raises(ValueError, match="4 bytes that are no picture"):
        load_task("mmbench_en", tmp_path)


def test_a_missing_picture_is_named(tmp_path):
    load("seed_bench_2_plus", tmp_path, 0)
    (tmp_path / "seed_bench_2_plus/text_rich/2.png").unlink()
    with pytest.raises(ValueError, match=r"text_rich/2\.png"):
        load_task("seed_bench_2_plus", tmp_path)


def test_a_picture_outside_the_folder_is_refused(tmp_path):
    load("mme_realworld_lite", tmp_path, 0)
    path = tmp_path / "mme_realworld_lite/MME-RealWorld-Lite.json"
    rows = json.loads(path.read_text())
    rows[0]["Image"] = "../../secret.png"
    put_json(path, rows)
    with pytest.raises(ValueError, match="must stay inside"):
        load_task("mme_realworld_lite", tmp_path)


def test_seed_questions_and_answers_that_do_not_join_are_refused(tmp_path):
    load("seed_bench", tmp_path, 0)
    path = tmp_path / "seed_bench/llava-seed-bench.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    put_lines(path, rows[1:])
    with pytest.raises(ValueError, match="do not join: 1 question ids"):
        load_task("seed_bench", tmp_path)


def test_scienceqa_questions_and_problems_that_do_not_join_are_refused(tmp_path):
    load("scienceqa_img", tmp_path, 0)
    put_json(tmp_path / "scienceqa/llava_test_CQM-A.json", [])
    with pytest.raises(ValueError, match="has no question of this id"):
        load_task("scienceqa_img", tmp_path)
    put_json(tmp_path / "scienceqa/pid_splits.json", {"test": ["404"]})
    with pytest.raises(ValueError, match="it is no problem there"):
        load_task("scienceqa_img", tmp_path)


def test_a_file_that_is_no_json_is_refused(tmp_path):
    load("seed_bench_2_plus", tmp_path, 0)
    put(tmp_path / "seed_bench_2_plus/SEED-Bench-2-plus-text-rich.json", "{")
    with pytest.raises(ValueError, match="not a JSON file"):
        load_task("seed_bench_2_plus", tmp_path)
