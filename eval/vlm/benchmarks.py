"""The benchmarks by name: what each asks, how it is scored, and where its table comes from.

A benchmark is known by its name alone (`--benchmark`), never by the name of the file that holds its table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.errors import UserError
from common.words import did_you_mean

# choice: one option letter.  circular: the same question once per rotation of its options, all of which must be right.
# yes_no: two questions about a picture.  vqa: a word or phrase that people gave.  judged: free text, read by a model.
Family = Literal["choice", "circular", "yes_no", "vqa", "judged"]
Language = Literal["en", "cn"]

_OPENCOMPASS = "https://opencompass.openxlab.space/utils/"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Args:
        name: as VLMEvalKit calls it, and the table's file before `.tsv`.
        family: how it is scored.
        language: of its questions.
        title: as [M] Table 5 prints it.
        url: where VLMEvalKit's project publishes the table; None: it does not.
        about: what must be said beside every score of it; empty: the name says all.
    """

    name: str
    family: Family
    language: Language
    title: str
    url: str | None
    about: str = ""

    @property
    def file_name(self) -> str:
        """What VLMEvalKit calls the table."""
        return f"{self.name}.tsv"


def _mmbench() -> list[Benchmark]:
    found = []
    for version in ("", "_V11"):
        for language, title in (("en", "MMBench EN"), ("cn", "MMBench CN")):
            code = language.upper()
            for split in ("DEV", "TEST"):
                name = f"MMBench_{split}_{code}{version}"
                url = f"{_OPENCOMPASS}benchmarks/MMBench/{name}.tsv"
                found.append(Benchmark(name, "circular", language, title, url))  # type: ignore[arg-type]
            whole = "MMBench" + ("" if language == "en" else "_CN") + version  # both splits in one; never published
            found.append(Benchmark(whole, "circular", language, title, None))  # type: ignore[arg-type]
    return found


def _other(name: str, family: Family, title: str, folder: str = "VLMEval") -> Benchmark:
    return Benchmark(name, family, "en", title, f"{_OPENCOMPASS}{folder}/{name}.tsv")


DRAWN = Benchmark(
    "DrawnQuestions",
    "circular",
    "en",
    "drawn questions",
    None,
    "drawn questions of the llava demo in MMBench's form: no score of MMBench",
)

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        *_mmbench(),
        _other("SEEDBench_IMG", "choice", "SEED-Bench", "benchmarks/SEEDBench"),
        _other("AI2D_TEST", "choice", "AI2D"),
        _other("AI2D_TEST_NO_MASK", "choice", "AI2D"),
        _other("ScienceQA_VAL", "choice", "SciQA", "benchmarks/ScienceQA"),
        _other("ScienceQA_TEST", "choice", "SciQA", "benchmarks/ScienceQA"),
        _other("TextVQA_VAL", "vqa", "TextVQA"),
        _other("MathVista_MINI", "judged", "MathVista"),
        _other("MMVet", "judged", "MM-Vet"),
        _other("MME", "yes_no", "MME"),
        DRAWN,  # ships with the suite: `eval.vlm.drawn`
    )
}

# Of [M] Table 5, in its order; MMBench as DEV, whose answers everybody has.
NINE: tuple[str, ...] = (
    "MMBench_DEV_EN",
    "MMBench_DEV_CN",
    "SEEDBench_IMG",
    "AI2D_TEST",
    "ScienceQA_TEST",
    "TextVQA_VAL",
    "MathVista_MINI",
    "MMVet",
    "MME",
)


def find_benchmark(name: str) -> Benchmark:
    """The benchmark called `name`.

    Raises:
        UserError: there is none; the message names near ones.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    by_lower = {known.lower(): known for known in BENCHMARKS}
    near = by_lower.get(name.lower())
    raise UserError(
        f"there is no benchmark {name!r}; " + (f"did you mean {near}?" if near else did_you_mean(name, BENCHMARKS))
    )
