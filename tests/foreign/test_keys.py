import pytest
import torch

from llava_compete.foreign.keys import Drop, Join, Rule, Split, map_keys


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


def test_a_key_takes_the_name_of_the_first_rule_that_matches_it_whole():
    rules = [Rule(r"a\.(\d+)", r"b.\1"), Rule(r"a\..*", "other")]
    mapped = map_keys({"a.3": numbers(2)}, rules)
    assert list(mapped.tensors) == ["b.3"]
    assert mapped.report.used == {"a.3": ("b.3",)}
    with pytest.raises(ValueError, match=r"1 unused: xa\.3"):
        map_keys({"xa.3": numbers(2)}, rules)


def test_parts_are_joined_in_their_order_not_in_the_file_s():
    state = {"v": numbers(1) + 2, "q": numbers(1), "k": numbers(1) + 1}
    mapped = map_keys(state, [Join("(?P<part>[qkv])", "in_proj", order=("q", "k", "v"))])
    assert mapped.tensors["in_proj"].tolist() == [0, 1, 2]
    assert set(mapped.report.used) == {"q", "k", "v"}


def test_numbered_parts_are_stacked_by_number():
    state = {f"experts.{e}.w": torch.full((2,), float(e)) for e in (10, 2, 0, 1, *range(3, 10))}
    rule = Join(r"experts\.(?P<part>\d+)\.w", "experts.w", join=torch.stack)
    assert map_keys(state, [rule]).tensors["experts.w"][:, 0].tolist() == list(range(11))
    del state["experts.4.w"]
    with pytest.raises(ValueError, match=r"experts\.w needs parts 0, 1, 2"):
        map_keys(state, [rule])


def test_a_part_that_is_not_there_is_refused():
    rule = Join("(?P<part>[qkv])", "in_proj", order=("q", "k", "v"))
    with pytest.raises(ValueError, match=r"in_proj needs parts q, k, v, has \['q', 'v'\]"):
        map_keys({"q": numbers(1), "v": numbers(1)}, [rule])


def test_two_keys_that_are_one_part_are_refused():
    rule = Join("(?:model\\.)?(?P<part>[qk])", "in_proj", order=("q", "k"))
    state = {"q": numbers(1), "k": numbers(1), "model.q": numbers(1)}
    with pytest.raises(ValueError, match=r"in_proj: q and model\.q are the same part of it"):
        map_keys(state, [rule])


def test_one_tensor_becomes_several():
    rule = Split(r"(.*)\.qkv", (r"\1.q", r"\1.k"), lambda x: x.chunk(2))
    mapped = map_keys({"a.qkv": numbers(4)}, [rule])
    assert mapped.tensors["a.k"].tolist() == [2, 3]
    assert mapped.report.used == {"a.qkv": ("a.q", "a.k")}


def test_dropped_keys_stand_in_the_report_with_the_reason():
    mapped = map_keys({"a": numbers(1), "flips": numbers(1)}, [Rule("a", "a"), Drop("flips", "no")])
    assert mapped.report.dropped == {"flips": "no"}
    assert mapped.report.lines() == ["used     a -> a", "dropped  flips: no"]


def test_two_keys_that_claim_one_name_are_refused():
    with pytest.raises(ValueError, match="x is claimed by several keys, b"):
        map_keys({"a": numbers(1), "b": numbers(1)}, [Rule("a|b", "x")])


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"a": (2,), "b": (1,)}, "1 missing: b"),
        ({"a": (3,)}, r"a is \[2\], the model has \[3\]"),
        ({}, "a is no tensor of the model"),
    ],
)
def test_what_comes_out_must_be_what_is_wanted(wanted, words):
    assert map_keys({"a": numbers(2)}, [Rule("a", "a")], {"a": (2,)}).report.missing == []
    with pytest.raises(ValueError, match=rf"FILE does not fit its layout: .*{words}"):
        map_keys({"a": numbers(2)}, [Rule("a", "a")], wanted, source="FILE")
