"""ACMoE against loops.  T tokens, E experts = clusters, K chosen per token, D width = features."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from llava_compete import load, save, upcycle_model
from llava_compete.moe import ROUTERS, Experts, MoEConfig, RoutingContext
from llava_compete.moe.routers import RouterSpec, acmoe
from llava_compete.processor import prompt_batch
from tests import tiny

T, E, K, D = 40, 5, 2, 12
EXPERTS = Experts(E, D, 12, D, activation="silu", gated=True, bias=False)


def make_router(**options):
    spec = RouterSpec(width=D, out_width=D, num_experts=E, top_k=K, seed=1, options=options)
    first = ROUTERS["acmoe"](replace(spec, seed=0))
    return ROUTERS["acmoe"](replace(spec, previous=first))


def make_tokens(seed=0, dtype=torch.float64):
    """Tokens, clusters and a mask: cluster 3 keeps one token, cluster 4 none; a flat feature."""
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(T, D, generator=generator, dtype=dtype)
    cluster_T = torch.randint(0, 3, (T,), generator=generator)
    cluster_T[:4] = torch.tensor([3, 3, 4, 4])
    mask_T = torch.rand(T, generator=generator) < 0.8
    mask_T[:4] = torch.tensor([True, False, False, False])
    x_TD[cluster_T == 1, 2] = 0.7  # no spread: its scale is cut off
    return x_TD, cluster_T, mask_T


def loop_scales(x_TD, cluster_T, mask_T):
    """W from its formula, one number at a time."""
    spreads = {}
    for k in range(E):
        rows = [x_TD[t].tolist() for t in range(T) if mask_T[t] and cluster_T[t] == k]
        if len(rows) < 2:
            continue
        columns = list(zip(*rows, strict=True))
        means = [sum(column) / len(rows) for column in columns]
        spreads[k] = [
            sum(abs(value - mean) for value in column) / len(rows)
            for column, mean in zip(columns, means, strict=True)
        ]
    tight = {k: [1 / (mad + 1e-4) for mad in mads] for k, mads in spreads.items()}
    mean = sum(map(sum, tight.values())) / (len(tight) * D)
    tight = {k: [min(value, 10 * mean) for value in values] for k, values in tight.items()}
    means = [sum(values[q] for values in tight.values()) / len(tight) for q in range(D)]
    return torch.tensor(
        [[tight[k][q] / means[q] for q in range(D)] if k in tight else [1.0] * D for k in range(E)],
        dtype=torch.float64,
    )


def test_scales_equal_the_loop():
    for seed in range(5):
        x_TD, cluster_T, mask_T = make_tokens(seed)
        got_ED, count_E = acmoe.cluster_scales(x_TD, cluster_T, mask_T, E)
        assert_close(got_ED, loop_scales(x_TD, cluster_T, mask_T), atol=1e-12, rtol=1e-12)
        assert count_E.tolist() == [int((mask_T & (cluster_T == k)).sum()) for k in range(E)]
        assert_close(got_ED[:3].mean(dim=0), torch.ones(D, dtype=torch.float64))
        assert (got_ED[3:] == 1).all()
        assert got_ED[1, 2] > got_ED[[0, 2], 2].max()
    everything = torch.ones(T, dtype=torch.bool)
    assert torch.equal(
        acmoe.cluster_scales(x_TD, cluster_T, None, E)[0],
        acmoe.cluster_scales(x_TD, cluster_T, everything, E)[0],
    )


def test_scales_without_a_kept_token_are_one():
    x_TD, cluster_T, _ = make_tokens()
    scale_ED, count_E = acmoe.cluster_scales(x_TD, cluster_T, torch.zeros(T, dtype=torch.bool), E)
    assert (scale_ED == 1).all()
    assert not count_E.any()


def test_what_is_in_masked_tokens_does_not_reach_the_scales():
    x_TD, cluster_T, mask_T = make_tokens()
    wanted_ED = acmoe.cluster_scales(x_TD, cluster_T, mask_T, E)[0]
    x_TD[~mask_T] = float("inf")
    cluster_T[~mask_T] = 2
    assert torch.equal(acmoe.cluster_scales(x_TD, cluster_T, mask_T, E)[0], wanted_ED)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_training_step_and_its_gradients_equal_the_loop(dtype):
    router = make_router().to(dtype)
    x_TD, cluster_T, mask_T = make_tokens(dtype=dtype)
    x_TD.requires_grad_()
    context = RoutingContext(mask_T=mask_T, previous_T=cluster_T)
    routing = router(x_TD, EXPERTS, context)
    mixing_TK = torch.randn(T, K, dtype=dtype, generator=torch.Generator().manual_seed(1))
    total = (routing.weights_TK * mixing_TK).sum() + sum(routing.losses.values())
    got = torch.autograd.grad(total, (router.gate.weight, x_TD))

    weight_ED = router.gate.weight.detach().double().requires_grad_()
    tokens_TD = x_TD.detach().double().requires_grad_()
    scale_ED = loop_scales(tokens_TD.detach(), cluster_T, mask_T)
    logits, weights = [], []
    for t in range(T):
        z_E = torch.stack(
            [(weight_ED[e] * tokens_TD[t] * scale_ED[cluster_T[t]]).sum() for e in range(E)]
        )
        best = sorted(range(E), key=lambda e: -z_E[e].item())[:K]
        assert routing.ids_TK[t].tolist() == best
        logits.append(z_E)
        weights.append(z_E[best].softmax(dim=-1))
    logits_TE, weights_TK = torch.stack(logits), torch.stack(weights)
    kept_TE = logits_TE[mask_T]
    balance = sum(
        (routing.ids_TK[mask_T] == e).double().mean() * kept_TE.softmax(dim=-1)[:, e].mean()
        for e in range(E)
    )
    wanted_losses = {"balance": E * balance, "router_z": kept_TE.logsumexp(dim=-1).square().mean()}
    total = (weights_TK * mixing_TK).sum() + sum(wanted_losses.values())
    wanted = torch.autograd.grad(total, (weight_ED, tokens_TD))

    close = {"atol": 2e-6, "rtol": 2e-6, "check_dtype": False}
    assert_close(routing.weights_TK, weights_TK.detach(), **close)
    assert_close(routing.scores_TE, logits_TE.detach(), **close)
    assert_close(routing.losses, {k: v.detach() for k, v in wanted_losses.items()}, **close)
    assert_close(got, wanted, **close)
    assert wanted[0].norm() > 0.1


def test_the_first_layer_is_topk_and_has_no_state():
    spec = RouterSpec(width=D, out_width=D, num_experts=E, top_k=K, seed=3)
    first, plain, x_TD = ROUTERS["acmoe"](spec), ROUTERS["topk"](spec), torch.randn(T, D)
    assert list(first.state_dict()) == ["gate.weight"]
    got, wanted = (router(x_TD, EXPERTS, RoutingContext()) for router in (first, plain))
    assert torch.equal(got.ids_TK, wanted.ids_TK)
    assert torch.equal(got.weights_TK, wanted.weights_TK)
    assert_close(got.losses, wanted.losses)
    first.end_step()


def test_before_any_step_inference_is_topk():
    router, x_TD = make_router().eval(), torch.randn(T, D)
    got = router(x_TD, EXPERTS, RoutingContext(previous_T=torch.zeros(T, dtype=torch.long)))
    wanted = ROUTERS["topk"](replace(router.spec, previous=None, options={}))(
        x_TD, EXPERTS, RoutingContext()
    )
    assert torch.equal(got.weights_TK, wanted.weights_TK)


def train_on(router, seeds, **changes):
    """Forwards of one optimizer step; what each has seen."""
    seen = []
    for seed in seeds:
        x_TD, cluster_T, mask_T = make_tokens(seed, torch.float32)
        context = RoutingContext(mask_T=mask_T, previous_T=cluster_T)
        router(x_TD, EXPERTS, replace(context, **changes))
        seen.append(acmoe.cluster_scales(x_TD, cluster_T, mask_T, E))
    return seen


def test_inference_takes_one_token_at_a_time_and_the_average_of_training():
    router = make_router()
    train_on(router, [0])
    router.end_step()
    router.eval()
    x_TD, cluster_T, mask_T = make_tokens(7, torch.float32)
    whole = router(x_TD, EXPERTS, RoutingContext(mask_T=mask_T, previous_T=cluster_T))
    for t in range(T):
        alone = router(x_TD[t : t + 1], EXPERTS, RoutingContext(previous_T=cluster_T[t : t + 1]))
        assert torch.equal(alone.ids_TK[0], whole.ids_TK[t])
        logits_E = router.gate.weight @ (x_TD[t] * router.state_scale_ED[cluster_T[t]])
        assert_close(alone.scores_TE[0], logits_E.detach())
    assert not router.sees_future


def test_a_step_moves_the_average_by_its_micro_batches_weighted_by_tokens():
    router, momentum = make_router(momentum=0.6), 0.6
    wanted_ED = torch.ones(E, D)
    for step, seeds in enumerate([[0, 1], [2], [3, 4, 5]]):
        seen = train_on(router, seeds)
        assert torch.equal(router.state_scale_ED, wanted_ED), "moved before the step's end"
        router.end_step()
        keep = min(momentum, step / (step + 1))
        for k in range(3):
            tokens = sum(count_E[k] for _, count_E in seen)
            mean_D = sum(scale_ED[k] * count_E[k] for scale_ED, count_E in seen) / tokens
            wanted_ED[k] = keep * wanted_ED[k] + (1 - keep) * mean_D
        assert_close(router.state_scale_ED, wanted_ED)
        assert (router.state_scale_ED[3:] == 1).all()
        assert router.state_updates_E.tolist() == [step + 1] * 3 + [0, 0]
        wanted_ED = router.state_scale_ED.clone()


def test_ranks_are_averaged_by_their_tokens(monkeypatch):
    here, there, both = make_router(), make_router(), make_router()
    train_on(here, [0])
    train_on(there, [1])
    train_on(both, [0, 1])
    both.end_step()
    monkeypatch.setattr(acmoe, "sum_over_ranks", lambda value: value + there._seen_EF)
    here.end_step()
    assert_close(here.state_scale_ED, both.state_scale_ED)


@pytest.mark.parametrize("kind", ["evaluation", "recomputation", "no forward"])
def test_nothing_is_counted_where_nothing_new_was_seen(kind):
    router = make_router()
    train_on(router, [0])
    router.end_step()
    before = copy.deepcopy(router.state_dict())
    if kind == "evaluation":
        train_on(router.eval(), [1])
        router.train()
    elif kind == "recomputation":
        train_on(router, [1], recording=False)
    router.end_step()
    for name, value in router.state_dict().items():
        assert torch.equal(value, before[name])


def test_state_stays_float32_in_a_cast_model_and_is_saved():
    router = make_router().bfloat16()
    assert router.state_scale_ED.dtype == torch.float32
    assert router.state_updates_E.dtype == torch.int64
    x_TD, cluster_T, mask_T = make_tokens(0)
    router(x_TD.bfloat16(), EXPERTS, RoutingContext(mask_T=mask_T, previous_T=cluster_T))
    router.end_step()
    assert router.state_scale_ED.dtype == torch.float32
    other = make_router().bfloat16()
    other.load_state_dict(router.state_dict())
    assert torch.equal(other.state_scale_ED, router.state_scale_ED)
    assert (other.state_scale_ED[:3] != 1).any()


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match=f"momentum={momentum} must be at least 0 and below 1"):
        MoEConfig(router="acmoe", router_options={"momentum": momentum})


def train_step(model, batch):
    """Loss, gradients and routing state after one optimizer step's forward and backward."""
    model.zero_grad(set_to_none=True)
    loss = model.train()(**batch).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for layer in model.moe_layers()["language_model"]:
        layer.router.end_step()
    state = {name: b.clone() for name, b in model.named_buffers() if "state_" in name}
    return loss, gradients, state


def test_checkpointing_recomputes_with_the_recorded_choice_and_counts_once(moe):
    model, processor = moe(router="acmoe", parts=("language_model",))
    plain, batch = copy.deepcopy(model), tiny.make_batch(processor, range(3), text_only={1})
    wanted = train_step(plain, batch)
    seen = []
    second = model.moe_layers()["language_model"][1]
    second.router.register_forward_pre_hook(
        lambda module, args: seen.append(args[2].previous_T.clone())
    )
    model.activation_checkpointing_enable({"use_reentrant": False})
    got = train_step(model, batch)
    assert len(seen) == 2, "the backward recomputes the layer"
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(got[0], wanted[0])
    for got_of, wanted_of in zip(got[1:], wanted[1:], strict=True):
        assert got_of.keys() == wanted_of.keys()
        for name, value in wanted_of.items():
            assert torch.equal(got_of[name], value), name
    assert any("layers.1.mlp.router.gate" in name for name in got[1])
    assert (got[2]["language_model.model.layers.1.mlp.router.state_scale_ED"] != 1).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trained_average_comes_back_from_a_checkpoint_in_its_own_dtypes(moe, tmp_path, dtype):
    model, processor = moe(router="acmoe", parts=("language_model",))
    _, _, state = train_step(model, tiny.make_batch(processor, range(3)))
    save(model.eval(), processor, tmp_path / "saved")
    loaded = dict(load(tmp_path / "saved", dtype=dtype)[0].named_buffers())
    for name, value in state.items():
        assert torch.equal(loaded[name], value)
        assert loaded[name].dtype == value.dtype


def test_generation_step_by_step_equals_the_argmax_of_whole_forwards(moe):
    model, processor = moe("qwen3", router="acmoe", parts=("language_model",))
    train_step(model, tiny.make_batch(processor, range(3)))
    model.eval()
    prompt = prompt_batch(processor, [[{"role": "user", "content": "Hi"}]], [[]])
    ids = model.generate(**prompt, max_new_tokens=4, do_sample=False, eos_token_id=[])
    whole = prompt["input_ids"]
    for step in range(4):
        assert ids[0, step] == model(whole).logits[0, -1].argmax()
        whole = torch.cat([whole, ids[:, step : step + 1]], dim=1)


def test_a_part_of_one_layer_is_refused(dense):
    model, _ = dense()
    configs = tiny.moe_configs(("projector",), router="acmoe")
    with pytest.raises(ValueError, match="projector: router acmoe reads the choice of the MoE"):
        upcycle_model(model, configs)
