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
from llava_compete.checkpoint import read_config
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


def test_parts_get_values_of_their_own_from_a_file(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moe, output = tmp_path / "moe.yaml", tmp_path / "out"
    moe.write_text(
        "vision: {layers: [1, 3], num_experts: 3, loss_weights: {balance: 2e-2}}\n"
        "projector: {router: cosine, top_k: 1}\n"
        "language_model: {seed: 7}\n"
    )
    flags = ["--moe", str(moe), "--num_experts", "6", "--router", "topk"]
    main(["upcycle", str(dense), "--output", str(output), *flags])
    printed = capsys.readouterr().out
    assert "vision: 2 layers of 3 experts, top 2, router topk" in printed
    assert "projector: 1 layers of 6 experts, top 1, router cosine" in printed
    assert "language_model: 2 layers of 6 experts, top 2, router topk" in printed
    configs = read_config(output).moe_configs
    assert configs["vision"].loss_weights["balance"] == 0.02
    assert (configs["vision"].layers, configs["language_model"].layers) == ((1, 3), None)
    assert (configs["projector"].seed, configs["language_model"].seed) == (42, 7)


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("vision: {num_expert: 3}", [], "vision: unknown key 'num_expert'; did you mean num_exp"),
        ("vision: {num_experts: many}", [], "vision: .*not supported between"),
        ("vision: {top_k: 9}", [], "vision: top_k=9 must be between 1 and num_experts=4"),
        ("vision: 3", [], r"vision must be a mapping, such as \{num_experts: 8\}"),
        ("visoin: {}", [], "'visoin' cannot be a mixture of experts; did you mean vision"),
        ("vision: {layers: [9]}", [], r"layers=\(9,\): the image tower .* has layers 0 to 4"),
        ("vision: {}", ["--parts", "vision"], "names parts and their layers: no --parts"),
        ("vision: {}", ["--layers", "1"], "names parts and their layers: no --parts"),
    ],
)
def test_what_is_wrong_in_the_file_of_parts_is_named(
    dense: Path, tmp_path: Path, text: str, words: list[str], message: str
) -> None:
    moe = tmp_path / "moe.yaml"
    moe.write_text(text)
    with pytest.raises(SystemExit, match=message):
        main(["upcycle", str(dense), "--output", str(tmp_path / "o"), "--moe", str(moe), *words])
    assert not (tmp_path / "o").exists()


def test_compose_at_two_scales_makes_a_wider_projector(
    parts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--language_model",
        str(parts["lm"]),
        "--vision",
        "timm/test_vit",
        "--image_size",
        "32",
    ]
    words += ["--vision_weights", str(parts["tower"]), "--output", str(tmp_path / "out")]
    main(["compose", *words, "--scales", "1", "2"])
    assert "timm/test_vit (4 tokens of 128 an image)" in capsys.readouterr().out
    assert read_config(tmp_path / "out").vision.scales == (1, 2)


def test_count_prints_a_table_or_json_of_checkpoints_and_named_models(
    experts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["count", str(experts), "paper"])
    printed = capsys.readouterr().out
    assert f"{experts}: 0.00B parameters; timm/test_vit at scale 1, 100 tokens" in printed
    assert "paper: 5.10B parameters; ViT-SO400M-14-SigLIP at scale 1 and 3, 256 tokens" in printed
    assert "total: parameters held." in printed
    main(["count", str(experts), "--json"])
    (counted,) = json.loads(capsys.readouterr().out)
    assert counted["model"] == str(experts)
    assert counted["moe"]["language_model"]["layers"] == [1]
    assert set(counted["counts"]) == {"vision", "projector", "language_model", "all"}


def test_count_refuses_what_is_neither_a_directory_nor_a_name() -> None:
    with pytest.raises(
        SystemExit, match=r"'papre' is neither a checkpoint directory .* mean paper"
    ):
        main(["count", "papre"])


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
        (["--scales", "3"], r"scales=\[3\] must be whole numbers that begin with 1 and grow"),
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
    assert all(verb in shown.stdout for verb in ("compose", "upcycle", "count", "train"))
    refused = subprocess.run([*command, "trian"], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "trian" in refused.stderr
