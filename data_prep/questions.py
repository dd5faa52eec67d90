"""Training rows and held-out questions about pictures whose name and kind are known.

Pure functions of (pictures, seed).  A picture is either trained on or held out, never both, and
each question has one wording that both sides share.  Wrong names come from the same side as the
right one: were they all seen in training, an unseen name alone would give "yes" away.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from data_prep.captions import may_be_same, with_article
from data_prep.pictures import Picture

HELD_OUT_SHARE = 0.25
TEXT_ONLY_SHARE = 0.05
IMAGE = "<image>\n"
LETTERS = "ABCD"

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
NAME_QUESTION = "What is the name of the thing in the image?" + SHORT
KIND_QUESTION = "What kind of thing is shown in the image?" + SHORT
CHOICE_QUESTION = "What is shown in the image?"
CAPTION_PROMPTS = (
    "What is this?",
    "What is shown in the image?",
    "Describe the image briefly.",
    "Give a short caption of the image.",
    "What do you see?",
)

# Kinds that share members, so that "which of these is a kind of ..." could have two answers.
OVERLAPPING_KINDS = {
    "animal": {"food", "character"},
    "character": {"animal"},
    "food": {"animal", "plant"},
    "houseware": {"tool"},
    "instrument": {"tool"},
    "item": {"card", "vehicle"},
    "card": {"item"},
    "plant": {"food"},
    "tool": {"houseware", "instrument", "vehicle"},
    "vehicle": {"item", "tool"},
}

Row = dict[str, Any]


class Turn(NamedTuple):
    question: str
    answer: str


class Choice(NamedTuple):
    """A multiple-choice question about ``options``, of which ``letter`` is the right one."""

    options: list[str]
    letter: str

    def turn(self, question: str) -> Turn:
        lines = [f"{letter}. {o}" for letter, o in zip(LETTERS, self.options, strict=True)]
        return Turn("\n".join([question, *lines]) + LETTER, self.letter)


def yes_no_question(name: str) -> str:
    return f"Is there {with_article(name)} in the image?" + SHORT


def split(pictures: Iterable[Picture], seed: int) -> tuple[list[Picture], list[Picture]]:
    """(training, held-out) pictures: a quarter of every kind is held out, drawn by ``seed``."""
    rng = random.Random(f"{seed}:split")
    train: list[Picture] = []
    held_out: list[Picture] = []
    ordered = sorted(pictures, key=lambda picture: picture.path)
    for kind in sorted({picture.kind for picture in ordered}):
        of_kind = [picture for picture in ordered if picture.kind == kind]
        rng.shuffle(of_kind)
        num_held_out = round(len(of_kind) * HELD_OUT_SHARE)
        held_out += of_kind[:num_held_out]
        train += of_kind[num_held_out:]
    return sorted(train, key=lambda p: p.path), sorted(held_out, key=lambda p: p.path)


def wrong_names(
    rng: random.Random, picture: Picture, pool: Sequence[Picture], count: int
) -> list[str]:
    """``count`` names from ``pool`` that are surely wrong, each of the same kind half of the time.

    No two of them, nor one and the right name, may be names of one thing.
    """
    names: list[str] = []
    for _ in range(count):
        taken = [picture.name, *names]
        fit = [p for p in pool if not any(may_be_same(p.name, name) for name in taken)]
        same_kind = rng.random() < 0.5
        wanted = sorted({p.name for p in fit if (p.kind == picture.kind) == same_kind})
        candidates = wanted or sorted({p.name for p in fit})  # a small kind may have none left
        if not candidates:
            raise ValueError(
                f"no wrong name for {picture.name!r} among {len(pool)} pictures: give more pictures"
            )
        names.append(rng.choice(candidates))
    return names


def balanced_letters(rng: random.Random, count: int) -> list[str]:
    """``count`` letters in random order, each as often as the others, give or take one."""
    letters = [LETTERS[i % len(LETTERS)] for i in range(count)]
    rng.shuffle(letters)
    return letters


def choice(right: str, wrong: Sequence[str], letter: str) -> Choice:
    options = list(wrong)
    options.insert(LETTERS.index(letter), right)
    return Choice(options, letter)


def align_rows(train: Sequence[Picture], seed: int) -> list[Row]:
    """One caption per picture, LLaVA's first stage."""
    rng = random.Random(f"{seed}:align")
    rows = []
    for picture in train:
        caption = f"{with_article(picture.name).capitalize()}."
        turn = Turn(rng.choice(CAPTION_PROMPTS), caption)
        rows.append(_row(_stem(picture), [turn], picture.path))
    return rows


def finetune_rows(train: Sequence[Picture], seed: int) -> list[Row]:
    """One conversation of five turns per picture in random order, then a few without a picture."""
    rng = random.Random(f"{seed}:finetune")
    rows = []
    letters = balanced_letters(rng, len(train))
    for picture, letter in zip(train, letters, strict=True):
        (absent,) = wrong_names(rng, picture, train, 1)
        options = choice(picture.name, wrong_names(rng, picture, train, 3), letter)
        turns = [
            Turn(NAME_QUESTION, picture.name),
            Turn(KIND_QUESTION, picture.kind),
            Turn(yes_no_question(picture.name), "yes"),
            Turn(yes_no_question(absent), "no"),
            options.turn(CHOICE_QUESTION),
        ]
        rng.shuffle(turns)
        rows.append(_row(_stem(picture), turns, picture.path))
    rows += text_rows(train, seed)
    rng.shuffle(rows)
    return rows


def text_rows(train: Sequence[Picture], seed: int) -> list[Row]:
    """Questions on names and kinds alone, so that about 5 % of all rows have no picture."""
    rng = random.Random(f"{seed}:text")
    count = max(2, round(len(train) * TEXT_ONLY_SHARE / (1 - TEXT_ONLY_SHARE)))
    letters = balanced_letters(rng, count)
    rows = []
    for i, picture in enumerate(rng.sample(list(train), count)):
        if i % 2:
            alike = {picture.kind, *OVERLAPPING_KINDS.get(picture.kind, ())}
            others = [p for p in train if p.kind not in alike]
            wrong = wrong_names(rng, picture, others, 3)
            question = f"Which of these is a kind of {picture.kind}?"
            turn = choice(picture.name, wrong, letters[i]).turn(question)
        else:
            question = f"What kind of thing is {with_article(picture.name)}?"
            turn = Turn(question + SHORT, picture.kind)
        rows.append(_row(f"text-{i:03d}", [turn], None))
    return rows


def held_out_tasks(held_out: Sequence[Picture], seed: int) -> dict[str, list[Row]]:
    """Questions by task: `yesno` (as POPE), `choice` (as ScienceQA), `short` (one word or so)."""
    rng = random.Random(f"{seed}:heldout")
    tasks: dict[str, list[Row]] = {"yesno": [], "choice": [], "short": []}
    letters = balanced_letters(rng, len(held_out))
    for picture, letter in zip(held_out, letters, strict=True):
        (absent,) = wrong_names(rng, picture, held_out, 1)
        present = Turn(yes_no_question(picture.name), "yes")
        tasks["yesno"].append(_question(picture, "yes", present, "yes"))
        tasks["yesno"].append(_question(picture, "no", Turn(yes_no_question(absent), "no"), "no"))
        options = choice(picture.name, wrong_names(rng, picture, held_out, 3), letter)
        row = _question(picture, "choice", options.turn(CHOICE_QUESTION), picture.kind)
        tasks["choice"].append({**row, "options": options.options})
        for group, turn in (
            ("kind", Turn(KIND_QUESTION, picture.kind)),
            ("name", Turn(NAME_QUESTION, picture.name)),
        ):
            tasks["short"].append(_question(picture, group, turn, group))
    return tasks


def _question(picture: Picture, suffix: str, turn: Turn, group: str) -> Row:
    return {
        "id": f"{_stem(picture)}-{suffix}",
        "image": picture.path,
        "question": turn.question,
        "answer": turn.answer,
        "group": group,
    }


def _row(name: str, turns: Sequence[Turn], image: str | None) -> Row:
    """A row in LLaVA's JSON; the first question of a row with a picture carries its place."""
    conversation = []
    for i, turn in enumerate(turns):
        prefix = IMAGE if image is not None and i == 0 else ""
        conversation.append({"from": "human", "value": prefix + turn.question})
        conversation.append({"from": "gpt", "value": turn.answer})
    row: Row = {"id": name, "conversations": conversation}
    if image is not None:
        row["image"] = image
    return row


def _stem(picture: Picture) -> str:
    return PurePosixPath(picture.path).stem
