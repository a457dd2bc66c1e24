"""The demo network while it learns: the same modules as at run time, a forward made for training.

Several prompts share one picture: the sequence is [first token][patches][prompt 1][prompt 2]…, and a mask
lets a prompt see the picture and itself only. Auxiliary heads (never shipped) read the patches' embeddings
and one attention map. Attention is written out, because that trains twice as fast on a CPU.
"""

import math
from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.demo_policy.samples import BRANCH, CLASSES, GRID, PATCH, PATCHES
from benchmarks.demo_policy.tokenizer import ACTION_END, BINS, ROWS
from edge_vla.model import OpenVLA
from edge_vla.model.decoder import DecoderLayer, rotary_tables, rotate
from edge_vla.model.vision import Block, Tower
from edge_vla.openvla.config import CONSTANTS
from edge_vla.spec import TOWERS, ActionSpec, DecoderSpec, PolicySpec, TowerSpec

ACTION_DIMS: Final = 7
PARTS: Final = 4  # of the gripper, whose places in the picture follow its seven numbers in `scene`
PART_NEAR: Final = 1.2  # patches; a patch this close to a part has to say where exactly it is
POINTER_LAYER: Final = 1
POINTER_HEADS: Final = 2
GOAL_SCALES: Final = ((0.3, 0.3, 1.2), (0.03, 0.03, 0.3))  # each of dx, dy, dyaw is learnt coarse and fine
LOCAL_SCALE: Final = (1.0, 1.0, 0.55)
SCENE_CENTRE: Final = (0.0, 0.0, 0.08, 0.0, 0.0, 0.0, 0.5) + (0.0,) * 8
SCENE_SCALE: Final = (0.18, 0.18, 0.07, 0.4, 0.4, 0.6, 0.5) + (0.25,) * 8


def demo_spec() -> PolicySpec:
    """5.2 million parameters that run: two towers 128 wide, a decoder 256 wide and four layers deep."""
    names = tuple(TOWERS)
    dino, siglip = TOWERS[names[0]], TOWERS[names[1]]

    def tower(base: TowerSpec) -> TowerSpec:
        return TowerSpec(
            base.name, 112, PATCH, 128, 5, 4, 512,
            base.class_token, base.registers, base.layer_scale, base.attention_pool,
        )  # fmt: skip

    return PolicySpec(
        towers=(tower(dino), tower(siglip)),
        decoder=DecoderSpec(vocab_rows=ROWS, width=256, mlp_width=512, layers=4, heads=4, kv_heads=4),
        action=ActionSpec(bins=BINS, end=ACTION_END),
    )


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    scores = torch.matmul(query, key.transpose(-2, -1)) * (query.shape[-1] ** -0.5)
    if bias is not None:
        scores = scores + bias
    probabilities = scores.float().softmax(dim=-1)
    return torch.matmul(probabilities.to(value.dtype), value), probabilities


def _block(block: Block, x: Tensor) -> Tensor:
    batch, tokens, width = x.shape
    heads = block.attn.heads
    qkv = block.attn.qkv(block.norm1(x)).reshape(batch, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    mixed, _ = _attend(qkv[0], qkv[1], qkv[2], None)
    x = x + block.ls1(block.attn.proj(mixed.transpose(1, 2).reshape(batch, tokens, width)))
    out: Tensor = x + block.ls2(block.mlp(block.norm2(x)))
    return out


def _tower(tower: Tower, pixels: Tensor) -> Tensor:
    x = tower.patch_embed(pixels) + tower.pos_embed
    batch = x.shape[0]
    if tower.spec.class_token:
        prefix = torch.cat([tower.cls_token, tower.reg_token], dim=1).to(x.dtype)
        x = torch.cat([prefix.expand(batch, -1, -1), x], dim=1)
    for block in tower.blocks:
        assert isinstance(block, Block)
        x = _block(block, x)
    out: Tensor = x[:, tower.spec.prefix :]
    return out


def _layer(layer: DecoderLayer, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    batch, rows, width = x.shape
    attention, spec = layer.self_attn, layer.self_attn.spec
    normed = layer.input_layernorm(x)

    def heads(projected: Tensor) -> Tensor:
        return projected.view(batch, rows, spec.heads, spec.head_width).transpose(1, 2)

    query = rotate(heads(attention.q_proj(normed)), cos, sin)
    key = rotate(heads(attention.k_proj(normed)), cos, sin)
    mixed, probabilities = _attend(query, key, heads(attention.v_proj(normed)), bias)
    x = x + attention.o_proj(mixed.transpose(1, 2).reshape(batch, rows, width))
    return x + layer.mlp(layer.post_attention_layernorm(x)), probabilities


class Learner(nn.Module):
    """The policy, its auxiliary heads, and the losses of one batch."""

    def __init__(self, policy: OpenVLA, prompts: int) -> None:
        super().__init__()
        spec = policy.spec
        self.policy = policy
        self.prompts = prompts
        width = spec.decoder.width
        self.class_head = nn.Linear(width, len(CLASSES))
        self.goal_head = nn.Linear(width, 3 * len(GOAL_SCALES))
        self.local_head = nn.Linear(width, len(LOCAL_SCALE))
        self.part_head = nn.Linear(width, 2 * PARTS)
        self.scene_head = nn.Linear(width, len(SCENE_SCALE))
        self.held_head = nn.Linear(width, len(CLASSES))
        prefix = 1 + PATCHES
        positions = torch.cat([torch.arange(prefix), torch.arange(prefix, prefix + BRANCH).repeat(prompts)])
        owner = torch.cat([torch.zeros(prefix), torch.arange(1, prompts + 1).repeat_interleave(BRANCH)])
        same = (owner[:, None] == owner[None]) | (owner[None] == 0)
        visible = same & (positions[None] <= positions[:, None])
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("bias", torch.zeros(visible.shape).masked_fill(~visible, -1e4), persistent=False)
        constants = [CONSTANTS[tower.layer_scale] for tower in spec.towers]
        self.register_buffer("means", torch.tensor([mean for mean, _ in constants]), persistent=False)
        self.register_buffer("deviations", torch.tensor([deviation for _, deviation in constants]), persistent=False)
        along = (torch.arange(GRID) + 0.5) / GRID - 0.5
        row, column = torch.meshgrid(along, along, indexing="ij")
        self.register_buffer("patch_centres", torch.stack([column, row], -1).flatten(0, 1), persistent=False)
        centres = (torch.linspace(-1, 1, BINS)[:-1] + torch.linspace(-1, 1, BINS)[1:]) / 2
        self.register_buffer("centres", centres, persistent=False)

    def patches(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> patch embeddings as the decoder reads them (B, 64, width)."""
        unit = images.permute(0, 3, 1, 2).float() / 255.0
        means, deviations = self.get_buffer("means"), self.get_buffer("deviations")
        backbone = self.policy.vision_backbone
        features = [
            _tower(tower, (unit - mean[:, None, None]) / deviation[:, None, None])
            for tower, mean, deviation in zip(
                (backbone.featurizer, backbone.fused_featurizer), means, deviations, strict=True
            )
        ]
        out: Tensor = self.policy.projector(torch.cat(features, dim=2))
        return out

    def vision_losses(self, patches: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What every patch should know: what covers it, how far the gripper is from that, and the gripper's pose."""
        # An RMS norm stands between these embeddings and the decoder, so the heads read them normed too.
        x = F.rms_norm(patches.float(), patches.shape[-1:])
        names = batch["patch_class"]
        covered = (names > 0).float()
        kinds = F.cross_entropy(self.class_head(x).float().flatten(0, 1), names.flatten(), reduction="none")
        weight = 1.0 + 3.0 * covered.flatten()
        goals = batch["patch_goal"]
        wanted = torch.cat([goals / goals.new_tensor(scale) for scale in GOAL_SCALES], dim=-1).clamp(-1.3, 1.3)
        missed = F.smooth_l1_loss(self.goal_head(x).float(), wanted, beta=0.1, reduction="none").mean(-1)
        nearby = batch["patch_local"] / goals.new_tensor(LOCAL_SCALE)
        off = F.smooth_l1_loss(self.local_head(x).float(), nearby, beta=0.1, reduction="none").mean(-1)
        parts = batch["scene"][:, ACTION_DIMS:].reshape(-1, 1, PARTS, 2)
        beside = (parts - self.get_buffer("patch_centres")[:, None]) * GRID
        close = (beside.abs().amax(-1) < PART_NEAR).float()
        guess = self.part_head(x).float().reshape(-1, PATCHES, PARTS, 2)
        astray = F.smooth_l1_loss(guess, beside.clamp(-PART_NEAR, PART_NEAR), beta=0.1, reduction="none").mean(-1)
        scene = (batch["scene"] - goals.new_tensor(SCENE_CENTRE)) / goals.new_tensor(SCENE_SCALE)
        posed = F.smooth_l1_loss(self.scene_head(x).float(), scene[:, None].expand(-1, PATCHES, -1), beta=0.1)
        held = F.cross_entropy(
            self.held_head(x).float().flatten(0, 1), batch["held"][:, None].expand(-1, PATCHES).flatten()
        )
        return {
            "class": (kinds * weight).sum() / weight.sum(),
            "goal": (missed * covered).sum() / covered.sum().clamp_min(1.0),
            "local": (off * covered).sum() / covered.sum().clamp_min(1.0),
            "part": (astray * close).sum() / close.sum().clamp_min(1.0),
            "scene": posed,
            "held": held,
            "size": 0.1 * patches.float().square().mean().log().square(),
        }

    def language_losses(self, patches: Tensor, batch: Mapping[str, Tensor], softness: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the seven action tokens under Gaussian-softened bins, and the pointer's loss."""
        model = self.policy.language_model.model
        frames, prompts = batch["tokens"].shape[:2]
        text = model.embed_tokens(batch["tokens"].flatten(1))  # (B, prompts x BRANCH, width)
        first = model.embed_tokens.weight[self.policy.spec.decoder.bos].expand(frames, 1, -1)
        x = torch.cat([first, patches.to(text.dtype), text], dim=1)
        cos, sin = rotary_tables(self.policy.spec.decoder, self.get_buffer("positions")[None], torch.float32)
        bias = self.get_buffer("bias")
        pointer = x.new_zeros(())
        base = 1 + PATCHES + torch.arange(prompts, device=x.device)[None, :, None] * BRANCH
        for index, layer in enumerate(model.layers):
            assert isinstance(layer, DecoderLayer)
            x, probabilities = _layer(layer, x, cos, sin, bias)
            if index == POINTER_LAYER:
                pointer = self._pointer_loss(probabilities, (base + batch["pointer_rows"]).flatten(1), batch)
        dims = torch.arange(ACTION_DIMS, device=x.device)
        rows = (base + batch["answer_starts"][:, :, None] + dims).flatten(1)  # (B, prompts x 7)
        hidden = x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
        logits = self.policy.language_model.lm_head(model.norm(hidden)).float()
        wanted = batch["actions"].flatten(1)[..., None]  # (B, prompts x 7, 1)
        soft = (-0.5 * ((self.get_buffer("centres") - wanted) / softness).square()).softmax(dim=-1)
        logs = logits.log_softmax(dim=-1)
        end = self.policy.spec.action.end
        logs = logs[..., end - BINS + 1 : end].flip(-1)  # ascending centres
        loss = -(soft * logs).sum(-1).view(frames, prompts, ACTION_DIMS).mean((0, 1))
        return {"action": loss.mean(), "dx": loss[0], "pointer": pointer}

    def _pointer_loss(self, probabilities: Tensor, rows: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        weights = probabilities[:, :POINTER_HEADS, :, 1 : 1 + PATCHES]  # (B, heads, N, 64)
        weights = weights.gather(2, rows[:, None, :, None].expand(-1, POINTER_HEADS, -1, PATCHES))
        named = batch["pointer_patches"].flatten(1, 2)[:, None]  # (B, 1, prompts x 2, 64)
        some = (named.sum(-1) > 0).float()
        missed = -((weights * named).sum(-1) + 1e-5).log() * some
        return missed.sum() / (some.sum() * POINTER_HEADS).clamp_min(1.0)


_ZERO_AT_FIRST: Final = (
    "o_proj.weight",
    "down_proj.weight",
    "attn.proj.weight",
    "mlp.fc2.weight",
    "bias",
    "lm_head.weight",
)


def initialise(policy: OpenVLA, seed: int) -> None:
    """Scaled Gaussians; branches start at zero; positions start as a two-dimensional wave pattern."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name.endswith(("scale_factor", "norm.weight", "norm1.weight", "norm2.weight", "layernorm.weight")):
                parameter.fill_(1.0)
            elif name.endswith(_ZERO_AT_FIRST):
                parameter.zero_()
            elif name.endswith("pos_embed"):
                parameter.copy_(_waves(parameter.shape[1], parameter.shape[2])[None])
            elif name.endswith(("embed_tokens.weight", "cls_token", "reg_token")):
                parameter.normal_(0.0, 0.5, generator=generator)
            else:
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)


def _waves(patches: int, width: int) -> Tensor:
    width_in_patches = math.isqrt(patches)
    frequency = torch.exp(torch.linspace(0.0, -math.log(10.0), width // 4)) * math.pi / 2
    row, column = torch.meshgrid(
        torch.arange(width_in_patches).float(), torch.arange(width_in_patches).float(), indexing="ij"
    )
    parts = [wave(axis.reshape(-1, 1) * frequency) for axis in (row, column) for wave in (torch.sin, torch.cos)]
    return 0.5 * torch.cat(parts, dim=1)
