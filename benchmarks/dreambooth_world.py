"""What `benchmarks/dreambooth.py` runs on: SDXL models of random weights, drawn pictures, and a published-style step.

No weights and no data are fetched. The small model keeps SDXL's structure and the proportions of its costs: the VAE's
encoder takes about 0.7 of the UNet's forward pass, both text encoders together about 0.02 (`shares` counts them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from common.adapters import balance_loss
from common.config import AdapterConfig, Method, Precision, TrainConfig
from dreambooth.config import TARGET_MODULES, Attention, DataConfig, DreamboothRecipe, LossConfig
from dreambooth.data import Collate
from dreambooth.model import LatentScale, SdxlBase, encode_ids, prepare_training
from dreambooth.model_base import DTYPES, set_attention
from dreambooth.noise import WithNoise
from dreambooth.objective import DenoisingObjective

TOKENS = 77
SCALING_FACTOR = 0.13025
Task = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """The architecture of an SDXL.

    Args:
        channels: of the UNet's three resolutions.
        transformers: transformer layers in each.
        heads: attention heads in each.
        time_width: of the embedding of each of the six `time_ids`.
        vae_channels: of the VAE's four resolutions.
        texts: width, layers, heads of each text encoder.
        vocabulary: of the text encoders.
        side: of a picture, in pixels.
        groups: of the group norms of UNet and VAE.
    """

    channels: tuple[int, int, int]
    transformers: tuple[int, int, int]
    heads: tuple[int, int, int]
    time_width: int
    vae_channels: tuple[int, int, int, int]
    texts: tuple[tuple[int, int, int], tuple[int, int, int]]
    vocabulary: int
    side: int
    groups: tuple[int, int]

    @property
    def latent(self) -> int:
        """Side of a latent."""
        return self.side // 8


SDXL = Shape(
    (320, 640, 1280), (1, 2, 10), (5, 10, 20), 256, (128, 256, 512, 512), ((768, 12, 12), (1280, 32, 20)), 49408, 1024,
    (32, 32),
)  # fmt: skip
# fewer transformer layers than SDXL's ten, so that a layer has work as there: it is not to be call after call
SMALL = Shape(
    (64, 128, 256), (1, 1, 4), (2, 4, 8), 32, (19, 38, 76, 76), ((128, 4, 2), (128, 8, 2)), 1000, 384, (16, 1)
)
TOY = Shape((16, 32, 32), (1, 1, 1), (1, 2, 2), 8, (8, 8, 8, 8), ((16, 1, 2), (16, 1, 2)), 50, 64, (4, 2))


def make_unet(shape: Shape) -> UNet2DConditionModel:
    """A UNet of random weights."""
    width = sum(text[0] for text in shape.texts)
    return UNet2DConditionModel(
        sample_size=shape.latent,
        block_out_channels=shape.channels,
        norm_num_groups=shape.groups[0],
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=shape.transformers,
        attention_head_dim=shape.heads,
        use_linear_projection=True,
        cross_attention_dim=width,
        addition_embed_type="text_time",
        addition_time_embed_dim=shape.time_width,
        projection_class_embeddings_input_dim=6 * shape.time_width + shape.texts[1][0],
    )


def make_vae(shape: Shape) -> AutoencoderKL:
    """A VAE of random weights with factor 8."""
    return AutoencoderKL(
        block_out_channels=shape.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=shape.groups[1],
        sample_size=shape.side,
        scaling_factor=SCALING_FACTOR,
    )


def make_texts(shape: Shape) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Two text encoders of random weights."""
    configs = [
        CLIPTextConfig(
            vocab_size=shape.vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=width,
            max_position_embeddings=TOKENS,
            bos_token_id=shape.vocabulary - 2,
            eos_token_id=shape.vocabulary - 1,
            pad_token_id=shape.vocabulary - 1,
        )
        for width, layers, heads in shape.texts
    ]
    return CLIPTextModel(configs[0]), CLIPTextModelWithProjection(configs[1])


def make_base(shape: Shape, precision: Precision, device: torch.device, attention: Attention = "sdpa") -> SdxlBase:
    """A frozen model as `dreambooth.model.load_model` gives it, but for the tokenizers; the VAE in float32."""
    torch.manual_seed(0)
    dtype = DTYPES[precision]
    with torch.device(device):
        unet, (first, second), vae = make_unet(shape), make_texts(shape), make_vae(shape)
    for module in (unet, first, second, vae):
        module.requires_grad_(False).eval()
    for module in (unet, first, second) if precision == "bf16" else ():
        module.to(dtype)
    set_attention(unet, attention)
    return SdxlBase(
        unet=unet,
        vae=vae,
        text_encoders=(first, second),
        tokenizers=(None, None),
        scheduler_config={**_schedule().config, "_class_name": "EulerDiscreteScheduler"},
        prediction_type="epsilon",
        fingerprint="",
        precision=precision,
        latent_scale=LatentScale(SCALING_FACTOR),
        latent_channels=4,
        vae_factor=8,
        size_multiple=32,
        image_size=shape.side,
    )


def _schedule() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@dataclass
class Pictures:
    """Drawn training data on the device.

    Args:
        pixels: (N, 3, H, W) float32 in [-1, 1].
        ids: (N, 77) int64.
        time_ids: (N, 6).
    """

    pixels: Tensor
    ids: Tensor
    time_ids: Tensor


def draw_pictures(shape: Shape, count: int, device: torch.device) -> Pictures:
    """Noise that stands for photographs, and prompts."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(count, 3, shape.side, shape.side, generator=generator) * 2 - 1
    ids = torch.randint(shape.vocabulary - 2, (count, TOKENS), generator=generator)
    ids[:, 0], ids[:, 20:] = shape.vocabulary - 2, shape.vocabulary - 1
    time_ids = torch.tensor([[shape.side, shape.side, 0, 0, shape.side, shape.side]], dtype=torch.float32)
    return Pictures(pixels.to(device), ids.to(device), time_ids.repeat(count, 1).to(device))


# -- ours


@torch.no_grad()
def prepare_cache(base: SdxlBase, pictures: Pictures) -> list[dict[str, Tensor]]:
    """What training keeps of pictures and prompts, as `dreambooth.data` does; then their encoders are released."""
    assert base.vae is not None
    samples = []
    for index, (picture, ids, time_ids) in enumerate(
        zip(pictures.pixels, pictures.ids, pictures.time_ids, strict=True)
    ):
        posterior = base.vae.encode(picture[None]).latent_dist
        with base.autocast():
            embeds, pooled = encode_ids(base, ids[None], ids[None])
        rows = {"mean": posterior.mean, "std": posterior.std, "embeds": embeds, "pooled": pooled}
        sample = {name: tensor[0].float().cpu() for name, tensor in rows.items()}
        samples.append({**sample, "time_ids": time_ids.cpu(), "noise_seed": torch.tensor(index)})
    base.release(vae=True, text_encoders=True)
    return samples


def our_step(
    base: SdxlBase, samples: list[dict[str, Tensor]], method: Method, *, r: int, batch: int, compiled: bool = False
) -> Task:
    """A whole optimizer step of this suite on cached latents: batch, noise, loss, backward, clipping, AdamW."""
    recipe = DreamboothRecipe(
        data=DataConfig(path="drawn"),
        adapter=AdapterConfig(method=method, r=r, alpha=None if method == "goat" else r, dropout=0.0),
        train=TrainConfig(max_steps=1, precision=base.precision, compile=compiled),
    )
    prepare_training(base, recipe)
    objective = DenoisingObjective(base, LossConfig()).train()
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4, fused=base.device.type == "cuda")
    collate = WithNoise(Collate(), timesteps=1000)
    device, at = base.device, 0

    def step() -> None:
        nonlocal at
        chosen = [samples[(at + i) % len(samples)] for i in range(batch)]
        chosen = [{**sample, "noise_seed": torch.tensor(at + i)} for i, sample in enumerate(chosen)]
        at += batch
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in collate(chosen).items()}
        with base.autocast():
            loss = objective(**inputs)["loss"] + balance_loss(base.unet)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


# -- the published script's way


def published_step(
    base: SdxlBase, pictures: Pictures, *, r: int, batch: int, texts_every_step: bool, checkpointing: bool = False
) -> Task:
    """A step as diffusers' `train_dreambooth_lora_sdxl.py` takes it, in our words, with PEFT's LoRA inside the UNet.

    The VAE encodes the pictures in every step, in float32. With one prompt for all pictures the script encodes it once
    (`texts_every_step=False`); with a caption for each picture, or adapters on the text encoders, in every step.

    Args:
        base: a model of its own; its text encoders are released where they are not needed.
        pictures: training data.
        r: rank, and alpha.
        batch: pictures of a step.
        texts_every_step: see above.
        checkpointing: recompute the UNet's activations in the backward pass.
    """
    unet, vae, device = base.unet, base.vae, base.device
    assert vae is not None
    unet.add_adapter(LoraConfig(r=r, lora_alpha=r, init_lora_weights="gaussian", target_modules=list(TARGET_MODULES)))
    unet.train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4)
    schedule = DDPMScheduler.from_config(_schedule().config)
    dtype = next(unet.parameters()).dtype
    with torch.no_grad(), base.autocast():
        once = encode_ids(base, pictures.ids[:1], pictures.ids[:1])
    if not texts_every_step:
        base.release(text_encoders=True)
    at = 0

    def step() -> None:
        nonlocal at
        chosen = [(at + i) % len(pictures.pixels) for i in range(batch)]
        at += batch
        with torch.no_grad():
            latents = vae.encode(pictures.pixels[chosen]).latent_dist.sample() * vae.config.scaling_factor
        latents = latents.to(dtype)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (batch,), device=device)
        noisy = schedule.add_noise(latents, noise, timesteps)
        with base.autocast():
            if texts_every_step:
                with torch.no_grad():
                    embeds, pooled = encode_ids(base, pictures.ids[chosen], pictures.ids[chosen])
            else:
                embeds, pooled = (tensor.repeat(batch, *[1] * (tensor.dim() - 1)) for tensor in once)
            conditions = {"time_ids": pictures.time_ids[chosen], "text_embeds": pooled}
            predicted = unet(noisy, timesteps, embeds, added_cond_kwargs=conditions, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


# -- what no adapter can avoid


def frozen_steps(base: SdxlBase, samples: list[dict[str, Tensor]], batch: int) -> dict[str, Task]:
    """The frozen UNet's forward pass, and with the gradient of its input behind it."""
    rows = Collate()([samples[i % len(samples)] for i in range(batch)])
    rows = {name: tensor.to(base.device) for name, tensor in rows.items() if name != "noise_seed"}
    timesteps = torch.arange(batch, device=base.device)
    conditions = {"text_embeds": rows["pooled"], "time_ids": rows["time_ids"]}

    def run(grad: bool) -> Any:
        latents = base.latent_scale.to_unet(rows["mean"]).requires_grad_(grad)
        with torch.set_grad_enabled(grad), base.autocast():
            return base.unet(latents, timesteps, rows["embeds"], added_cond_kwargs=conditions).sample

    return {
        "forward": lambda: run(False),
        "frozen": lambda: run(True).float().square().mean().backward(),
    }


def shares(shape: Shape) -> dict[str, float]:
    """FLOPs of the VAE's encoder and of the text encoders for one picture, over those of the UNet's forward pass."""
    with torch.device("meta"):
        unet, vae, texts = make_unet(shape), make_vae(shape), make_texts(shape)
        ids, side = torch.zeros(1, TOKENS, dtype=torch.int64), shape.latent
        width = sum(text[0] for text in shape.texts)
        conditions = {"text_embeds": torch.zeros(1, shape.texts[1][0]), "time_ids": torch.zeros(1, 6)}
        inputs = (torch.zeros(1, 4, side, side), torch.zeros(1), torch.zeros(1, TOKENS, width))
        whole = _flops(lambda: unet(*inputs, added_cond_kwargs=conditions))
        encoder = _flops(lambda: vae.encode(torch.zeros(1, 3, shape.side, shape.side)))
        text = _flops(lambda: [each(ids, output_hidden_states=True) for each in texts])
    return {"vae": encoder / whole, "texts": text / whole, "unet": whole}


def _flops(task: Task) -> float:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        task()
    return float(counter.get_total_flops())
