"""Recipes and flags: what is wrong is named, with what was meant; what is given is kept."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llava_compete.config import DataArgs, ModelArgs, parse, read_recipe, resolved


@dataclass
class Some:
    learning_rate: float = field(default=1.0, metadata={"help": "rate"})
    max_steps: int = 1
    bf16: bool = False


def write(folder: Path, text: str) -> str:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return str(file)


def parse_one(argv: list[str]) -> Some:
    return parse((Some,), argv, prog="test")[0]


@pytest.mark.parametrize("value", ["1e-5", "1.0e-5", "0.00001", "'1e-5'", "1E-5"])
def test_a_small_number_is_a_number_however_it_is_written(tmp_path: Path, value: str) -> None:
    assert parse_one([write(tmp_path, f"learning_rate: {value}")]).learning_rate == 1e-5


def test_a_flag_wins_over_the_recipe_and_the_recipe_over_the_default(tmp_path: Path) -> None:
    recipe = write(tmp_path, "max_steps: 5\nlearning_rate: 0.5")
    args = parse_one([recipe, "--max_steps", "7"])
    assert (args.max_steps, args.learning_rate, args.bf16) == (7, 0.5, False)


def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown key 'learning_rat'; did you mean learning_rate"):
        parse_one([write(tmp_path, "learning_rat: 1")])


@pytest.mark.parametrize("flag", ["--max_step", "--maxsteps"])
def test_an_unknown_or_shortened_flag_is_refused_with_the_nearest_name(
    tmp_path: Path, flag: str
) -> None:
    with pytest.raises(ValueError, match=r"unknown flag .*did you mean max_steps"):
        parse_one([write(tmp_path, "max_steps: 5"), flag, "3"])


@pytest.mark.parametrize("text", ["max_steps: many", "max_steps: 2.5", "bf16: perhaps"])
def test_a_value_of_another_type_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=text.split(":")[0]):
        parse_one([write(tmp_path, text)])


@pytest.mark.parametrize("text", ["- a\n- b", "just words", "a: [1"])
def test_a_recipe_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="recipe"):
        read_recipe(Path(write(tmp_path, text)))


def test_a_missing_recipe_is_named() -> None:
    with pytest.raises(ValueError, match=r"recipe nowhere.yaml does not exist"):
        parse_one(["nowhere.yaml"])


def test_lists_and_tables_arrive_whole(tmp_path: Path) -> None:
    recipe = write(
        tmp_path,
        "checkpoint: c\ntrainable: [projector, experts]\nloss_weights: {balance: 0.5}\n"
        "data_path: d\nimage_folder: i",
    )
    model, data = parse((ModelArgs, DataArgs), [recipe], prog="test")
    assert model.trainable == ["projector", "experts"]
    assert model.loss_weights == {"balance": 0.5}
    assert data.max_length == 2048


def test_the_resolved_recipe_holds_what_was_given_and_nothing_else(tmp_path: Path) -> None:
    argv = [write(tmp_path, "max_steps: 5"), "--learning_rate=0.5"]
    assert resolved(argv, [parse_one(argv)]) == {"max_steps": 5, "learning_rate": 0.5}


def test_help_lists_the_keys_and_stops(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_one(["--help"])
    assert stopped.value.code == 0
    assert "--learning_rate" in capsys.readouterr().out
