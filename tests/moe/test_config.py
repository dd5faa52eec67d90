import dataclasses
import json

import pytest

from llava_compete.moe import ROUTERS, MoEConfig, RoutingChange

DEFAULTS = {"distillation": "paper", "theta": 0.1, "detach": False, "losers_gradient": "exact"}
COMPETE_WEIGHTS = ROUTERS["compete"].loss_weights


@pytest.mark.parametrize("top_k", [0, 5, -1])
def test_top_k_outside_the_experts_is_refused(top_k):
    with pytest.raises(ValueError, match=f"top_k={top_k} must be between 1 and num_experts=4"):
        MoEConfig(num_experts=4, top_k=top_k)


def test_no_experts_at_all_are_refused():
    with pytest.raises(ValueError, match="num_experts=0 must be at least 1"):
        MoEConfig(num_experts=0, top_k=1)


def test_one_expert_and_all_experts_are_allowed():
    assert MoEConfig(num_experts=1, top_k=1).top_k == 1
    assert MoEConfig(num_experts=8, top_k=8).top_k == 8


def test_an_unknown_router_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"router='competes' is not known.*compete"):
        MoEConfig(router="competes")


@pytest.mark.parametrize("router", ROUTERS)
def test_every_registered_router_is_accepted(router):
    assert MoEConfig(router=router).router == router


def test_an_unknown_loss_is_refused_by_name():
    with pytest.raises(ValueError, match=r"loss_weights names \['balanse'\]"):
        MoEConfig(loss_weights={"balanse": 0.1})


def test_a_negative_loss_weight_is_refused_with_its_value():
    with pytest.raises(ValueError, match=r"must not be negative: \{'balance': -0.1\}"):
        MoEConfig(loss_weights={"balance": -0.1})
    with pytest.raises(ValueError, match=r"theta=-1.0 must not be negative"):
        MoEConfig(router_options={"theta": -1.0})


def test_a_partial_loss_table_keeps_the_other_defaults():
    config = MoEConfig(loss_weights={"diversity": 0.5})
    assert config.loss_weights == {**COMPETE_WEIGHTS, "diversity": 0.5}
    assert MoEConfig().loss_weights == COMPETE_WEIGHTS


def test_two_configs_do_not_share_their_loss_table():
    MoEConfig().loss_weights["balance"] = 7.0
    assert MoEConfig().loss_weights["balance"] == COMPETE_WEIGHTS["balance"]
    assert COMPETE_WEIGHTS["balance"] != 7.0


def test_a_loss_of_another_router_is_refused():
    with pytest.raises(ValueError, match=r"\['diversity'\], which router topk does not return"):
        MoEConfig(router="topk", loss_weights={"diversity": 0.5})


def test_an_option_of_another_router_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'thetta' is no option of compete.*theta"):
        MoEConfig(router_options={"thetta": 0.5})
    with pytest.raises(ValueError, match=r"'theta' is no option of topk; it has none"):
        MoEConfig(router="topk", router_options={"theta": 0.5})


def test_options_are_written_out_whole():
    assert MoEConfig().router_options == DEFAULTS
    assert MoEConfig(router="topk").to_dict()["router_options"] == {}


def test_another_router_begins_with_its_own_options_and_weights():
    before = MoEConfig(router_options={"theta": 0.7}, loss_weights={"balance": 0.5})
    change = RoutingChange(router="topk", top_k=1, seed=3)
    after = change.apply({"projector": before})["projector"]
    assert after == MoEConfig(router="topk", top_k=1, seed=3)


def test_the_same_router_keeps_what_is_not_named():
    before = MoEConfig(router_options={"theta": 0.7}, loss_weights={"balance": 0.5})
    change = RoutingChange(router="compete", loss_weights={"diversity": 0.2})
    after = change.apply({"projector": before})["projector"]
    assert after.router_options == {**DEFAULTS, "theta": 0.7}
    assert after.loss_weights == {**COMPETE_WEIGHTS, "balance": 0.5, "diversity": 0.2}


def test_only_the_named_parts_change():
    configs = {"projector": MoEConfig(), "language_model": MoEConfig()}
    changed = RoutingChange(router="topk", parts=("projector",)).apply(configs)
    assert changed == {"projector": MoEConfig(router="topk"), "language_model": MoEConfig()}
    with pytest.raises(ValueError, match=r"router_parts: 'vision' has no experts here"):
        RoutingChange(parts=("vision",)).apply(configs)


@pytest.mark.parametrize("layers", [(), (1, 1), (-1, 0)])
def test_impossible_layers_are_refused(layers):
    with pytest.raises(ValueError, match=r"layers=.* must be distinct indices from 0"):
        MoEConfig(layers=layers)


@pytest.mark.parametrize("layers", [None, (0, 2)])
def test_json_round_trip_gives_an_equal_config(layers):
    config = MoEConfig(num_experts=6, top_k=3, layers=layers, loss_weights={"balance": 0.0})
    assert MoEConfig(**json.loads(json.dumps(config.to_dict()))) == config


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MoEConfig().top_k = 1
