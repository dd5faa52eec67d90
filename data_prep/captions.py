"""From a picture's caption to a short name, and what one may truthfully ask with names.

`A red apple.` is called "red apple".  Captions that are jokes, sentences or plurals give no name.
"""

from __future__ import annotations

import re
import unicodedata

MAX_WORDS = 6

# Words that make a caption a sentence, or a remark, rather than the name of a thing.
NOT_IN_A_NAME = {
    *("are", "be", "called", "has", "have", "is", "it", "its", "it's", "lets", "means", "or"),
    *("resembles", "stands", "they", "this", "was", "you"),
}
# Words that two different things may share.
EMPTY_WORDS = {
    *("and", "at", "bunch", "covered", "from", "head", "in", "of", "on", "pair", "plant"),
    *("string", "the", "with"),
}

# Words for things that one may take for another, or of which one is a sort of the other: the
# picture of a rose must not be asked "Is there a flower in the image?" with the answer "no".
LOOK_ALIKE = tuple(
    frozenset(group.split())
    for group in (
        "flower hibiscus rose iris daffodil marigold gazania petunia anemone lavender pigface",
        "tree birch oak palm pinecone",
        "fish clownfish butterflyfish lionfish dolphinfish groper wrasse trout seahorse",
        "deer doe wapiti caribou blackbuck",
        "hen chicken rooster chick",
        "duck drake gander goose",
        "peacock peahen peafowl",
        "gull seagull",
        "guinea guineafowl",
        "crow blackbird",
        "cow bull zebu bison yak",
        "sheep ram lamb",
        "goat mountaingoat",
        "donkey horse",
        "dog dingo mastiff dalmatian",
        "rat mouse",
        "bee hornet fly",
        "orca whale dolphin",
        "pig boar",
        "camel dromedary",
        "squash pumpkin",
        "orange mandarin",
        "pen marker highlighting",
        "mallet hammer",
        "hat fedora sombrero cap",
        "shirt jacket",
        "can bin",
        "kettle teapot pitcher",
        "drum cymbal kit",
        "violin cello guitar",
        "car beetle sedan jeep",
        "ship sailboat",
        "person adventurer",
    )
)


def name_of(caption: str) -> str | None:
    """The thing that ``caption`` names, in lower case ASCII without article; None if it does not.

    Only the head of the caption counts: what follows a full stop, a bracket or a dash is a remark.
    """
    text = caption.replace("\u2019", "'").replace("\u2018", "'").replace("\u2014", "(")
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    text = re.sub(r"(?<!\w)'|'(?!\w)", "", text)  # quoted words lose their quotes, plumber's stays
    head = re.split(r"\s*\(|[.!?](?:\s|$)", text.strip(), maxsplit=1)[0].replace('"', "")
    match = re.fullmatch(r"an? ([a-z0-9' -]+)", head.lower())
    if match is None:
        return None
    words = match[1].split()
    if len(words) >= MAX_WORDS or NOT_IN_A_NAME.intersection(words):
        return None
    return " ".join(words)


def with_article(name: str) -> str:
    """`red apple` -> `a red apple`, `owl` -> `an owl`, `european bear` -> `a european bear`."""
    vowel_sound = re.match(r"[aeio]|u(?!k\b|s\b|ni)", name) and not re.match(r"eu|one\b", name)
    return f"{'an' if vowel_sound else 'a'} {name}"


def may_be_same(name: str, other: str) -> bool:
    """Whether a picture of ``name`` might also be called ``other``, so that "no" could be wrong."""
    words = set(name.split()) - EMPTY_WORDS
    others = set(other.split()) - EMPTY_WORDS
    if words & others:
        return True
    return any(words & group and others & group for group in LOOK_ALIKE)
