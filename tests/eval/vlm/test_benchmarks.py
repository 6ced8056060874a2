"""Benchmarks by name."""

import pytest

from common.errors import UserError
from eval.vlm.benchmarks import BENCHMARKS, NINE, find_benchmark


def test_the_nine_are_those_of_the_paper_in_its_order() -> None:
    titles = [BENCHMARKS[name].title for name in NINE]
    assert titles == [
        "MMBench EN", "MMBench CN", "SEED-Bench", "AI2D", "SciQA", "TextVQA", "MathVista", "MM-Vet", "MME"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("MMBench_DEV_EN", "circular"),
        ("MMBench_TEST_CN_V11", "circular"),
        ("MMBench_V11", "circular"),
        ("SEEDBench_IMG", "choice"),
        ("AI2D_TEST", "choice"),
        ("ScienceQA_TEST", "choice"),
        ("TextVQA_VAL", "vqa"),
        ("MME", "yes_no"),
        ("MathVista_MINI", "judged"),
        ("MMVet", "judged"),
    ],
)
def test_the_name_alone_decides_the_family(name: str, family: str) -> None:
    assert find_benchmark(name).family == family


@pytest.mark.parametrize("split", ["DEV", "TEST"])
@pytest.mark.parametrize("language", ["EN", "CN"])
@pytest.mark.parametrize("version", ["", "_V11"])
def test_mmbench_is_known_in_every_split_language_and_version(split: str, language: str, version: str) -> None:
    benchmark = find_benchmark(f"MMBench_{split}_{language}{version}")
    assert benchmark.language == language.lower()
    assert benchmark.url is not None
    assert benchmark.url.endswith(benchmark.file_name)


@pytest.mark.parametrize(("given", "meant"), [("mmbench_dev_en", "MMBench_DEV_EN"), ("MMVET", "MMVet")])
def test_a_near_name_is_offered(given: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {meant}"):
        find_benchmark(given)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no benchmark 'POPE'.*SEEDBench_IMG"):
        find_benchmark("POPE")
