"""The report of trainings and evaluations: what was trained, what it scores, what the routers did.

    python -m eval report RUN... --training DIR [DIR ...] --output OUTDIR

Every number comes from files: run.json, results.json and samples/ of a RUN, and recipe.yaml,
config.json and trainer_state.json of a training's DIR.  The same files give the same report.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.answers import galleries
from eval.charts import charts
from eval.comparison import comparison
from eval.expert_report import load_blocks, loads_of, write_loads
from eval.plan import RIGHT, SHUFFLED
from eval.report import HEAD, table
from eval.rows import read, write_csv
from eval.store import Record, read_results, read_run
from eval.task import ANSWER_LOSS
from eval.training_log import (
    Part,
    TrainingRun,
    checkpoint_size,
    competing_steps,
    competition_cost,
    read_training,
    summarise,
)
from llava_compete.report.blocks import (
    Block,
    Bullets,
    Code,
    Figure,
    Heading,
    Paragraph,
    Table,
)
from llava_compete.report.document import write

CSV = "scores.csv"
LOADS_CSV = "experts.csv"  # where loads were counted
KIND = "kind"  # the group of questions whose answer is a class
FEW_STEPS = 10  # of which a median says little


def write_report(
    runs: Sequence[Path], trainings: Sequence[Path], output: Path, data_root: Path | None = None
) -> list[Path]:
    """Write report.md, report.html, scores.csv and, if a run has loads, experts.csv to ``output``.

    Gives their paths. ValueError where an input is missing.
    ``data_root`` is where the pictures lie now, if they were moved since the evaluation.
    """
    trained = [read_training(directory) for directory in trainings]
    blocks: list[Block] = [Heading("Training and evaluation report", 1)]
    if trained:
        blocks += [Heading("What was trained"), _models(trained)]
        blocks += [Code(f"Recipe of {run.path}", run.recipe_text) for run in trained]
    evaluated = [read(directory) for directory in runs]
    blocks += [Heading("Scores"), *comparison(evaluated)]
    for number, run_results in enumerate(evaluated, start=1):
        blocks += _scores(run_results.path)
        blocks += load_blocks(f"load-{number}", run_results)
    for number, run in enumerate(trained, start=1):
        blocks += _training(number, run)
    blocks.append(Heading("Pictures and answers"))
    for number, directory in enumerate(runs, start=1):
        blocks.append(Heading(str(directory), 3))
        blocks += galleries(f"answer-{number}", directory, data_root)
    written = write(blocks, output)
    write_csv(evaluated, output / CSV)
    written.append(output / CSV)
    if any(map(loads_of, evaluated)):
        write_loads(evaluated, output / LOADS_CSV)
        written.append(output / LOADS_CSV)
    return written


def _models(runs: Sequence[TrainingRun]) -> Table:
    columns = [dict(_model(run)) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = tuple((name, *(column.get(name, "-") for column in columns)) for name in names)
    return Table(("", *(str(run.path) for run in runs)), rows)


def _model(run: TrainingRun) -> Iterator[tuple[str, str]]:
    text, vision, recipe = run.config["text_config"], run.config["vision_config"], run.recipe
    name = text.get("_name_or_path") or text["model_type"]
    name = Path(name).name if name.startswith("/") else name
    layers = f"{text['num_hidden_layers']} layers, width {text['hidden_size']}"
    yield "language model", f"{name} ({layers})"
    size, patches = vision["image_size"], vision["num_patches"]
    yield "image tower", f"{vision['name']} ({size} pixels, {patches} patches)"
    yield "projector", run.config["projector"]
    for part in run.parts:
        yield f"experts in {part.name}", _experts(part, text["num_hidden_layers"])
    if not run.parts:
        yield "experts", "none: a dense model"
    if (numbers := checkpoint_size(run)) is not None:
        active = f", {numbers.active:,} of them active for a token" if run.parts else ""
        yield "parameters", f"{numbers.total:,}{active}"
    yield "trained from", str(recipe["checkpoint"])
    yield "trained parts", ", ".join(recipe.get("trainable", ["projector"]))
    yield "trained on", str(recipe["data_path"])
    yield "steps", f"{int(run.entries[-1]['step']):,}"


def _experts(part: Part, depth: int) -> str:
    where = f", in {part.num_layers} of {depth} layers" if part.name == "language_model" else ""
    return f"E = {part.num_experts}, K = {part.top_k}, router {part.router}{where}"


def _scores(directory: Path) -> Iterator[Block]:
    run, results = read_run(directory), read_results(directory)
    arguments = run["arguments"]
    yield Heading(str(directory), 3)
    yield Bullets(
        (
            f"checkpoint {arguments['checkpoint']} in {arguments['dtype']}",
            f"fingerprint of its files, dtype, routing and decoding: {results['fingerprint']}",
        )
    )
    facts = [fact for name, task in results["tasks"].items() for fact in _facts(name, task)]
    yield from map(Paragraph, facts)
    lines = table(results).replace("+-", "\N{PLUS-MINUS SIGN}").splitlines()
    rows = [_cells(line) for line in lines if line.startswith("|")][2:]
    yield Table(HEAD, tuple(rows))
    legend, *notes = [line for line in lines if line and not line.startswith("|")]
    yield Paragraph(legend)
    if notes:
        yield Bullets(tuple(note.removeprefix("- ") for note in notes))


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip("|").split("|"))


def _facts(name: str, task: Record) -> Iterator[str]:
    """Sentences on the answer loss and on the class question, for a task that has them."""
    right, shuffled = (
        task["conditions"].get(condition, {"metrics": {}})["metrics"]
        for condition in (RIGHT, SHUFFLED)
    )
    about = name if task["complete"] else f"{name}, NOT ALL OF ITS SAMPLES"
    if ANSWER_LOSS in right:
        loss, control = right[ANSWER_LOSS], shuffled.get(ANSWER_LOSS)
        yield _naming(about, loss, control, task["differences"].get(ANSWER_LOSS))
    headline = task["headline"]
    if KIND in right.get(headline, {"groups": {}})["groups"]:
        share = right[headline]["groups"][KIND]
        control = shuffled.get(headline, {"groups": {}})["groups"].get(KIND)
        change = task["differences"].get(headline, {"groups": {}})["groups"].get(KIND)
        yield _class(about, share, control, change)


def _naming(about: str, loss: Record, control: Record | None, change: Record | None) -> str:
    text = (
        f"Naming questions ({about}, n = {loss['n']}): the answer loss is {loss['value']:.3f} nats "
        f"a token with the right picture"
    )
    if control is None or change is None:
        return f"{text}; shuffled pictures were not asked."
    return (
        f"{text} and {control['value']:.3f} with a shuffled one, a difference of "
        f"{change['value']:+.3f} nats a token ({_in_errors(change)}); below zero, the picture "
        f"helps."
    )


def _class(about: str, share: Record, control: Record | None, change: Record | None) -> str:
    majority = {"value": share["value"] - share["chance"], "in_stderrs": None}
    if share["stderr"]:
        majority["in_stderrs"] = majority["value"] / share["stderr"]
    text = (
        f"Class questions ({about}, n = {share['n']}): {share['value'] * 100:.1f} % are right. "
        f"Always giving the majority class would get {share['chance'] * 100:.1f} %, a difference "
        f"of {majority['value'] * 100:+.1f} points ({_in_errors(majority)})"
    )
    if control is None or change is None:
        return f"{text}; shuffled pictures were not asked."
    return (
        f"{text}; with shuffled pictures it is {control['value'] * 100:.1f} %, a difference of "
        f"{change['value'] * 100:+.1f} points ({_in_errors(change)})."
    )


def _in_errors(change: Record) -> str:
    errors = change["in_stderrs"]
    return "no standard error" if errors is None else f"{errors:+.1f} standard errors"


def _training(number: int, run: TrainingRun) -> Iterator[Block]:
    yield Heading(f"Training of {run.path}")
    if not run.every_step:
        yield Paragraph(
            "This training did not log every step (logging_steps is not 1): what is called a step "
            "here is a mean over several."
        )
    for chart in charts(run):
        yield Figure(f"training-{number}-{chart.name}.png", chart.png, chart.caption)
    if run.parts:
        yield from _routing(run)
    if competing_steps(run):
        yield Heading("Cost of competition", 3)
        yield Paragraph(_cost(run))


def _routing(run: TrainingRun) -> Iterator[Block]:
    yield Heading("Router and competition in numbers", 3)
    head = (
        *("part", "steps with competition", "share of steps", "agreement, mean"),
        *("agreement, last third", "chance K/E", "least load", "most load", "even load 1/E"),
    )
    yield Table(head, tuple(_routing_row(run, part) for part in run.parts))
    steps, among = len(run.entries), len(competing_steps(run))
    yield Paragraph(
        f"Any part: {among} of {steps} steps with competition ({among / steps * 100:.1f} %). "
        "Agreement is a mean over the steps with competition in the part, and over the last third "
        "of those. Chance K/E is for two choices that know nothing of each other; experts that "
        "are preferred by router and competition alike raise it. Load: of the least and the most "
        "used expert, mean over the last tenth of the steps."
    )


def _routing_row(run: TrainingRun, part: Part) -> tuple[str, ...]:
    found = summarise(run, part)
    return (
        part.name,
        str(found.competing),
        f"{found.share * 100:.1f} %",
        _optional(found.agreement),
        _optional(found.late_agreement),
        f"{part.chance:.3f}",
        f"{found.least_load:.3f}",
        f"{found.most_load:.3f}",
        f"{1 / part.num_experts:.3f}",
    )


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cost(run: TrainingRun) -> str:
    cost = competition_cost(run)
    if cost is None:
        return (
            "Not known: it takes a log of every step (logging_steps: 1) and, after the first, "
            "steps both with and without a competing layer."
        )
    rough = " So few steps of one kind make this a rough figure."
    return (
        f"A mean optimizer step takes {cost.ratio:.3f} times as long as one without a competing "
        f"layer, which is a plain SMoE step: the router then does what topk does. Median "
        f"{cost.competing_seconds:.3f} s over {cost.competing} steps with competition and "
        f"{cost.plain_seconds:.3f} s over {cost.plain} without; the first step is left out. The "
        f"ratio is share * median with / median without + (1 - share), share being that of the "
        f"steps with competition. It comes from one run, on a machine that other work may have "
        f"shared.{rough if min(cost.competing, cost.plain) < FEW_STEPS else ''}"
    )
