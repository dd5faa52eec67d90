"""How fast does maximum likelihood find the experts of a Gaussian mixture, by gate and sample size?

The theorem of CompeteSMoE (arXiv:2505.13380) says that experts gated by their own response are
estimated at the parametric rate n^-1/2 in a Voronoi loss; for softmax gates with more experts than
the truth has, arXiv:2305.03288 has slower rates. Here both are measured on synthetic data.
"""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    # Here, so that the processes that only fit do not load what the figure needs.
    from experiments.sample_efficiency import command

    command.main(argv)
