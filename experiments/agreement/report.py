"""Tables and figures of what was run."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from experiments.agreement.sweep import RATES, STEPS, share_of_bound
from experiments.agreement.training import SETTINGS
from llava_compete.report.drawing import COLOURS

PARTS = {"language_model": "language model", "projector": "projector", "vision": "image tower"}


def write(directory: Path) -> str:
    """report.md and figures of the results found in ``directory``; the report's text."""
    sections = []
    for name, title in (
        ("synthetic", "Synthetic competitions"),
        ("layers", "The layers of the checkpoint, frozen"),
    ):
        file = directory / f"{name}.json"
        if file.is_file():
            rows = json.loads(file.read_text())
            sections.append(f"### {title}\n\n{sweep_table(rows)}")
            if name == "synthetic":
                sections.append(task_table(rows))
    records = [json.loads(file.read_text()) for file in (directory / "training").glob("*.json")]
    records.sort(key=lambda record: list(SETTINGS).index(record["setting"]))
    if records:
        training_figure(records).savefig(directory / "agreement.png", dpi=150)
        sections.append(f"### Training\n\n{training_table(records)}")
    text = "\n\n".join(sections) + "\n"
    (directory / "report.md").write_text(text)
    return text


def sweep_table(rows: list[dict[str, Any]]) -> str:
    """Share of the linear bound by form, at the best learning rate for each number of steps."""
    forms = list(dict.fromkeys(row["form"] for row in rows))
    lines = [
        "| form | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |",
        "| --- |" + " ---: |" * len(STEPS),
    ]
    for form in forms:
        cells = []
        for steps in STEPS:
            by_rate = {
                rate: share_of_bound(
                    [
                        row
                        for row in rows
                        if (row["form"], row["rate"], row["steps"]) == (form, rate, steps)
                    ]
                )
                for rate in RATES
            }
            best = max(by_rate, key=lambda rate: by_rate[rate])
            cells.append(f"{by_rate[best]:.2f} ({best:g})")
        lines.append(f"| {form} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def task_table(rows: list[dict[str, Any]]) -> str:
    """The bound and both named forms by task, after the most steps at the best learning rate."""
    lines = [
        "| experts | mean squared distance of softmax(s) from 1/E | bound | paper | outcome |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task and row["steps"] == STEPS[-1]]
        best = {
            form: max(
                fmean(
                    row["agreement"] for row in mine if (row["form"], row["rate"]) == (form, rate)
                )
                for rate in RATES
            )
            for form in ("paper", "outcome")
        }
        lines.append(
            f"| {task} | {fmean(row['target_mse_to_uniform'] for row in mine):.1e} "
            f"| {fmean(row['bound'] for row in mine):.3f} "
            f"| {best['paper']:.3f} | {best['outcome']:.3f} |"
        )
    return "\n".join(lines)


def training_table(records: list[dict[str, Any]]) -> str:
    """Agreement at the end, the bound, and the mean language loss of the last quarter."""
    parts = [part for part in PARTS if part in records[0]["bound"]]
    lines = [
        "| setting | "
        + " | ".join(f"{PARTS[part]}: agreement | bound | share" for part in parts)
        + " | language loss, last quarter |",
        "| --- |" + " ---: |" * (3 * len(parts) + 1),
    ]
    for record in records:
        last = record["curve"][-1]
        cells = [
            f"{last[part]:.3f} | {record['bound'][part]:.3f} "
            f"| {last[part] / record['bound'][part]:.2f}"
            for part in parts
        ]
        losses = [loss for _, loss in record["language"]]
        tail = fmean(losses[-max(1, len(losses) // 4) :])
        lines.append(f"| {record['setting']} | " + " | ".join(cells) + f" | {tail:.3f} |")
    return "\n".join(lines)


def training_figure(records: list[dict[str, Any]]) -> Figure:
    """Held-out agreement through training, with chance and the bounds."""
    parts = [part for part in PARTS if part in records[0]["bound"]]
    figure = Figure(figsize=(5.2 * len(parts), 3.6), layout="constrained")
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        for record, colour in zip(records, COLOURS, strict=False):
            steps = [point["step"] for point in record["curve"]]
            values = [point[part] for point in record["curve"]]
            axes.plot(
                steps, values, color=colour, marker="o", markersize=3, label=record["setting"]
            )
        bounds = [record["bound"][part] for record in records]
        axes.axhspan(min(bounds), max(bounds), color="0.85", label="linear bound")
        axes.axhline(0.5, color="0.4", linestyle=":", label="chance, K/E")
        axes.set_title(PARTS[part])
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("agreement on held-out tokens")
        axes.set_ylim(0.3, 1.0)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    return figure
