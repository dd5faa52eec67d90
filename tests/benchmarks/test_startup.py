import json
import subprocess

import pytest

from benchmarks.startup import main, processor_seconds


def test_a_command_is_held_against_the_import_of_torch(tmp_path, capsys):
    file = tmp_path / "startup.json"
    main(["--rounds", "1", "--only", "llava-compete --help", "--json", str(file)])
    seconds = json.loads(file.read_text())["seconds"]
    assert list(seconds) == ["import torch", "llava-compete --help"]
    assert all(len(values) == 1 and values[0] > 0 for values in seconds.values())
    assert "/ import torch" in capsys.readouterr().out


def test_a_command_that_fails_is_no_figure():
    with pytest.raises(subprocess.CalledProcessError):
        processor_seconds(("-c", "raise SystemExit(3)"))


def test_what_a_process_takes_is_counted_and_what_it_waits_is_not():
    works = processor_seconds(("-c", "import time\nwhile time.process_time() < 0.4: pass"))
    waits = processor_seconds(("-c", "import time\ntime.sleep(0.4)"))
    assert works >= 0.4
    assert waits < works
