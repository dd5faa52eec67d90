"""What a recipe says about the training itself."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments

from llava_compete.training.loader import check_order
from llava_compete.training.policy import check_policy
from llava_compete.training.watchdog import check_step_timeout


@dataclass
class TrainArgs(TrainingArguments):
    """transformers' TrainingArguments and what a mixture of experts adds."""

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "part_learning_rates",
    ]

    remove_unused_columns: bool = False
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        # Re-entrant checkpointing would leave the routers without gradient.
        default_factory=lambda: {"use_reentrant": False}
    )
    part_learning_rates: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "Learning rate by part where it is not learning_rate: vision, "
            "projector, language_model, experts, routers."
        },
    )
    competition_rate: float = field(
        default=0.07, metadata={"help": "Share of steps in which an MoE layer competes."}
    )
    competition_max_layers: int = field(
        default=3, metadata={"help": "Most layers that compete in one step."}
    )
    competition_warmup: float = field(
        default=0.05,
        metadata={"help": "Steps before the first competition; below 1, a share of all steps."},
    )
    competition_memory: float | None = field(
        default=None,
        metadata={
            "help": "MiB that one competing layer may keep for its backward; where it would keep "
            "more, its experts run again there, in spans of tokens that take no more. Left out: "
            "no bound."
        },
    )
    compile_experts: bool = field(
        default=False,
        metadata={
            "help": "Compile what experts do between their matrix products by torch.compile, "
            "which takes some seconds at the first step."
        },
    )
    batching: str = field(
        default="shuffled",
        metadata={
            "help": "shuffled; length_grouped: rows of near length together; packed: several rows "
            "to a sequence of at most max_length tokens, per_device_train_batch_size counts "
            "sequences."
        },
    )
    routing_steps: int = field(
        default=0,
        metadata={"help": "Every so many steps log the routing figures of that step; 0: never."},
    )
    non_finite: str = field(
        default="stop",
        metadata={
            "help": "A step whose loss or gradient is not finite is left out and written to "
            "non_finite.json; then stop: the run ends; skip: it goes on."
        },
    )
    max_non_finite_share: float = field(
        default=0.01,
        metadata={"help": "With non_finite=skip, most steps left out, in hundreds of steps."},
    )
    logging_nan_inf_filter: bool = field(
        # The device is waited for in every micro-batch, to show the mean of earlier losses as
        # this one's.
        default=False,
        metadata={"help": "Log the mean of earlier losses in place of one that is not finite."},
    )
    resume: str = field(
        default="never",
        metadata={
            "help": "never; auto: from the newest checkpoint of output_dir whose manifest holds, "
            "from the start where there is none; or a checkpoint's path."
        },
    )
    step_timeout: float = field(
        default=1200.0,
        metadata={
            "help": "Seconds without a step, log or save after which every rank writes where it "
            "stands to hang-rank-N.txt and the run ends by code 76; 0: never. Below ddp_timeout, "
            "or the communication library is first."
        },
    )
    trial_save: bool = field(
        default=True,
        metadata={
            "help": "Before the first step write what the run will save, read it again and remove "
            "it: what cannot be saved shows then, not at the end."
        },
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Show one sample, batch shapes and parameters, and stop."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self, self.batching)
        if self.save_on_each_node:
            raise ValueError(
                "save_on_each_node=true: all ranks share output_dir and write each checkpoint "
                "together, leave it out"
            )
        if self.save_only_model and self.resume == "auto":
            raise ValueError(
                "save_only_model=true: checkpoints would hold nothing to resume from, and "
                "resume=auto would begin anew each time; leave one of them out"
            )
        if self.competition_memory is not None and not self.competition_memory > 0:
            raise ValueError(
                f"competition_memory={self.competition_memory} must be above 0, in MiB; left out "
                f"it is without bound"
            )
        check_step_timeout(self.step_timeout, self.ddp_timeout)
        if self.enable_jit_checkpoint:
            raise ValueError(
                "enable_jit_checkpoint=true: every run saves on SIGTERM and SIGUSR1, on all ranks "
                "in the same step; leave it out"
            )
        check_policy(self.non_finite, self.max_non_finite_share, fp16=self.fp16)
