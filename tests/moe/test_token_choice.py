"""Routers that choose by token, and the router of CompeteSMoE, against loops over numbers.

Weights, losses and the gradient of every parameter, in float64 to its last digits.  T tokens, E
experts, K chosen per token, D width.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from llava_compete.moe import ROUTERS, Experts, RoutingContext
from llava_compete.moe.routers import RouterSpec

T, E, K, D = 13, 5, 2, 8
MASK = torch.arange(T) % 4 != 2
SCALE = 30.0  # of the gates: at the start all scores are alike


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def norm(a):
    return dot(a, a) ** 0.5


def linear_logits(parameters, x_D):
    return [dot(row_D, x_D) for row_D in parameters["gate.weight"]]


def gatepro_logits(parameters, x_D):
    """A score below that of the expert with the most similar row loses 1e-4."""
    rows = parameters["gate.weight"]
    z = linear_logits(parameters, x_D)

    def partner(e):
        others = [o for o in range(E) if o != e]
        return max(others, key=lambda o: dot(rows[e], rows[o]) / norm(rows[e]) / norm(rows[o]))

    return [z[e] - 1e-4 if z[e] < z[partner(e)] else z[e] for e in range(E)]


def cosine_logits(parameters, x_D, theta=None):
    """1.5 cos / 0.3; ``theta`` is added to both norms."""
    reduced = [dot(row_D, x_D) for row_D in parameters["reduction.weight"]]
    return [
        1.5
        * dot(reduced, row_R)
        / ((norm(reduced) + (theta or 0)) * (norm(row_R) + (theta or 0)))
        / 0.3
        for row_R in parameters["embeddings"]
    ]


def perturbed_logits(parameters, x_D):
    return cosine_logits(parameters, x_D, theta=0.1)


def softmax(z):
    powers = [value.exp() for value in z]
    return [power / sum(powers) for power in powers]


def sigmoid(z):
    return [1 / (1 + (-value).exp()) for value in z]


FORMULAS = {
    "topk": (linear_logits, softmax),
    "compete": (linear_logits, softmax),
    "sigmoid": (linear_logits, sigmoid),
    "gatepro": (gatepro_logits, softmax),
    "cosine": (cosine_logits, softmax),
    "perturbed_cosine": (perturbed_logits, softmax),
}


def loop(name, parameters, x_TD):
    """Weights (T, E), balance and z-loss."""
    logits_of, scores_of = FORMULAS[name]
    weights_TE = torch.zeros(T, E, dtype=torch.float64)
    count, mean, z_losses = [0] * E, [0.0] * E, []
    for token, x_D in enumerate(x_TD):
        z = logits_of(parameters, x_D)
        scores, probs = scores_of(z), softmax(z)
        best = sorted(range(E), key=lambda e: -z[e].item())[:K]
        for e in best:
            weights_TE[token, e] = scores[e] / sum(scores[other] for other in best)
        if MASK[token]:
            z_losses.append(sum(value.exp() for value in z).log() ** 2)
            for e in range(E):
                count[e] += e in best
                mean[e] = mean[e] + probs[e]
    kept = len(z_losses)
    balance = sum(E * count[e] / sum(count) * mean[e] / kept for e in range(E))
    return weights_TE, {"balance": balance, "router_z": sum(z_losses) / kept}


@pytest.mark.parametrize("name", FORMULAS)
def test_weights_losses_and_gradients_equal_the_loop(name, precision):
    experts = Experts(E, D, 12, D, activation="silu", gated=True, bias=False)
    router = ROUTERS[name](RouterSpec(width=D, out_width=D, num_experts=E, top_k=K, seed=0))
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.mul_(3.0 if "cosine" in name else SCALE)
    router.to(precision)
    x_TD, random_TE = (torch.randn(T, n, dtype=precision) for n in (D, E))
    routing = router(x_TD, experts, RoutingContext(mask_T=MASK))
    got_TE = torch.zeros(T, E, dtype=precision).scatter(1, routing.ids_TK, routing.weights_TK)
    (got_TE * random_TE).sum().add(sum(routing.losses.values())).backward()

    parameters = {
        key: value.detach().double().requires_grad_() for key, value in router.named_parameters()
    }
    wanted_TE, wanted = loop(name, parameters, x_TD.double())
    ((wanted_TE * random_TE).sum() + sum(wanted.values())).backward()
    pairs = [(got_TE, wanted_TE), *((routing.losses[key], wanted[key]) for key in wanted)]
    pairs += [(router.get_parameter(key).grad, value.grad) for key, value in parameters.items()]
    for got, expected in pairs:
        assert_close(got, expected.to(precision))
    gradient = math.hypot(*(value.grad.norm().item() for value in parameters.values()))
    assert gradient > 0.01
