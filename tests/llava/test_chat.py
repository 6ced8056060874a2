from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from common.errors import UserError
from llava.chat import Chat, main, open_picture, talk
from llava.conversation import Turn, encode_prompt, template_for
from llava.generation import generate
from llava.model import load_model, save_merged
from tests.llava.tiny import TinyLlava, parts_of


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.effect_noise((50, 30), 90).convert("RGB").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def chat_of(tiny_llava: TinyLlava, image: Image.Image | None = None) -> Chat:
    return Chat(load_model(parts_of(tiny_llava), template="llama3"), image, max_new_tokens=6)


def test_second_question_sees_the_first_and_its_answer(tiny_llava: TinyLlava, picture: Path) -> None:
    image = open_picture(picture)
    chat = chat_of(tiny_llava, image)
    first, second = chat.ask("What is it?"), chat.ask("How many?")
    base = load_model(parts_of(tiny_llava), template="llama3")
    turns = [Turn("human", "What is it?", True), Turn("gpt", first), Turn("human", "How many?")]
    prompt = encode_prompt(
        turns,
        template_for("llama3", base.tokenizer),
        base.tokenizer,
        image_token_id=base.image_token_id,
        image_tokens=base.image_tokens,
    )
    assert [second] == generate(base, [prompt], [image], max_new_tokens=6)


def test_reset_forgets_and_another_picture_begins_anew(tiny_llava: TinyLlava, picture: Path) -> None:
    chat = chat_of(tiny_llava, open_picture(picture))
    first = chat.ask("What is it?")
    chat.ask("How many?")
    chat.reset()
    assert chat.ask("What is it?") == first
    chat.show(Image.new("RGB", (9, 9)))
    assert chat.ask("What is it?") == chat_of(tiny_llava, Image.new("RGB", (9, 9))).ask("What is it?")


def test_commands_are_not_asked(tiny_llava: TinyLlava, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = chat_of(tiny_llava)
    talk(
        chat, ["", "/help", "/image nowhere.png", f"/image {picture}", "/nonsense", "What?", "/reset", "/quit", "Never"]
    )
    out, err = capsys.readouterr()
    assert out.count("\n") == 1  # one answer
    assert "nowhere.png: there is no such file" in err
    assert "there is no /nonsense" in err


def test_command_line_answers_one_prompt(run: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--run", str(run), "--image", str(picture), "--prompt", "What is it?", "--max-new-tokens", "6"])
    assert status == 0
    assert capsys.readouterr().out.strip()


def test_command_line_reads_questions_from_a_pipe_until_its_end(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\nHow many?\n"))
    assert main(["--run", str(run), "--max-new-tokens", "4", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("\n") == 2


def test_merged_model_chats_like_its_run(
    run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_merged(run, tmp_path / "merged")
    rest = ["--image", str(picture), "--prompt", "What is it?", "--max-new-tokens", "6"]
    main(["--run", str(run), *rest])
    expected = capsys.readouterr().out
    main(["--model", str(tmp_path / "merged"), *rest])
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "RUN", "--template", "llama3"], "--template=llama3 has no effect with --run"),
        (["--run", "RUN", "--device", "toaster"], "--device=toaster"),
        (["--run", "RUN", "--image", "nowhere.png"], r"nowhere.png: there is no such file"),
        (["--run", "RUN", "--max-new-tokens", "0"], "--max-new-tokens=0"),
        (["--run", "/nowhere"], "not the directory of a run"),
        (["--model", "/nowhere"], "there is no such folder"),
    ],
)
def test_impossible_options_are_refused(run: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main([str(run) if word == "RUN" else word for word in words])


def test_file_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(UserError, match="not a picture"):
        open_picture(tmp_path / "a.png")
