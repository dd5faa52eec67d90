"""What a recipe may say about steps that are not finite."""

from llava_compete.names import nearest

POLICIES = ("stop", "skip")


def check_policy(policy: str, max_share: float, *, fp16: bool) -> None:
    """ValueError for an unknown policy, an impossible share, or fp16."""
    if policy not in POLICIES:
        raise ValueError(f"non_finite={policy!r} is not known{nearest(policy, POLICIES)}")
    if not 0.0 <= max_share <= 1.0:
        raise ValueError(f"max_non_finite_share={max_share} must be between 0 and 1")
    if fp16:
        raise ValueError(
            "fp16=true: its loss scaler makes gradients overflow on purpose, which cannot be told "
            "from a fault; use bf16"
        )
