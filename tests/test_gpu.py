"""On a GPU in bfloat16, the kernels a CPU does not have give what the CPU gives in float32."""

import pytest
import torch

from llava_compete import load
from llava_compete.packed_attention import PACKED_SDPA
from tests import tiny
from tests.test_packing import both_batches

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("competing", [False, True])
def test_a_training_step_in_bfloat16_is_that_of_the_cpu_to_rounding(checkpoints, competing):
    losses, norms = [], []
    for device, dtype in (("cpu", "float32"), ("cuda", "bfloat16")):
        model, processor = load(checkpoints["moe"], dtype=dtype)
        model.set_competing([competing] * len(model.competitors()))
        loss, norm = step(model, tiny.make_batch(processor, (0, 1, 2), text_only=(1,)), device)
        losses.append(loss)
        norms.append(norm)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert norms[1] == pytest.approx(norms[0], rel=0.2)


@pytest.mark.parametrize("attention", [PACKED_SDPA, "sdpa", "flash_attention_2"])
def test_packed_rows_in_bfloat16_give_what_they_give_side_by_side_on_the_cpu(
    checkpoints, attention
):
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    model, processor = load(checkpoints["moe"], dtype="float32")
    plain, packed = both_batches(processor)
    loss, norm = step(model, plain, "cpu")
    model, _ = load(checkpoints["moe"], dtype="bfloat16", attn_implementation=attention)
    packed_loss, packed_norm = step(model, packed, "cuda")
    assert packed_loss == pytest.approx(loss, rel=0.05)
    assert packed_norm == pytest.approx(norm, rel=0.2)


def step(model, batch, device):
    """The loss of a training step, and the norm of its gradients."""
    model.to(device).train()
    loss = model(**{name: value.to(device) for name, value in batch.items()}).loss
    loss.backward()
    grads = [p.grad.float().norm().cpu() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.stack(grads).norm().item()
