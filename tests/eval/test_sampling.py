import torch

from eval.sampling import GumbelNoise, Sampling
from eval.task import Sample


def sample(i):
    return Sample(f"{i}", "?", ("a",))


def test_draws_follow_the_distribution():
    logits_V = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    rows = 20_000
    processors = Sampling(temperature=0.5).processors([sample(i) for i in range(rows)])
    drawn_R = processors(torch.empty(rows, 0), logits_V.expand(rows, -1).clone()).argmax(dim=-1)
    share_V = torch.bincount(drawn_R, minlength=4) / rows
    expected_V = (logits_V / 0.5).softmax(dim=-1)
    error_V = (expected_V * (1 - expected_V) / rows).sqrt()
    assert ((share_V - expected_V).abs() <= 4 * error_V).all()


def test_top_k_and_top_p_leave_the_likeliest():
    scores_RV = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).repeat(200, 1)
    for options, kept in (({"top_k": 2}, {2, 3}), ({"top_p": 0.6}, {3})):
        processors = Sampling(**options).processors([sample(i) for i in range(200)])
        drawn = processors(torch.empty(200, 0), scores_RV.clone()).argmax(dim=-1)
        assert set(drawn.tolist()) == kept


def test_a_row_draws_the_same_alone_and_beside_others_and_anew_each_token():
    scores_RV = torch.zeros(3, 50)
    together, alone = GumbelNoise([5, 6, 7]), GumbelNoise([6])
    first, second = together(None, scores_RV), together(None, scores_RV)
    assert torch.equal(first[1], alone(None, scores_RV[:1])[0])
    assert torch.equal(second[1], alone(None, scores_RV[:1])[0])
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_another_seed_and_another_question_draw_otherwise():
    def noise(seed, number):
        (processor,) = Sampling(seed=seed).processors([sample(number)])
        return processor(None, torch.zeros(1, 50))

    assert torch.equal(noise(0, 1), noise(0, 1))
    assert not torch.equal(noise(0, 1), noise(1, 1))
    assert not torch.equal(noise(0, 1), noise(0, 2))
