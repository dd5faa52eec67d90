"""The command line from a language model and a tower to a report, on a toy set."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from eval.__main__ import main as eval_main
from llava_compete.__main__ import main
from tests import tiny

QUESTION = "What is it?\nAnswer the question using a single word or phrase."


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What a user starts from: a language model, tower weights, rows and held-out questions."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    weights = root / "tower.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), weights)
    rows, images = tiny.write_rows(root, n=6, text_only=(1,))
    held_out = root / "heldout"
    held_out.mkdir()
    with (held_out / "short.jsonl").open("w") as file:
        for index, group in ((0, "kind"), (2, "name"), (3, "kind"), (4, "name")):
            row = {"id": f"q{index}", "image": f"images/{index}.png", "question": QUESTION}
            file.write(json.dumps({**row, "answer": f"box {index}", "group": group}) + "\n")
    language_model = tiny.make_language_model(root / "lm")
    return {"root": root, "lm": language_model, "tower": weights, "rows": rows, "images": images}


@pytest.fixture(scope="module")
def dense(parts: dict[str, Path]) -> Path:
    output = parts["root"] / "dense"
    main(
        [
            "compose",
            *("--language_model", str(parts["lm"]), "--vision", "timm/test_vit"),
            *("--vision_weights", str(parts["tower"]), "--image_size", "160"),
            *("--calibration_data", str(parts["rows"]), "--image_folder", str(parts["images"])),
            *("--output", str(output)),
        ]
    )
    return output


@pytest.fixture(scope="module")
def experts(parts: dict[str, Path], dense: Path) -> Path:
    output = parts["root"] / "experts"
    main(["upcycle", str(dense), "--output", str(output), "--layers", "1"])
    return output


def write_recipe(parts: dict[str, Path], checkpoint: Path, output: Path) -> str:
    recipe = {
        "checkpoint": str(checkpoint),
        "trainable": ["projector", "language_model"],
        "data_path": str(parts["rows"]),
        "image_folder": str(parts["images"]),
        "output_dir": str(output),
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "competition_rate": 0.5,
        "competition_warmup": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
    }
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe))
    return str(file)


@pytest.mark.slow
def test_from_parts_to_a_report(
    parts: dict[str, Path], experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, run, report = (tmp_path / name for name in ("trained", "run", "report"))
    main(["train", write_recipe(parts, experts, trained)])
    words = ["--checkpoint", str(trained), "--data_root", str(parts["root"]), "--out", str(run)]
    assert eval_main(["run", *words, "--tasks", "stamps_short", "--batch_size", "2"]) == 0
    capsys.readouterr()
    words = ["report", str(run), "--training", str(trained), "--output", str(report)]
    assert eval_main(words) == 0
    results = json.loads((run / "results.json").read_text())
    assert results["tasks"]["stamps_short"]["conditions"]["right"]["n"] == 4
    assert "stamps_short" in (report / "report.md").read_text()
    assert (report / "report.html").stat().st_size > 10_000


def test_upcycle_prints_the_difference_and_the_parameter_counts(
    parts: dict[str, Path], dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["upcycle", str(dense), "--output", str(tmp_path / "out"), "--parts", "projector"])
    printed = capsys.readouterr().out
    assert "projector: 1 layers of 4 experts, top 2" in printed
    assert "largest difference of a logit" in printed
    assert "active" in printed


def test_a_dry_run_prints_a_marked_sample(
    parts: dict[str, Path], experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["train", write_recipe(parts, experts, tmp_path / "run"), "--dry_run"])
    assert "[[Box 0.<|im_end|>]]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top_k", "5"], "top_k=5 must be between 1 and num_experts=4"),
        (["--router", "topp"], "router='topp' is not known; did you mean topk"),
        (["--parts", "projektor"], "'projektor' cannot be a mixture of experts; did you mean"),
        (["--layers", "7"], "the language model has layers 0 to 1"),
        (["--parts", "projector", "--layers", "1"], "are of the language model"),
    ],
)
def test_upcycle_names_what_is_wrong_and_writes_nothing(
    dense: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=message) as stopped:
        main(["upcycle", str(dense), "--output", str(tmp_path / "out"), *words])
    assert stopped.value.code != 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vision", "timm/test_vitt"], "timm has no model 'test_vitt'; did you mean test_vit"),
        (["--vision", "ViT-L-14-337"], "open_clip has no model 'ViT-L-14-337'; did you mean"),
        (["--projector", "mlp"], "projector='mlp' is not known"),
        (["--vision_layer", "-9"], "no features from layer -9"),
        (["--vision_layer", "last"], "vision_layer='last' must be a block's index or 'final'"),
        (["--chat_format", "phi3"], r"chat_format='phi3': the tokenizer has no"),
    ],
)
def test_compose_names_what_is_wrong_and_writes_nothing(
    parts: dict[str, Path], tmp_path: Path, words: list[str], message: str
) -> None:
    given = {
        "--language_model": str(parts["lm"]),
        "--vision": "timm/test_vit",
        "--vision_weights": str(parts["tower"]),
        "--output": str(tmp_path / "out"),
    }
    given |= dict(zip(words[::2], words[1::2], strict=True))
    with pytest.raises(SystemExit, match=message):
        main(["compose", *(word for pair in given.items() for word in pair)])
    assert not (tmp_path / "out").exists()


def test_a_composed_directory_is_not_overwritten(parts: dict[str, Path], dense: Path) -> None:
    before = sorted(file.name for file in dense.iterdir())
    with pytest.raises(SystemExit, match="exists and is not empty"):
        main(["upcycle", str(dense), "--output", str(dense)])
    assert sorted(file.name for file in dense.iterdir()) == before


def test_the_command_says_its_verbs_and_refuses_others() -> None:
    command = [sys.executable, "-m", "llava_compete"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert all(verb in shown.stdout for verb in ("compose", "upcycle", "train"))
    refused = subprocess.run([*command, "trian"], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "trian" in refused.stderr
