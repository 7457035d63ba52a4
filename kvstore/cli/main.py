"""The `kvstore` command. Each command is imported when it is asked for, so that `serve` starts fast and without torch.

An error of ours is one sentence on standard error and exit code 2; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import typer

from kvstore.core.errors import KVStoreError


def _serve() -> Callable[..., None]:
    from kvstore.cli.serve import serve_command

    return serve_command


def _status() -> Callable[..., None]:
    from kvstore.cli.status import status_command

    return status_command


def _explain() -> Callable[..., None]:
    from kvstore.cli.explain import explain_command

    return explain_command


def _policy() -> Callable[..., None]:
    from kvstore.cli.policy import policy_command

    return policy_command


def _check() -> Callable[..., None]:
    from kvstore.cli.check import check_command

    return check_command


def _footprint() -> Callable[..., None]:
    from kvstore.cli.footprint import footprint_command

    return footprint_command


def _demo() -> Callable[..., None]:
    from kvstore.cli.demo import demo_command

    return demo_command


def _workload() -> Callable[..., None]:
    from kvstore.cli.workload import workload_command

    return workload_command


def _simulate() -> Callable[..., None]:
    from kvstore.cli.simulate import simulate_command

    return simulate_command


_COMMANDS = {
    "demo": _demo,
    "serve": _serve,
    "status": _status,
    "explain": _explain,
    "policy": _policy,
    "check": _check,
    "footprint": _footprint,
    "workload": _workload,
    "simulate": _simulate,
}


def app_for(arguments: Sequence[str]) -> typer.Typer:
    """The command line, with only the command that is asked for; with all of them where none is (`--help`, a typo)."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
    app.callback()(_root)
    wanted = next((word for word in arguments if not word.startswith("-")), "")
    for name in (wanted,) if wanted in _COMMANDS else _COMMANDS:
        app.command(name)(_COMMANDS[name]())
    return app


def _root() -> None:
    """A storage daemon for the KV cache of DeepSeek-V4-style models."""


def main() -> None:
    try:
        app_for(sys.argv[1:])(prog_name="kvstore")
    except KVStoreError as error:
        print(f"kvstore: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
