"""Words and patches of each expert against loops.  T tokens, E experts."""

import math
from collections import Counter

import pytest
import torch

from llava_compete.moe import Routing
from llava_compete.routing.takes import Patches, Words
from llava_compete.routing.watch import IMAGE, TEXT, Seen
from tests import tiny

E, PATCHES = 3, 4
KEY = ("language_model", 0)


class Layer:
    """What Words reads of a layer."""

    class experts:  # noqa: N801
        num_experts = E


def make_seen(scores_TE, *, kind_T=None, ids_T=None, patch_T=None, top_k=2):
    ids_TK = scores_TE.topk(top_k, dim=-1).indices
    routing = Routing(ids_TK, torch.full(ids_TK.shape, 1 / top_k), {}, {}, scores_TE)
    kind_T = torch.full((len(scores_TE),), IMAGE) if kind_T is None else kind_T
    return Seen(KEY, Layer, routing, scores_TE, scores_TE, kind_T, ids_T, patch_T)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.make_tokenizer()


def words_of(tokenizer, text, scores_TE, kinds=TEXT):
    """Words that have seen the text, byte by byte, in two batches."""
    ids_T = torch.tensor(tokenizer.encode(text))
    kind_T = torch.full_like(ids_T, kinds)
    words = Words(len(tokenizer))
    for half in (slice(0, 7), slice(7, None)):
        words(make_seen(scores_TE[half], kind_T=kind_T[half], ids_T=ids_T[half]))
    return words


def test_counts_shares_and_lifts_equal_the_loop(tokenizer):
    text = "abracadabra, said the cat"
    scores_TE = torch.randn(len(text), E)
    found = words_of(tokenizer, text, scores_TE).most(KEY, tokenizer, count=100)
    chosen = [set(row) for row in scores_TE.topk(2, dim=-1).indices.tolist()]
    for expert in range(E):
        taken = Counter(letter for letter, who in zip(text, chosen, strict=True) if expert in who)
        load = taken.total() / len(text)
        above = {}
        for letter, n in Counter(text).items():
            above[letter] = (taken[letter] - n * load) / math.sqrt(n * load * (1 - load))
        wanted = [letter for letter in sorted(above, key=lambda w: -above[w]) if above[letter] > 0]
        assert {found["word"] for found in found[expert]} == set(wanted)
        values = [above[found["word"]] for found in found[expert]]
        assert values == sorted(values, reverse=True)
        for word in found[expert]:
            n = text.count(word["word"])
            assert word["count"] == n
            assert word["share"] == pytest.approx(taken[word["word"]] / n)
            assert word["lift"] == pytest.approx(taken[word["word"]] / n / load)


def test_markers_and_image_tokens_are_no_words(tokenizer):
    marked = "<|im_start|>" * 3 + "ab"
    scores_TE = torch.tensor([[1.0, 0.5, 0.0]] * 3 + [[0.0, 0.5, 1.0]] * 2)
    found = words_of(tokenizer, marked, scores_TE).most(KEY, tokenizer, count=5)
    assert [sorted(word["word"] for word in words) for words in found] == [[], [], ["a", "b"]]
    of_images = words_of(tokenizer, marked, scores_TE, kinds=IMAGE)
    assert of_images.counts[KEY].sum() == 0


def watch_pictures(patches, scores_NPE, files):
    patches.files = files
    patch_T = torch.arange(len(files) * PATCHES)
    patches(make_seen(scores_NPE.reshape(-1, E), patch_T=patch_T))


def test_the_best_patch_of_each_picture_by_lead_and_the_best_pictures_of_each_expert():
    patches = Patches(PATCHES, count=2, map_files=())
    scores_NPE = torch.randn(6, PATCHES, E)
    files = [f"{n}.png" for n in range(6)]
    for begin in range(0, 6, 2):
        watch_pictures(patches, scores_NPE[begin : begin + 2], files[begin : begin + 2])
    for expert, found in enumerate(patches.most(KEY)):
        best = []
        for file, scores_PE in zip(files, scores_NPE.tolist(), strict=True):
            leads = []
            for patch, scores in enumerate(scores_PE):
                others = [score for e, score in enumerate(scores) if e != expert]
                if scores[expert] > min(scores):  # two of three are chosen
                    leads.append((scores[expert] - max(others), patch))
            if leads:
                best.append((*max(leads), file))
        wanted = sorted(best, reverse=True)[:2]
        assert [(patch.patch, patch.file) for patch in found] == [(p, f) for _, p, f in wanted]
        assert [patch.lead for patch in found] == pytest.approx([lead for lead, _, _ in wanted])


def test_a_picture_that_comes_again_stands_once():
    patches = Patches(PATCHES, count=5, map_files=())
    for _ in range(3):
        watch_pictures(patches, torch.randn(1, PATCHES, E), ["a.png"])
    assert all(len(found) <= 1 for found in patches.most(KEY))


def test_maps_are_kept_of_the_pictures_asked_for():
    patches = Patches(PATCHES, count=1, map_files=["b.png"])
    scores_NPE = torch.randn(2, PATCHES, E)
    watch_pictures(patches, scores_NPE, ["a.png", "b.png"])
    assert patches.maps == {"b.png": {KEY: scores_NPE[1].argmax(dim=-1).tolist()}}


def test_an_expert_that_is_always_on_leads_nowhere():
    patches = Patches(PATCHES, count=1, map_files=["a.png"])
    scores_NPE = torch.randn(1, PATCHES, E)
    scores_NPE[..., 0] = math.inf
    watch_pictures(patches, scores_NPE, ["a.png"])
    assert patches.most(KEY)[0] == []
    assert patches.maps["a.png"][KEY] == (1 + scores_NPE[0, :, 1:].argmax(dim=-1)).tolist()
