"""The head and its loss: all positions, answers alone, answers in chunks."""

import argparse
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Laps, interleaved, paired, summary, table
from benchmarks.memory import account
from llava_compete.chunked_loss import LossHead

POSITIONS, ANSWERS = 8192, 2048
SHAPES = {"frozen 576 x 49153": (576, 49_153, False), "trained 1024 x 32000": (1024, 32_000, True)}
BASE = "all positions"


class _Loss:
    """Called: loss and gradients of a head; its seconds."""

    def __init__(self, way: str, linear: LossHead, device: torch.device) -> None:
        self.way, self.linear, self.device = way, linear, device
        generator = torch.Generator().manual_seed(0)
        shape = (POSITIONS, linear.in_features)
        hidden = torch.randn(shape, generator=generator).to(device, linear.weight.dtype)
        labels = torch.randint(linear.out_features, (POSITIONS,), generator=generator).to(device)
        labels[: POSITIONS - ANSWERS] = -100
        kept = slice(0 if way == BASE else POSITIONS - ANSWERS, None)
        self.hidden, self.labels = hidden[kept].requires_grad_(), labels[kept]
        trained = [linear.weight] if linear.weight.requires_grad else []
        self.wanted: list[Tensor] = [self.hidden, *trained]

    def work(self) -> Any:
        """Without a clock."""
        if self.way == "answers in chunks":
            loss = self.linear(self.hidden, self.labels).total
        else:
            loss = F.cross_entropy(self.linear(self.hidden).float(), self.labels, reduction="sum")
        return loss.detach(), torch.autograd.grad(loss, self.wanted)

    def __call__(self) -> float:
        laps = Laps(self.device)
        laps.mark()
        self.work()
        laps.mark()
        return laps.seconds()[0]


def head(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak bytes of each way, for a head that is frozen and one that is trained."""
    found: dict[str, Any] = {"positions": POSITIONS, "answers": ANSWERS}
    for shape, (width, vocabulary, trained) in SHAPES.items():
        linear = LossHead(width, vocabulary, bias=False, dtype=torch.bfloat16, device=args.device)
        linear.requires_grad_(trained)
        ways = {
            way: _Loss(way, linear, args.device) for way in (BASE, "answers", "answers in chunks")
        }
        losses = [way.work()[0] for way in ways.values()]
        assert max(losses) - min(losses) < 1e-3 * max(losses), losses
        seconds = interleaved(ways, args.rounds)
        found[shape] = {
            way: {
                "seconds": summary(values),
                "times_faster": paired(seconds[BASE], values),
                "peak": account(ways[way].work, args.device).most,
            }
            for way, values in seconds.items()
        }
        heads = [f"head {shape}", "seconds", "times faster", "peak MiB"]
        rows = [
            [
                way,
                figures["seconds"]["median"],
                figures["times_faster"]["median"],
                figures["peak"] / 2**20,
            ]
            for way, figures in found[shape].items()
        ]
        print(f"\n{table([heads, *rows])}")
    print(f"{POSITIONS} positions, {ANSWERS} of answers, bfloat16")
    return found
