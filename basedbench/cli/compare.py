"""`basedbench compare`: did anything change between two result folders, or differ between two of one folder?"""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(compare)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The results folder to compare with, or FOLDER@COMMIT.")],
    b: Annotated[str | None, typer.Argument(metavar="[B]", help="The results folder to judge, likewise.")] = None,
    contender: Annotated[
        str | None, typer.Option(help="With one folder: judge this contender, or this model ...")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="... against this one; NAME or OPERATOR/NAME, or 'based d_model=64'.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="throughput or recall. Default: what both folders have.")] = None,
    filter: Annotated[str | None, typer.Option(help="Only cases whose label this regular expression finds.")] = None,
    fail_on: Annotated[
        str, typer.Option(help="The verdicts that make exit code 1, separated by commas.")
    ] = "slower,lower",
    threshold: Annotated[str, typer.Option(help="The smallest difference that counts, such as 2%.")] = "2%",
    across_machines: Annotated[
        bool, typer.Option("--across-machines", help="Compare rows of unlike machines too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the count of each verdict.")] = False,
) -> None:
    """Compare results case by case: FASTER, SLOWER, SAME or UNCLEAR; HIGHER or LOWER for accuracies.

    MISSING has no result in B; FAILED has none in A, which is no regression.

    FOLDER@COMMIT means the rows that this commit of basedbench left in the folder.

    Of one folder, two contenders that took turns, or two models' recall at each one's best learning rate.

    Exit code 0: no regression; 1: a regression; 2: usage; 3: incomplete, results of A are missing in B.
    """
    from basedbench.cli import compare_input as given
    from basedbench.cli import compare_report as report

    sides = given.Place.parse(a), None if b is None else given.Place.parse(b)
    choice = given.Choice(*sides, contender, against, filter, given.share(threshold), across_machines)
    failing = given.verdicts(fail_on)
    found = given.compared(choice, given.kinds(choice, kind))
    pairs = [pair for one in found.values() for pair in one.pairs]
    code = report.exit_code(pairs, failing)
    if as_json:
        report.as_json(found, code)
    else:
        if not quiet:
            for name, one in found.items():
                report.table(name, one, choice)
            report.notes(pairs)
        report.summary(pairs, code)
    raise typer.Exit(code)
