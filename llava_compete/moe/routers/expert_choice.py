"""Expert choice (arXiv:2202.09368): experts choose tokens.

T tokens in G groups of S, E experts, K per token in the mean.
"""

from torch import Tensor

from llava_compete.moe.routers.across import Groups, ScopeRouter, best_tokens


class ExpertChoiceRouter(ScopeRouter):
    """Each expert takes the k = ceil(n K / E) tokens of n that score it highest.

    Scores are softmax(z) over the experts, z of a linear gate, and they are the weights, so a
    token's do not sum to 1: right after upcycling their mean sum is K/E. Every expert gets as
    much, hence no loss. ``renormalise`` divides a token's weights by their sum, as sparse
    upcycling does (arXiv:2212.05055); a token that no expert takes still gets nothing.

    The paper's k is n c / E with a capacity factor c, here c = K. It is rounded up: a group of a
    few tokens then still has experts, and one of n tokens costs fewer than E pairs above n K.
    Groups are sequences or pictures (``scope``); n counts the tokens that are not padding, which
    takes no part. The paper groups over a batch, counts padding, and also has a form with at most
    b experts for a token, which is not here.

    The choice for a token depends on the tokens behind it: not for generating text, for which
    scope ``token`` takes a token's own K most probable experts.
    """

    def scores(self, logits_TE: Tensor, probs_TE: Tensor) -> Tensor:
        return probs_TE

    def choose(self, groups: Groups) -> tuple[Tensor, int]:
        num_groups, size, num_experts = groups.scores_GSE.shape
        most_tokens = -(-size * self.spec.top_k // num_experts)
        most_pairs = num_groups * num_experts * most_tokens
        return best_tokens(groups, self.spec.top_k), most_pairs
