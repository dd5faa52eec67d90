"""Which layers compete at which optimizer step: a pure function of (seed, step)."""

import math
import random


class CompetitionSchedule:
    """At most ``max_layers`` of ``num_layers`` compete in a step, each layer at rate ``rate``.

    CompeteSMoE (arXiv:2505.13380) lets every layer draw Bernoulli(rate) on its own and caps the
    number of competing layers. Clipping in layer order would starve the late layers, so here the
    *number* of competing layers is drawn first, from the binomial distribution conditioned on
    the cap and tilted until its mean is rate * num_layers; then which, uniformly. Every layer so
    has exactly the configured rate, and where the cap cannot bite this is the paper's Bernoulli.
    The official code instead moves a displaced competition to another step of the same run.

    Each step has its own generator, so all ranks agree, nothing is saved, and a longer run
    repeats the decisions of a shorter one. Steps count from 0; the first ``warmup_steps`` use
    the plain router.
    """

    def __init__(
        self, num_layers: int, *, rate: float, max_layers: int, warmup_steps: int, seed: int
    ) -> None:
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"competition rate={rate} must be between 0 and 1")
        if max_layers < 0 or warmup_steps < 0:
            raise ValueError(f"{max_layers=} and {warmup_steps=} must not be negative")
        if rate * num_layers > max_layers:
            raise ValueError(
                f"competition rate={rate} of {num_layers} layers needs {rate * num_layers:g} "
                f"competing layers a step on average, but max_layers={max_layers} caps them: "
                f"raise max_layers to at least {math.ceil(rate * num_layers)} or lower the rate "
                f"to at most {max_layers / num_layers:.4g}"
            )
        self.num_layers = num_layers
        self.warmup_steps = warmup_steps
        self.seed = seed
        self._cumulative = _cumulative_counts(num_layers, rate, min(max_layers, num_layers))

    def competing(self, step: int) -> tuple[bool, ...]:
        """One flag per layer for optimizer step ``step``."""
        if step < self.warmup_steps:
            return (False,) * self.num_layers
        # A string seed goes through SHA-512: neighbouring steps are as unlike as any two.
        generator = random.Random(f"{self.seed}:{step}")
        draw = generator.random()
        count = sum(draw >= bound for bound in self._cumulative[:-1])
        chosen = set(generator.sample(range(self.num_layers), count))
        return tuple(layer in chosen for layer in range(self.num_layers))


def _cumulative_counts(num_layers: int, rate: float, cap: int) -> list[float]:
    """P(count <= c) for c = 0..cap, with mean rate * num_layers."""
    target = rate * num_layers
    if target == 0:
        return [1.0] * (cap + 1)
    if target == cap:
        return [0.0] * cap + [1.0]
    low, high = -700.0, 700.0  # log odds of one layer; the mean rises with it
    for _ in range(200):
        middle = (low + high) / 2
        probabilities = _tilted(num_layers, cap, middle)
        mean = sum(count * p for count, p in enumerate(probabilities))
        low, high = (middle, high) if mean < target else (low, middle)
    probabilities = _tilted(num_layers, cap, (low + high) / 2)
    return [sum(probabilities[: count + 1]) for count in range(cap + 1)]


def _tilted(num_layers: int, cap: int, log_odds: float) -> list[float]:
    """Binomial probabilities of 0..cap with these odds of one layer, normalised."""
    logs = [math.log(math.comb(num_layers, count)) + count * log_odds for count in range(cap + 1)]
    largest = max(logs)
    weights = [math.exp(value - largest) for value in logs]
    total = sum(weights)
    return [weight / total for weight in weights]
