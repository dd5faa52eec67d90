"""Figures of the MoE layer as tables: of one case on a terminal, of a whole run in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.moe_cases import BASE, CANDIDATES

RATE, CAP = 0.07, 3  # of competition, and of the layers that compete in one step
LAYERS = 32
FLOOR = "products alone"


def rate_rows(found: dict[str, Any]) -> list[tuple[Any, ...]]:
    heads = ("GFLOP/s of a product", "median", "most", "share of the ceiling")
    return [heads, *((name, v["median"], v["most"], v["share"]) for name, v in found.items())]


def speed_rows(found: dict[str, Any]) -> list[tuple[Any, ...]]:
    heads: list[Any] = [""]
    for key in ("forward", "both"):
        heads += [f"{key}: ms", "times faster", "least", "most", "of ceiling", "of products"]
    rows = [tuple(heads)]
    for name, passes in found["candidates"].items():
        row: list[Any] = [name]
        for each in passes.values():
            faster = each["times_faster"]
            row += [1e3 * each["seconds"]["median"], *(faster[k] for k in faster)]
            row += [each["of_ceiling"]["median"], each["of_floor"]["median"]]
        rows.append(tuple(row))
    return rows


def memory_rows(found: dict[str, Any]) -> list[tuple[Any, ...]]:
    heads = ("MiB", "held", "of the loop's", "peak", "peak with gradients", "of the process")
    base = found[BASE]["held"]
    return [
        heads,
        *(
            (name, v["held"], v["held"] / base, v["peak"], v["most"], v["process"] or "-")
            for name, v in found.items()
        ),
    ]


def amortised_texts() -> dict[str, str]:
    """What the ratios of `amortised` are of."""
    return {
        "competition": "competition step",
        "mean": f"mean step, rate {RATE}",
        "slowest": f"slowest step, {CAP} of {LAYERS} layers compete",
    }


def amortised_rows(found: dict[str, Any]) -> list[tuple[Any, ...]]:
    what = amortised_texts()
    rows = [
        (text, *(found[key][k] for k in ("median", "least", "most"))) for key, text in what.items()
    ]
    return [("time over plain SMoE's", "median", "least", "most"), *rows]


def curve_rows(name: str, curve: dict[str, Any]) -> list[tuple[Any, ...]]:
    heads: list[Any] = [name]
    for candidate in curve:
        heads += [f"{candidate}: ms", "over the first"]
    rows = [tuple(heads)]
    for at in next(iter(curve.values())):
        row: list[Any] = [at]
        for points in curve.values():
            row += [1e3 * points[at]["seconds"]["median"], points[at]["over_first"]["median"]]
        rows.append(tuple(row))
    return rows


def markdown(results: dict[str, Any]) -> str:
    """Tables of the parts that a run has: speed by step and pass, memory, amortised, curves."""
    found: list[str] = []
    speed = results.get("speed", {})
    for step in ("router", "competition"):
        chosen = {name: case for name, case in speed.items() if name.startswith(step)}
        for key in ("both", "forward") if chosen else ():
            heads = f"{step} step, {'forward and backward' if key == 'both' else key}"
            found.append(_lines(_faster_rows(heads, key, chosen)))
            found.append(_lines(_share_rows(heads, key, chosen)))
    if memory := results.get("memory"):
        found.append(_lines(_held_rows(memory)))
    if amortised := results.get("amortised"):
        found.append(_lines(_over_plain_rows(amortised)))
    found += [_lines(curve_rows(axis, curve)) for axis, curve in results.get("curves", {}).items()]
    return "\n\n".join([*found, str(results["machine"])])


def _lines(rows: Sequence[Sequence[Any]]) -> str:
    heads, *others = ([_cell(cell) for cell in row] for row in rows)
    rule = ["---", *["--:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *others))


def _cell(value: Any) -> str:
    return f"{value:,.3g}" if isinstance(value, float) else str(value)


def _shown(cases: Iterable[dict[str, Any]]) -> list[str]:
    """Candidates that any of the cases has, in their order."""
    there = {name for case in cases for name in case["candidates"]}
    return [name for name in (*CANDIDATES, FLOOR) if name in there]


def _short(name: str) -> str:
    return name.split(" ", 1)[1].replace("bfloat16", "bf16").replace("float32", "fp32")


def _faster_rows(heads: str, key: str, cases: dict[str, Any]) -> list[list[str]]:
    """Times faster than the loop, the median and from least to most."""
    shown = [name for name in _shown(cases.values()) if name != BASE]
    rows = [[f"{heads}: times as fast as the loop", *shown]]
    for name, case in cases.items():
        row = [_short(name)]
        for candidate in shown:
            if candidate not in case["candidates"]:
                row.append("-")
                continue
            faster = case["candidates"][candidate][key]["times_faster"]
            row.append(f"{faster['median']:.2f} ({faster['least']:.2f} to {faster['most']:.2f})")
        rows.append(row)
    return rows


def _share_rows(heads: str, key: str, cases: dict[str, Any]) -> list[list[str]]:
    """Per cent of the ceiling, and of what the products alone give."""
    shown = _shown(cases.values())
    rows = [[f"{heads}: % of the ceiling, % of the products alone", *shown]]
    for name, case in cases.items():
        row = [_short(name)]
        for candidate in shown:
            each = case["candidates"].get(candidate)
            shares = ("of_ceiling", "of_floor")
            row.append(
                ", ".join(f"{100 * each[key][share]['median']:.0f}" for share in shares)
                if each
                else "-"
            )
        rows.append(row)
    return rows


def _held_rows(memory: dict[str, Any]) -> list[list[str]]:
    """MiB held from forward to backward, and at the peak."""
    there = {candidate for case in memory.values() for candidate in case}
    shown = [name for name in CANDIDATES if name in there]
    rows = [["MiB held from forward to backward / at the peak", *shown]]
    for name, case in memory.items():
        row = [name.replace("bfloat16", "bf16").replace("float32", "fp32")]
        for candidate in shown:
            each = case.get(candidate)
            row.append(f"{each['held']:.3g} / {each['peak']:.3g}" if each else "-")
        rows.append(row)
    return rows


def _over_plain_rows(amortised: dict[str, Any]) -> list[list[str]]:
    rows = [["time over plain SMoE's", *amortised_texts().values()]]
    for name, case in amortised.items():
        ratios = (case[key] for key in amortised_texts())
        cells = [f"{r['median']:.2f} ({r['least']:.2f} to {r['most']:.2f})" for r in ratios]
        rows.append([_short(name), *cells])
    return rows
