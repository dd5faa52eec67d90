"""The class that lmms-eval makes of ``--model llava_compete --model_args pretrained=DIR``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms

from eval.inference import Inference
from eval.lmms import ask
from eval.model import LlavaCompete
from eval.ranks import Rank


class LlavaCompeteLmms(lmms):
    """A checkpoint directory behind lmms-eval's interface for simple models; decoding is greedy."""

    is_simple = True

    def __init__(self, pretrained: str, dtype: str = "float32", batch_size: int | str = 1) -> None:
        """``batch_size`` requests, at most, go to the model together.

        ValueError where it is no whole number above 0, and where the checkpoint cannot be loaded.
        """
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(
                f"batch_size={batch_size!r} must be a whole number above 0; one that turns out "
                f"too large for the memory is halved by itself"
            )
        self.batch_size = int(batch_size)
        local_rank = Rank.of_environment().local
        self._asked = LlavaCompete.load(Path(pretrained), dtype, Inference(), local_rank)

    @property
    def device(self) -> Any:
        """The torch.device where lmms-eval puts the counts that its ranks exchange."""
        return self._asked.model.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy answers, cut at the first stop string."""
        arguments = [request.args for request in requests]
        return ask.generate_until(self._asked, arguments, self.task_dict, self.batch_size)

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Of each continuation its loss, and whether it is the greedy answer."""
        arguments = [request.args for request in requests]
        pairs = ask.loglikelihood(self._asked, arguments, self.task_dict, self.batch_size)
        # lmms-eval 0.7.3 makes a string of a bare pair (unwrap_generation_output) and then fails.
        return [GenerationResult(pair) for pair in pairs]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """ValueError: the harness asks one question at a time."""
        raise ValueError(
            f"{len(requests)} requests are of several rounds, which this model does not take: "
            f"leave out tasks of output_type generate_until_multi_round"
        )
