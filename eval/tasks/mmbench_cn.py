"""MMBench in Chinese, split dev: see ``eval.tasks.mmbench``.

The texts are Chinese in the source. LLaVA says "Please answer with the option's letter directly.",
lmms-eval "Please answer with the letter of the given options directly.". Its release of MMBench CN
writes an absent hint as "nan" into the prompt in some versions, which is not followed.
"""

from pathlib import Path

from eval.task import DEFAULT_PROFILE, Task
from eval.tasks import mmbench

CHINESE = mmbench.Language(
    name="mmbench_cn",
    tsv="mmbench_dev_cn_20231003.tsv",
    rows={"official files": 4329, "hub copy": 4329},
    instruction="\u8bf7\u76f4\u63a5\u56de\u7b54\u9009\u9879\u5b57\u6bcd\u3002",
    lmms_instruction=(
        "\u8bf7\u76f4\u63a5\u4f7f\u7528\u6240\u63d0\u4f9b\u7684\u9009\u9879"
        "\u5b57\u6bcd\u4f5c\u4e3a\u7b54\u6848\u56de\u7b54\u3002"
    ),
    announcement="\u6709\u5982\u4e0b\u51e0\u4e2a\u9009\u9879\uff1a",
)


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/mmbench/mmbench_dev_cn_20231003.tsv``, else ``root/hub/mmbench_cn``."""
    return mmbench.load(CHINESE, root, profile)
