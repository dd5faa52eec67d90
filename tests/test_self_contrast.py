"""Self-contrast decoding, against loops that read everything again for each token."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import LogitsProcessor

from llava_compete import ROUTERS, SelfContrast
from llava_compete.processor import prompt_batch
from llava_compete.self_contrast import contrast, weak_routing
from tests import tiny

CONVERSATIONS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What now?"}]}],
    [{"role": "user", "content": [{"type": "text", "text": "See "}, {"type": "image"}]}],
]
STRONG = SelfContrast(alpha=0.5, beta=2.0)  # of flat distributions it keeps a part


def prompts(processor, rows=(0, 1, 2)):
    images = [[], [tiny.draw(1)], [tiny.draw(2)]]
    return prompt_batch(processor, [CONVERSATIONS[i] for i in rows], [images[i] for i in rows])


def layers_of(model):
    return [layer for part in model.moe_layers().values() for layer in part]


def rank_alone(rank):
    """Stands for a gate router: only the expert with the rank-th largest logit."""

    def hook(router, args, routing):
        ranked_TE = routing.scores_TE.argsort(dim=-1, descending=True)
        ids_T1 = ranked_TE[:, rank - 1 : rank]
        ones_T1 = torch.ones(ids_T1.shape, dtype=routing.weights_TK.dtype)
        return routing._replace(ids_TK=ids_T1, weights_TK=ones_T1)

    return hook


def weak_logits(model, ids, pixels, rank):
    hooks = [layer.router.register_forward_hook(rank_alone(rank)) for layer in layers_of(model)]
    logits_V = model(ids, pixel_values=pixels).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return logits_V


@torch.no_grad()
def scores_by_loop(model, ids, pixels, options):
    """Of one sequence's next token: two whole forwards, the formula token by token."""
    strong_V = model(ids, pixel_values=pixels).logits[0, -1]
    weak_V = weak_logits(model, ids, pixels, options.weak_rank)
    scores_V = torch.full_like(strong_V, -torch.inf)
    for token, value in enumerate(strong_V):
        if value >= strong_V.max() + math.log(options.alpha):
            scores_V[token] = (1 + options.beta) * value - options.beta * weak_V[token]
    return scores_V.log_softmax(dim=-1)


def greedy_by_loop(model, batch, options, steps):
    """Tokens (1, steps) and log-probabilities (steps, V) of one prompt without padding."""
    ids, seen = batch["input_ids"], []
    for _ in range(steps):
        seen.append(scores_by_loop(model, ids, batch.get("pixel_values"), options))
        ids = torch.cat([ids, seen[-1].argmax()[None, None]], dim=1)
    return ids[:, -steps:], torch.stack(seen)


def generate(model, batch, options, **kwargs):
    defaults = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": []}
    return model.generate(**batch, self_contrast=options, **(defaults | kwargs))


def assert_same_scores(found, wanted):
    assert torch.equal(found.isinf(), wanted.isinf())
    kept = ~wanted.isinf()
    assert_close(found[kept], wanted[kept], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "rank"), [*((family, 2) for family in tiny.FAMILIES), ("llama", 1), ("llama", 4)]
)
def test_greedy_tokens_and_scores_equal_the_loop(moe, family, rank):
    model, processor = moe(family)
    options = SelfContrast(alpha=0.5, beta=2.0, weak_rank=rank)
    for row in range(3):
        batch = prompts(processor, [row])
        found = generate(model, batch, options, return_dict_in_generate=True, output_scores=True)
        ids, scores_TV = greedy_by_loop(model, batch, options, steps=8)
        assert torch.equal(found.sequences, ids)
        assert_same_scores(torch.cat(found.scores), scores_TV)


def test_the_contrast_decides_tokens(moe):
    model, processor = moe("qwen3")
    batch = prompts(processor)
    plain = model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=[])
    assert not torch.equal(generate(model, batch, STRONG), plain)


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"alpha": 1.0}, {"beta": 0.0, "alpha": 1e-9}])
def test_without_a_contrast_it_is_plain_greedy_decoding(moe, options):
    model, processor = moe("qwen3")
    batch = prompts(processor)
    plain = model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=[])
    assert torch.equal(generate(model, batch, SelfContrast(**options)), plain)


def test_equal_experts_contrast_nothing(moe):
    model, processor = moe("qwen3", perturbation=0.0)
    batch = prompts(processor)
    plain = model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=[])
    assert torch.equal(generate(model, batch, SelfContrast()), plain)


def test_a_left_padded_batch_answers_as_its_prompts_alone(moe):
    model, processor = moe("qwen3")
    together = generate(model, prompts(processor), STRONG)
    alone = [generate(model, prompts(processor, [row]), STRONG) for row in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_rows_end_where_they_say_so(moe):
    model, processor = moe("qwen3")
    free = generate(model, prompts(processor), STRONG)
    stop = free[0, 2].item()
    ended = generate(model, prompts(processor), STRONG, eos_token_id=stop)
    first = free[0].tolist().index(stop)
    assert ended[0, : first + 1].tolist() == free[0, : first + 1].tolist()
    assert (ended[0, first + 1 :] == model.generation_config.pad_token_id).all()


def beams_by_loop(model, batch, options, beams, steps):
    """The best of ``beams`` hypotheses kept by summed log-probability, prefixes read anew."""
    kept = [(0.0, batch["input_ids"])]
    for _ in range(steps):
        grown = []
        for total, ids in kept:
            scores_V = scores_by_loop(model, ids, batch.get("pixel_values"), options)
            best = scores_V.topk(beams)
            grown += [
                (total + value.item(), torch.cat([ids, token[None, None]], dim=1))
                for value, token in zip(best.values, best.indices, strict=True)
            ]
        kept = sorted(grown, key=lambda pair: -pair[0])[:beams]
    return kept[0][1][:, -steps:]


def test_beam_search_equals_the_loop_over_prefixes(moe):
    model, processor = moe("qwen3")
    options = SelfContrast(alpha=0.3, beta=1.0)
    found = generate(model, prompts(processor), options, num_beams=3, max_new_tokens=5)
    wanted = [
        beams_by_loop(model, prompts(processor, [row]), options, beams=3, steps=5)
        for row in range(3)
    ]
    assert torch.equal(found, torch.cat(wanted))
    assert not torch.equal(found, generate(model, prompts(processor), options, max_new_tokens=5))


def test_sampling_draws_from_the_contrasted_distribution(moe):
    model, processor = moe("qwen3")
    batch = prompts(processor, [0])
    options = SelfContrast(alpha=0.7, beta=1.0)
    scores_V = scores_by_loop(model, batch["input_ids"], None, options)
    kwargs = {"do_sample": True, "top_k": 0, "num_return_sequences": 400, "max_new_tokens": 1}
    drawn = generate(model, batch, options, **kwargs)
    shares_V = F.one_hot(drawn[:, 0], len(scores_V)).float().mean(dim=0)
    assert (shares_V[scores_V.isinf()] == 0).all()
    assert_close(shares_V, scores_V.exp(), atol=0.1, rtol=0)  # four standard errors
    assert len(drawn.unique()) > 2


def test_several_samples_of_a_prompt_each_keep_their_own_history(moe):
    model, processor = moe("qwen3")
    options = SelfContrast(alpha=0.2, beta=1.0)
    kwargs = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": 4, "top_k": 0}
    kwargs |= {"return_dict_in_generate": True, "output_scores": True}
    batch = prompts(processor, [1, 2])
    found = generate(model, batch, options, **kwargs)
    assert len(found.sequences.unique(dim=0)) > 4
    for row, sequence in enumerate(found.sequences):
        alone = prompts(processor, [1 + row // 4])
        ids = torch.cat([alone["input_ids"], sequence[None, :-1]], dim=1)
        wanted = scores_by_loop(model, ids, alone["pixel_values"], options)
        assert_same_scores(found.scores[-1][row], wanted)


def test_a_token_forbidden_to_the_strong_pass_stays_forbidden(moe):
    model, processor = moe("qwen3")
    batch = prompts(processor)
    first = generate(model, batch, STRONG, max_new_tokens=1)[:, 0].unique().tolist()
    ids = generate(model, batch, STRONG, suppress_tokens=first)
    assert not set(ids.unique().tolist()) & set(first)


def test_other_logits_processors_come_behind(moe):
    class Watch(LogitsProcessor):
        def __call__(self, input_ids, scores):
            self.kept = (~scores.isinf()).sum(dim=-1)
            return scores

    model, processor = moe("qwen3")
    watch = Watch()
    generate(model, prompts(processor), STRONG, logits_processor=[watch], max_new_tokens=1)
    assert (watch.kept < 100).all()  # of 262: the contrast was there before


def test_experts_in_the_projector_alone_contrast_what_is_seen(moe):
    model, processor = moe("qwen3", parts=["projector"])
    seen, text = prompts(processor, [1]), prompts(processor, [0])
    ids, scores_TV = greedy_by_loop(model, seen, STRONG, steps=4)
    found = generate(
        model, seen, STRONG, max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    assert torch.equal(found.sequences, ids)
    assert_same_scores(torch.cat(found.scores), scores_TV)
    plain = model.generate(**text, max_new_tokens=4, do_sample=False, eos_token_id=[])
    assert torch.equal(generate(model, text, STRONG, max_new_tokens=4), plain)


def test_nothing_weak_is_left_behind_whatever_happens(moe):
    model, processor = moe("qwen3")
    batch = prompts(processor)
    before = model(**batch).logits
    generate(model, batch, STRONG)
    assert torch.equal(model(**batch).logits, before)
    with pytest.raises(RuntimeError), weak_routing(layers_of(model), 2):
        raise RuntimeError
    assert all(layer.weak_rank is None for layer in layers_of(model))


def test_a_shift_of_either_input_changes_no_contrast():
    strong_RV, weak_RV = torch.randn(3, 50) * 2, torch.randn(3, 50) * 2
    wanted = contrast(strong_RV, weak_RV, SelfContrast())
    shifted = contrast(strong_RV.log_softmax(-1), weak_RV + 7.0, SelfContrast())
    assert_same_scores(shifted, wanted)
    assert_close(wanted.exp().sum(dim=-1), torch.ones(3))


def test_alpha_keeps_tokens_by_their_share_of_the_best():
    strong_1V = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = ~contrast(strong_1V, torch.zeros(1, 4), SelfContrast(alpha=0.2)).isinf()
    assert kept.tolist() == [[True, True, True, False]]


def test_half_precision_is_contrasted_in_float32():
    strong_RV = torch.randn(2, 50).bfloat16()
    weak_RV = torch.randn(2, 50).bfloat16()
    found = contrast(strong_RV, weak_RV, SelfContrast())
    assert found.dtype == torch.float32
    assert torch.equal(found, contrast(strong_RV.float(), weak_RV.float(), SelfContrast()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 0}, "alpha=0 must be above 0 and at most 1"),
        ({"alpha": 1.5}, "alpha=1.5 must be above 0 and at most 1"),
        ({"alpha": float("nan")}, "alpha=nan must be above 0"),
        ({"beta": -0.1}, "beta=-0.1 must not be negative or infinite"),
        ({"beta": float("nan")}, "beta=nan must not be"),
        ({"beta": "much"}, "beta='much' must be a number"),
        ({"weak_rank": 0}, "weak_rank=0 must be a whole number from 1"),
        ({"weak_rank": 1.5}, "weak_rank=1.5 must be a whole number from 1"),
        ({"weak_rank": True}, "weak_rank=True must be a number"),
        ({"weakrank": 1}, "'weakrank' is not known; did you mean weak_rank"),
    ],
)
def test_impossible_options_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SelfContrast.parse(values)


def test_a_dense_model_has_no_weak_routing(dense):
    model, processor = dense()
    with pytest.raises(ValueError, match=r"the model is dense.*`llava-compete upcycle`"):
        generate(model, prompts(processor), SelfContrast())


def test_a_rank_that_no_expert_has_is_refused(moe):
    model, processor = moe()
    message = "weak_rank=5 must not be above num_experts=4 of language_model"
    with pytest.raises(ValueError, match=message):
        generate(model, prompts(processor), SelfContrast(weak_rank=5))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_beams": 2, "do_sample": True}, "decoding by beam_sample is not supported"),
        ({"prompt_lookup_num_tokens": 2}, "decoding by assisted_generation is not supported"),
        ({"past_key_values": object()}, "pass it and no cache"),
    ],
)
def test_what_the_weak_pass_cannot_follow_is_refused(moe, kwargs, message):
    model, processor = moe()
    with pytest.raises(ValueError, match=message):
        generate(model, prompts(processor), SelfContrast(), **kwargs)


def test_weights_spread_over_ranks_are_refused(moe):
    model, processor = moe()
    model.projector.router.gate.weight.ds_id = 0  # what ZeRO-3 leaves on a parameter
    with pytest.raises(ValueError, match="not with weights that ZeRO-3 has spread"):
        generate(model, prompts(processor), SelfContrast())


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_every_router_ranks_experts_for_a_weak_pass(moe, router):
    by_token = {"scope": "token"} if hasattr(ROUTERS[router].Options, "scope") else {}
    parts = ["language_model"]  # of a picture some routers cannot choose
    model, processor = moe("qwen3", router=router, router_options=by_token, parts=parts)
    batch = prompts(processor, [1])
    found = generate(
        model, batch, STRONG, max_new_tokens=3, return_dict_in_generate=True, output_scores=True
    )
    ids, scores_TV = greedy_by_loop(model, batch, STRONG, steps=3)
    assert torch.equal(found.sequences, ids)
    assert_same_scores(torch.cat(found.scores), scores_TV)
    together = generate(model, prompts(processor), STRONG)
    alone = [generate(model, prompts(processor, [row]), STRONG) for row in range(3)]
    assert torch.equal(together, torch.cat(alone))
