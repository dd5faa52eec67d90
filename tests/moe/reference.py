"""One expert on its tokens, written out; no autograd function of the library's."""

from torch import Tensor
from transformers.activations import ACT2FN

from llava_compete.moe import Experts


def run_expert(experts: Experts, expert: int, x_TD: Tensor) -> Tensor:
    """Output (T, O) of one expert."""

    def project(name: str) -> Tensor:
        out = x_TD @ experts.get_parameter(f"{name}_proj")[expert]
        if experts.down_bias is not None:
            out = out + experts.get_parameter(f"{name}_bias")[expert]
        return out

    act = ACT2FN[experts.activation]
    hidden_TF = act(project("gate")) * project("up") if experts.gated else act(project("up"))
    out_TO = hidden_TF @ experts.down_proj[expert].T
    return out_TO if experts.down_bias is None else out_TO + experts.down_bias[expert]
