"""``python -m eval`` with a model that needs no torch and takes its time.

python tests/eval/slow_run.py SECONDS VERB ...
"""

import sys
import time
from types import ModuleType

from eval.__main__ import main
from tests.eval.conftest import FakeModel


def serve(seconds: float) -> None:
    """Stand in for eval.model."""

    def reply(sample):
        time.sleep(seconds)
        return f"{sample.images[0].stem} {sample.id}"

    module = ModuleType("eval.model")
    module.LlavaCompete = type("Loader", (), {"load": lambda *args: FakeModel(reply)})
    sys.modules["eval.model"] = module


if __name__ == "__main__":
    serve(float(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
