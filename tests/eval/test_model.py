import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from eval import model as adapter
from eval.inference import Inference
from eval.task import Sample, load_task
from llava_compete import LlavaCompeteConfig, LlavaCompeteForConditionalGeneration, save
from llava_compete.processor import IMAGE_TOKEN, build_processor, end_of_turn_id
from llava_compete.vision import VisionConfig

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


def test_answers_do_not_depend_on_the_batch(tiny, samples):
    together = adapter.generate(*tiny, samples, max_new_tokens=12)
    alone = [adapter.generate(*tiny, [sample], max_new_tokens=12)[0] for sample in samples]
    assert together == alone
    assert len({answer.text for answer in together}) > 1


def test_losses_do_not_depend_on_the_batch(tiny, samples):
    together = adapter.answer_loss(*tiny, samples)
    alone = [adapter.answer_loss(*tiny, [sample])[0] for sample in samples]
    assert together == pytest.approx(alone, rel=1e-4)
    assert len({round(loss, 4) for loss in together}) > 1


def test_the_loss_is_that_of_the_answer_and_its_end_alone(tiny, samples):
    model, processor = tiny
    (loss,) = adapter.answer_loss(model, processor, samples[:1])
    prompt = adapter.prompt_batch(
        processor, [[adapter._question(samples[0])]], [adapter._pictures(processor, samples[0])]
    )
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
    (whole,) = adapter.generate(model, processor, samples[:1], max_new_tokens=6)
    assert (whole.tokens, whole.finished) == (6, False)
    stop = processor.tokenizer(whole.text[:1])["input_ids"][0]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [stop, 1])
    (ended,) = adapter.generate(model, processor, samples[:1], max_new_tokens=6)
    assert (ended.tokens, ended.finished) == (1, True)


def test_a_checkpoint_is_loaded_and_answers_the_same(tiny, samples, tmp_path):
    save(*tiny, tmp_path / "checkpoint")
    loaded = adapter.LlavaCompete.load(tmp_path / "checkpoint", "float32", Inference())
    if loaded.model.device.type == "cpu":
        assert loaded.answers(samples[:2], 8) == adapter.generate(*tiny, samples[:2], 8)
    assert loaded.answer_losses(samples[:2]) == pytest.approx(
        adapter.answer_loss(*tiny, samples[:2]), rel=1e-3
    )


def test_losses_that_do_not_fit_the_labels_are_refused(samples):
    with pytest.raises(ValueError, match="3 token losses came back for 4 answer tokens"):
        adapter._row_means(torch.zeros(3), [2, 2], samples)
    with pytest.raises(ValueError, match=f"reference of sample {samples[1].id} has no tokens"):
        adapter._row_means(torch.zeros(2), [2, 0], samples)


def test_a_model_without_a_stop_token_is_refused():
    with pytest.raises(ValueError, match="eos_token_id is None"):
        adapter._stop_tokens(None)
