"""Before the first step: is there room for what will be saved, and can it be read again?"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from transformers import (
    AutoProcessor,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from llava_compete.checkpoint import read_config, weight_files
from llava_compete.training.manifest import check_files, read_manifest
from llava_compete.training.saving import PARTIAL, remove
from llava_compete.training.space import check_space
from llava_compete.training.states import load_pickled

if TYPE_CHECKING:
    from llava_compete.training.trainer import LlavaTrainer

TRIAL = "trial"  # in PARTIAL
WEIGHTS = "*.safetensors"  # of a model that is not gathered from ZeRO-3's shards there are none


class TrialSave(TrainerCallback):
    """Checks the space, then saves as the run will, reads that and removes it.

    Every rank takes part. A run that saves no checkpoints tries its trained model. The last
    callback: what others do where a training begins belongs to what is saved.
    """

    def __init__(self, trainer: "LlavaTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if args.should_save:
            check_space(self.trainer)
        if not self.trainer.args.trial_save:
            return
        writer = self.trainer.writer
        name = f"{TRIAL}/{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        folder = writer.write_aside(name, state.global_step, self._write)
        if args.should_save:
            try:
                read_again(folder, self.trainer)
            except (ValueError, OSError, SafetensorError) as error:
                raise ValueError(
                    f"what this run would save cannot be read again: {error}\nNothing was trained; "
                    f"look at {folder}, or train without this trial by trial_save=false"
                ) from error
            remove(writer.output_dir / PARTIAL)
        args.distributed_state.wait_for_everyone()

    def _write(self, folder: Path) -> None:
        if self.trainer.args.save_strategy == SaveStrategy.NO:
            self.trainer.save_model(str(folder), _internal_call=True)
        else:
            self.trainer.write_checkpoint(folder)


def read_again(folder: Path, trainer: "LlavaTrainer") -> None:
    """ValueError, OSError or SafetensorError where a saved model or checkpoint is not whole.

    Hashes, processor, names and shapes of the trained weights, and every pickled file, with
    ``weights_only``.
    """
    check_files(folder, read_manifest(folder))
    gathered = any(folder.glob(WEIGHTS))
    read_config(folder, weights=gathered)
    AutoProcessor.from_pretrained(folder)
    if gathered:
        _check_weights(folder, trainer)
    for file in sorted(folder.rglob("*.pt")):
        load_pickled(file)
    if trainer.args.save_strategy == SaveStrategy.NO:
        return
    TrainerState.load_from_json(str(folder / "trainer_state.json"))
    if not trainer.args.save_only_model:
        trainer._load_rng_state(str(folder))  # the state that it has already


def _check_weights(folder: Path, trainer: "LlavaTrainer") -> None:
    shapes: dict[str, list[int]] = {}
    for name in weight_files(folder):
        with safe_open(folder / name, "pt") as opened:
            shapes |= {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118
    for name, parameter in trainer.model.named_parameters():
        if not parameter.requires_grad:
            continue
        shape = list(getattr(parameter, "ds_shape", parameter.shape))
        if shapes.get(name) != shape:
            raise ValueError(
                f"{folder} has {name} with shape {shapes.get(name)}, the model's is {shape}"
            )
