"""Checkpoints and the trained model are there whole or not at all.

Everything is written below OUTPUT/.partial and takes its name in OUTPUT when all ranks are done
with it and it is on the disk. OUTPUT is one folder that all ranks see.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llava_compete.training.manifest import (
    Manifest,
    check_files,
    hash_files,
    list_files,
    package_versions,
    read_manifest,
    sync_files,
    sync_folder,
    write_manifest,
)

logger = logging.getLogger(__name__)

PARTIAL = ".partial"  # in the output directory: what is being written or removed
FINAL = "final"  # in PARTIAL: the trained model


class CheckpointWriter:
    """Writes the checkpoints of one training, on every rank at once.

    ``recipe`` and ``settings`` are put down in the manifests. ``folder`` is where transformers
    has to write at the moment: PARTIAL during a save, the output directory otherwise.
    """

    def __init__(
        self, args: TrainingArguments, recipe: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> None:
        self.args = args
        self.recipe = recipe
        self.settings = settings
        self.output_dir = Path(args.output_dir)
        self.folder = self.output_dir

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """The checkpoint of ``step``: ``write(its folder)`` on every rank, manifest, rename.

        A checkpoint of that step that is there is replaced; what ``save_total_limit`` does not
        keep is removed behind it. OSError where it cannot be written: the checkpoints that were
        there still are.
        """
        partial = self.write_aside(f"{PREFIX_CHECKPOINT_DIR}-{step}", step, write)
        final = self.output_dir / partial.name
        if self.args.should_save:
            publish(partial, final)
            self._rotate(step)
            remove(self.output_dir / PARTIAL)
        self.args.distributed_state.wait_for_everyone()
        return final

    def write_aside(self, name: str, step: int, write: Callable[[Path], None]) -> Path:
        """PARTIAL/``name``, written by all ranks, with its manifest; what was there is gone."""
        partial = self.output_dir / PARTIAL / name
        if self.args.should_save:
            remove(partial)
            partial.mkdir(parents=True)
        self.args.distributed_state.wait_for_everyone()
        self.folder = partial.parent
        try:
            write(partial)
            self.args.distributed_state.wait_for_everyone()
            self._write_manifest(partial, step)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch, safetensors: full disk
            raise OSError(self._failure(name, error)) from error
        finally:
            self.folder = self.output_dir
        return partial

    def finish(self, final: Path) -> None:
        """Move the trained model from PARTIAL/FINAL to ``final``."""
        self.args.distributed_state.wait_for_everyone()
        if self.args.should_save:
            final.mkdir(parents=True, exist_ok=True)
            publish_files(self.output_dir / PARTIAL / FINAL, final)
            remove(self.output_dir / PARTIAL)
        self.args.distributed_state.wait_for_everyone()

    def _write_manifest(self, folder: Path, step: int) -> None:
        """Each rank hashes its share of the files, rank 0 writes down what they found."""
        rank, world_size = self.args.process_index, self.args.world_size
        # A network's file system may list another machine's files late; opened they are there.
        names = sorted({name for seen in gather_object([list_files(folder)]) for name in seen})
        try:
            found = hash_files(folder, names[rank::world_size], sync=True)
        except FileNotFoundError as error:
            raise OSError(
                f"rank {rank} does not see {error.filename}: all ranks have to share output_dir"
            ) from error
        entries = dict(gather_object(list(found.items())))
        if self.args.should_save:
            manifest = Manifest(
                step=step,
                world_size=world_size,
                zero_stage=zero_stage(self.args),
                resumable=not self.args.save_only_model,
                recipe=self.recipe,
                settings=self.settings,
                versions=package_versions(),
                files=dict(sorted(entries.items())),
            )
            write_manifest(folder, manifest)

    def _failure(self, name: str, error: BaseException) -> str:
        whole = whole_checkpoints(self.output_dir)
        last = (
            f"the last whole checkpoint is {whole[max(whole)]}: `--resume auto` goes on from it"
            if whole
            else "there is no whole checkpoint before it"
        )
        return (
            f"{name} could not be written: {error}\n{last}. "
            f"{shutil.disk_usage(self.output_dir).free:,} bytes are free in {self.output_dir}"
        )

    def _rotate(self, newest: int) -> None:
        """Remove the oldest whole checkpoints beyond ``save_total_limit``, never the newest."""
        limit = self.args.save_total_limit
        if limit is None or limit < 1:
            return
        whole = whole_checkpoints(self.output_dir)
        others = sorted(step for step in whole if step != newest)
        for step in others[: max(0, len(others) + 1 - limit)]:
            # Renamed first: a removal that is killed leaves no torn checkpoint behind.
            aside = self.output_dir / PARTIAL / f"removed-{step}"
            remove(aside)
            whole[step].rename(aside)
            remove(aside)


def publish(partial: Path, final: Path) -> None:
    """Give what lies whole at ``partial`` the name ``final``; what is there gives way."""
    if final.exists():
        old = partial.with_name(f"replaced-{final.name}")
        remove(old)
        final.rename(old)
        partial.rename(final)
        remove(old)
    else:
        partial.rename(final)
    sync_folder(final.parent)


def publish_files(partial: Path, final: Path) -> None:
    """Move the files of a model into the directory ``final``, its config.json last.

    Without config.json a directory is no model, so no reader takes half of one.
    """
    config = final / "config.json"
    sync_files(partial)
    config.unlink(missing_ok=True)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == config.name):
        remove(final / path.name)
        path.rename(final / path.name)
    partial.rmdir()
    sync_folder(final)


def clean_up(output_dir: Path) -> None:
    """Before a start: keep what lies whole below PARTIAL, remove the rest and say so."""
    partial = output_dir / PARTIAL
    if not partial.is_dir():
        return
    for path in sorted(partial.iterdir()):
        final = output_dir / path.name
        if path.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-") and not final.exists():
            try:
                check_files(path, read_manifest(path))
            except ValueError as error:
                logger.warning("an earlier start ended while it wrote %s: removed", error)
            else:
                logger.warning("%s is whole, only its last rename was missing: kept", final)
                publish(path, final)
                continue
        else:
            logger.warning("%s is left from an earlier start: removed", path)
        remove(path)
    partial.rmdir()


def whole_checkpoints(output_dir: Path) -> dict[int, Path]:
    """Checkpoints by step whose manifest holds, by the sizes of their files."""
    found = {}
    for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            manifest = read_manifest(path)
            check_files(path, manifest, hashes=False)
        except ValueError:
            continue  # output.py says so where it matters, at a resume
        found[manifest.step] = path
    return found


def zero_stage(args: TrainingArguments) -> int:
    """Stage of ZeRO, 0 without DeepSpeed."""
    if args.deepspeed is None:
        return 0
    return args.hf_deepspeed_config.get_value("zero_optimization.stage", 0)


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
