"""MME-RealWorld-CN, in Chinese: see ``eval.tasks.mme_realworld``.

The texts are those of lmms-eval in every profile, but for the space that ``lmms`` has at the end:
the options are listed below; choose the best answer by the picture and give the letter alone; the
best answer is. The number of questions is not known here.
"""

from pathlib import Path

from eval.task import DEFAULT_PROFILE, Task
from eval.tasks import mme_realworld

HEAD = "\u9009\u9879\u5982\u4e0b\u6240\u793a:"
INSTRUCTION = (
    "\u6839\u636e\u56fe\u50cf\u9009\u62e9\u4e0a\u8ff0\u591a\u9879\u9009\u62e9\u9898\u7684\u6700"
    "\u4f73\u7b54\u6848\u3002\u53ea\u9700\u56de\u7b54\u6b63\u786e\u9009\u9879\u7684\u5b57\u6bcd"
    "\uff08A, B, C, D \u6216 E\uff09\u3002"
)
END = "\u6700\u4f73\u7b54\u6848\u4e3a\uff1a"
LMMS = mme_realworld.Wording(HEAD, INSTRUCTION, f"{END} ")
CHINESE = mme_realworld.Part(
    name="mme_realworld_cn",
    folder="mme_realworld_cn",
    file="MME_RealWorld_CN.json",
    wordings={
        "llava15": mme_realworld.Wording(HEAD, INSTRUCTION, END),
        "lmms": LMMS,
        "libmoe": LMMS,
    },
    expected_n=None,
    description="photographs of high resolution, in Chinese, by letter",
)


def load(root: Path, profile: str = DEFAULT_PROFILE) -> Task:
    """Read ``root/mme_realworld_cn``, else ``root/hub/mme_realworld_cn``."""
    return mme_realworld.load(CHINESE, root, profile)
