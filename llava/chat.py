"""`mosgoat llava chat`: talk with a finished run, or a LLaVA model, about a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from common.commands import require_between
from common.errors import UserError
from common.pictures import DecodeError
from llava.conversation import Turn
from llava.data.pictures import load_picture
from llava.generation import generate
from llava.model_base import LlavaBase
from llava.model_open import add_model_options, open_model

PROG = "mosgoat llava chat"
HELP = "/image PATH shows another picture, /reset begins anew with the same one, /help, /quit or Ctrl-D ends"


class Chat:
    """A conversation in turns.

    Args:
        base: from `load_model` or `load_run`.
        image: the picture, shown with the next question; None: text alone.
        max_new_tokens: an answer is cut there.
    """

    def __init__(self, base: LlavaBase, image: Image.Image | None = None, max_new_tokens: int = 512) -> None:
        self._base, self._max_new_tokens = base, max_new_tokens
        self._turns: list[Turn] = []
        self._image = image

    def show(self, image: Image.Image) -> None:
        """Begin anew with another picture: the model has learnt conversations about one."""
        self._image = image
        self.reset()

    def reset(self) -> None:
        """Forget what was said; the picture stays."""
        self._turns = []

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> str:
        """Ask, and remember question and answer.

        Args:
            question: what is asked; `<image>` in it is text.
            on_text: called with each new piece of the answer.

        Returns:
            The whole answer.
        """
        first = not self._turns
        turns = [*self._turns, Turn("human", question, first and self._image is not None)]
        base, limit = self._base, self._max_new_tokens
        [answer] = generate(base, [base.prompt(turns)], [self._image], max_new_tokens=limit, on_text=on_text)
        self._turns = [*turns, Turn("gpt", answer)]
        return answer


def main(argv: Sequence[str] | None = None) -> int:
    """Open the model and talk; exit status 0."""
    options = _parser().parse_args(list(argv or []))
    require_between("--max-new-tokens", options.max_new_tokens)
    image = None if options.image is None else open_picture(options.image)
    chat = Chat(open_model(options), image, options.max_new_tokens)
    if options.prompt is not None:
        _answer(chat, options.prompt)
        return 0
    interactive = sys.stdin.isatty()
    if interactive:
        print(HELP, file=sys.stderr)
    talk(chat, _lines(interactive))
    return 0


def talk(chat: Chat, lines: Iterable[str]) -> None:
    """Take each line for a question or a command, and print the answers as they come."""
    for line in lines:
        command, _, rest = line.strip().partition(" ")
        if not command:
            continue
        if command == "/quit":
            return
        if command == "/help":
            print(HELP, file=sys.stderr)
        elif command == "/reset":
            chat.reset()
            print("(a new conversation)", file=sys.stderr)
        elif command == "/image":
            try:
                chat.show(open_picture(Path(rest.strip())))
                print(f"(a new conversation about {rest.strip()})", file=sys.stderr)
            except UserError as error:  # a slip of the keyboard must not end a conversation
                print(error, file=sys.stderr)
        elif command.startswith("/"):
            print(f"there is no {command}; {HELP}", file=sys.stderr)
        else:
            try:
                _answer(chat, line.strip())
            except KeyboardInterrupt:  # ends the answer, not the conversation
                print("\n(stopped, and not remembered)", file=sys.stderr)


def open_picture(path: Path) -> Image.Image:
    """A picture file as upright 8-bit RGB.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"picture {path}: there is no such file")
    try:
        return load_picture(str(path.parent), path.name)
    except DecodeError as error:
        raise UserError(f"picture {path}: {error}") from error


def _answer(chat: Chat, question: str) -> None:
    chat.ask(question, on_text=lambda text: print(text, end="", flush=True))
    print(flush=True)


def _lines(interactive: bool) -> Iterable[str]:
    while True:
        try:
            yield input("> " if interactive else "")
        except EOFError:
            if interactive:
                print()
            return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROG, description=__doc__, epilog=HELP, allow_abbrev=False)
    add_model_options(parser)
    parser.add_argument("--image", type=Path, help="the picture to talk about; none: text alone")
    parser.add_argument("--prompt", help="ask this, print the answer, and end; else questions come from the input")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="an answer is cut there; default: 512")
    return parser
