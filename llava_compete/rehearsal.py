"""How many bytes a training step takes, by running the model on tensors without data.

B rows of L tokens, N images, A answer tokens, D width.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llava_compete.model import LANGUAGE, LlavaCompeteConfig
from llava_compete.model import LlavaCompeteForConditionalGeneration as Model
from llava_compete.moe.collect import take_losses
from llava_compete.training.parts import set_trainable

CAUSAL_SDPA = "causal_sdpa"


class Peak(NamedTuple):
    """Most bytes at once of a forward and its backward, beside parameters and buffers."""

    streamed: int  # each parameter's gradient is freed as soon as it is whole
    kept: int  # all are kept


class Rehearsal:
    """A model whose tensors have shape and dtype but no data, on the CPU's kernels.

    The CPU chooses attention that keeps no scores, as flash attention does. What a kernel takes
    for itself while it runs is not seen.
    """

    def __init__(
        self,
        config: LlavaCompeteConfig,
        *,
        trainable: list[str],
        dtype: torch.dtype,
        autocast: bool,
        checkpointing: bool,
    ) -> None:
        with torch.device("meta"):
            self.model = Model(config).to(dtype).train()
        self.model.language_model.set_attn_implementation(CAUSAL_SDPA)
        self.autocast = autocast
        # What a router made while it was built, outside its buffers, has data.
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._mode:
            self.model._apply(lambda x: torch.empty(x.shape, dtype=x.dtype, device="cpu"))
            self.model.tie_weights()
        set_trainable(self.model, trainable)
        if checkpointing:  # without random states, which have data
            kwargs = {"use_reentrant": False, "preserve_rng_state": False}
            self.model.activation_checkpointing_enable(kwargs)

    def peak(self, rows: int, length: int, competing: Sequence[bool]) -> Peak:
        """Of ``rows`` rows of ``length`` tokens, an image in each, the others all answers."""
        self.model.set_competing(competing)
        trained = [x for x in self.model.parameters() if x.requires_grad]
        with self._mode, Live(self.model) as live, _freed(trained, live):
            self._loss(rows, length).backward()
        return Peak(live.most, live.most_kept)

    def _loss(self, rows: int, length: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return self._forward(rows, length)

    def _forward(self, rows: int, length: int) -> Tensor:
        """As the model's, whose counts of placeholders and answers depend on data."""
        model = self.model
        for layers in model.moe_layers().values():
            for layer in layers:
                layer.recording = True
                layer.mask_T = None
        for layer in model.moe_layers().get(LANGUAGE, ()):
            layer.mask_T = torch.ones(rows * length, dtype=torch.bool)
        ids_BL = torch.zeros(rows, length, dtype=torch.int64)
        text_BLD = model.get_input_embeddings()(ids_BL)
        size = model.config.vision.image_size
        pixels = torch.zeros(rows, 3, size, size, dtype=text_BLD.dtype)
        image_NPD = model._image_embeddings(pixels, None, counted=True).to(text_BLD.dtype)
        hidden_BLD = model.language_model.get_decoder()(
            inputs_embeds=text_BLD.masked_scatter(ids_BL.bool()[..., None], image_NPD),
            attention_mask=None,
            use_cache=False,
        ).last_hidden_state
        answers_A = torch.zeros(rows * (length - model.config.vision.num_patches)).long()
        language = model.get_output_embeddings()(hidden_BLD.flatten(0, 1)[answers_A], answers_A)
        return language.total + take_losses(model.moe_layers(), model.config.moe_configs).total


def causal_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **kwargs: Any
) -> tuple[Tensor, None]:
    """sdpa as of rows without padding: without data transformers cannot see that none is there."""
    return sdpa_attention_forward(module, query, key, value, None, is_causal=True, **kwargs)


# Without a mask function of this name transformers makes no mask.
AttentionInterface.register(CAUSAL_SDPA, causal_sdpa)


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, until they are freed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        held = [*model.parameters(), *model.buffers()]
        self._known = {x.untyped_storage()._cdata for x in held}
        self._now = 0
        self.kept = 0  # of gradients that were freed, set by _freed
        self.most = 0
        self.most_kept = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._take(leaf.untyped_storage())
        return output

    def _take(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._now += size
        self.most = max(self.most, self._now)
        self.most_kept = max(self.most_kept, self._now + self.kept)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


@contextmanager
def _freed(parameters: Sequence[nn.Parameter], live: Live) -> Iterator[None]:
    """Gradients are freed when they are whole, and their bytes added to ``live.kept``."""

    def free(parameter: Tensor) -> None:
        assert parameter.grad is not None
        live.kept += parameter.grad.untyped_storage().nbytes()
        parameter.grad = None

    handles = [x.register_post_accumulate_grad_hook(free) for x in parameters]
    yield
    for handle in handles:
        handle.remove()
