"""A LLaVA row: what it must look like, and the chat messages it becomes."""

from collections.abc import Mapping
from typing import Any

from llava_compete.processor import IMAGE_TOKEN, Message, count_images

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def to_messages(row: Mapping[str, Any]) -> list[Message]:
    """A LLaVA row's ``conversations`` as chat messages; ValueError names the row and the fault."""
    name = row.get("id", "without id")
    turns = row.get("conversations")
    if not turns:
        raise ValueError(f"sample {name}: no conversations")
    messages: list[Message] = []
    for turn in turns:
        if turn.get("from") not in ROLES or not isinstance(turn.get("value"), str):
            raise ValueError(
                f"sample {name}: a turn needs 'from' (one of {sorted(ROLES)}) and 'value' (text), "
                f"got {turn}"
            )
        messages.append({"role": ROLES[turn["from"]], "content": _content(turn["value"])})
    spoken = [message["role"] for message in messages if message["role"] != "system"]
    if spoken != ["user", "assistant"] * (len(spoken) // 2) or not spoken:
        raise ValueError(f"sample {name}: human and gpt must alternate, human first; got {spoken}")
    files = image_files(row)
    if (wanted := count_images(messages)) != len(files):
        raise ValueError(f"sample {name}: {wanted} {IMAGE_TOKEN} in the text, images: {files}")
    return messages


def image_files(row: Mapping[str, Any]) -> list[str]:
    """The row's image files: ``image`` is absent, one name or a list of names."""
    image = row.get("image")
    if image is None:
        return []
    return [image] if isinstance(image, str) else list(image)


def _content(text: str) -> list[dict[str, str]]:
    """Text pieces with image items between; the template writes the line break after an image.

    A turn's only image comes first wherever it stood, as in LLaVA and as in evaluation.
    """
    if text.count(IMAGE_TOKEN) == 1:
        question = text.replace(IMAGE_TOKEN, "").strip()
        image = {"type": "image"}
        return [image, {"type": "text", "text": question}] if question else [image]
    items: list[dict[str, str]] = []
    for index, piece in enumerate(text.split(IMAGE_TOKEN)):
        if index:
            items.append({"type": "image"})
        if piece := piece.strip("\n"):
            items.append({"type": "text", "text": piece})
    return items
