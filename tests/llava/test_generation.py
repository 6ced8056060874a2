from __future__ import annotations

import pytest
import torch
from PIL import Image

from common.config import AdapterConfig
from llava.conversation import Turn, encode_prompt, stop_ids, template_for
from llava.generation import _Pieces, generate
from llava.model import LlavaBase, load_model, prepare_training
from llava.objective import LlavaObjective
from tests.llava.tiny import TinyLlava, batch_of, disturb, parts_of, recipe_of


@pytest.fixture(scope="module")
def base(tiny_llava: TinyLlava) -> LlavaBase:
    torch.manual_seed(0)
    recipe = recipe_of(parts_of(tiny_llava))
    adapted = prepare_training(load_model(recipe.model, template="llama3"), recipe)
    disturb(adapted.model)
    adapted.model.eval()
    return adapted


def prompt_of(base: LlavaBase, text: str, image: bool) -> list[int]:
    return encode_prompt(
        [Turn("human", text, image)],
        template_for(base.template, base.tokenizer),
        base.tokenizer,
        image_token_id=base.image_token_id,
        image_tokens=base.image_tokens,
    )


def questions(base: LlavaBase) -> tuple[list[list[int]], list[Image.Image | None]]:
    """Seven of different lengths, every third without a picture, pictures of different shapes."""
    prompts, images = [], []
    for i in range(7):
        image = None if i % 3 == 2 else Image.effect_noise((30 + 9 * i, 40), 90).convert("RGB")
        prompts.append(prompt_of(base, "What is in the picture? " * (1 + i % 4), image is not None))
        images.append(image)
    return prompts, images


def test_batched_answers_equal_those_one_at_a_time(base: LlavaBase) -> None:
    prompts, images = questions(base)
    single = generate(base, prompts, images, max_new_tokens=12, batch_size=1)
    assert len(set(single)) > 4  # otherwise the comparison shows little
    assert generate(base, prompts, images, max_new_tokens=12, batch_size=7) == single
    assert generate(base, prompts, images, max_new_tokens=12, batch_size=3) == single


def test_answer_is_that_of_stepwise_argmax_without_a_cache(base: LlavaBase) -> None:
    prompts, images = questions(base)
    stops = stop_ids(template_for("llama3", base.tokenizer), base.tokenizer)
    for prompt, image in list(zip(prompts, images, strict=True))[:3]:
        ids = torch.tensor([prompt])
        pixels = {} if image is None else base.image_processor(images=[image], return_tensors="pt")
        tokens: list[int] = []
        with torch.no_grad():
            for _ in range(10):
                logits = base.model(input_ids=ids, use_cache=False, **pixels).logits[0, -1]
                logits[base.image_token_id] = -torch.inf
                token = int(logits.argmax())
                if token in stops:
                    break
                tokens.append(token)
                ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        expected = base.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert generate(base, [prompt], [image], max_new_tokens=10) == [expected]


def test_answer_ends_at_the_templates_stop_token(base: LlavaBase) -> None:
    prompt = prompt_of(base, "What is it?", False)
    head = base.llava().lm_head.weight
    saved = head.detach().clone()
    with torch.no_grad():
        ids = torch.tensor([prompt])
        end = base.tokenizer.convert_tokens_to_ids("<|eot_id|>")
        # a head that wants nothing but the end of the turn
        hidden = base.llava().model(input_ids=ids).last_hidden_state[0, -1]
        head[end] = hidden * 100
    try:
        assert generate(base, [prompt], [None], max_new_tokens=10) == [""]
    finally:
        with torch.no_grad():
            head.copy_(saved)


def test_picture_matters(base: LlavaBase) -> None:
    prompt = prompt_of(base, "What is in the picture?", True)
    black, noise = Image.new("RGB", (40, 40)), Image.effect_noise((40, 40), 120).convert("RGB")
    one, other = generate(base, [prompt, prompt], [black, noise], max_new_tokens=12)
    assert one != other


def test_picture_token_is_never_an_answer(base: LlavaBase) -> None:
    head, prompt = base.llava().lm_head.weight, prompt_of(base, "What is it?", False)
    saved = head.detach().clone()
    with torch.no_grad():
        head[base.image_token_id] = base.llava().model(input_ids=torch.tensor([prompt])).last_hidden_state[0, -1] * 100
    tokens: list[str] = []
    try:
        [answer] = generate(base, [prompt], [None], max_new_tokens=3, on_text=tokens.append)
    finally:
        with torch.no_grad():
            head.copy_(saved)
    assert answer
    assert "<image>" not in answer


def test_pieces_of_a_stream_make_up_the_answer(base: LlavaBase) -> None:
    prompts, images = questions(base)
    pieces: list[str] = []
    [answer] = generate(base, prompts[:1], images[:1], max_new_tokens=24, on_text=pieces.append)
    assert "".join(pieces) == answer
    assert len(pieces) > 5


def test_letter_of_several_tokens_is_streamed_whole(base: LlavaBase) -> None:
    tokens = base.tokenizer.encode("é猫 a", add_special_tokens=False)  # no merges for these: a token for each byte
    pieces: list[str] = []
    streamer = _Pieces(base, [], pieces.append)
    streamer.put(torch.tensor([[1, 2]]))
    for token in tokens:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert pieces == ["é", "猫", " a"]


def test_model_is_left_in_the_mode_it_was_in(base: LlavaBase) -> None:
    for mode in (True, False):
        base.model.train(mode)
        generate(base, [prompt_of(base, "What?", False)], [None], max_new_tokens=2)
        assert base.model.training is mode


def test_routed_model_answers_between_two_training_steps(tiny_llava: TinyLlava) -> None:
    recipe = recipe_of(parts_of(tiny_llava), adapter=AdapterConfig(method="goat", r=8))
    routed = prepare_training(load_model(recipe.model, template="llama3"), recipe)
    objective = LlavaObjective(routed)
    batch = batch_of(routed)
    answers = []
    for _ in range(2):
        # leaves the mask of its own tokens on the routed layers
        objective(**batch, labels=batch["input_ids"])
        answers.append(generate(routed, [prompt_of(routed, "What is it?", False)], [None], max_new_tokens=4))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_bfloat16_models_answer(tiny_llava: TinyLlava, quantization: str) -> None:
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    model = load_model(parts_of(tiny_llava, quantization=quantization), template="llama3", precision="bf16")
    prompts, images = questions(model)
    assert len(generate(model, prompts, images, max_new_tokens=4)) == 7


def test_the_mode_comes_back_after_an_error_too(base: LlavaBase) -> None:
    base.model.train()
    with base.answering():
        assert not base.model.training
        assert torch.is_inference_mode_enabled()
    with pytest.raises(RuntimeError), base.answering():
        torch.ones(1) @ torch.ones(2)
    assert base.model.training
    assert not torch.is_inference_mode_enabled()
    base.model.eval()
