"""What happens around an optimizer step: competition, router state, time, the progress bar."""

import time
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState

from llava_compete.model import LlavaCompeteForConditionalGeneration as Model
from llava_compete.moe import CompetitionSchedule
from llava_compete.moe.routers import Router
from llava_compete.training.args import TrainArgs
from llava_compete.training.finite import FiniteGuard

PLANNED = "planned_steps"  # its place in the trainer's state


def build_schedule(model: Model, args: TrainArgs, max_steps: int) -> CompetitionSchedule:
    """The run's schedule over the model's competitors."""
    warmup = args.competition_warmup
    return CompetitionSchedule(
        len(model.competitors()),
        rate=args.competition_rate,
        max_layers=args.competition_max_layers,
        warmup_steps=int(warmup * max_steps) if warmup < 1 else int(warmup),
        seed=args.seed,
    )


def planned_steps(state: TrainerState) -> int:
    """The steps that the run began with, kept where a resume has another ``max_steps``.

    The warm-up of the competition and what routers do at a share of the steps go by it, so that a
    longer run keeps the decisions of the shorter one.
    """
    first = {"args": {}, "attributes": {"steps": state.max_steps}}
    return state.stateful_callbacks.setdefault(PLANNED, first)["attributes"]["steps"]


class CompetitionCallback(TrainerCallback):
    """Tells the layers, before each optimizer step, which of them compete in it.

    The decision is a function of the step counter, so all micro-batches of a step share it, and a
    resumed run goes on with the decisions of the undisturbed one.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def on_train_begin(
        self, args: TrainArgs, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.schedule = build_schedule(self.model, args, planned_steps(state))

    def on_step_begin(
        self, args: TrainArgs, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.model.set_competing(self.schedule.competing(state.global_step))


class RouterStateCallback(TrainerCallback):
    """Tells every router where an optimizer step begins and ends, for state that moves by step."""

    def __init__(self, model: Model, guard: FiniteGuard) -> None:
        self.guard = guard
        self.routers = [layer.router for part in model.moe_layers().values() for layer in part]

    def on_step_begin(
        self, args: TrainArgs, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for router in self.routers:
            router.begin_step(state.global_step, planned_steps(state))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        moved = [router for router in self.routers if type(router).end_step is not Router.end_step]
        with self.guard.unless_bad(moved):
            for router in moved:
                router.end_step()


class StepTimer(TrainerCallback):
    """Wall-clock seconds of the optimizer steps since the last log, without saving and logging."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._begun)


class QuietProgress(ProgressCallback):
    """A progress bar that shows the losses beside it and prints no line per step."""

    def on_log(
        self,
        args: TrainArgs,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self.training_bar is None or not logs or "loss" not in logs:
            return
        shown = {"loss": f"{logs['loss']:.3f}", "lr": f"{logs['learning_rate']:.1e}"}
        if "language_model/agreement" in logs:
            shown["agreement"] = f"{logs['language_model/agreement']:.2f}"
        self.training_bar.set_postfix(shown)
