"""On a GPU in bfloat16, the kernels a CPU does not have give what the CPU gives in float32."""

import pytest
import torch

from tests import tiny

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("competing", [False, True])
def test_a_training_step_in_bfloat16_is_that_of_the_cpu_to_rounding(checkpoints, competing):
    from llava_compete import load

    losses, norms = [], []
    for device, dtype in (("cpu", "float32"), ("cuda", "bfloat16")):
        model, processor = load(checkpoints["moe"], dtype=dtype)
        model.to(device).train()
        model.set_competing([competing] * len(model.competitors()))
        batch = tiny.make_batch(processor, (0, 1, 2), text_only=(1,))
        loss = model(**{name: value.to(device) for name, value in batch.items()}).loss
        loss.backward()
        losses.append(float(loss))
        grads = [p.grad.float().norm().cpu() for p in model.parameters() if p.grad is not None]
        norms.append(float(torch.stack(grads).norm()))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert norms[1] == pytest.approx(norms[0], rel=0.2)
