import pytest
import torch

from llava_compete.moe import Sequences

LENGTHS = [3, 1, 5, 2]


@pytest.mark.parametrize("starts", [None, [0, 3, 4, 9, 11]])
def test_split_gives_each_sequence_and_join_what_it_was(starts):
    values_TE = torch.randn(11 if starts else 12, 2)
    if starts is None:
        starts, sequences = [0, 4, 8, 12], Sequences(4)
    else:
        sequences = Sequences(6, torch.tensor(starts, dtype=torch.int32))
    split_RSE = sequences.split(values_TE, -7.0)
    for row, start in enumerate(starts[:-1]):
        length = starts[row + 1] - start
        assert torch.equal(split_RSE[row, :length], values_TE[start : start + length])
        assert (split_RSE[row, length:] == -7).all()
    assert torch.equal(sequences.join(split_RSE, len(values_TE)), values_TE)


def test_flags_are_split_too_and_a_gradient_reaches_each_token_once():
    sequences = Sequences(5, torch.tensor([0, 3, 4, 9, 11]))
    kept = sequences.split(torch.ones(11, 1, dtype=torch.bool), False)
    assert kept.sum(dim=(1, 2)).tolist() == LENGTHS
    values_TE = torch.randn(11, 2, requires_grad=True)
    sequences.join(sequences.split(values_TE, 0.0), 11).sum().backward()
    assert torch.equal(values_TE.grad, torch.ones(11, 2))
