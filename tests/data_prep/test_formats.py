"""Each format by hand-written rows, then all of them by arbitrary ones."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.formats import READERS, detect, reader
from data_prep.normalising import images
from data_prep.normalising.faults import RowError
from data_prep.normalising.options import FORMATS, Table
from data_prep.normalising.work import Dropped, Normaliser, Settings
from llava_compete.data import to_messages
from tests import tiny


def turns(*texts, system=None):
    """LLaVA's turns of alternating texts."""
    listed = tiny.say(*texts)["conversations"]
    return listed if system is None else [{"from": "system", "value": system}, *listed]


def say_openai(*contents, **more):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"messages": messages, **more}


def reason(name, row, table=None):
    with pytest.raises(RowError) as caught:
        reader(name, table or Table())(row)
    return caught.value.reason


def test_the_command_line_offers_the_formats_that_are_read():
    assert set(READERS) == set(FORMATS)


class TestConversations:
    def test_a_llava_row_stays_as_it_is(self):
        row = tiny.say("<image>\nWhat?", "A box.", image="a/1.png")
        draft = reader("llava", Table())(row)
        assert (draft.turns, draft.images) == (row["conversations"], ["a/1.png"])

    @pytest.mark.parametrize("image", [None, "", [], [None], {"bytes": None, "path": None}])
    def test_what_holds_no_picture_is_none(self, image):
        assert reader("llava", Table())(tiny.say("a", "b", image=image)).images == []

    def test_sharegpt_has_two_names_for_each_speaker_and_two_for_each_key(self):
        conversation = [
            {"from": "system", "value": "Be short."},
            {"from": "human", "value": "<image>\n<image>\nWhich?"},
            {"from": "assistant", "value": "One."},
            {"role": "user", "content": "Why?"},
            {"from": "gpt", "value": "So."},
        ]
        draft = reader("sharegpt", Table())({"conversations": conversation, "images": ["a", "b"]})
        assert draft.turns == turns(
            "<image>\n<image>\nWhich?", "One.", "Why?", "So.", system="Be short."
        )
        assert draft.images == ["a", "b"]

    def test_a_system_text_beside_the_turns_goes_before_them_and_an_empty_one_nowhere(self):
        row = tiny.say("a", "b")
        assert reader("sharegpt", Table())({**row, "system": "S"}).turns == turns(
            "a", "b", system="S"
        )
        row["conversations"].insert(0, {"from": "system", "value": " "})
        assert reader("sharegpt", Table())({**row, "system": ""}).turns == turns("a", "b")

    @pytest.mark.parametrize(
        ("name", "row", "expected"),
        [
            ("llava", {"id": 1}, "another format"),
            ("llava", say_openai("a", "b"), "another format"),
            ("llava", tiny.say("a", "b", images=["x.png"]), "another format"),
            ("llava", {"conversations": "[]"}, "another format"),
            ("llava", {"conversations": ["a", "b"]}, "another format"),
            ("llava", {"conversations": [{"from": "user", "value": "a"}]}, "speaker"),
            ("llava", {"conversations": [{"from": ["human"], "value": "a"}]}, "speaker"),
            ("llava", {"conversations": [{"from": "human", "value": 3}]}, "text"),
            ("llava", {"conversations": [{"from": "human", "value": "\ud800"}]}, "text"),
            ("llava", tiny.say("<video>\na", "b", video="v.mp4"), "more than text and images"),
            ("sharegpt", say_openai("a", "b"), "another format"),
            ("sharegpt", {"conversations": [{"from": "observation", "value": "a"}]}, "speaker"),
            ("sharegpt", tiny.say("a", "b", tools="[...]"), "more than text and images"),
            ("openai", tiny.say("a", "b"), "another format"),
            ("openai", say_openai("a", None), "text"),
            ("openai", {"messages": [{"role": "tool", "content": "a"}]}, "speaker"),
            ("openai", say_openai([{"type": "input_audio"}], "b"), "content"),
            ("openai", say_openai(["a"], "b"), "content"),
            ("openai", say_openai([{"type": "text", "text": None}], "b"), "text"),
            ("openai", say_openai("<image><image>", "b", images=["x.png"]), "conversation"),
            ("vqa", tiny.say("a", "b", question="q", answer="a"), "another format"),
        ],
    )
    def test_a_row_that_is_otherwise_is_refused_under_a_reason(self, name, row, expected):
        assert reason(name, row) == expected


class TestOpenai:
    def read(self, *contents, **more):
        return reader("openai", Table())(say_openai(*contents, **more))

    def test_texts(self):
        row = say_openai("a", "b")
        row["messages"].insert(0, {"role": "developer", "content": "S"})
        assert reader("openai", Table())(row).turns == turns("a", "b", system="S")

    def test_a_lone_picture_of_a_message_stands_first_as_llava_has_it(self):
        parts = [
            {"type": "text", "text": "Look:"},
            {"type": "image_url", "image_url": {"url": "a/1.png", "detail": "low"}},
            {"type": "text", "text": "what?"},
        ]
        draft = self.read(parts, "b")
        assert draft.turns == turns("<image>\nLook:\nwhat?", "b")
        assert draft.images == ["a/1.png"]

    def test_several_pictures_keep_their_places_over_messages_and_kinds_of_parts(self):
        first = [
            {"type": "image_url", "image_url": "1.png"},
            {"type": "text", "text": "and"},
            {"type": "image", "image": "2.png"},
        ]
        second = [{"type": "image", "index": 0}, {"type": "text", "text": "and <image>?"}]
        draft = self.read(first, "b", second, [{"type": "text", "text": "d"}], images=["3", "4"])
        assert draft.turns == turns("<image>\nand\n<image>", "b", "<image>\nand <image>?", "d")
        assert draft.images == ["1.png", "2.png", "3", "4"]

    def test_a_text_may_say_image_for_those_listed_beside_it(self):
        draft = self.read("<image>\na", "b", "c <image>", "d", images=["1", "2"])
        assert draft.images == ["1", "2"]
        assert draft.turns == turns("<image>\na", "b", "c <image>", "d")

    def test_listed_pictures_that_no_message_shows_are_not_lost(self):
        assert self.read("a", "b", images=["1"]).images == ["1"]  # to_messages refuses the row


def detected(*rows, **columns):
    return detect(rows, {key for row in rows for key in row}, Table(columns=columns))


class TestDetection:
    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            (tiny.say("a", "b"), "llava"),
            (tiny.say("a", "b", image="x"), "llava"),
            (tiny.say("a", "b", images=["x"]), "sharegpt"),
            ({"conversations": [{"from": "user", "value": "a"}]}, "sharegpt"),
            ({"conversations": [{"role": "human", "content": "a"}]}, "sharegpt"),
            (say_openai("a", "b"), "openai"),
            ({"question": "q", "answer": "a"}, "vqa"),
            ({"question": None}, "vqa"),
        ],
    )
    def test_by_the_keys_of_a_row(self, row, expected):
        assert detected(row) == expected

    def test_by_all_of_the_first_rows_where_formats_share_their_keys(self):
        assert detected(tiny.say("a", "b"), tiny.say("a", "b", images=["x"])) == "sharegpt"
        assert detected(tiny.say("a", "b"), say_openai("a", "b")) == "llava"

    def test_by_the_columns_where_the_first_row_has_nothing_in_them(self):
        assert detected({"id": 1}, {"question": "q"}) == "vqa"

    def test_columns_say_that_it_is_a_table(self):
        assert detected({"q": "q", "a": "a"}, question=("q",)) == "vqa"

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"text": "a"}, r"the keys \['text'\], which fit no format: .* --format names one"),
            ({**tiny.say("a", "b"), **say_openai("a", "b")}, "which fit sharegpt and openai"),
        ],
    )
    def test_none_or_two_are_refused(self, row, message):
        with pytest.raises(ValueError, match=message):
            detected(row)


# Rows near enough to the formats to get past their first checks.
KEYS = st.sampled_from(
    [
        *("id", "image", "images", "conversations", "messages", "question", "answer", "options"),
        *("choices", "system", "from", "value", "role", "content", "type", "text", "image_url"),
        *("url", "path", "bytes", "source", "length", "video"),
    ]
)
TEXTS = st.text(max_size=8) | st.sampled_from(
    [
        *("human", "gpt", "user", "assistant", "system", "text", "image", "image_url", "", " "),
        *("<image>", "<image>\nq", "a.png", "../a", "http://a", "data:,", "[1]", '["a"]', "1"),
        *("['a', 'b']", "A", "\ud800", "\0"),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner),
    max_leaves=8,
)


def valid_row(name, words, files):
    """A row of the format with that many images in its first question."""
    first = "<image>\n" * len(files) + words[0]
    texts = [first, *words[1:]]
    if name == "openai":
        parts = [{"type": "image_url", "image_url": {"url": file}} for file in files]
        return say_openai([*parts, {"type": "text", "text": words[0]}], *words[1:], id=1)
    if name == "vqa":
        return {"id": 2, "question": words[0], "image": files, "answer": 0, "options": words[1:]}
    return tiny.say(*texts, source="s", **{"images" if name == "sharegpt" else "image": files})


def places(value):
    """Every container of a JSON value with each key or index that it has."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [(value, key) for key in keys] + [at for key in keys for at in places(value[key])]


@st.composite
def rows(draw, name):
    """Arbitrary objects, rows of the format, and such rows with one or two places changed."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.dictionaries(KEYS | st.text(max_size=3), VALUES, max_size=6))
    words = draw(st.sampled_from([["q", "a"], ["What?", "x", "Why?", "\u00fc."]]))
    row = valid_row(name, words, draw(st.sampled_from([[], ["a.png"], ["a.png", "b/c.png"]])))
    for _ in range(draw(st.integers(0, 2))):
        if at := places(row):
            container, key = draw(st.sampled_from(at))
            if draw(st.booleans()):
                container[key] = draw(VALUES)
            else:
                del container[key]
    return row


@pytest.mark.parametrize("name", FORMATS)
@settings(
    derandomize=True,
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_row_becomes_one_that_trains_or_is_dropped_with_a_reason(
    name, data, processor, tmp_path
):
    row = data.draw(rows(name))
    settings = Settings(
        tmp_path, name, Table(), images.Place(tmp_path, "set"), "rows", None, max_length=64
    )
    result = Normaliser(settings, processor)(5, row)
    if isinstance(result, Dropped):
        assert result.reason
        assert result.detail
        assert result.row == row or "nan" in repr(row)
    else:
        assert to_messages(json.loads(json.dumps(result.row)))
        assert result.row["length"] > 0
        text = json.dumps(result.row, ensure_ascii=False)
        assert json.loads(text.encode()) == result.row
