import pytest

from eval.metrics.contractions import CONTRACTIONS, WORDS


@pytest.mark.parametrize(
    ("form", "word"),
    [
        ("aint", "ain't"),
        ("wont", "won't"),
        ("hadnt've", "hadn't've"),
        ("hadn'tve", "hadn't've"),
        ("oclock", "o'clock"),
        ("twas", "'twas"),
        ("'ows'at", "'ow's'at"),
        ("yall'd've", "y'all'd've"),
        ("y'allll", "y'all'll"),
        ("somebody'd", "somebodyd"),
    ],
)
def test_a_lost_apostrophe_is_restored(form, word):
    assert CONTRACTIONS[form] == word


@pytest.mark.parametrize("form", ["hadntve", "lets", "shed", "its", "were", "ill", "im", "don't"])
def test_words_that_the_script_leaves_alone(form):
    assert form not in CONTRACTIONS


def test_the_table_is_complete():
    # 120 entries, less two that map to themselves and four with a capital I.
    assert len(CONTRACTIONS) == 114
    assert len(WORDS.split()) == len(set(WORDS.split()))
