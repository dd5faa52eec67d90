"""How the tokens of a forward lie in sequences.

T tokens in R sequences of at most S tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Sequences that follow each other: all of S tokens, or packed, each of its own length.

    S is known to the host, so nothing here waits for the device.
    """

    length: int  # S, tokens of the longest, or more
    starts_Q: Tensor | None = None  # int (R + 1,): where each begins, and T; None: S tokens each

    def split(self, values: Tensor, fill: float) -> Tensor:
        """(T, E) -> (R, S, E); ``fill`` stands behind the end of a shorter sequence."""
        if self.starts_Q is None:
            return values.unflatten(0, (-1, self.length))
        place_RS = self.starts_Q[:-1, None] + torch.arange(self.length, device=values.device)
        inside_RS = place_RS < self.starts_Q[1:, None]
        return torch.where(inside_RS[..., None], values[torch.where(inside_RS, place_RS, 0)], fill)

    def join(self, values: Tensor, num_tokens: int) -> Tensor:
        """(R, S, E) -> (T, E), what ``split`` took; ``num_tokens`` is T."""
        flat = values.flatten(0, 1)
        if self.starts_Q is None:
            return flat
        token_T = torch.arange(num_tokens, device=values.device)
        sequence_T = torch.bucketize(token_T, self.starts_Q[1:], right=True)
        return flat[sequence_T * self.length + token_T - self.starts_Q[sequence_T]]
