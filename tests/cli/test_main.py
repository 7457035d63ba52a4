"""The command line: every command is there, only the one asked for is imported, errors of ours are one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.cli import main as cli
from kvstore.core.errors import OperatorError

REPOSITORY = Path(__file__).resolve().parents[2]


def _python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=False
    )


def test_help_names_every_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kvstore", "--help"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert all(f" {name} " in shown for name in ("demo", "serve", "status", "check", "footprint"))


@pytest.mark.parametrize("command", ["serve", "status", "check", "footprint"])
def test_only_the_demo_needs_torch(command):
    script = (
        f"import sys; from kvstore.cli.main import app_for; app_for([{command!r}]); sys.exit('torch' in sys.modules)"
    )
    done = _python(script)
    assert done.returncode == 0, done.stderr


def test_serve_loads_no_other_command():
    script = (
        "import sys; from kvstore.cli.main import app_for; app_for(['serve']); "
        "print(*(name for name in sys.modules if name.startswith('kvstore.cli.')))"
    )
    assert set(_python(script).stdout.split()) == {"kvstore.cli.main", "kvstore.cli.serve"}


def test_an_unknown_command_is_refused_by_name(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kvstore", "serv"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "serv" in capsys.readouterr().err


def test_an_error_of_ours_is_one_sentence(capsys, monkeypatch):
    def failing() -> None:
        raise OperatorError("the disk is on fire: call somebody")

    monkeypatch.setitem(cli._COMMANDS, "status", lambda: failing)
    monkeypatch.setattr(sys, "argv", ["kvstore", "status"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "kvstore: the disk is on fire: call somebody\n"


def test_a_bug_shows_its_traceback(monkeypatch):
    def failing() -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(cli._COMMANDS, "status", lambda: failing)
    monkeypatch.setattr(sys, "argv", ["kvstore", "status"])
    with pytest.raises(ZeroDivisionError):
        cli.main()
