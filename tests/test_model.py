"""The model's loss, inputs and answers, on tiny real parts."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from llava_compete.data import IGNORED
from llava_compete.processor import prompt_batch
from tests import tiny
from tests.tiny import answer_count, compete

every_step = pytest.mark.parametrize("competing", [False, True], ids=["router", "competition"])


def test_loss_of_a_dense_model_is_the_mean_cross_entropy_of_the_answers(dense):
    model, processor = dense()
    batch = tiny.make_batch(processor, range(4), text_only={1})
    labels = batch.pop("labels")
    output = model.train()(**batch, labels=labels)
    logits_BLV = model(**batch).logits
    wanted = F.cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )
    assert_close(output.loss, wanted)
    assert_close(output.losses["language"], wanted.detach())
    assert_close(output.token_losses_A.mean(), wanted.detach())
    assert set(output.losses) == {"language"}
    assert output.metrics == {}


@every_step
def test_router_losses_are_weighted_means_over_the_layers_of_each_part(moe, competing):
    model, processor = moe(loss_weights={"router_z": 0.1, "distillation": 5.0})
    compete(model, competing)
    seen = []
    for part, layers in model.moe_layers().items():
        for layer in layers:
            layer.register_forward_hook(
                lambda module, args, output, part=part: seen.append((part, module.routing.losses))
            )
    output = model(**tiny.make_batch(processor, range(4)))
    means = {}
    for part in tiny.PARTS:
        of_part = [losses for name, losses in seen if name == part]
        assert len(of_part) == {"language_model": 2, "projector": 1}[part]
        for name in of_part[0]:
            means[f"{part}/{name}"] = sum(losses[name] for losses in of_part) / len(of_part)
    assert set(output.losses) == {"language", *means}
    weights = model.config.moe_configs["projector"].loss_weights
    weighted = sum(weights[key.split("/")[1]] * value for key, value in means.items())
    assert_close(output.loss, output.token_losses_A.mean() + weighted)
    for key, value in means.items():
        assert_close(output.losses[key], value.detach())
        assert not output.losses[key].requires_grad


def test_a_competing_layer_is_not_thinned_out_by_those_that_did_not(moe):
    model, processor = moe()
    batch = tiny.make_batch(processor, range(2))
    model.train().set_competing([False, True, False])
    one = model(**batch).losses
    seen = []
    layer = model.moe_layers()["language_model"][1]
    layer.register_forward_hook(lambda module, *_: seen.append(module.routing.losses))
    assert_close(
        model(**batch).losses["language_model/distillation"], one["language_model/distillation"]
    )
    assert_close(one["language_model/distillation"], seen[0]["distillation"].detach())
    assert "language_model/balance" in one
    assert "projector/distillation" not in one


def test_competing_flags_go_to_the_layers_in_order_and_must_be_as_many(moe):
    model, _ = moe()
    model.set_competing([True, False, True])
    layers = model.language_model.model.layers
    flags = [layers[0].mlp.competing, layers[1].mlp.competing, model.projector.competing]
    assert flags == [True, False, True]
    with pytest.raises(ValueError, match=r"zip\(\) argument"):
        model.set_competing([True])


def test_as_many_features_as_placeholders_or_an_error_with_both_numbers(dense):
    model, processor = dense()
    batch = tiny.make_batch(processor, [0, 1])
    pixels = batch.pop("pixel_values")
    with pytest.raises(ValueError, match=r"8 image tokens .* but 4 image features \(1 images x 4"):
        model(**batch, pixel_values=pixels[:1])
    for mode in (True, False):
        with pytest.raises(ValueError, match="8 image tokens in the prompts but 0 image features"):
            model.train(mode)(**batch)
    text = tiny.make_batch(processor, [0], text_only={0})
    with pytest.raises(ValueError, match="0 image tokens in the prompts but 8 image features"):
        model(**text, pixel_values=pixels)


def test_pictures_stand_where_their_placeholders_are(dense):
    model, processor = dense()
    batch = tiny.make_batch(processor, [0, 1])
    ids, pixels = batch["input_ids"], batch["pixel_values"]
    with torch.no_grad():
        embedded_BLD = model.embed(ids, pixels)
        text_BLD = model.get_input_embeddings()(ids)
        image_NPD = model.projector(model.vision(pixels))
    placeholder_BL = ids == processor.image_token_id
    assert torch.equal(embedded_BLD[~placeholder_BL], text_BLD[~placeholder_BL])
    for row in range(2):
        assert torch.equal(embedded_BLD[row][placeholder_BL[row]], image_NPD[row])


def test_logits_in_training_are_made_at_answers_only(dense):
    model, processor = dense()
    batch, rows = tiny.make_batch(processor, range(4)), []
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda module, args: rows.append(tuple(args[0].shape)))
    output = model.train()(**batch)
    assert rows == [(int(answer_count(batch)), 32)]
    assert output.logits is None
    assert output.token_losses_A.shape == (answer_count(batch),)


def test_logits_to_keep_are_the_last_ones(dense):
    model, processor = dense()
    ids = tiny.make_batch(processor, [0], text_only={0})["input_ids"]
    whole = model(ids).logits
    assert whole.shape[:2] == ids.shape
    assert_close(model(ids, logits_to_keep=2).logits, whole[:, -2:])


def test_competition_is_off_in_evaluation_whatever_the_flags(moe):
    model, processor = moe()
    batch = tiny.make_batch(processor, range(2))
    compete(model, True)
    trained = model(**batch)
    assert "language_model/distillation" in trained.losses
    evaluated = model.eval()(**batch)
    assert "language_model/distillation" not in evaluated.losses
    assert torch.equal(evaluated.loss, compete(model, False)(**batch).loss)


def test_competing_layers_are_counted_by_part(moe):
    model, processor = moe()
    batch = tiny.make_batch(processor, range(2))
    model.train().set_competing([True, True, False])
    metrics = model(**batch).metrics
    assert metrics["language_model/competing_layers"] == 2
    assert metrics["projector/competing_layers"] == 0
    assert model.eval()(**batch).metrics["language_model/competing_layers"] == 0


def test_loads_are_shares_of_the_kept_choices(moe):
    model, processor = moe()
    output = model.train()(**tiny.make_batch(processor, range(3)))
    for part in tiny.PARTS:
        shares = torch.stack([output.metrics[f"{part}/load/{expert}"] for expert in range(4)])
        assert_close(shares.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_generation_in_a_left_padded_batch_is_generation_one_by_one(dense, moe, kind):
    model, processor = {"dense": dense, "moe": moe}[kind]("qwen3")  # untied: it does not echo
    conversations = [
        [{"role": "user", "content": "Hi"}],
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What now?"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "See "}, {"type": "image"}]}],
    ]
    images = [[], [tiny.draw(1)], [tiny.draw(2)]]

    def answer(rows):
        batch = prompt_batch(processor, [conversations[i] for i in rows], [images[i] for i in rows])
        ids = model.generate(**batch, max_new_tokens=12, do_sample=False)
        return processor.tokenizer.batch_decode(ids, skip_special_tokens=True)

    together = answer([0, 1, 2])
    assert together == [answer([row])[0] for row in range(3)]
    assert len(set(together)) == 3


def test_generation_returns_new_tokens_only_and_equals_the_argmax_of_the_logits(moe):
    model, processor = moe()
    prompt = prompt_batch(processor, [[{"role": "user", "content": "Hi"}]], [[]])
    model.train()(**tiny.make_batch(processor, range(2)))  # leaves a mask of another shape behind
    ids = model.eval().generate(**prompt, max_new_tokens=3, do_sample=False, eos_token_id=[])
    whole = prompt["input_ids"]
    for step in range(3):
        best = model(whole).logits[:, -1].argmax(dim=-1)
        assert ids[:, step] == best
        whole = torch.cat([whole, best[None]], dim=1)
    assert ids.shape == (1, 3)


def test_generation_changes_no_default_of_the_model(dense):
    model, processor = dense()
    before = model.generation_config.to_dict()
    prompt = prompt_batch(processor, [[{"role": "user", "content": "Hi"}]], [[]])
    model.generate(**prompt, max_new_tokens=1, do_sample=True, temperature=0.5)
    assert model.generation_config.to_dict() == before
