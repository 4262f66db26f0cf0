"""The console script ``d2ls-fast``: registers the commands and turns user errors into one line and exit status 2."""

from __future__ import annotations

import errno
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from d2ls_fast.cli.ablate import ablate
from d2ls_fast.cli.bench import bench
from d2ls_fast.cli.convert import convert
from d2ls_fast.cli.data import data
from d2ls_fast.cli.evaluate import evaluate
from d2ls_fast.cli.export import export
from d2ls_fast.cli.info import info
from d2ls_fast.cli.predict import predict
from d2ls_fast.cli.submit import submit
from d2ls_fast.cli.train import train
from d2ls_fast.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class CommandGroup(TyperGroup):
    """Runs a command; what the user can mend ends in ``error: <one line>`` on stderr and status 2, without a trace."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            message, status = f"error: {error}", EXIT_USER_ERROR
        except BrokenPipeError:
            raise
        except OSError as error:
            message, status = f"error: {describe_os_error(error)}", EXIT_USER_ERROR
        except KeyboardInterrupt:
            message, status = "interrupted", EXIT_INTERRUPTED
        print(message, file=sys.stderr)
        raise typer.Exit(status)


def describe_os_error(error: OSError) -> str:
    """One line that names the file of a failed system call and what to do about it."""
    remedies = {
        errno.ENOSPC: "free some space or write to another disk",
        errno.EDQUOT: "free some space or write to another disk",
        errno.EACCES: "check its permissions or name another place",
        errno.EPERM: "check its permissions or name another place",
        errno.EROFS: "write to another place",
        errno.ENOENT: "check the path",
        errno.ENOTDIR: "a part of the path is a file: check the path",
        errno.EISDIR: "name a file, not a folder",
        errno.EEXIST: "move it away or name another place",
    }
    remedy = remedies.get(error.errno or 0, "check the path and the disk")
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    parts = [str(error.filename)] if error.filename is not None else []
    return " ".join(": ".join([*parts, f"{reason}; {remedy}"]).split())


app = typer.Typer(
    name="d2ls-fast",
    cls=CommandGroup,
    help="Train, evaluate and apply D2LS segmentation models on remote-sensing imagery.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (train, evaluate, predict, export, bench, ablate, convert, info):
    app.command()(command)
app.add_typer(data)
app.add_typer(submit)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="d2ls-fast")


if __name__ == "__main__":
    main()
