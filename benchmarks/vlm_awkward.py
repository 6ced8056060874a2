"""Answers on which rules of scoring disagree, and drawn tables to give them to, for `benchmarks/vlm_scores.py`."""

from __future__ import annotations

import base64
import io
import itertools
import string
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

Row = dict[str, Any]
ROTATION = 1_000_000

OPTIONS: list[Sequence[str]] = [
    ("red", "green", "blue", "yellow"),
    ("a cat", "a black cat", "two dogs", "None of the above"),
    ("1", "2", "3", "4 or more"),
    ("Yes, there is", "No, there is not"),
    ("left", "right", "above"),
    ("红色", "绿色", "蓝色", "黄色"),
    ("A red car", "B movie", "C major", "D day"),
    ("5 cm", "5", "50 cm", "0.5 cm"),
]
# L, W: the right and a wrong letter, l, w: in lower case; T, U: their texts, t: in lower case; ⏎, ⇥: line break, tab.
_ANSWERS = """
{L}|{L}.|({L})|[{L}]|{L}:|{L}. {T}|{L}: {T}|({L}) {T}|{L},|{L};|*{L}*|**{L}**|#{L}|{{{L}}}|{l}|{l}.|({l})|{l}) {t}
The answer is {L}|The answer is {L}.|the answer is {l}|The correct answer is **{L}**.|answer is {W}|Answer: {L}
The answer is {L}. The other options, {W} among them, do not fit the picture at all|I think it is {L}|Option {L}
It is {L} because the picture shows it and nothing else is to be seen|{L} is the right one of the four given here
{L} or {W}|{L}, {W}|{W}. No, {L}|{L}{W}|{L} {L}|A B C D|Both {L} and {W}|neither {L} nor {W}|{W}|{W}.|({W}) {U}
{T}|{t}|{T}.|The picture shows {t}.|It is {T}, not {U}|{U}|{T} {U}|{L}. {U}|{W}. {T}
It could be {t} and it could be many other things besides
Z|Z.|E|none|no idea|Sorry, I can't help with images of people yet.|I can't process this file. {L}
Cannot determine the answer
I'm sorry, but without the image provided I can't say: {L}|Failed to obtain answer via API.
Failed to obtain answer via API. {T}
答案是{L}|答案是 {L}|选 {L}。|（{L}）|{L}。|{L}、{W}|我选 {L}|"{L}"|'{L}'|`{L}`|<{L}>|{L}</s>|${L}$|\\boxed{{{L}}}|{L}⏎
⏎{L}|{L}⏎{W}|  {L}  |{L}⇥
A picture of {t}|A {t}|I|A|a|A dog and a cat are here|the answer is blue|the answer is car|Answer is: {L}
answer  is  {L}|ANSWER IS {L}
{L}!|{L}?|!{L}!|{L}-|{L}/{W}|{L}&{W}|{L}=|-{L}|{L}1|1. {L}|1|2.|50 cm|é{L}|{L}é|Ａ|А|-1|1e3|007||.|()
"""
_YES_NO = """
Yes|yes|YES|Yes.|yes!|"Yes"|'yes'|(Yes)|Yes, it is|Yes, there is no doubt|yes no|Yes⏎No|Yes/No|yes-no|yes;no
yes:no|yes.no|y|Y|true|1
No|no|NO|No.|no!|"No"|(No)|No, it is not|No, yes|no idea|not sure|nope|know|n|N|false|0|The answer is yes.
The answer is no|It is not
是|否|yes。|no。|Ｙｅｓ|yesterday|note|I don't know|yes?|no,|,yes|[yes]|yes⇥|⏎no|*yes*|**No**|#no|yes1|no one
Maybe yes|$yes|yes=no||?
"""


def _listed(text: str) -> list[str]:
    return text.strip("\n").replace("\n", "|").replace("⏎", "\n").replace("⇥", "\t").split("|")


ANSWERS, YES_NO = _listed(_ANSWERS), _listed(_YES_NO)
# what people wrote (six of ten and four of ten), and the model's answers
PHRASES: list[tuple[tuple[str, str], str]] = [
    (("coca-cola", "coke"), "coca-cola|Coca-Cola|coca cola|cocacola|the coca-cola|coke|COKE.|a coke|coca-cola coke|"),
    (("2", "two"), "2|two|Two|2.|2.0|02|ii|2 |two two|the two|a 2|two.|twenty|1 2|-2|2,"),
    (("5,000", "5000"), "5,000|5000|5 000|5.000|$5,000|5,000 dollars|5,00|50,00|five thousand"),
    (
        ("don't walk", "dont walk"),
        "don't walk|dont walk|Don’t walk|do not walk|don't  walk|dont|DON'T WALK!|don't-walk",
    ),
    (("10:30", "10.30"), "10:30|10.30|1030|10 30|10:30 am|10;30|it is 10:30|10:30\n|10 : 30"),
    (("dr. pepper", "dr pepper"), "dr. pepper|dr pepper|Dr.Pepper|doctor pepper|the dr. pepper|pepper|dr . pepper"),
    (
        ("stop", "STOP"),
        "stop|STOP|Stop!|stop sign|a stop|an the stop|s.t.o.p|st op|(stop)|[stop]|stop/|stop?|/stop|st/op",
    ),
    (("exit", "way out"), 'exit|Exit|the way out|way-out|"exit"|exit\t|exit\n|exit exit|ex it|way  out|wayout'),
    (("the end", "end"), "the end|end|The End.|an end|a the end|ending|the|thend|theend|end;"),
    (("none", "0"), "0|zero|ZERO|0.|nothing|no|zeros|0 0"),
    (("50%", "50 percent"), "50%|50 %|50|50 percent|fifty|%50|0.5|50%."),
    (("mary's", "marys"), "mary's|marys|Mary|mary s|mary’s|MARY'S|mary' s"),
    (("东京", "tokyo"), "东京|tokyo|東京|Tokyo.|东 京|东京。"),
    (("a&b", "a and b"), "a&b|a & b|a and b|b&a|&|and b|A&B"),
    (("www.a.com", "a.com"), "www.a.com|a.com|www a com|http://www.a.com|WWW.A.COM|wwwacom|a. com"),
]
# What pandas reads as a missing cell.
MISSING_WORDS = ("None", "NA", "N/A", "nan", "NaN", "null", "NULL", "n/a", "#N/A", "<NA>", "")


def picture() -> str:
    """One small picture as base64, longer than a reference to another row."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((24, 24)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def filled(template: str, options: Sequence[str], right: int) -> str:
    """An answer to a question with these options, of which the one at `right` is right."""
    wrong = (right + 1) % len(options)
    letters = {"L": string.ascii_uppercase[right], "W": string.ascii_uppercase[wrong]}
    texts = {"T": options[right], "U": options[wrong], "t": options[right].lower()}
    return template.format(**letters, **texts, l=letters["L"].lower(), w=letters["W"].lower())


def choice_rows(options_of: Sequence[Sequence[str]], templates: Sequence[str]) -> tuple[list[Row], dict[int, str]]:
    """Every answer to a question of every set of options."""
    rows, answers, image = [], {}, picture()
    for index, (options, template) in enumerate(itertools.product(options_of, templates)):
        right = index % len(options)
        rows.append(_question(index, options, right, image))
        answers[index] = filled(template, options, right)
    return rows, answers


def circular_rows(options_of: Sequence[Sequence[str]], templates: Sequence[str]) -> tuple[list[Row], dict[int, str]]:
    """The same with all rotations, of which one gets the awkward answer and the others the right letter."""
    rows, answers, image = [], {}, picture()
    for index, (options, template) in enumerate(itertools.product(options_of, templates)):
        count = len(options)
        for turn in range(count):
            moved = [options[(at - turn) % count] for at in range(count)]
            right = (index + turn) % count
            key = index + turn * ROTATION
            rows.append(_question(key, moved, right, image if turn == 0 else str(index)))
            awkward = turn == index // 3 % count
            answers[key] = filled(template if awkward else "{L}", moved, right)
    return sorted(rows, key=lambda row: row["index"]), answers


def yes_no_rows(categories: Sequence[str], templates: Sequence[str]) -> tuple[list[Row], dict[int, str]]:
    """Pairs of questions in every category, every answer to a question whose answer is yes and to one of no."""
    words = itertools.cycle(templates)
    rows: list[Row] = []
    answers, image = {}, picture()
    for category, number in itertools.product(categories, range(-(-2 * len(templates) // len(categories)))):
        for answer in ("Yes", "No"):
            index = len(rows)
            answers[index] = next(words)
            path = f"{category}/{number}.png"
            row = {"index": index, "image": image, "question": "Is it? Please answer yes or no.", "answer": answer}
            rows.append({**row, "category": category, "image_path": path})
    return rows, answers


def vqa_rows() -> tuple[list[Row], dict[int, str]]:
    """Every phrase against answers of which six, and against answers of which two of ten agree."""
    rows: list[Row] = []
    answers, image = {}, picture()
    for (common, rare), texts in PHRASES:
        for text, agree in itertools.product(texts.split("|"), (6, 2)):
            answers[len(rows)] = text
            given = [common] * agree + [rare] * (10 - agree)
            rows.append({"index": len(rows), "image": image, "question": "What does it say?", "answer": str(given)})
    return rows, answers


def _question(index: int, options: Sequence[str], right: int, image: str) -> Row:
    row = {"index": index, "question": f"Which one? ({index % ROTATION})", "image": image, "split": "dev"}
    letters = dict(itertools.zip_longest("ABCD", options, fillvalue=""))
    category = ("logic_reasoning", "attribute_reasoning")[index % 2]
    hint = "看图。" if index % 5 == 0 else "Look closely." if index % 3 == 0 else ""
    answer = string.ascii_uppercase[right]
    named = {"answer": answer, "category": f"kind {index % ROTATION % 4}", "l2-category": category, "hint": hint}
    return {**row, **letters, **named}


def mathvista_rows() -> tuple[list[Row], dict[int, str]]:
    """Choices and numbers; what a judge would extract stands between « and »."""
    rows: list[Row] = []
    answers = {}
    for kind, answer, texts in _extractions():
        choices = ["12", "14", "20", "None of these"] if kind == "choice" else None
        for text in texts:
            index = len(rows)
            row = {"index": index, "image": picture(), "question": f"How many? ({index})", "answer": answer}
            option = chr(65 + choices.index(answer)) if choices else ""
            kinds = ("multi_choice", "text") if choices else ("free_form", kind)
            row |= {"question_type": kinds[0], "answer_type": kinds[1], "choices": str(choices or "")}
            skills = "['algebraic reasoning', 'statistical reasoning']" if index % 2 else "['geometry reasoning']"
            rows.append({**row, "answer_option": option, "task": f"task {index % 3}", "skills": skills})
            answers[index] = text
    return rows, answers


def _extractions() -> Iterator[tuple[str, str, list[str]]]:
    numbers = (
        "{n}|{n}.|{n}.0| {n} |It is «{n}»|«{n}.0»|«{n} cm»|«»|«none»|about «{m}»|{m}|«{n}»!|«+{n}»|«0{n}»|«{n}e0»|"
        "?«{n}%»|«-{n}»|«{n},0»|'{n}'"
    )
    for n, m in ((14, 15), (7, 8), (120, 12), (2008, 2007), (3, 4)):
        yield "integer", str(n), numbers.format(n=n, m=m).split("|")
    for n, m in ((1.5, 1.4), (0.25, 0.26), (3.0, 3.1)):
        yield "float", str(n), numbers.format(n=n, m=m).split("|")
    letters = (
        "B|(B)|14|B. 14|b|A|it is «B»|«(B)»|«b»|«14»|«A»|«B or C»|«none»|C or D «B»|«»|«The answer is B»|20 «B»|"
        "I'm sorry, but without the image provided «B»"
    )
    yield "choice", "14", letters.split("|")
    yield "choice", "20", letters.split("|")
    yield "choice", "12", letters.split("|")


def mmvet_rows() -> tuple[list[Row], dict[int, str]]:
    """Answers whose grade, what a judge says, stands between « and »."""
    odd = ["1", "0", " 0.7 ", "0.75", "1.", ".5", "1.1", "-0.1", "about 0.5", "0.5/1", "", "１"]
    grades = [*(f"{n / 10}" for n in range(11)), *odd]
    kinds = "rec ocr rec,know rec,ocr,spat ocr,math rec,ocr,know,gen,spat know,gen ocr,spat,math rec,gen".split()
    rows, answers = [], {}
    for index, (grade, kind) in enumerate(itertools.product(grades, kinds)):
        row = {"index": index, "image": picture(), "question": f"What? ({index})", "answer": "x<AND>y<OR>z"}
        rows.append({**row, "category": kind})
        answers[index] = f"«{grade}»"
    return rows, answers
