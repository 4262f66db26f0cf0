"""The console script: what every command shares."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from d2ls_fast.cli.main import CommandGroup, app, describe_os_error
from d2ls_fast.errors import UserError


def _raising(error: BaseException) -> typer.Typer:
    other = typer.Typer(cls=CommandGroup, pretty_exceptions_enable=False)

    @other.command()
    def fail() -> None:
        raise error

    @other.command()
    def work() -> None:
        print("done")

    return other


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (UserError("a.png: not an image;\n replace it"), "error: a.png: not an image; replace it", 2),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/a.tif"),
            "error: out/a.tif: no space left on device; free some space or write to another disk",
            2,
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "out"),
            "error: out: permission denied; check its permissions or name another place",
            2,
        ),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_what_the_user_can_mend_is_one_line(error: BaseException, line: str, status: int) -> None:
    result = CliRunner().invoke(_raising(error), ["fail"])
    assert (result.stderr.strip(), result.exit_code, result.stdout) == (line, status, "")


def test_a_fault_of_the_program_is_not_hidden() -> None:
    result = CliRunner().invoke(_raising(ZeroDivisionError("fault")), ["fail"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_success_is_status_zero() -> None:
    assert CliRunner().invoke(_raising(RuntimeError()), ["work"]).exit_code == 0


def test_an_os_error_without_file_or_number_still_makes_a_line() -> None:
    assert describe_os_error(OSError("strange\nthing")) == "strange thing; check the path and the disk"


@pytest.mark.parametrize("arguments", [["no-such-command"], ["train"], ["train", "a.yaml", "--no-such-option"]])
def test_wrong_usage_is_status_two(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_help_names_every_command() -> None:
    text = CliRunner().invoke(app, ["--help"]).stdout
    for command in ("train", "evaluate", "predict", "bench", "info"):
        assert command in text


def test_starting_leaves_heavy_libraries_to_the_commands() -> None:
    code = "import sys, d2ls_fast.cli.main; print({'lightning', 'matplotlib', 'rasterio'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True).stdout
    assert shown.strip() == "set()"
