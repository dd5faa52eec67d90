"""What is generated behind a prefix that was run once is what whole prompts generate."""

import pytest
import torch

from llava_compete import ROUTERS, SelfContrast
from llava_compete.data.encode import to_pixels, tokenise_prompt
from llava_compete.prefix import Prefix, can_share, padded_left, run_prefixes, split
from tests import tiny

NEW_TOKENS = 6
ACROSS = ("expert_choice", "usmoe")  # choose across the tokens of a sequence
IMAGE = 7  # the placeholder's id where prompts are numbers
# Pictures and question: two of the first, a long one, three of the second with another between.
ASKED = [
    ((0,), "Is it red?"),
    ((1,), "Is it a large square with a thick black border?"),
    ((2, 3), "Which one?"),
    ((1,), "Is it blue?"),
    ((), "Hello"),
    ((0,), "Is it red, or is it not?"),
    ((1,), "Is it"),
]
GROUPS = [pictures or question for pictures, question in ASKED]


def ids(*values):
    return torch.tensor(values)


def prompts_of(processor):
    return [
        tokenise_prompt(
            processor,
            [
                {
                    "role": "user",
                    "content": [
                        *({"type": "image"} for _ in pictures),
                        {"type": "text", "text": text},
                    ],
                }
            ],
        )
        for pictures, text in ASKED
    ]


def pixels_of(processor, groups):
    return to_pixels(processor, [tiny.draw(index) for group in groups for index in group])


def both_ways(model, processor):
    """New ids of the prompts whole, and of the same behind their prefixes."""
    model.eval()
    prompts, pad = prompts_of(processor), processor.tokenizer.pad_token_id
    decoding = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    ids_BL, mask_BL = padded_left(prompts, pad)
    pixels = pixels_of(processor, [pictures for pictures, _ in ASKED])
    whole = model.generate(ids_BL, mask_BL, pixels, **decoding)
    parts = split(prompts, GROUPS, model.config.image_token_id)
    with torch.no_grad():
        features = model.picture_features(pixels_of(processor, [(0,), (1,), (2, 3)]))
    prefix = run_prefixes(model, parts, features, pad)
    rests = model.generate(*padded_left(parts.rests, pad), prefix=prefix, **decoding)
    return whole, rests


@pytest.mark.parametrize("router", [name for name in ROUTERS if name not in ACROSS])
def test_every_router_generates_the_same(moe, router):
    model, processor = moe(router=router, parts=("language_model",))
    for layer in model.language_model.get_decoder().layers:
        layer.self_attn.o_proj.weight.data *= 30  # all prompts end alike: what they say shall tell
    whole, rests = both_ways(model, processor)
    assert torch.equal(whole, rests)
    assert len(whole.unique(dim=0)) > 3


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_family_generates_the_same(moe, family, attention):
    model, processor = moe(family)
    model.language_model.set_attn_implementation(attention)
    whole, rests = both_ways(model, processor)
    assert torch.equal(whole, rests)


@pytest.mark.parametrize("router", ACROSS)
def test_a_choice_by_token_generates_the_same_also_where_the_router_could_look_across(moe, router):
    options = {"scope": "token"}
    model, processor = moe(router=router, router_options=options, parts=("language_model",))
    whole, rests = both_ways(model, processor)
    assert torch.equal(whole, rests)


def test_prompts_are_cut_where_their_group_parts_and_behind_their_pictures():
    prompts = [
        ids(1, IMAGE, IMAGE, 2, 3, 4),
        ids(1, IMAGE, 5, 6),
        ids(1, IMAGE, IMAGE, 2, 3, 9, 9),
        ids(1, IMAGE, IMAGE, IMAGE, IMAGE, 8),
        ids(1, 2),
    ]
    parts = split(prompts, ["a", "b", "a", "c", "d"], IMAGE)
    assert [row.tolist() for row in parts.prefixes] == [
        [1, IMAGE, IMAGE, 2, 3],
        [1, IMAGE, 5],
        [1, IMAGE, IMAGE, IMAGE, IMAGE],
        [1],
    ]
    assert parts.owners == [0, 1, 0, 2, 3]
    for prompt, owner, rest in zip(prompts, parts.owners, parts.rests, strict=True):
        assert torch.equal(torch.cat([parts.prefixes[owner], rest]), prompt)
        assert len(rest) >= 1


def test_a_prompt_that_another_continues_or_repeats_keeps_its_last_token():
    same = [ids(1, 2, 3), ids(1, 2, 3), ids(1, 2, 3, 4)]
    parts = split(same, ["a"] * 3, IMAGE)
    assert [row.tolist() for row in parts.prefixes] == [[1, 2]]
    assert [row.tolist() for row in parts.rests] == [[3], [3], [3, 4]]


@pytest.mark.parametrize(
    ("prompts", "groups"),
    [
        ([ids(1, 2), ids(1, 2)], ["a", "b"]),  # no group has two
        ([ids(1, 2), ids(2, 2)], ["a", "a"]),  # nothing in common
        ([ids(1), ids(1)], ["a", "a"]),  # nothing would be left
    ],
)
def test_where_nothing_is_saved_prompts_stay_whole(prompts, groups):
    assert split(prompts, groups, IMAGE) is None


def test_padding_before_a_prefix_and_between_it_and_the_rest_is_chosen_for_by_nobody(moe):
    model, processor = moe(parts=("language_model",))
    layer = model.moe_layers()["language_model"][0]
    counted = []

    def count(router, args, routing):
        mask_T = args[2].mask_T
        counted.append(len(routing.ids_TK) if mask_T is None else int(mask_T.sum()))

    layer.router.register_forward_hook(count)
    prompts, pad = prompts_of(processor), processor.tokenizer.pad_token_id
    parts = split(prompts, GROUPS, model.config.image_token_id)
    features = model.picture_features(pixels_of(processor, [(0,), (1,), (2, 3)]))
    run_prefixes(model.eval(), parts, features, pad)
    assert counted == [sum(map(len, parts.prefixes))]


def test_a_window_that_padding_could_fill_is_not_shared(dense):
    model, _ = dense("mistral")
    window = model.config.text_config.sliding_window
    assert can_share(model, window)
    assert not can_share(model, window + 1)
    model, _ = dense("llama")
    assert can_share(model, 10**6)
    model.config.text_config.layer_types = ["full_attention", "linear_attention"]
    assert not can_share(model, 1)


@pytest.mark.parametrize("decoding", [{"num_beams": 2}, {"self_contrast": SelfContrast()}])
def test_beams_and_self_contrast_want_whole_prompts(moe, decoding):
    model, _ = moe()
    prefix = Prefix(cache=None, attention_mask=None)
    with pytest.raises(ValueError, match="give whole prompts to beam search"):
        model.generate(ids(1)[None], prefix=prefix, **decoding)
