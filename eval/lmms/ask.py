"""Requests of lmms-eval in, its replies out; neither lmms-eval nor torch is imported.

A request is the tuple ``Instance.args``: context, generation settings or target, ``doc_to_visual``,
number of the document, task, split. Documents are ``docs[task][split][number]``.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

from PIL import Image, ImageFile
from tqdm import tqdm

from eval.predict import Model, TooLargeError
from eval.task import Sample

Arguments = tuple[Any, ...]
Docs = Mapping[str, Mapping[str, Any]]
R = TypeVar("R")

MAX_NEW_TOKENS = 1024  # of a task that does not say, as lmms-eval's own LLaVA
PLACEHOLDER = "<image>"
# Of these a greedy answer with pictures padded to a square does not depend.
WITHOUT_EFFECT = {"top_p", "top_k", "seed", "image_aspect_ratio"}
# What PNG does not hold -> what it does
PNG_MODES = {mode: mode for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")} | {
    "RGBX": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "LAB": "RGB",
    "PA": "RGBA",
    "RGBa": "RGBA",
}


class Generation(NamedTuple):
    """How an answer is made: at most so many tokens, cut before the first stop string."""

    max_new_tokens: int
    until: tuple[str, ...]

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> "Generation":
        """Of a task's ``generation_kwargs``; ValueError where they ask for more than greedy."""
        left = {name: value for name, value in settings.items() if name not in WITHOUT_EFFECT}
        max_new_tokens = left.pop("max_new_tokens", MAX_NEW_TOKENS)
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens!r} must be a whole number above 0")
        until = left.pop("until", None) or []
        until = [until] if isinstance(until, str) else until
        if not all(isinstance(text, str) and text for text in until):
            raise ValueError(f"until={until!r} must be a text or a list of texts, none empty")
        _refuse_other_than_greedy(left)
        return cls(max_new_tokens, tuple(until))

    def cut(self, text: str) -> str:
        """What stands before the first of the stop strings."""
        return text[
            : min((at for stop in self.until if (at := text.find(stop)) >= 0), default=None)
        ]


class PictureFiles:
    """Pictures as PNG files named by content: the harness reads files, a picture seen twice once.

    So they come through as those of its own tasks do: upright, 8 bits, on white where transparent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, visuals: Sequence[Any], asked_by: str) -> tuple[Path, ...]:
        """One file for each; ValueError where one is no picture."""
        return tuple(self._write(visual, asked_by) for visual in visuals)

    def clear(self) -> None:
        for path in self._folder.iterdir():
            path.unlink()

    def _write(self, visual: Any, asked_by: str) -> Path:
        if not isinstance(visual, Image.Image):
            raise ValueError(
                f"{asked_by} shows a {type(visual).__name__}, where this model takes pictures "
                f"alone, as PIL images: leave out tasks of video and sound"
            )
        if visual.mode not in PNG_MODES:
            raise ValueError(f"{asked_by} shows a picture of mode {visual.mode}: convert it to RGB")
        file = io.BytesIO()
        png = visual.convert(PNG_MODES[visual.mode])
        png.save(file, "PNG", compress_level=1, exif=visual.getexif())
        content = file.getvalue()
        path = self._folder / f"{hashlib.sha256(content).hexdigest()}.png"
        path.write_bytes(content)
        return path


def generate_until(
    model: Model, requests: Sequence[Arguments], docs: Docs, batch_size: int
) -> list[str]:
    """Answers in the order of the requests; those of like settings go to the model together."""
    alike: dict[Generation, list[int]] = {}
    for number, (_, settings, *_) in enumerate(requests):
        alike.setdefault(Generation.parse(settings), []).append(number)
    texts: dict[int, str] = {}
    for generation, numbers in alike.items():
        same = [requests[number] for number in numbers]

        def ask(samples: list[Sample], limit: int = generation.max_new_tokens) -> list[str]:
            return [answer.text for answer in model.answers(samples, limit)]

        replies = _in_batches(model, same, docs, batch_size, ask)
        texts |= {n: generation.cut(text) for n, text in zip(numbers, replies, strict=True)}
    return [texts[number] for number in range(len(requests))]


def loglikelihood(
    model: Model, requests: Sequence[Arguments], docs: Docs, batch_size: int
) -> list[tuple[float, bool]]:
    """Of each continuation its mean loss in nats a token, and whether it is the greedy answer.

    A loss, not its negative: lmms-eval 0.7 takes the option of the smallest for a choice. The end
    of the turn counts, as in training. White space around a continuation, such as the space that
    lmms-eval puts before an option, is left out: an answer stands in a turn of its own.
    """
    if any(len(request) < 6 for request in requests):
        raise ValueError(
            "the metric acc_mutual_info asks for options without a question, which this model "
            "was not trained on: leave it out of the task's metric_list"
        )
    losses = list(_in_batches(model, requests, docs, batch_size, model.answer_losses))
    first: dict[Any, Arguments] = {_question_of(request): request for request in requests}
    targets = [_target(request, docs) for request in requests]
    limit = max(_tokens(model, targets), default=0) + 1

    def ask(samples: list[Sample]) -> list[str | None]:
        # An answer that was cut is no continuation, whatever its text.
        return [a.text if a.finished else None for a in model.answers(samples, limit)]

    replies = _in_batches(model, list(first.values()), docs, batch_size, ask)
    greedy = dict(zip(first, replies, strict=True))
    return [
        (loss, greedy[_question_of(request)] == target)
        for loss, request, target in zip(losses, requests, targets, strict=True)
    ]


def _in_batches(
    model: Model,
    requests: Sequence[Arguments],
    docs: Docs,
    batch_size: int,
    ask: Callable[[list[Sample]], list[R]],
) -> Iterator[R]:
    """Replies in the order of the requests: neighbours often show the same picture.

    A batch that is too large for the memory is asked again in halves, and those behind it stay as
    small; TooLargeError where one request alone does not fit.
    """
    done = 0
    with (
        TemporaryDirectory(prefix="lmms-pictures-") as folder,
        tqdm(total=len(requests), unit="reply", disable=len(requests) == 0) as bar,
    ):
        files = PictureFiles(Path(folder))
        while done < len(requests):
            batch = requests[done : done + batch_size]
            samples = [_sample(request, docs, files) for request in batch]
            try:
                with _refusing_half_pictures():
                    model.expect(samples)
                    replies = ask(samples)
            except TooLargeError:
                if len(batch) == 1:
                    raise
                batch_size = len(batch) // 2
                continue
            finally:
                files.clear()
            done += len(batch)
            bar.update(len(batch))
            yield from replies


@contextmanager
def _refusing_half_pictures() -> Iterator[None]:
    """lmms-eval has Pillow decode files cut short, which the harness refuses to work under.

    So a picture of lmms-eval comes as it does to its other models, and our copy of it whole.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _sample(request: Arguments, docs: Docs, files: PictureFiles) -> Sample:
    context, _, doc_to_visual, number, task, split = request
    name = f"document {number} of {task}"
    if not isinstance(context, str):
        raise ValueError(f"{name} asks by a {type(context).__name__}, expected a text")
    visuals = [
        visual for visual in doc_to_visual(docs[task][split][number]) or () if visual is not None
    ]
    # Pictures stand before the text, wherever a task puts its placeholders.
    prompt = context.replace(f"{PLACEHOLDER}\n", "").replace(PLACEHOLDER, "")
    references = () if isinstance(request[1], Mapping) else (_target(request, docs),)
    return Sample(name, prompt, references, files.write(visuals, name))


def _target(request: Arguments, docs: Docs) -> str:
    _, target, _, number, task, split = request
    text = target(docs[task][split][number]) if callable(target) else target
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"document {number} of {task} has the continuation {text!r}: empty?")
    return text.strip()


def _question_of(request: Arguments) -> Arguments:
    context, _, _, *document = request
    return (context, *document)


def _tokens(model: Model, texts: Sequence[str]) -> list[int]:
    (around,) = model.lengths([Sample("", "", ())])
    return [n - around for n in model.lengths([Sample("", text, ()) for text in texts])]


def _refuse_other_than_greedy(settings: dict[str, Any]) -> None:
    """ValueError where the settings that are left are unknown, or a greedy answer is not meant."""
    samples = settings.pop("do_sample", None)
    temperature = settings.pop("temperature", 1 if samples else 0) or 0
    if temperature and samples is not False:
        raise ValueError(
            f"do_sample={samples}, temperature={temperature}: decoding is greedy here; ask for it "
            f"by --gen_kwargs do_sample=False,temperature=0"
        )
    for name in ("num_beams", "repetition_penalty"):
        if (value := settings.pop(name, 1)) != 1:
            raise ValueError(
                f"{name}={value}: decoding is greedy here; ask for it by --gen_kwargs {name}=1"
            )
    if settings:
        raise ValueError(f"generation settings {sorted(settings)} are not known to this model")
