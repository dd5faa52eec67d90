"""routing.json's figures and the pictures they speak of -> the blocks of routing.html.

E experts, K chosen per token, g x g patches a picture.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from llava_compete.report.blocks import (
    Block,
    Bullets,
    Figure,
    Heading,
    Numbers,
    Paragraph,
    Table,
    Taker,
    Takers,
)
from llava_compete.report.drawing import many_colours
from llava_compete.routing.charts import (
    Figures,
    curves_chart,
    kinds_of,
    load_chart,
    maps_chart,
    matrices_chart,
    matrices_of,
    spread,
)
from llava_compete.routing.pictures import Pictures

GALLERY_LAYERS = 6  # of a part whose experts' words and patches are shown, evenly spread
NAMES = {"language_model": "Language model", "projector": "Projector", "vision": "Image tower"}


def blocks(figures: Figures, pictures: Pictures) -> Iterator[Block]:
    """The whole report; a part that saw no token (no row has a picture) is left out."""
    seen = {name: part for name, part in figures["parts"].items() if kinds_of(part)}
    figures = {**figures, "parts": seen}
    yield Heading(f"Routing report: {Path(figures['checkpoint']).name}", 1)
    yield Paragraph(_about(figures))
    yield Numbers(tuple(_at_a_glance(figures)))
    yield from _loads(figures)
    if figures["maps"]:
        yield from _maps(figures, pictures)
    yield from _decisions(figures)
    yield from _matrices(figures)
    yield from _takes(figures, pictures)
    yield Heading("What the figures mean")
    yield Bullets(MEANINGS)


def _about(figures: Figures) -> str:
    parts = "; ".join(
        f"{NAMES[name].lower()}: {_count(part['layers'])} of {part['num_experts']} experts, "
        f"{part['top_k']} chosen by router {part['router']}"
        for name, part in figures["parts"].items()
    )
    other = f" Compared with {figures['other']}." if figures["other"] else ""
    return (
        f"Checkpoint {figures['checkpoint']} in {figures['dtype']}, on {figures['rows']:,} of the "
        f"{figures['rows_of_data']:,} rows of {figures['data']}.{other} Experts in the {parts}."
    )


def _count(layers: Sequence[Figures]) -> str:
    return "1 layer" if len(layers) == 1 else f"{len(layers)} layers"


def _at_a_glance(figures: Figures) -> Iterator[tuple[str, str]]:
    loss = figures["answer_loss"]
    yield f"{loss['value']:.3f}", f"answer loss, nats a token ({loss['tokens']:,} tokens)"
    change = loss["drop_top1_change"]
    yield f"{change:+.3f}", "answer loss when every layer loses each token's first expert"
    for name, part in figures["parts"].items():
        agreed, by_loads, chance = (
            _mean_over_layers(part, "all", figure)
            for figure in ("agreement", "agreement_shuffled", "chance")
        )
        yield (
            f"{agreed:.2f}",
            (
                f"agreement with the competition, {NAMES[name].lower()} (by loads alone "
                f"{by_loads:.2f}, chance {chance:.2f})"
            ),
        )
        gaps = [layer["gap"] for layer in part["layers"] if layer["gap"] is not None]
        if gaps:
            yield f"{sum(gaps) / len(gaps):.2f}", "gap between the loads of image and of text"
        if figures["other"]:
            changed = _mean_over_layers(part, "all", "changed")
            yield f"{changed:.0%}", f"tokens with other experts than before, {NAMES[name].lower()}"


def _loads(figures: Figures) -> Iterator[Block]:
    yield Heading("Who takes how much")
    for name, part in figures["parts"].items():
        yield Heading(NAMES[name], 3)
        yield Figure(
            f"load-{name}.png",
            load_chart(part),
            "Share of the (token, expert) pairs that go to each expert, layer by layer, for image "
            f"tokens, text and answers. White: the even share 1/E = {1 / part['num_experts']:.1%}; "
            "orange: more, blue: less.",
        )


def _maps(figures: Figures, pictures: Pictures) -> Iterator[Block]:
    yield Heading("Who takes which part of a picture")
    for name, part in figures["parts"].items():
        maps = [found for found in figures["maps"] if found["first"][name]]
        if not maps:
            continue
        yield Heading(NAMES[name], 3)
        names = [layer["layer"] for layer in part["layers"]]
        yield Figure(
            f"maps-{name}.png",
            maps_chart(maps, name, names, part["num_experts"], pictures.square),
            "Each patch in the colour of the expert that its router ranks first. Experts of "
            "different layers have nothing in common but the number.",
        )


def _decisions(figures: Figures) -> Iterator[Block]:
    yield Heading("How the routers decide")
    head = (
        *("part", "tokens", "count", "entropy", "margin", "agreement", "by loads"),
        *("chance", "drop top-1"),
        *(("changed",) if figures["other"] else ()),
    )
    rows = [
        _decision_row(name, part, kind, with_other=bool(figures["other"]))
        for name, part in figures["parts"].items()
        for kind in kinds_of(part)
    ]
    yield Table(head, tuple(rows))
    yield Paragraph(
        "Means over the layers of a part. By loads: the agreement that the loads alone would give. "
        "Drop top-1: the change of a layer's output when it loses each token's first expert."
    )
    for name, part in figures["parts"].items():
        if len(part["layers"]) > 1:
            yield Heading(f"{NAMES[name]}, layer by layer", 3)
            yield Figure(
                f"curves-{name}.png",
                curves_chart(part),
                "By layer and kind of token. Agreement: dashed, K/E, what two choices have in "
                "common that know nothing of each other; dotted, what they have in common by "
                "their loads alone.",
            )


def _decision_row(name: str, part: Figures, kind: str, *, with_other: bool) -> tuple[str, ...]:
    seen = [layer["kinds"][kind] for layer in part["layers"] if kind in layer["kinds"]]
    tokens = max(found["tokens"] for found in seen)
    shown = ["entropy", "margin", "agreement", "agreement_shuffled", "chance", "drop_top1"]
    if with_other:
        shown.append("changed")
    means = [_mean_over_layers(part, kind, figure) for figure in shown]
    return (NAMES[name], kind, f"{tokens:,}", *(f"{mean:.3f}" for mean in means))


MATRICES = {
    "coactivation": (
        "who works with whom",
        "Of the tokens that take the row's expert, the share that take the column's too. White: "
        "(K - 1) / (E - 1), what K chosen at random give.",
    ),
    "similarity": (
        "who is like whom",
        "Mean cosine of the outputs of two experts for the same token.",
    ),
}


def _matrices(figures: Figures) -> Iterator[Block]:
    yield Heading("Experts side by side")
    for name, part in figures["parts"].items():
        for figure in matrices_of(part):
            title, caption = MATRICES[figure]
            yield Heading(f"{NAMES[name]}: {title}", 3)
            yield Figure(f"{figure}-{name}.png", matrices_chart(part, figure), caption)


def _takes(figures: Figures, pictures: Pictures) -> Iterator[Block]:
    yield Heading("What each expert takes most")
    yield Paragraph(
        "Patches (framed) on which the expert leads all others by most, one of a picture. Words "
        "that it takes more often than its share of all words would give; beside them the share "
        "of their occurrences that it takes. A dot stands for the space before a word."
    )
    for name, part in figures["parts"].items():
        colours = many_colours(part["num_experts"])
        for layer in spread(part["layers"], GALLERY_LAYERS):
            if not (layer["words"] or layer["patches"]):
                continue
            yield Heading(f"{NAMES[name]}, layer {layer['layer']}", 3)
            yield Takers(
                tuple(
                    _taker(f"takes-{name}-{layer['layer']}-{e}.jpg", e, layer, colours[e], pictures)
                    for e in range(part["num_experts"])
                )
            )


def _taker(name: str, expert: int, layer: Figures, colour: str, pictures: Pictures) -> Taker:
    patches = layer["patches"][expert] if layer["patches"] else []
    words = layer["words"][expert] if layer["words"] else []
    loads = " \N{MIDDLE DOT} ".join(
        f"{kind} {100 * found['load'][expert]:.0f}"
        for kind, found in layer["kinds"].items()
        if kind != "all" and found["load"][expert] is not None  # no token of it has an expert
    )
    return Taker(
        name=name,
        title=f"expert {expert}",
        note=f"{loads} %",
        colour=colour,
        picture=pictures.strip(patches, colour) if patches else None,
        words=tuple((_visible(found["word"]), f"{found['share']:.0%}") for found in words),
    )


def _visible(word: str) -> str:
    """A leading space as a dot, a line break as its escape."""
    shown = word.replace("\n", "\\n").replace("\t", "\\t")
    return shown.replace(" ", "\N{MIDDLE DOT}") if shown.strip() == "" else _dotted(shown)


def _dotted(word: str) -> str:
    return f"\N{MIDDLE DOT}{word[1:]}" if word.startswith(" ") else word


def _mean_over_layers(part: Figures, kind: str, figure: str) -> float:
    layers = [layer["kinds"] for layer in part["layers"]]
    values = [kinds[kind][figure] for kinds in layers if kind in kinds]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")


MEANINGS = (
    "Load: an expert's share of the (token, expert) pairs. Entropy: that of the load over log E; "
    "1 is even, 0 is one expert for all.",
    "Margin: the lowest chosen score less the best that was not chosen, in the router's own "
    "units; the curve divides it by the range of the token's scores.",
    "Agreement: the share of a token's experts that a competition would have chosen, all experts "
    "running and the strongest response winning (CompeteSMoE, arXiv:2505.13380).",
    "First expert dropped: the (K+1)-th takes the place and the weight of the first; the length "
    "of the change over that of the layer's output. The answer loss is with this done in all "
    "layers at once.",
    "Changed: the share of tokens whose set of experts is another one in the other checkpoint.",
    "Image tokens are patches; text is what is said to the model, the template's markers "
    "included; answers are what it has to say. Padding counts nowhere.",
    "Margin, dropping the first expert, the change rate and allocation entropy are analyses of "
    "LibMoE (arXiv:2411.00918); docs/analysis.md has the definitions used here.",
)
