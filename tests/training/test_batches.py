"""The trainer draws what ``batching`` says, and after a resume what it would have drawn."""

import json
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer

from llava_compete.data.batches import BATCHINGS, Batches
from llava_compete.training.dry_run import describe, num_steps
from llava_compete.training.prepare import prepare, run
from llava_compete.training.trainer import LlavaTrainer
from tests.training.launches import launch
from tests.training.recipes import argv, make_recipe

ROWS = 13
MAX_LENGTH = 250
every_batching = pytest.mark.parametrize("batching", BATCHINGS)


@pytest.fixture
def recipe(tmp_path: Path, checkpoints: dict[str, Path]) -> dict[str, Any]:
    return make_recipe(
        tmp_path,
        checkpoints["moe"],
        n=ROWS,
        text_only=(1, 8),
        trainable=["routers"],
        max_length=MAX_LENGTH,
        num_train_epochs=2,
        learning_rate=5e-5,
    )


def make_trainer(recipe: dict[str, Any], **changes: Any) -> tuple[LlavaTrainer, str | None]:
    return prepare(argv(recipe, **changes))


class Drawn:
    """The batches that trainings take, and the number of optimizer steps before each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[int] = []
        self.ids: list[list[list[int]]] = []
        self.masks: list[Tensor] = []
        compute_loss = LlavaTrainer.compute_loss

        def recorded(
            trainer: LlavaTrainer, model: Any, inputs: Any, *rest: Any, **more: Any
        ) -> Any:
            self.steps.append(trainer.state.global_step)
            self.ids.append(inputs["input_ids"].tolist())
            self.masks.append(inputs["attention_mask"])
            return compute_loss(trainer, model, inputs, *rest, **more)

        monkeypatch.setattr(LlavaTrainer, "compute_loss", recorded)

    def take(self) -> list[tuple[int, list[list[int]]]]:
        """(steps before it, ids) of each batch since the last call."""
        taken = list(zip(self.steps, self.ids, strict=True))
        for found in (self.steps, self.ids, self.masks):
            found.clear()
        return taken


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    return Drawn(monkeypatch)


def epoch_of(loader: Any, epoch: int) -> list[list[list[int]]]:
    loader.set_epoch(epoch)
    return [batch["input_ids"].tolist() for batch in loader]


def test_shuffled_draws_what_transformers_trainer_draws(recipe: dict[str, Any]) -> None:
    trainer, _ = make_trainer(recipe)
    ours, theirs = trainer.get_train_dataloader(), Trainer.get_train_dataloader(trainer)
    for epoch in range(3):
        assert epoch_of(ours, epoch) == epoch_of(theirs, epoch)
    assert len(ours) == len(theirs)


def test_data_seed_orders_the_rows_where_it_is_given(recipe: dict[str, Any]) -> None:
    recipe |= {"dry_run": True}
    plain = epoch_of(make_trainer(recipe, seed=7)[0].get_train_dataloader(), 0)
    seeded, _ = make_trainer(recipe, data_seed=7)
    assert epoch_of(seeded.get_train_dataloader(), 0) == plain
    assert epoch_of(Trainer.get_train_dataloader(seeded), 0) == plain
    assert epoch_of(make_trainer(recipe)[0].get_train_dataloader(), 0) != plain


@every_batching
def test_every_row_is_drawn_in_each_epoch(recipe: dict[str, Any], batching: str) -> None:
    trainer, _ = make_trainer(recipe, batching=batching)
    torch.manual_seed(99)
    loader = trainer.get_train_dataloader()
    questions = [f"What is box {row} at turn 0?" for row in range(ROWS)]
    epochs = []
    for epoch in range(2):
        epochs.append(epoch_of(loader, epoch))
        text = "".join(trainer.processing_class.batch_decode(list(chain(*epochs[-1]))))
        assert [text.count(question) for question in questions] == [1] * ROWS
    assert epochs[0] != epochs[1]
    torch.manual_seed(5)
    assert epoch_of(trainer.get_train_dataloader(), 1) == epochs[1], "the global generator counts"


WORKERS = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
ACCUMULATION = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}
RESUMES = {  # changes of the recipe, and after how many epochs and steps the run goes on
    "in the middle of an epoch": ({}, (0, 1)),
    "at an epoch's end": ({}, (1, 0)),
    "in the second epoch, with accumulation": (ACCUMULATION, (1, 1)),
    "at an epoch's end, with accumulation": (ACCUMULATION, (1, 0)),
    "with workers": (WORKERS, (0, 2)),
    "with workers, in the second epoch": (WORKERS, (1, 1)),
}


@every_batching
@pytest.mark.parametrize("kind", RESUMES)
def test_a_resumed_run_draws_the_batches_of_the_undisturbed_one(
    recipe: dict[str, Any], drawn: Drawn, batching: str, kind: str
) -> None:
    changes, (epochs, steps) = RESUMES[kind]
    recipe |= {"batching": batching, **changes}
    trainer, _ = make_trainer(recipe, save_strategy="steps", save_steps=1)
    run(trainer, None)
    per_epoch = num_steps(trainer) // 2
    assert per_epoch > 2
    whole = drawn.take()
    assert len(whole) == 2 * len(trainer.get_train_dataloader())
    cut = epochs * per_epoch + steps
    checkpoint = f"{recipe['output_dir']}/checkpoint-{cut}"
    torch.manual_seed(99)
    run(*make_trainer(recipe, resume=checkpoint, output_dir=f"{recipe['output_dir']}-again"))
    assert drawn.take() == [(step, ids) for step, ids in whole if step >= cut]


@every_batching
def test_the_log_has_the_share_of_real_tokens(
    recipe: dict[str, Any], drawn: Drawn, batching: str
) -> None:
    recipe |= {"batching": batching, "logging_steps": 2, "gradient_accumulation_steps": 2}
    trainer, _ = make_trainer(recipe, max_steps=4)
    run(trainer, None)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]
    for entry in logged:
        steps = range(entry["step"] - 2, entry["step"])
        masks = [m for at, m in zip(drawn.steps, drawn.masks, strict=True) if at in steps]
        real, positions = sum(int(m.sum()) for m in masks), sum(m.numel() for m in masks)
        assert entry["data/filled"] == pytest.approx(real / positions, rel=1e-6)


@every_batching
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_steps_that_are_told_are_those_that_are_trained(
    recipe: dict[str, Any], drawn: Drawn, batching: str, accumulation: int
) -> None:
    trainer, _ = make_trainer(
        recipe, batching=batching, gradient_accumulation_steps=accumulation, num_train_epochs=1
    )
    told = num_steps(trainer)
    run(trainer, None)
    assert trainer.state.global_step == told == ceil(len(drawn.masks) / accumulation)


def test_packed_rows_are_attended_to_one_by_one_and_learn_what_a_mask_gives(
    recipe: dict[str, Any],
) -> None:
    losses = {}
    for attention, used in (("sdpa", "packed_sdpa"), ("eager", "eager")):
        folder = str(Path(recipe["output_dir"]).with_name(attention))
        changes = {"batching": "packed", "attn_implementation": attention, "output_dir": folder}
        trainer, _ = make_trainer({**recipe, "max_steps": 3}, **changes)
        assert trainer.model.language_model.config._attn_implementation == used
        run(trainer, None)
        losses[attention] = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses["sdpa"] == pytest.approx(losses["eager"], rel=1e-5)


def test_a_dry_run_tells_batching_and_batches(recipe: dict[str, Any]) -> None:
    trainer, _ = make_trainer(recipe, batching="packed", dry_run=True)
    batches = len(trainer.get_train_dataloader())
    assert f"packed: {batches} batches" in describe(trainer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batching": "shufled"}, "batching='shufled' is not known; did you mean shuffled"),
        ({"train_sampling_strategy": "group_by_length"}, "batching=length_grouped or packed"),
        (
            {"train_sampling_strategy": "sequential", "batching": "packed"},
            "batching=packed: give one of them",
        ),
        ({"dataloader_drop_last": True}, "dataloader_drop_last=true: every row is drawn"),
        ({"accelerator_config": {"split_batches": True}}, "each rank makes its own"),
        ({"accelerator_config": {"even_batches": False}}, "each rank makes its own"),
    ],
)
def test_what_the_batches_would_not_heed_is_refused_before_anything_is_written(
    recipe: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(recipe, **changes)
    assert not Path(recipe["output_dir"]).exists()


@pytest.mark.slow
def test_two_ranks_draw_each_its_own_batches(recipe: dict[str, Any], tmp_path: Path) -> None:
    trainer, _ = make_trainer(recipe, dry_run=True)
    words = [str(tmp_path), *argv(recipe, dry_run=True)]
    launch("tests.training.draw_batches", words, processes=2)
    for rank in range(2):
        found = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert found["shuffled"] == found["transformers"]
        for batching in BATCHINGS:
            batches = Batches(
                trainer.train_dataset.lengths,
                batching=batching,
                batch_size=2,
                max_length=MAX_LENGTH,
                seed=trainer.args.seed,
                rank=rank,
                world_size=2,
            )
            for epoch, drawn_ids in enumerate(found[batching]):
                batches.set_epoch(epoch)
                samples = [[trainer.train_dataset[unit] for unit in batch] for batch in batches]
                expected = [trainer.data_collator(batch)["input_ids"].tolist() for batch in samples]
                assert drawn_ids == expected
