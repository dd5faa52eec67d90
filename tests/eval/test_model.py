from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from eval import model as adapter
from eval.inference import Inference
from eval.pictures import Pictures
from eval.predict import TooLargeError
from eval.task import Sample, load_task
from llava_compete import (
    LlavaCompeteConfig,
    LlavaCompeteForConditionalGeneration,
    SelfContrast,
    save,
)
from llava_compete.data import ImageFolder
from llava_compete.processor import IMAGE_TOKEN, build_processor, end_of_turn_id, prompt_batch
from llava_compete.vision import VisionConfig
from tests.tiny import PARTS

TOWER = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}


@pytest.fixture(scope="module")
def tiny():
    """An untrained model of a few thousand parameters, float32, and its processor."""
    torch.manual_seed(0)
    vision = VisionConfig(
        name="tiny",
        layer=0,
        tower=TOWER,
        embed_dim=8,
        quick_gelu=False,
        image_size=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        width=16,
        num_patches=4,
    )
    processor = build_processor(byte_tokenizer(), vision)
    tokenizer = processor.tokenizer
    config = LlavaCompeteConfig(
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,  # wide, or every answer is one token over and over
        ),
        vision_config=vision.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    )
    model = LlavaCompeteForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(
        eos_token_id=end_of_turn_id(processor), pad_token_id=tokenizer.pad_token_id
    )
    return model, processor


def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )


@pytest.fixture
def samples(data_root):
    """Prompts and answers of unequal length; one with two pictures, the last without any."""
    tasks = [load_task(f"stamps_{name}", data_root) for name in ("yesno", "choice", "short")]
    shown = [sample for task in tasks for sample in task.samples[:4]]
    both = tuple(image for sample in shown[:4:2] for image in sample.images)
    compared = Sample("two", "Which is larger?", ("the first",), both)
    return [*shown, compared, Sample("text", "What is two and two?", ("four",))]


def prompt_of(processor, sample):
    """One sample's prompt with its pixels, by the processor alone."""
    folders = [(ImageFolder(path.parent), path.name) for path in sample.images]
    pictures = [folder.open(name, "x", 16) for folder, name in folders]
    return prompt_batch(processor, [[adapter._question(sample)]], [pictures])


def one_by_one(model, processor, samples, max_new_tokens):
    """Texts as LLaVA's loop makes them: a sample at a time, its pixels through the whole model."""
    texts = []
    for sample in samples:
        ids = model.generate(
            **prompt_of(processor, sample), max_new_tokens=max_new_tokens, do_sample=False
        )
        texts.append(processor.batch_decode(ids, skip_special_tokens=True)[0])
    return texts


@pytest.fixture(params=["dense", "language_model", "all"])
def any_model(request, dense, moe):
    """Dense, experts beside a dense tower, experts everywhere."""
    if request.param == "dense":
        model, processor = dense()
    else:
        parts = ("vision", *PARTS) if request.param == "all" else PARTS
        model, processor = moe(parts=parts)
    return model.eval(), processor


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batched_text_is_that_of_one_sample_at_a_time(any_model, samples, batch_size):
    model, processor = any_model
    asked = adapter.LlavaCompete(model, processor)
    batches = [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]
    texts = [answer.text for batch in batches for answer in asked.answers(batch, 8)]
    assert texts == one_by_one(model, processor, samples, 8)
    assert len(set(texts)) > 3


def test_what_questions_about_one_picture_have_in_common_is_run_once(any_model, samples):
    model, processor = any_model
    rows = []

    def count(_, args, given):
        new_BL = torch.ones(given["inputs_embeds"].shape[:2])
        if (mask := given["attention_mask"]) is not None:
            new_BL = mask[:, -new_BL.shape[1] :]
        rows.append(int(new_BL.sum()))

    model.language_model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    asked = adapter.LlavaCompete(model, processor)
    asked.answers(samples, 1)
    prompts = [len(prompt_of(processor, sample)["input_ids"][0]) for sample in samples]
    assert sum(rows) == sum(prompts) - asked.tokens_saved
    assert asked.tokens_saved > 50
    asked.answers(samples[-1:], 1)
    assert rows[-1] == prompts[-1]


@pytest.mark.parametrize("part", ["language_model", "projector"])
def test_padding_adds_nothing_to_expert_counts(moe, samples, part):
    model, processor = moe()
    asked = adapter.LlavaCompete(model.eval(), processor)

    counts = torch.zeros(4, dtype=torch.int64)

    def count(router, args, routing):
        mask = args[2].mask_T
        counts.add_(torch.bincount(routing.ids_TK[mask].flatten(), minlength=4))

    (layer, *_) = model.moe_layers()[part]
    layer.router.register_forward_hook(count)
    asked.answer_losses(samples)
    together = counts.clone()
    counts.zero_()
    for sample in samples:
        asked.answer_losses([sample])
    assert torch.equal(together, counts)
    assert counts.sum() > 0


def test_a_picture_is_seen_once_in_neighbouring_batches_and_to_rounding(any_model, samples):
    model, processor = any_model
    shown = [sample for sample in samples if sample.images]
    pictures = Pictures(model, processor)
    with torch.no_grad():
        for begin in range(0, len(shown), 3):
            batch = shown[begin : begin + 3]
            pictures.expect(shown[begin + 3 : begin + 6])
            features = pictures.inputs(batch, shared=True)["image_features"]
            pixels = torch.cat([prompt_of(processor, s)["pixel_values"] for s in batch])
            # Products of an expert's tokens round by how many they are: by the pictures beside.
            torch.testing.assert_close(features, model.picture_features(pixels))
            unshared = pictures.inputs(batch, shared=False)["pixel_values"]
            assert torch.equal(unshared, pixels)
    total = sum(len(sample.images) for sample in shown)
    distinct = len({image for sample in shown for image in sample.images})
    assert pictures.shown == 2 * total
    assert pictures.seen == total + distinct < 2 * total


def test_the_work_done_counts_pictures_by_question_though_a_prefix_shows_them_once(tiny, samples):
    asked = adapter.LlavaCompete(*tiny)
    assert set(asked.work().values()) == {0}
    asked.answers(samples, 2)
    images = [image for sample in samples for image in sample.images]
    assert asked.work() == {
        "pictures_shown": len(images),
        "pictures_seen": len(set(images)),
        "tokens_saved": asked.tokens_saved,
    }
    assert asked.tokens_saved > 0


def test_an_answer_behind_more_tokens_than_positions_is_marked(tiny, samples):
    positions = tiny[0].config.text_config.max_position_embeddings
    long = replace(samples[0], id="long", prompt="word " * positions)
    asked = adapter.LlavaCompete(*tiny)
    together = asked.answers([samples[0], long, samples[-1]], 2)
    assert [answer.beyond for answer in together] == [None, True, None]
    assert asked.answers([long], 2) == together[1:2]
    assert "beyond" not in together[0].reply()


def test_what_is_kept_of_pictures_is_bounded_by_the_latest(tiny, samples):
    pictures = Pictures(*tiny, kept=2)
    one_each = list(
        {sample.images: sample for sample in samples if len(sample.images) == 1}.values()
    )
    with torch.no_grad():
        for sample in [*one_each[:3], one_each[2], one_each[0]]:
            pictures.inputs([sample], shared=True)
    assert pictures.seen == 4  # the first had gone when it was asked for again
    assert len(pictures._features) == 2


def test_a_broken_picture_ends_the_run_by_its_sample_whoever_decodes_it(tiny, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    sample = Sample("s-1", "?", ("a",), (tmp_path / "broken.png",))
    for announced in (False, True):
        pictures = Pictures(*tiny)
        if announced:
            pictures.expect([sample])
        with pytest.raises(ValueError, match=r"sample s-1: image .*broken\.png cannot be read"):
            pictures.inputs([sample], shared=True)


def test_a_weak_pass_sees_pictures_by_its_own_experts(moe, samples):
    model, processor = moe(parts=("vision", *PARTS), perturbation=2.0)
    contrast = SelfContrast(beta=3.0, alpha=0.3)
    asked = adapter.LlavaCompete(model.eval(), processor, contrast)
    texts = [answer.text for answer in asked.answers(samples, 8)]
    alone = []
    for sample in samples:
        ids = model.generate(
            **prompt_of(processor, sample),
            max_new_tokens=8,
            do_sample=False,
            self_contrast=contrast,
        )
        alone.append(processor.batch_decode(ids, skip_special_tokens=True)[0])
    assert texts == alone
    prompt = prompt_of(processor, samples[0])
    features = model.picture_features(prompt.pop("pixel_values"))
    with pytest.raises(ValueError, match="pass pixel_values"):
        model.generate(**prompt, image_features=features, self_contrast=contrast, max_new_tokens=2)


def test_lengths_are_those_of_the_prompts(tiny, samples):
    model, processor = tiny
    lengths = adapter.LlavaCompete(model, processor).lengths(samples)
    exact = [prompt_of(processor, s)["input_ids"].shape[1] for s in samples]
    off = [abs(a - b) for a, b in zip(lengths, exact, strict=True)]
    assert max(off) <= 1  # the template's line break stands once behind two pictures
    assert sum(off) <= 1
    assert adapter.LlavaCompete(model, processor).lengths([]) == []


def test_a_batch_too_large_for_the_memory_is_told_as_such(tiny, samples, monkeypatch):
    def full(**_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model, processor = tiny
    monkeypatch.setattr(model, "generate", full)
    with pytest.raises(TooLargeError, match="CUDA out of memory"):
        adapter.LlavaCompete(model, processor).answers(samples, 4)


def test_answers_do_not_depend_on_the_batch(tiny, samples):
    together = adapter.LlavaCompete(*tiny).answers(samples, 12)
    alone = [adapter.LlavaCompete(*tiny).answers([sample], 12)[0] for sample in samples]
    assert together == alone
    assert len({answer.text for answer in together}) > 1


def test_losses_do_not_depend_on_the_batch(tiny, samples):
    together = adapter.LlavaCompete(*tiny).answer_losses(samples)
    alone = [adapter.LlavaCompete(*tiny).answer_losses([sample])[0] for sample in samples]
    assert together == pytest.approx(alone, rel=1e-4)
    assert len({round(loss, 4) for loss in together}) > 1


def test_the_loss_is_that_of_the_answer_and_its_end_alone(tiny, samples):
    model, processor = tiny
    (loss,) = adapter.LlavaCompete(model, processor).answer_losses(samples[:1])
    prompt = prompt_of(processor, samples[0])
    answer = processor.tokenizer(samples[0].references[0] + "<|im_end|>")["input_ids"]
    ids = torch.cat([prompt["input_ids"], torch.tensor([answer])], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=prompt["pixel_values"]).logits[0]
    positions = range(ids.shape[1] - len(answer) - 1, ids.shape[1] - 1)
    log_likelihood = logits.log_softmax(dim=-1)
    expected = -sum(log_likelihood[p, ids[0, p + 1]] for p in positions) / len(answer)
    assert loss == pytest.approx(expected.item(), rel=1e-4)


def test_an_answer_ends_at_its_stop_token_and_says_so(tiny, samples, monkeypatch):
    model, processor = tiny
    (whole,) = adapter.LlavaCompete(model, processor).answers(samples[:1], 6)
    assert (whole.tokens, whole.finished) == (6, False)
    stop = processor.tokenizer(whole.text[:1])["input_ids"][0]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [stop, 1])
    (ended,) = adapter.LlavaCompete(model, processor).answers(samples[:1], 6)
    assert (ended.tokens, ended.finished) == (1, True)


def test_a_checkpoint_is_loaded_and_answers_the_same(tiny, samples, tmp_path):
    save(*tiny, tmp_path / "checkpoint")
    loaded = adapter.LlavaCompete.load(tmp_path / "checkpoint", "float32", Inference())
    if loaded.model.device.type == "cpu":
        assert loaded.answers(samples[:2], 8) == adapter.LlavaCompete(*tiny).answers(samples[:2], 8)
    assert loaded.answer_losses(samples[:2]) == pytest.approx(
        adapter.LlavaCompete(*tiny).answer_losses(samples[:2]), rel=1e-3
    )


def test_losses_that_do_not_fit_the_labels_are_refused(samples):
    with pytest.raises(ValueError, match="3 token losses came back for 4 answer tokens"):
        adapter._row_means(torch.zeros(3), [2, 2], samples)
    with pytest.raises(ValueError, match=f"reference of sample {samples[1].id} has no tokens"):
        adapter._row_means(torch.zeros(2), [2, 0], samples)


def test_a_model_without_a_stop_token_is_refused():
    with pytest.raises(ValueError, match="eos_token_id is None"):
        adapter._stop_tokens(None)
