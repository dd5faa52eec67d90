"""The losses of a head in chunks against cross_entropy of all its logits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import Gemma2Config, Gemma2ForCausalLM

from llava_compete import chunked_loss
from llava_compete.chunked_loss import LossHead, give_losses
from tests import tiny

ANSWERS, WIDTH, VOCABULARY = 11, 8, 24


def make_head(*, bias: bool = False, dtype: torch.dtype = torch.float32) -> LossHead:
    torch.manual_seed(0)
    return LossHead(WIDTH, VOCABULARY, bias=bias, dtype=dtype)


def make_answers(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden_AD = 3 * torch.randn(ANSWERS, WIDTH, generator=generator, dtype=torch.float64)
    labels_A = torch.randint(VOCABULARY, (ANSWERS,), generator=generator)
    return hidden_AD.to(dtype).requires_grad_(), labels_A


def plain(head: nn.Linear, hidden_AD: torch.Tensor, labels_A: torch.Tensor) -> torch.Tensor:
    """All logits at once."""
    logits_AV = F.linear(hidden_AD, head.weight, head.bias)
    logits_AV = logits_AV.to(torch.promote_types(logits_AV.dtype, torch.float32))
    return F.cross_entropy(logits_AV, labels_A, reduction="none")


def gradients(loss: torch.Tensor, head: nn.Linear, hidden_AD: torch.Tensor) -> list[torch.Tensor]:
    wanted = [x for x in (hidden_AD, *head.parameters()) if x.requires_grad]
    return list(torch.autograd.grad(loss, wanted))


@pytest.fixture(params=[1, 4, ANSWERS, 100])
def chunk(request, monkeypatch):
    """Answers in a chunk: one, some with a rest, all, more than there are."""
    monkeypatch.setattr(chunked_loss, "CHUNK_BYTES", 4 * VOCABULARY * request.param)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_those_of_all_logits_at_once(chunk, bias, dtype):
    head = make_head(bias=bias, dtype=dtype)
    hidden_AD, labels_A = make_answers(dtype)
    wanted_A = plain(head, hidden_AD, labels_A)
    found = head(hidden_AD, labels_A)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    assert found.each_A.dtype == wanted_A.dtype
    assert not found.each_A.requires_grad
    assert_close(found.each_A, wanted_A.detach(), **tolerance)
    assert_close(found.total, wanted_A.sum(), **tolerance)
    # Two things are made of the sum, as of a loss that is divided and given to a guard.
    for mine, theirs in zip(
        gradients(found.total / 7, head, hidden_AD),
        gradients(wanted_A.sum() / 7, head, hidden_AD),
        strict=True,
    ):
        assert mine.dtype == theirs.dtype == dtype
        assert_close(mine, theirs, **tolerance)


def test_gradients_of_many_chunks_in_bfloat16_are_not_rounded_chunk_by_chunk(monkeypatch):
    head = make_head(dtype=torch.bfloat16)
    hidden_AD, labels_A = (x.repeat_interleave(200, 0) for x in make_answers(torch.bfloat16))
    exact = make_head(dtype=torch.bfloat16).double()
    (wanted_VD,) = torch.autograd.grad(
        plain(exact, hidden_AD.double(), labels_A).sum(), [exact.weight]
    )
    monkeypatch.setattr(chunked_loss, "CHUNK_BYTES", 4 * VOCABULARY)
    (found_VD,) = torch.autograd.grad(head(hidden_AD, labels_A).total, [head.weight])
    error = (found_VD.double() - wanted_VD).abs().max() / wanted_VD.abs().max()
    assert error < 2**-8


@pytest.mark.parametrize("frozen", ["head", "hidden"])
def test_what_is_frozen_gets_no_gradient_and_takes_no_product(monkeypatch, frozen):
    head, (hidden_AD, labels_A) = make_head(bias=True), make_answers()
    if frozen == "head":
        head.requires_grad_(False)
    else:
        hidden_AD = hidden_AD.detach()
    added = []
    monkeypatch.setattr(
        chunked_loss._Gradients, "_sum", lambda self, name, part: added.append(name)
    )
    if frozen == "head":
        wanted = gradients(plain(head, hidden_AD, labels_A).sum(), head, hidden_AD)
        assert_close(gradients(head(hidden_AD, labels_A).total, head, hidden_AD), wanted)
        assert added == []
    else:
        found = head(hidden_AD, labels_A).total.grad_fn
        assert found.saved_tensors[0] is None
        assert added == ["weight", "bias"]


def test_without_autograd_no_gradient_is_made(monkeypatch):
    head, (hidden_AD, labels_A) = make_head(), make_answers()
    monkeypatch.setattr(chunked_loss._Gradients, "add", None)  # not callable
    with torch.no_grad():
        found = head(hidden_AD, labels_A)
    assert_close(found.each_A, plain(head, hidden_AD, labels_A).detach())


def test_no_answer_is_a_loss_of_nothing_with_a_gradient_of_nothing():
    head, (hidden_AD, labels_A) = make_head(bias=True), make_answers()
    found = head(hidden_AD[:0], labels_A[:0])
    assert found.total == 0.0
    assert found.each_A.shape == (0,)
    found.total.backward()
    assert head.weight.grad is not None
    assert not head.weight.grad.any()
    assert head.bias.grad is not None
    assert not head.bias.grad.any()


def test_a_label_without_probability_costs_its_distance_not_infinity():
    head, (hidden_AD, labels_A) = make_head(), make_answers()
    hidden_AD = 1e4 * hidden_AD.detach()
    assert_close(head(hidden_AD, labels_A).each_A, plain(head, hidden_AD, labels_A).detach())


def test_under_autocast_products_are_in_its_dtype_and_gradients_in_that_of_the_weight(chunk):
    head, (hidden_AD, labels_A) = make_head(bias=True), make_answers()
    with torch.autocast("cpu", torch.bfloat16):
        found = head(hidden_AD, labels_A)
        logits_AV = F.linear(hidden_AD, head.weight, head.bias)
    wanted_A = F.cross_entropy(logits_AV.float(), labels_A, reduction="none")
    assert torch.equal(found.each_A, wanted_A)
    for mine, theirs in zip(
        gradients(found.total, head, hidden_AD),
        gradients(wanted_A.sum(), head, hidden_AD),
        strict=True,
    ):
        assert mine.dtype == torch.float32
        assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


def test_no_more_than_a_chunk_of_logits_is_there_at_once(monkeypatch):
    sizes = []
    monkeypatch.setattr(chunked_loss, "CHUNK_BYTES", 4 * VOCABULARY * 4)
    plain_softmax = torch.log_softmax

    def record(logits, **kwargs):
        sizes.append(tuple(logits.shape))
        return plain_softmax(logits, **kwargs)

    monkeypatch.setattr(torch, "log_softmax", record)
    head, (hidden_AD, labels_A) = make_head(), make_answers()
    head(hidden_AD, labels_A)
    assert sizes == [(4, VOCABULARY), (4, VOCABULARY), (3, VOCABULARY)]


def test_a_tied_head_trains_the_embeddings_from_both_ends(dense, monkeypatch):
    model, processor = dense()
    batch = tiny.make_batch(processor, range(4))
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, LossHead)
    assert head.weight is embeddings.weight
    found = model.train()(**batch).loss
    labels = batch["labels"][:, 1:].flatten()
    hidden_BLD = model.language_model.get_decoder()(
        inputs_embeds=model.embed(batch["input_ids"], batch["pixel_values"]),
        attention_mask=batch["attention_mask"],
    ).last_hidden_state
    logits_NV = F.linear(hidden_BLD[:, :-1].flatten(0, 1), head.weight)
    wanted = F.cross_entropy(logits_NV, labels)
    assert_close(found, wanted)
    (mine,) = torch.autograd.grad(found, [head.weight])
    (theirs,) = torch.autograd.grad(wanted, [head.weight])
    assert_close(mine, theirs)


def test_logits_that_are_more_than_the_heads_output_are_refused():
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=WIDTH,
        pad_token_id=0,
    )
    with pytest.raises(ValueError, match=r"final_logit_softcapping=30.0 of a gemma2 changes"):
        give_losses(Gemma2ForCausalLM(config))
    config.final_logit_softcapping = None
    language = Gemma2ForCausalLM(config)
    give_losses(language)
    with pytest.raises(ValueError, match="the head of Gemma2ForCausalLM is a LossHead"):
        give_losses(language)
