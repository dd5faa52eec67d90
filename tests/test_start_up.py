"""What a start does not need is not imported."""

import importlib
import subprocess
import sys

import pytest

import data_prep
import experiments
import llava_compete.data
import llava_compete.verbs
from eval.verbs import VERBS as EVAL_VERBS
from llava_compete.lazy import lazy_names
from llava_compete.program import Program, module_name

HEAVY = ("torch", "transformers", "timm", "open_clip", "deepspeed", "matplotlib", "wandb")
PROGRAMS = {
    "llava_compete": llava_compete.verbs.VERBS,
    "eval": EVAL_VERBS,
    "data_prep": data_prep.VERBS,
    "experiments": experiments.VERBS,
    "benchmarks": {},  # a benchmark's parser stands beside what it measures
}
# Its keys are fields of transformers' TrainingArguments.
NEEDS_TRANSFORMERS = "train"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_imports_neither_torch_nor_transformers(program):
    verbs = [verb for verb in PROGRAMS[program] if verb != NEEDS_TRANSFORMERS]
    run(
        f"import contextlib, sys\n"
        f"from {program}.__main__ import main\n"
        f"for words in [[], *([verb] for verb in {verbs})]:\n"
        f"    with contextlib.suppress(SystemExit):\n"
        f"        main([*words, '--help'])\n"
        f"    found = [name for name in {HEAVY} if name in sys.modules]\n"
        f"    assert not found, (words, found)\n"
    )


def test_the_keys_of_a_recipe_need_no_deepspeed_and_no_tower():
    printed = run(
        "import contextlib, sys\n"
        "from llava_compete.__main__ import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['train', '--help'])\n"
        "print([name for name in ('deepspeed', 'timm', 'open_clip') if name in sys.modules])"
    )
    assert "--competition_rate" in printed
    assert printed.splitlines()[-1] == "[]"


@pytest.mark.parametrize("package", [llava_compete, llava_compete.data], ids=lambda p: p.__name__)
def test_every_public_name_is_found_and_is_no_module(package):
    for name in package.__all__:
        assert not isinstance(getattr(package, name), type(sys)), name
    assert set(package.__all__) <= set(dir(package))


def test_the_package_and_its_data_need_no_torch_until_a_name_does():
    run(
        "import sys, llava_compete\n"
        "from llava_compete.data import ImageFolder, read_rows, to_messages\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "from llava_compete import LlavaCompeteConfig\n"
        "assert LlavaCompeteConfig is sys.modules['llava_compete.model'].LlavaCompeteConfig\n"
        "from transformers import AutoConfig\n"
        "assert isinstance(AutoConfig.for_model('llava_compete'), LlavaCompeteConfig)\n"
    )


def test_a_name_that_is_not_public_is_refused():
    get, names = lazy_names("json", {"json.decoder": ["JSONDecodeError"]})
    with pytest.raises(AttributeError, match=r"'json' has no attribute 'loader'"):
        get("loader")
    assert {"JSONDecodeError", "dumps"} <= set(names())
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from llava_compete import nothing")


@pytest.mark.parametrize(("program", "verbs"), PROGRAMS.items())
def test_every_verb_has_a_module_and_no_module_is_without(program, verbs):
    package = f"{program}.verbs" if program in ("llava_compete", "eval") else program
    for verb in verbs:
        assert importlib.util.find_spec(f"{package}.{module_name(verb)}"), verb


def test_a_verb_that_is_not_there_is_refused_with_the_others(capsys):
    program = Program("json verbs", "Of json.", "json", {"tool": "reads", "decoder": "decodes"})
    with pytest.raises(SystemExit) as refused:
        program.read(["tol"])
    assert refused.value.code == 2
    assert "'tool', 'decoder'" in capsys.readouterr().err
    call = program.read(["tool", "--help", "x"])
    assert (call.verb, call.words) == ("tool", ["--help", "x"])
    assert call.main.__module__ == "json.tool"
