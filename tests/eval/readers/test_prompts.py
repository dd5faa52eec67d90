import pytest

from eval.readers.prompts import LETTER, SHORT, lettered, of_profile, short


def test_the_short_form_ends_in_its_instruction():
    assert short("Why?") == f"Why?\n{SHORT}"
    assert short("Why?", "Be brief.") == "Why?\nBe brief."


def test_the_lettered_form_has_a_line_for_each_option():
    assert lettered("Which?", ["red", "blue"]) == f"Which?\nA. red\nB. blue\n{LETTER}"


def test_a_profile_that_a_task_lacks_is_refused_with_those_it_has():
    assert of_profile("t", "lmms", {"llava15": 1, "lmms": 2}) == 2
    with pytest.raises(ValueError, match="profile='libmoe': t has llava15, lmms"):
        of_profile("t", "libmoe", {"llava15": 1, "lmms": 2})
