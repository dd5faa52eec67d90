from llava_compete.names import nearest


def test_near_names_are_offered_nearest_first():
    assert nearest("compet", ["topk", "compete", "other"]) == "; did you mean compete?"
    assert nearest("lr", ["lr1", "lr2", "x"]) == "; did you mean lr2 or lr1?"


def test_at_most_three_are_offered():
    offered = nearest("layer", [f"layer{i}" for i in range(9)])
    assert offered.count("layer") == 3


def test_all_names_in_order_where_none_is_near():
    assert nearest("zzz", ["b", "a"]) == "; known: a, b"


def test_a_long_list_is_cut_and_says_so():
    text = nearest("zzz", [f"a{i:03}" for i in range(50)])
    assert text.endswith("a039, ...")
    assert nearest("zzz", [f"a{i:03}" for i in range(40)]).endswith("a039")
