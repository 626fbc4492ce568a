"""`basedbench list`: what there is to run, to compare and to look at."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_PLUGIN = Annotated[list[Path] | None, typer.Option(help="A Python file that registers more of them.")]
_SUMMARY = {
    "recall": "case_id family config d_model learning_rate seed status accuracy state_bytes train_s",
    "throughput": "case_id operator contender mode dtype batch length status median_ms tokens_per_s",
    "calibration": "case_id ceiling dtype status median_ms bytes_per_s flops_per_s",
}
_HEADINGS = {"case_id": "case", "learning_rate": "lr", "state_bytes": "state\nbytes", "train_s": "seconds"}
_HEADINGS |= {"median_ms": "median\nms", "tokens_per_s": "tokens\nper s"}

group = typer.Typer(help="List mixers, suites, contenders or stored runs.", no_args_is_help=True)


@group.command()
def mixers(plugin: _PLUGIN = None, as_json: _JSON = False) -> None:
    """The registered sequence mixers, with their options and defaults."""
    from basedbench.cli.tables import cell, print_json, print_table
    from basedbench.mixers import get_mixer, mixer_names
    from basedbench.plugins import load_plugins
    from basedbench.streams import stdout_to_stderr

    load_plugins(plugin or [])
    with stdout_to_stderr():  # defaults may be made by the user's own code
        found = [_describe_mixer(get_mixer(name)) for name in mixer_names()]
    if as_json:
        print_json(found)
        return
    options = [{name: option["default"] for name, option in one["options"].items()} for one in found]
    rows = [(one["name"], cell(given), one["description"]) for one, given in zip(found, options, strict=True)]
    print_table("Mixers", ("mixer", "options", "what it is"), rows)


@group.command()
def suites(as_json: _JSON = False) -> None:
    """The suites that come with basedbench."""
    from basedbench.cli.tables import print_json, print_table
    from basedbench.config import load_suite, suite_names

    found = [load_suite(name) for name in suite_names()]
    if as_json:
        print_json([{"name": one.name, "kind": one.kind, "description": one.description} for one in found])
        return
    print_table("Suites", ("suite", "kind", "what it is"), [(one.name, one.kind, one.description) for one in found])


@group.command()
def contenders(plugin: _PLUGIN = None, as_json: _JSON = False) -> None:
    """What throughput compares, and why some of it cannot run here."""
    from basedbench.cli.tables import print_json, print_table
    from basedbench.contenders import all_contenders
    from basedbench.plugins import load_plugins
    from basedbench.streams import stdout_to_stderr

    load_plugins(plugin or [])
    columns = ("name", "operators", "version", "unavailable")
    with stdout_to_stderr():  # the user's own may print
        found = [{name: getattr(one, name) for name in columns} for one in all_contenders()]
    if as_json:
        print_json(found)
        return
    rows = [(one["name"], list(one["operators"]), one["version"], one["unavailable"] or "yes") for one in found]
    print_table("Contenders", ("contender", "operators", "version", "available"), rows)


@group.command()
def runs(
    results: Annotated[Path, typer.Option(help="The results folder.")] = Path("results"),
    kind: Annotated[
        str | None, typer.Option(help="recall, throughput or calibration. Default: the first of these that is there.")
    ] = None,
    status: Annotated[list[str] | None, typer.Option(help="Only runs that ended so: ok, diverged, oom, ...")] = None,
    suite: Annotated[str | None, typer.Option(help="Only the runs of this suite.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the newest runs.")] = None,
    as_json: _JSON = False,
) -> None:
    """The stored runs, oldest first: the newest row of each case of a suite."""
    from basedbench.cli.outdated import say_versions
    from basedbench.cli.stored import stored_rows
    from basedbench.cli.tables import print_json
    from basedbench.store.dataset import kinds_in
    from basedbench.store.schema import decode_json

    _check_statuses(status or [])
    kind = next(iter(kinds_in(results)), "recall") if kind is None else kind
    found = stored_rows(results, kind, () if suite is None else (suite,))
    chosen = [row for row in found if not status or row["status"] in status]
    shown = chosen[-limit:] if limit else chosen
    if as_json:
        columns = ("suite", *_SUMMARY[kind].split(), "reason", "created_at", "code_version", "device_name")
        print_json([decode_json({name: row[name] for name in columns}) for row in shown])
    else:
        _print_runs(kind, shown, f"{len(shown)} of {len(chosen)} {kind} runs in {results}")
    say_versions(shown, kind, err=as_json)


def _check_statuses(statuses: list[str]) -> None:
    from basedbench.errors import UserError, nearest
    from basedbench.store.schema import STATUSES

    for status in statuses:
        if status not in STATUSES:
            raise UserError(f"--status {status!r}: {nearest(status, STATUSES)}")


def _print_runs(kind: str, rows: list[dict[str, Any]], title: str) -> None:
    from basedbench.cli.tables import print_table

    names = _SUMMARY[kind].split()
    headings = [_HEADINGS.get(name, name) for name in names]
    lines = [_line(row, names) for row in (_with_stacks(rows) if kind == "recall" else rows)]
    print_table(title, headings, lines, whole=("case", "status"))
    failed = sum(row["status"] != "ok" for row in rows)
    if failed:
        typer.echo(f"{failed} not ok: `basedbench results show CASE` says why.")


def _with_stacks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Recall rows; the configs of models that only their stacks of layers tell apart have these, too."""
    from basedbench.store.schema import decode_json

    stacks: dict[tuple[Any, ...], set[str]] = {}
    models = [(row["mixer"], str(row["config"]), row["d_model"]) for row in rows]
    for row, model in zip(rows, models, strict=True):
        stacks.setdefault(model, set()).add(row["layer_mixers"])
    told = []
    for row, model in zip(rows, models, strict=True):
        if len(stacks[model]) > 1:
            config = decode_json({"config": row["config"]})["config"]
            row = row | {"config": config | {"layers": row["layer_mixers"]}}
        told.append(row)
    return told


def _line(row: dict[str, Any], names: list[str]) -> list[Any]:
    """The row's cells: as much of the id as tells cases apart, and a whole model's name in the operator's place."""
    from basedbench.store.schema import decode_json

    values = decode_json({name: row[name] for name in names})
    if "operator" in values:
        values["operator"] = values["operator"] or row["model"]
    return list((values | {"case_id": row["case_id"][:8]}).values())


def _describe_mixer(mixer: Any) -> dict[str, Any]:
    options = {
        name: {"default": _default(field), "description": field.description}
        for name, field in mixer.Options.model_fields.items()
    }
    summary = (mixer.__doc__ or "").strip().split("\n")[0]
    return {"name": mixer.name, "family": mixer.family, "options": options, "description": summary}


def _default(field: Any) -> Any:
    """An option's default; what is wrong with it if the user's code fails to make one that can be shown."""
    from basedbench.errors import text_of

    try:
        value = field.get_default(call_default_factory=True)
        json.dumps(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's code raises
        return text_of(error)
    return value


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.add_typer(group, name="list")
