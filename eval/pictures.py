"""Pictures of questions, each decoded once by a thread and seen once by the image tower.

N pictures a batch shows, in order; H and W pixels, P patches, V width of the tower's features.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.expert_load import see_pictures
from eval.expert_shares import added
from eval.store import Record
from eval.task import Sample
from llava_compete.data import ImageFolder
from llava_compete.data.encode import to_pixels
from llava_compete.data.images import picture_side

KEPT = 64  # pictures; the features of one are some megabytes


class Pictures:
    """What a model is shown, its tower run once for a picture of neighbouring batches.

    ``shown`` counts pictures in prompts, ``seen`` those that the tower was run on. ``workers``
    threads decode and resize; both let go of Python's lock. Where ``counted``, what the experts of
    the tower, which must have some, were given is kept beside the features.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        workers: int = 2,
        kept: int = KEPT,
        counted: bool = False,
    ) -> None:
        self.shown = self.seen = 0
        self._counted = counted
        self._counts: dict[Path, Record] = {}  # of the pictures kept, and of the last batch's
        self._model = model
        self._processor = processor
        self._kept = kept
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
        self._coming: dict[Path, Future[Tensor]] = {}
        self._features: OrderedDict[Path, Tensor] = OrderedDict()  # the latest shown last

    def expect(self, samples: Iterable[Sample]) -> None:
        """Begin to decode what a coming batch shows, and forget what it does not."""
        wanted = {path: sample.id for sample in samples for path in sample.images}
        for path in self._coming.keys() - wanted.keys():
            self._coming.pop(path).cancel()
        for path, asked_by in wanted.items():
            if path not in self._coming and path not in self._features:
                self._coming[path] = self._threads.submit(self._decode, path, asked_by)

    def inputs(self, samples: Sequence[Sample], *, shared: bool) -> dict[str, Tensor]:
        """Of a batch: ``image_features`` (N, P, V), or ``pixel_values`` (N, 3, H, W) if not shared.

        Empty where no sample has a picture.
        """
        asked_by = {path: sample.id for sample in samples for path in sample.images}
        paths = [path for sample in samples for path in sample.images]
        self.shown += len(paths)
        if not paths:
            return {}
        if not shared:
            self.seen += len(paths)
            pixels = {path: self._pixels(path, asked_by[path]) for path in asked_by}
            return {"pixel_values": torch.stack([pixels[path] for path in paths])}
        new = [path for path in asked_by if path not in self._features]
        if new:
            self._see(new, torch.stack([self._pixels(path, asked_by[path]) for path in new]))
        for path in asked_by:
            self._features.move_to_end(path)
        features_NPV = torch.stack([self._features[path] for path in paths])
        while len(self._features) > self._kept:
            self._features.popitem(last=False)
        known = self._features.keys() | asked_by.keys()
        self._counts = {path: found for path, found in self._counts.items() if path in known}
        return {"image_features": features_NPV}

    def counts(self, sample: Sample) -> Record:
        """What the tower's experts were given of the pictures of one of the last ``inputs``.

        {} where they are not counted, or the sample has no picture.
        """
        if not self._counted:
            return {}
        return added([{}, *(self._counts[path] for path in sample.images)])

    def _see(self, paths: Sequence[Path], pixel_values: Tensor) -> None:
        pixel_values = pixel_values.to(self._model.device, self._model.dtype)
        if self._counted:
            features_NPV, counts = see_pictures(self._model, pixel_values)
            self._counts.update(zip(paths, counts, strict=True))
        else:
            features_NPV = self._model.picture_features(pixel_values)
        self.seen += len(paths)
        # Copies: a view would keep all pictures of its batch.
        copies = [features_PV.clone() for features_PV in features_NPV]
        self._features.update(zip(paths, copies, strict=True))

    def _pixels(self, path: Path, asked_by: str) -> Tensor:
        coming = self._coming.pop(path, None)
        return self._decode(path, asked_by) if coming is None else coming.result()

    def _decode(self, path: Path, asked_by: str) -> Tensor:
        side = picture_side(self._processor)
        picture = ImageFolder(path.parent).open(path.name, asked_by, side)
        return to_pixels(self._processor, [picture])[0]
