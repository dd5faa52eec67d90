"""The table of contractions of the VQA evaluation (vqaEval.py and m4c's EvalAIAnswerProcessor).

The table restores one lost apostrophe: for each word below, every form with exactly one of its
apostrophes left out leads to the word. Words that the script's table maps to themselves ("let's",
"she's") are left out. The script's "Im", "Ive", "Id've" and "I'dve" too: it looks words up after
lower-casing them, so those never fire.
"""

WORDS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    places = [place for place, letter in enumerate(word) if letter == "'"]
    return [word[:place] + word[place + 1 :] for place in places]


# In the script's table this one entry loses its apostrophe instead of finding it.
CONTRACTIONS = {form: word for word in WORDS.split() for form in _without_one_apostrophe(word)} | {
    "somebody'd": "somebodyd"
}
