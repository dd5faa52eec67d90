"""wandb without an account."""

import logging
import netrc
import os
from pathlib import Path

logger = logging.getLogger(__name__)


def use_wandb_offline_without_account() -> None:
    """Never a prompt, never a failure: without credentials wandb writes its run to disk."""
    if "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ:
        return
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        known = file.is_file() and netrc.netrc(file).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError) as error:
        logger.warning("%s cannot be read (%s): wandb writes its run to disk", file, error)
        known = False
    if not known:
        os.environ["WANDB_MODE"] = "offline"
