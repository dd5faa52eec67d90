"""Vocabulary ids for the routers that choose by them.  T tokens."""

from torch import Tensor

from llava_compete.moe.routers.base import RouterSpec, RoutingContext


def vocabulary(spec: RouterSpec) -> int:
    """Number of ids; ValueError in a part whose tokens have none."""
    if spec.vocab_size is None:
        raise ValueError(
            "vocab_size=None: this router chooses by a token's vocabulary id, and the tokens of "
            "this part have none; give it another router"
        )
    return spec.vocab_size


def token_ids(context: RoutingContext, num_tokens: int) -> Tensor:
    """The tokens' ids (T,), -1 for an image token; ValueError where they are not these tokens'."""
    ids_T = context.token_ids_T
    if ids_T is None:
        raise ValueError(
            "this router chooses by a token's vocabulary id and was given none: set token_ids_T of "
            "the MoE layer (the model does it where input ids pass its embedding)"
        )
    if len(ids_T) != num_tokens:
        raise ValueError(
            f"{len(ids_T)} token ids for {num_tokens} tokens: the batch was expanded behind the "
            f"embedding, as beam search and num_return_sequences do; this router chooses by a "
            f"token's id, so use num_beams=1 and num_return_sequences=1"
        )
    return ids_T
