"""`mosgoat eval study`: a blind human study of two or more sets of pictures.

    mosgoat eval study import  --study DIR --set NAME=FOLDER --set NAME2=FOLDER2
    mosgoat eval study invite  --study DIR --raters 15
    mosgoat eval study serve   --study DIR
    mosgoat eval study results --study DIR

docs/study.md leads from the pictures to the table.
"""

from __future__ import annotations

import argparse
import importlib.util
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.reporting.tables import render_text

PROG = "mosgoat eval study"
# module of the extra `study` -> the package that brings it
_EXTRA = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and do it; returns the exit status, 1 where pictures were left out."""
    options = _parser().parse_args(list(argv or []))
    try:
        return options.run(options)
    except sqlite3.OperationalError as error:
        raise UserError(
            f"the database of {options.study} could not be written: {error}; nothing was changed. Mend that and start "
            "the same command again"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    verbs = parser.add_subparsers(required=True, metavar="import|invite|serve|results")

    taking = verbs.add_parser("import", help="make a study out of folders of pictures", allow_abbrev=False)
    taking.add_argument("--study", required=True, type=Path, help="folder to make")
    taking.add_argument(
        "--set",
        dest="sets",
        required=True,
        action="append",
        metavar="NAME=FOLDER",
        help="a method and its pictures; twice or more. Wins are counted for the one named first",
    )
    taking.add_argument("--references", type=Path, help="pictures of the real subjects, <subject>/*.jpg")
    taking.add_argument(
        "--prompts", type=Path, help="CSV with the columns picture, prompt; for folders without a manifest"
    )
    taking.add_argument("--title", default="Comparing pictures", help="what raters read at the top")
    taking.set_defaults(run=_import)

    inviting = verbs.add_parser("invite", help="make personal links", allow_abbrev=False)
    inviting.add_argument("--study", required=True, type=Path, help="folder of the study")
    what = inviting.add_mutually_exclusive_group(required=True)
    what.add_argument("--raters", type=int, help="how many raters to add")
    what.add_argument("--organiser", action="store_true", help="a link to the results")
    what.add_argument("--renew", metavar="NAME", help="a new link for one who has lost theirs; the answers stay")
    what.add_argument("--revoke", metavar="NAME", help="end a link; the answers stay")
    what.add_argument("--list", action="store_true", help="who is invited, and how far they are")
    inviting.add_argument("--pairs", type=int, help="pairs for each rater, drawn evenly; default: all of them")
    inviting.add_argument("--base-url", default="http://127.0.0.1:8000", help="where raters reach the server")
    inviting.set_defaults(run=_invite)

    serving = verbs.add_parser("serve", help="let raters answer", allow_abbrev=False)
    serving.add_argument("--study", required=True, type=Path, help="folder of the study")
    serving.add_argument("--host", default="127.0.0.1", help="address to bind to; default: this machine alone")
    serving.add_argument("--port", type=int, default=8000, help="default: 8000")
    serving.add_argument(
        "--public-url", help="address under which a reverse proxy on this machine publishes the server"
    )
    serving.set_defaults(run=_serve)

    counting = verbs.add_parser("results", help="count the votes", allow_abbrev=False)
    counting.add_argument("--study", required=True, type=Path, help="folder of the study")
    counting.add_argument("--output", type=Path, help="folder for results.json, results.csv, votes.csv and the picture")
    counting.set_defaults(run=_results)
    return parser


def _import(options: argparse.Namespace) -> int:
    from eval.study.importing import import_study

    sets = []
    for words in options.sets:
        name, equals, folder = words.partition("=")
        if not equals or not name.strip() or not folder:
            raise UserError(f"--set {words} must be NAME=FOLDER, such as --set MoSLoRA=pictures/moslora")
        sets.append((name.strip(), Path(folder)))
    report = import_study(
        options.study, sets, references=options.references, prompts=options.prompts, title=options.title
    )
    print("\n".join(report.lines()))
    print(f"next: mosgoat eval study invite --study {options.study} --raters 15")
    return 0 if report.is_whole else 1


def _invite(options: argparse.Namespace) -> int:
    from eval.study import inviting
    from eval.study.database import open_study
    from eval.study.results import count

    if not options.base_url.startswith(("http://", "https://")):
        raise UserError(f"--base-url={options.base_url} must begin with http:// or https://, or no rater can follow it")
    study = open_study(options.study)
    if options.pairs is not None and options.raters is None:
        raise UserError(f"--pairs={options.pairs} has an effect only beside --raters")
    if options.list:
        with study.reading() as db:
            for rater in count(db).raters:
                print(f"{rater.name}  {rater.answered} of {rater.total}{'  link ended' if rater.revoked else ''}")
        return 0
    made = []
    with study.writing() as db:
        if options.raters is not None:
            made = inviting.invite_raters(db, options.raters, options.pairs)
        elif options.renew is not None:
            made = [inviting.renew(db, options.renew)]
        elif options.revoke is not None:
            inviting.revoke(db, options.revoke)
        if options.organiser or (options.raters is not None and not inviting.has_organiser(db)):
            made.append(inviting.invite_organiser(db))
    if options.revoke is not None:
        print(f"the link of {options.revoke} has ended; the answers stay")
        return 0
    print("Personal links. They are shown only now (the study keeps their hashes); each lets in whoever has it.")
    for invitation in made:
        print(f"{invitation.name}  {options.base_url.rstrip('/')}/enter/{invitation.token}")
    return 0


def _serve(options: argparse.Namespace) -> int:
    missing = [package for module, package in _EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"{PROG} serve needs {', '.join(missing)}; install the extra: pip install -e '.[study]'")
    from eval.study.database import open_study
    from eval.study.server import serve

    serve(open_study(options.study), options.host, options.port, options.public_url)
    return 0


def _results(options: argparse.Namespace) -> int:
    from eval.study.database import open_study
    from eval.study.export import results_table, write_results
    from eval.study.results import count

    with open_study(options.study).reading() as db:
        results = count(db)
        print(render_text(results_table(results)))
        if options.output is not None:
            for path in write_results(db, results, options.output):
                print(f"written: {path}")
    return 0
