"""`trimtab`: nouns and verbs. Data goes to stdout, hints and progress to stderr; exit codes say how it ended.

0 ok, 1 error, 2 usage, 3 timeout, 4 no token, 5 forbidden, 6 unreachable; of a job: 100 failed, 101 unfinished (it
waits for a person), 102 not found, 103 cancelled.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from controlplane.cli import cluster, experts, fleet, jobs, lifecycles, people, simulate
from controlplane.cli.output import EXIT, Exit, hint
from controlplane.client import ApiError, Unreachable
from controlplane.settings import HELP, Settings, SettingsError, load

app = typer.Typer(no_args_is_help=True, add_completion=False)
app.add_typer(jobs.app, name="job")
app.add_typer(lifecycles.app, name="lifecycle")
app.add_typer(fleet.nodes, name="node")
app.add_typer(cluster.app, name="cluster")
app.add_typer(experts.app, name="experts")
app.add_typer(people.incidents, name="incident")
app.add_typer(people.tokens, name="token")
app.add_typer(people.channels, name="channel")
app.add_typer(people.rules, name="rules")
app.add_typer(simulate.app, name="simulate")
app.command("drill")(fleet.drill)
config = typer.Typer(no_args_is_help=True, help="What is set, and where from.")
app.add_typer(config, name="config")

Data = Annotated[Path | None, typer.Option(help=HELP["data"])]


def _version(asked: bool) -> None:
    if asked:
        print(f"trimtab {importlib.metadata.version('trimtab')}")
        raise typer.Exit


@app.callback()
def trimtab(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Control plane for mixture-of-experts training."""


def serve(**flags: Any) -> None:
    """Run the control plane and the dashboard until stopped; prints one ready line with the address to open."""
    from controlplane.cli import serve as server  # heavy: only this verb needs the whole server

    try:
        raise Exit(server.serve(load(flags)))
    except server.StartError as error:
        hint(str(error))
        raise Exit(EXIT.ERROR) from error


def _flags() -> list[inspect.Parameter]:
    """An option of `serve` for each setting, so that none is forgotten."""
    kinds: dict[object, type] = {"bool": bool, "int": int, "float": float, "Path": Path, "str": str}
    kind = {setting.name: kinds.get(setting.type, str) for setting in fields(Settings)}
    default = {name: getattr(Settings(), name) for name in HELP}
    told = {name: "" if value == "" else f" (default {value})" for name, value in default.items()}
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[Optional[kind[name]], typer.Option(help=words + told[name])],  # noqa: UP045 the kind is a value
        )
        for name, words in HELP.items()
    ]


serve.__signature__ = inspect.Signature(_flags())  # type: ignore[attr-defined]  # what inspect and typer look at
app.command()(serve)


@app.command()
def demo(
    exit_: Annotated[bool, typer.Option("--exit", help="no browser; end by itself, with one JSON line")] = False,
    lifecycle: Annotated[
        bool, typer.Option("--lifecycle", help="all stages from pretraining to the release, with a drill of each kind")
    ] = False,
    stages: Annotated[str, typer.Option(help="with --lifecycle: only these stages, with commas between")] = "",
    data: Annotated[Path, typer.Option(help="folder of the demo")] = Path(".demo"),
    backend: Annotated[
        Literal["local", "kube"],
        typer.Option(envvar="DEMO_BACKEND", help="processes of this machine, or Jobs of a Kubernetes control plane"),
    ] = "local",
) -> None:
    """A real training run on simulated MI300X nodes, a GPU fault in the middle, and the restart without the node."""
    if lifecycle:
        from controlplane.cli import demo_lifecycle

        raise Exit(demo_lifecycle.run(data, until_end=exit_, backend=backend, stages=stages))
    from controlplane.cli import demo as show

    raise Exit(show.run(data, until_end=exit_, backend=backend))


@config.command("view")
def view(
    origin: Annotated[bool, typer.Option("--origin", help="say where each value comes from")] = False, data: Data = None
) -> None:
    """Every setting that holds."""
    settings = load({"data": data})
    for name in HELP:
        where = f"  # {settings.origins.get(name, 'default')}" if origin else ""
        print(f"{name} = {str(getattr(settings, name))!r}{where}")


@app.command()
def doctor() -> None:
    """What is missing on this machine, and how to get it."""
    people.doctor()


def main() -> None:
    """Runs a command; every failure is a sentence and an exit code, never a traceback."""
    try:
        app(standalone_mode=False)
    except Exit as error:
        sys.exit(error.code)
    except (typer.Exit, SystemExit) as error:
        sys.exit(getattr(error, "exit_code", getattr(error, "code", 0)))
    except Unreachable as error:
        hint(f"{error}\nIs `trimtab serve` running? Another address: TRIMTAB_URL.")
        sys.exit(EXIT.UNREACHABLE)
    except ApiError as error:
        hint(str(error))
        usage = EXIT.USAGE if error.code == "bad_request" else EXIT.ERROR
        sys.exit({401: EXIT.AUTH, 403: EXIT.FORBIDDEN, 404: EXIT.NOT_FOUND}.get(error.status, usage))
    except SettingsError as error:
        hint(str(error))
        sys.exit(EXIT.USAGE)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(EXIT.ERROR)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT.OK)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        show = getattr(error, "format_message", None)
        hint(show() if show is not None else f"{type(error).__name__}: {error}")
        sys.exit(code if isinstance(code, int) else EXIT.ERROR)


if __name__ == "__main__":
    main()
