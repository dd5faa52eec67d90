"""In which precision a router is compared with a loop."""

import pytest
import torch


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def precision(request, monkeypatch):
    """The dtype to give the router: float64, in which its ``.float()`` is to be exact, or float32.

    Routers compute in float32 whatever they are given; with that taken out, a router and a loop
    agree to the last digits of float64 or they are not the same function.
    """
    if request.param == torch.float64:
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    return request.param
