"""From the cells of a row to a question, and what is wrong with the rows of a table."""

from __future__ import annotations

import ast
import itertools
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from common.words import counted, listed
from eval.vlm.benchmarks import Benchmark
from eval.vlm.judged_cells import problem_of as judged_problem
from eval.vlm.question import ROTATION, Index, Question, groups_of, incomplete_sets, whole_number
from eval.vlm.tsv import Record

YES_NO = ("yes", "no")
_LETTERS = frozenset(string.ascii_uppercase)
_SHOWN = 6
CUT = "the file does not end with a line break: its last row may be cut"

# What a table must have beside index, image and question.
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "choice": ("A", "B", "answer"),
    "circular": ("A", "B", "answer"),
    "yes_no": ("answer", "category", "image_path"),
    "vqa": ("answer",),
    "judged": ("answer",),
}
_REQUIRED_OF = {
    "MathVista_MINI": ("question_type", "answer_type", "choices", "answer_option", "task", "skills"),
    "MMVet": ("category",),
}


@dataclass(frozen=True)
class Columns:
    """Where a table's columns stand.

    Args:
        names: of all columns in order; option letters in capitals, all others in lower case.
        options: letter -> position.
    """

    names: tuple[str, ...]
    options: Mapping[str, int]

    @property
    def index(self) -> int:
        """Position of the column that names the rows."""
        return self.names.index("index")

    @property
    def image(self) -> int | None:
        """Position of the pictures, None where there are none."""
        return self.names.index("image") if "image" in self.names else None


def columns_of(header: Sequence[str], benchmark: Benchmark, path: Path, *, need_pictures: bool = True) -> Columns:
    """Read a table's header.

    Raises:
        UserError: columns are missing or twice there.
    """
    names = tuple(name.strip() if name.strip() in _LETTERS else name.strip().lower() for name in header)
    required = [
        "index",
        *(["image"] if need_pictures else []),
        "question",
        *_REQUIRED[benchmark.family],
        *_REQUIRED_OF.get(benchmark.name, ()),
    ]
    if "TEST" in benchmark.name and benchmark.family == "circular":
        required.remove("answer")  # MMBench kept the answers of its test set to itself
    missing = [name for name in required if name not in names]
    if missing:
        raise UserError(
            f"{path} cannot be a table of {benchmark.name}: it has no column {', '.join(missing)}; "
            f"its columns: {', '.join(names)[:200]}"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path} has two columns called {', '.join(twice)}")
    return Columns(names, {name: at for at, name in enumerate(names) if name in _LETTERS})


def question_of(
    record: Record, name: str, columns: Columns, benchmark: Benchmark, whole: bool, findings: Findings
) -> Question:
    """A row as a question; what is wrong with it goes into `findings`.

    Args:
        record: the row, without its picture.
        name: its index as it is written.
        columns: where the cells stand.
        benchmark: what the table is of.
        whole: whether all indices of the table are whole numbers.
        findings: takes the problems.
    """
    fields = {key: cell for key, cell in zip(columns.names, record.cells, strict=True) if key != "image"}
    choice = benchmark.family in ("choice", "circular")
    question = Question(
        index=int(name) if whole else name,
        line=record.line,
        text=fields["question"],
        hint=fields.get("hint", ""),
        options={letter: record.cells[at] for letter, at in columns.options.items() if record.cells[at]}
        if choice
        else {},
        answer=fields.get("answer", "").strip(),
        category=fields.get("category", ""),
        l2_category=fields.get("l2-category", ""),
        split=fields.get("split", ""),
        group=_group(int(name) if whole else name, fields, benchmark),
        fields=fields,
    )
    findings.check(question, benchmark)
    return question


def answers_of(cell: str) -> list[str] | None:
    """The answers that people gave to a TextVQA question: a Python list as text, read as a literal; None: no list."""
    try:
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(found, (list, tuple)) or not all(isinstance(item, (str, int, float)) for item in found):
        return None
    return [str(item) for item in found]


def _group(index: Index, fields: Mapping[str, str], benchmark: Benchmark) -> Index:
    if benchmark.family == "yes_no":
        return f"{fields['category']}: {fields['image_path']}"
    if benchmark.family != "circular":
        return index
    if "g_index" in fields:
        named = whole_number(fields["g_index"])
        return fields["g_index"] if named is None else named
    return index % ROTATION if isinstance(index, int) else index


@dataclass
class Findings:
    """Problems of a table's rows, those that end it and those that are told and lived with."""

    failed: dict[str, list[str]] = field(default_factory=dict)
    noted: dict[str, list[str]] = field(default_factory=dict)

    def fail(self, problem: str, question: Question | None) -> None:
        """The table cannot be used."""
        self.failed.setdefault(problem, []).extend([] if question is None else [question.where])

    def note(self, problem: str, question: Question | None) -> None:
        """The table can be used, but the user should know."""
        self.noted.setdefault(problem, []).extend([] if question is None else [question.where])

    def check(self, question: Question, benchmark: Benchmark) -> None:
        """Look at one row."""
        if question.index == "":
            self.fail("there is no index", question)
        if not question.text.strip():
            self.note("the question is empty", question)
        if benchmark.family in ("choice", "circular"):
            self._check_choice(question, benchmark)
        elif benchmark.family == "yes_no" and question.answer.lower() not in YES_NO:
            self.fail("the answer is neither Yes nor No", question)
        elif benchmark.family == "vqa" and len(answers_of(question.answer) or []) < 2:
            self.fail("the answer is not a list of at least two texts", question)
        elif benchmark.family == "judged" and (problem := judged_problem(question, benchmark)) is not None:
            self.fail(problem, question)

    def look_over(self, questions: Sequence[Question], benchmark: Benchmark) -> None:
        """Look at all rows together."""
        if benchmark.family == "circular":
            sets = incomplete_sets(questions)
            first = {group: members[0] for group, members in groups_of(questions).items()}
            self.noted |= {
                f"the question has not all its rotations ({reason})": [
                    first[group].where for group, other in sets.items() if other == reason
                ]
                for reason in sorted(set(sets.values()))
            }
        numbers = sorted(index for index in {_place(question) for question in questions} if isinstance(index, int))
        gaps = [(low, high) for low, high in itertools.pairwise(numbers) if high > low + 1]
        if gaps:
            shown = listed([f"none between {low} and {high}" for low, high in gaps], _SHOWN)
            self.note(f"the indices are not contiguous: {counted(len(gaps), 'gap')}: {shown}", None)

    def lines(self) -> list[str]:
        """What was noted, in a line each."""
        return _told(self.noted)

    def raise_failed(self, path: Path, benchmark: Benchmark) -> None:
        """Complain of all that failed at once.

        Raises:
            UserError: something did.
        """
        if self.failed:
            raise UserError(
                f"{path} cannot be used as a table of {benchmark.name}:\n"
                + "\n".join(f"  {line}" for line in [*_told(self.failed), *([CUT] if CUT in self.noted else [])])
                + "\nfetch it again, or mend these rows"
            )

    def _check_choice(self, question: Question, benchmark: Benchmark) -> None:
        if not question.options:
            self.fail("there is no option", question)
        elif question.answer and question.answer not in question.options:
            self.note("the answer names no option: it counts as wrong", question)
        if benchmark.family == "circular" and not (isinstance(question.index, int) and isinstance(question.group, int)):
            self.fail("index and g_index must be whole numbers", question)


def _place(question: Question) -> Index:
    # rotations stand a million apart by design
    return question.index % ROTATION if isinstance(question.index, int) else question.index


def _told(problems: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        f"{problem}: {counted(len(rows), 'row')}: {listed(rows, _SHOWN)}" if rows else problem
        for problem, rows in problems.items()
    ]
