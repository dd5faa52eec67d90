import pytest

from eval.metrics import vqa_accuracy
from eval.metrics.rules import pick
from eval.metrics.vqa_accuracy import RULES, normalise, normalise_m4c
from tests.eval.metrics.rows import row, sample, value


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Yes", "yes"),
        ("", ""),
        ("  a\tdog\n", "dog"),
        # a mark next to a space anywhere is deleted, one that is not becomes a space
        ("red/blue", "red blue"),
        ("red/ blue", "red blue"),
        ("red /blue/green", "red bluegreen"),
        ("black & white", "black & white"),  # no mark of the 21
        ("50%", "50%"),
        ("it's", "it's"),
        ("yes!", "yes"),
        ("no-parking", "no parking"),
        # spaces are looked for in the text as it was: the space that ";" becomes saves no "-"
        ("a;-b", "b"),
        ("x;-y", "x y"),
        ("x- y-z", "x yz"),
        # digit, comma, digit: every mark is deleted, wherever it is
        ("1,000", "1000"),
        ("red/blue 1,000", "redblue 1000"),
        ("1, 000", "1 000"),
        ("one,two", "1 2"),
        # periods: only what a digit follows is kept; the look-behind never fires
        ("5.", "5"),
        ("5.0", "5.0"),
        (".5", ".5"),
        ("p.m.", "pm"),
        ("3.x", "3x"),
        ("." * 33, "."),  # the limit is 32
        ("a.b" * 33, "ab" * 32 + "a.b"),
        # number words, articles, contractions, word by word
        ("none", "0"),
        ("Zero one two three four", "0 1 2 3 4"),
        ("five six seven eight nine ten eleven", "5 6 7 8 9 10 eleven"),
        ("twenty one", "twenty 1"),
        ("A man, an owl and THE sky", "man owl and sky"),
        ("the", ""),
        ("dont", "don't"),
        ("Im", "im"),  # the table has Im, but words are lower-cased before
        ("somebody'd", "somebodyd"),
        ("ow's'at", "'ow's'at"),
        ("couldnt've couldn'tve couldntve", "couldn't've couldn't've couldntve"),
        ("shes", "shes"),
        ("weve lets", "we've lets"),
    ],
)
def test_normal_form_of_the_official_script(text, normal):
    assert normalise(text) == normal


@pytest.mark.parametrize("mark", ';/[]"{}()=+\\_-><@`,?!')
def test_each_of_the_21_marks_is_deleted_by_a_space_and_else_becomes_one(mark):
    assert normalise(f"x{mark}y") == "x y"
    assert normalise(f"x{mark} y") == "x y"
    assert normalise(f"x {mark}y") == "x y"
    assert normalise(f"x{mark}y {mark}z") == "xy z"
    assert normalise(f"x{mark}y 1,2") == "xy 12"
    assert len(vqa_accuracy.MARKS) == len(set(vqa_accuracy.MARKS)) == 21


@pytest.mark.parametrize(
    ("text", "m4c", "official"),
    [
        ("red,white", "redwhite", "red white"),
        ("what?", "what", "what"),
        ("why?not", "whynot", "why not"),
        ("Dog's", "dog 's", "dog's"),
        ("the dog's bone", "dog 's bone", "dog's bone"),
        ("1,000", "1000", "1000"),
        ("red/blue 1,000", "red blue 1000", "redblue 1000"),  # its commas are gone beforehand
        ("5.", "5", "5"),
        ("let's", "let 's", "let's"),
        ("a, b", "b", "b"),
    ],
)
def test_m4c_lower_cases_and_deletes_commas_first(text, m4c, official):
    assert normalise_m4c(text) == m4c
    assert normalise(text) == official


@pytest.mark.parametrize(
    ("matches", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)]
)
@pytest.mark.parametrize("name", ["always_normalise", "official_unanimous", "m4c"])
def test_each_answer_is_left_out_in_turn(matches, accuracy, name):
    answers = ["cat"] * matches + [f"other {i}" for i in range(10 - matches)]
    score = RULES[name].score(" Cat" if matches < 10 else "cat", sample(*answers))
    assert value(score) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("text", "answers", "always", "unanimous"),
    [
        ("2.", ["2"] * 10, 1, 0),  # ten times the same: nothing is normalised
        ("2", ["2"] * 10, 1, 1),
        ("Yes", ["yes"] * 10, 1, 0),
        (" yes\n", ["yes"] * 10, 1, 1),  # white space is stripped even then
        ("dog", ["a dog"] * 10, 1, 0),
        ("a dog", ["a dog"] * 10, 1, 1),
        ("2.", ["2"] * 9 + ["two"], 1, 1),
        ("two", ["2"] * 5 + ["two"] * 5, 1, 1),
    ],
)
def test_unanimous_answers_are_not_normalised_by_the_official_script(
    text, answers, always, unanimous
):
    asked = sample(*answers)
    assert value(vqa_accuracy.score(text, asked)) == always
    assert value(vqa_accuracy.score_official_unanimous(text, asked)) == unanimous


def test_both_sides_are_normalised():
    asked = sample(*["The red, one"] * 3, *["x"] * 7)
    assert value(vqa_accuracy.score("red 1", asked)) == pytest.approx(0.9)
    assert value(vqa_accuracy.score_m4c("red 1", asked)) == pytest.approx(0.9)


def test_the_mean_over_questions_and_its_error():
    asked = [sample(*["cat"] * cats, *["dog"] * (10 - cats)) for cats in (10, 0, 1)]
    rows = [row(vqa_accuracy, "cat", each) for each in asked]
    metric = vqa_accuracy.aggregate(rows)["vqa_accuracy"]
    assert metric.value == pytest.approx(1.3 / 3)
    assert metric.n == 3
    assert metric.stderr > 0


def test_other_than_ten_answers_are_refused():
    with pytest.raises(ValueError, match="sample 1 has 1 references: VQA accuracy is defined over"):
        vqa_accuracy.score("x", sample("x"))


def test_rules_have_the_names_that_say_what_differs():
    assert pick(RULES, "m4c").score is vqa_accuracy.score_m4c
    with pytest.raises(ValueError, match="no rule is called 'lmms'; there are always_normalise, m"):
        pick(RULES, "lmms")
