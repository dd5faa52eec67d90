import torch

from benchmarks.llava_path import ListOfDicts
from benchmarks.measure import interleaved, summary, table
from benchmarks.mixture import IMAGE_TOKENS, MAX_LENGTH, MIX665K, draw_lengths
from benchmarks.packed_step import build_model, random_batch
from llava_compete.data import LlavaDataset
from tests import tiny


def test_the_plain_path_makes_the_same_samples(tmp_path, processor):
    file, images = tiny.write_rows(tmp_path, 4, text_only={1})
    ours, plain = LlavaDataset(file, images, processor), ListOfDicts(file, images, processor)
    for index in range(4):
        assert ours[index].keys() == {*plain[index], "image_files"}
        for name in ("input_ids", "labels"):
            assert torch.equal(ours[index][name], plain[index][name])
        if index != 1:  # another order of padding and resizing, other rounding
            difference = ours[index]["pixel_values"] - plain[index]["pixel_values"]
            assert difference.abs().mean() < 0.05


def test_the_mixture_has_the_published_rows():
    assert sum(source.rows for source in MIX665K.values()) == 665_298
    lengths = draw_lengths()
    assert len(lengths) == 665_298
    assert lengths.max() == MAX_LENGTH
    texts = MIX665K["text"].rows
    # The median text has 900 tokens: no picture makes these longer.
    assert 0.25 * texts < (lengths < IMAGE_TOKENS).sum() < 0.4 * texts


def test_a_packed_step_has_the_rows_of_the_plain_one():
    torch.manual_seed(0)
    plain = random_batch([[5], [9]], packed=False)
    packed = random_batch([[5, 9]], packed=True)
    assert plain["attention_mask"].sum() == packed["attention_mask"].sum() == 14
    assert "packing" not in plain
    model = build_model(packed=True)
    assert model(**random_batch([[50, 20], [60]], packed=True)).loss.isfinite()


def test_candidates_take_turns_and_the_first_round_is_not_kept():
    order = []

    def note(name):
        order.append(name)
        return float(len(order))

    found = interleaved({"a": lambda: note("a"), "b": lambda: note("b")}, 2)
    assert order == ["a", "b"] * 3
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 3.0}


def test_a_table_has_a_column_for_each_value():
    assert table([("name", "n"), ("x", 1000), ("yy", 0.5)]).splitlines() == [
        "name      n",
        "x     1,000",
        "yy      0.5",
    ]
