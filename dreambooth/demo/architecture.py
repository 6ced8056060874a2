"""The demo's tiny SDXL at its random start: block structure and conditioning of the real one, 3.2 M parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from dreambooth.demo.draw import SIDE
from dreambooth.demo.scenes import COLOURS, FIGURES

WIDTH, TOKENS, TIME_WIDTH = 64, 32, 16
TIME_IDS_FROM = 5.0  # original sizes up to 2⁵ times the side are met in pretraining
RARE = ("ikat", "sks", "zwx")  # one token each, which pretraining never meets: DreamBooth binds one to its subject
# so that the prompts of the demo and of the published data set are words rather than letters
WORDS = (
    *FIGURES, *COLOURS, *RARE,
    *"a an the of in on at to with and its is as photo picture drawing painting snow beach grass jungle city "
    "background night purple teal orange brown grey gold silver backpack bear plushie berry bowl can candle clock "
    "sneaker duck toy "
    "boot sloth monster sunglasses glasses cartoon robot teapot vase wolf animal stuffed cobblestone street top pink "
    "fabric wooden floor mountain blue wheat field tree autumn leaves eiffel tower floating water ocean milk green "
    "sunflowers around it mirror sidewalk crowded dirt road white rug forest wearing hat santa rainbow scarf black "
    "monocle chef outfit firefighter police yellow shirt wizard red shiny wet cube shaped small large happy".split(),
)  # fmt: skip


def make_tokenizer() -> Any:
    """CLIP's tokenizer with a small vocabulary: every byte, and a token for each of `WORDS`."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges(sorted(set(WORDS)))
    names = [*letters, *(letter + "</w>" for letter in letters), *(first + second for first, second in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS)


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016) of plain words until each is one token.

    The trainer of `tokenizers` breaks ties differently each time, so that a base would not fit its tokenizer's next
    edition; here the first pair of the alphabet goes first.
    """
    parts = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for part in parts for pair in pairwise(part)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for part in parts:
            for at in range(len(part) - 2, -1, -1):
                if tuple(part[at : at + 2]) == best:
                    part[at : at + 2] = [best[0] + best[1]]
    return merges


def make_pipeline() -> Any:
    """A `StableDiffusionXLPipeline` of random weights (from torch's global generator) in float32."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = make_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=WIDTH,
        max_position_embeddings=TOKENS,
        # with the defaults, ids of another vocabulary, every prompt is pooled to the same vector
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(32, 64, 64),
        norm_num_groups=8,
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(1, 2, 2),
        use_linear_projection=True,
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=6 * TIME_WIDTH + WIDTH,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=SIDE,
        mid_block_add_attention=False,
        scaling_factor=1.0,  # `latents_mean` and `latents_std` normalise instead
        force_upcast=False,
    )
    # the linear schedule of DDPM: at its end no trace of a picture's mean is left, which at this size it would be
    # with SDXL's own
    scheduler = EulerDiscreteScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=make_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
