"""A tiny model of CompeteSMoE's layout, written from its key names and its description.

Plain loops: an expert at a time for each token, a crop at a time, a window at a time.
"""

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Phi3Config, Phi3ForCausalLM, SiglipVisionConfig

SCALES = (1, 3)
SIZE, PATCH, SIDE = 16, 8, 2
BLOCKS, WIDTH, HEADS, HIDDEN = 3, 32, 4, 44
TEXT_WIDTH, VOCABULARY = 32, 300
EXPERTS, TOP_K = 4, 2


class MoE(nn.Module):
    """The gate's top K, weighted by their softmax over their sum."""

    def __init__(self, width, make_expert):
        super().__init__()
        self.experts = nn.ModuleList(make_expert() for _ in range(EXPERTS))
        self.gate = nn.Linear(width, EXPERTS, bias=False)
        self.register_buffer("prob_flips", torch.rand(15) < 0.07)

    def forward(self, x_BSD):
        outputs = []
        for x_D in x_BSD.flatten(0, 1):
            probability_E = self.gate(x_D).softmax(dim=-1)
            chosen = sorted(range(EXPERTS), key=lambda e: -probability_E[e])[:TOP_K]
            total = sum(probability_E[e] for e in chosen)
            outputs.append(sum(probability_E[e] / total * self.experts[e](x_D) for e in chosen))
        return torch.stack(outputs).view(*x_BSD.shape[:-1], -1)


class SiglipExpert(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.add_module(name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x_BPC):
        q, k, v = (
            linear(x_BPC).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        return self.out_proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.self_attn = SelfAttention()
        self.layer_norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.moelayer = MoE(WIDTH, SiglipExpert)

    def forward(self, x_BPC):
        x_BPC = x_BPC + self.self_attn(self.layer_norm1(x_BPC))
        return x_BPC + self.moelayer(self.layer_norm2(x_BPC))


class VisionModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.patch_embedding = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.embeddings.position_embedding = nn.Embedding(SIDE**2, WIDTH)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, pixels_B3HW):
        x_BPC = self.embeddings.patch_embedding(pixels_B3HW).flatten(2).transpose(1, 2)
        x_BPC = x_BPC + self.embeddings.position_embedding.weight
        inputs = []
        for block in self.encoder.layers:
            inputs.append(x_BPC)
            x_BPC = block(x_BPC)
        return inputs[-1]


class Reference(nn.Module):
    """Keys as in the layout; ``features`` and ``logits`` as it is described."""

    def __init__(self, scales=SCALES, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.scales = scales
        language = Phi3ForCausalLM(text_config())
        self.model, self.lm_head = language.model, language.lm_head
        self.model.mm_projector = nn.Module()
        self.model.mm_projector.moelayer = MoE(WIDTH * len(scales), self.make_projector)
        self.model.vision_tower = nn.Module()
        self.model.vision_tower.vision_model = VisionModel()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        self.eval()

    def make_projector(self):
        width = WIDTH * len(self.scales)
        return nn.Sequential(
            nn.Linear(width, TEXT_WIDTH), nn.GELU(), nn.Linear(TEXT_WIDTH, TEXT_WIDTH)
        )

    def features(self, pixels_N3HW):
        """The preprocessed picture and, enlarged, its 3 x 3 pieces, on the channels."""
        tower = self.model.vision_tower.vision_model
        by_scale = []
        for scale in self.scales:
            large = F.interpolate(pixels_N3HW, size=(scale * SIZE, scale * SIZE), mode="bicubic")
            rows = []
            for row in range(scale):
                pieces = []
                for column in range(scale):
                    top, left = row * SIZE, column * SIZE
                    piece = tower(large[:, :, top : top + SIZE, left : left + SIZE])
                    pieces.append(piece.transpose(1, 2).unflatten(2, (SIDE, SIDE)))
                rows.append(torch.cat(pieces, dim=3))
            whole = torch.cat(rows, dim=2)
            by_scale.append(F.interpolate(whole, size=(SIDE, SIDE), mode="area"))
        return torch.cat(by_scale, dim=1).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def logits(self, ids_L, image_token_id, pixels_N3HW=None):
        """Of one row in which every placeholder is a patch; (L, vocabulary)."""
        images = None
        if pixels_N3HW is not None:
            images = self.model.mm_projector.moelayer(self.features(pixels_N3HW)).flatten(0, 1)
        rows, taken = [], 0
        for token in ids_L.tolist():
            if token == image_token_id:
                rows.append(images[taken])
                taken += 1
            else:
                rows.append(self.model.embed_tokens.weight[token])
        hidden = self.model(inputs_embeds=torch.stack(rows)[None]).last_hidden_state
        return self.lm_head(hidden)[0]


def text_config():
    return Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


def write_checkpoint(folder: Path, state, **more) -> Path:
    """The files of a checkpoint, two pickled shards with an index; beside them its tower's shape.

    config.json is Phi-3's with names of its own between.
    """
    folder.mkdir()
    SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH,
    ).save_pretrained(folder.with_name("siglip"))
    values = {
        **text_config().to_dict(),
        "model_type": "llava_phi",
        "architectures": ["LlavaPhiForCausalLM"],
        "mm_vision_tower": str(folder.with_name("siglip")),
        "num_selected": TOP_K,
        "training": True,
        **more,
    }
    (folder / "config.json").write_text(json.dumps(values))
    shards = {}
    for number, key in enumerate(state):
        shards.setdefault(f"pytorch_model-{number % 2}.bin", {})[key] = state[key]
    for name, shard in shards.items():
        torch.save(shard, folder / name)
    index = {"weight_map": {key: name for name, shard in shards.items() for key in shard}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder
