"""The order of the house is kept, and the checker that says so can fail."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from layering import LEVEL, imported, room_of, violations

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "kvstore"
MODULES = sorted(
    path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "generated" not in path.parts
)
TOP_LEVEL = {"pyproject.toml", "kvstore", "proto", "tests", "bench", "README.md", "LICENSE"}


@pytest.mark.parametrize("path", MODULES)
def test_a_module_keeps_the_rules_of_the_house(path):
    assert violations(path, (PACKAGE / path).read_text()) == []


def test_every_room_that_exists_is_read():
    assert {room_of(path) for path in MODULES} >= {"core", "codec", "tiers", "rpc", "store", "client", "daemon", "cli"}
    assert len(MODULES) > 30


def test_generated_stubs_import_only_themselves_and_the_wire_libraries():
    for path in (PACKAGE / "rpc" / "generated").glob("*.py"):
        assert violations(f"rpc/generated/{path.name}", path.read_text()) == []


BROKEN = [
    # order
    ("core/a.py", "from kvstore.codec import frame", "core imports codec"),
    ("core/a.py", "import kvstore.store.store", "core imports store"),
    ("core/policies/a.py", "from ...tiers import disk", "core imports tiers"),
    ("core/policies/a.py", "from ... import tiers", "core imports tiers"),
    ("store/a.py", "from kvstore import rpc", "store imports rpc"),
    ("rpc/a.py", "from ..store.store import Store", "rpc imports store"),
    ("sim/a.py", "from kvstore.tiers import host", "sim imports tiers"),
    ("tiers/a.py", "from kvstore.sim import trace", "tiers imports sim"),
    ("client/a.py", "import kvstore.kernels.csa", "client imports kernels"),
    ("engines/a.py", "from kvstore.daemon import server", "engines imports daemon"),
    ("daemon/a.py", "import kvstore.engines", "daemon imports engines"),
    ("daemon/a.py", "import kvstore.cli.main", "daemon imports cli"),
    ("config.py", "from kvstore.codec import frame", "config imports codec"),
    ("core/a.py", "from .. import config", "core imports config"),
    ("store/a.py", "import kvstore", "nobody inside imports the root"),
    ("cli/a.py", "from kvstore import connect", "nobody inside imports the root"),
    ("codec/a.py", "if True:\n    from kvstore.rpc import wire", "codec imports rpc"),
    (
        "codec/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import kvstore.store",
        "codec imports store",
    ),
    ("version.py", "from kvstore.core import keys", "version imports core"),
    ("utils.py", "x = 1", "utils is not a room"),
    ("helpers/a.py", "x = 1", "helpers is not a room"),
    ("__init__.py", "from kvstore.store.store import Store", "exports kvstore.store.store.Store"),
    # who may import what
    ("store/a.py", "import grpc", "imports grpc"),
    ("cli/a.py", "from grpc_health.v1 import health", "imports grpc_health"),
    ("store/a.py", "from google.protobuf import message", "imports google"),
    ("tiers/disk.py", "import torch", "imports torch"),
    ("codec/frame.py", "import torch.nn", "imports torch"),
    ("cli/serve.py", "def run():\n    import torch", "imports torch"),
    ("client/a.py", "import transformers", "imports transformers"),
    ("store/a.py", "import lmdb", "imports lmdb"),
    ("tiers/recover.py", "import lmdb", "imports lmdb"),
    ("tiers/disk.py", "import zstandard", "imports zstandard"),
    # never
    ("codec/a.py", "import pickle", "imports pickle"),
    ("engines/a.py", "from marshal import loads", "imports marshal"),
    ("tiers/a.py", "import shelve", "imports shelve"),
    ("cli/a.py", "eval('1')", "calls eval()"),
    ("cli/a.py", "exec('1')", "calls exec()"),
    ("cli/a.py", "__import__('os')", "calls __import__()"),
    ("cli/a.py", "import importlib\nimportlib.import_module('kvstore.x')", "calls import_module()"),
    ("engines/a.py", "import torch\ntorch.load('x')", "calls torch.load()"),
    # the core is pure
    ("core/a.py", "import os", "core imports os"),
    ("core/a.py", "from time import monotonic", "core imports time"),
    ("core/a.py", "import os.path", "core imports os"),
    ("core/a.py", "import threading", "core imports threading"),
    ("core/a.py", "import random", "core imports random"),
    ("core/a.py", "import logging", "core imports logging"),
    ("core/a.py", "import socket", "core imports socket"),
    ("core/a.py", "from pathlib import Path", "core imports pathlib"),
    ("core/a.py", "from datetime import datetime", "core imports datetime"),
    ("core/a.py", "import numpy", "core imports numpy"),
    ("core/a.py", "import torch", "imports torch"),
    ("core/a.py", "open('x')", "core calls open()"),
    ("core/a.py", "print('x')", "core calls print()"),
    # no hidden imports
    ("store/a.py", "def f():\n    import json", "imports json inside a function"),
    ("core/a.py", "class A:\n    def f(self):\n        from kvstore.core import keys", "inside a function"),
    ("store/a.py", "async def f():\n    import json", "inside a function"),
    # threads
    ("store/store.py", "import threading\nthreading.Thread(target=f)", "makes a Thread"),
    ("client/client.py", "from threading import Thread\nThread()", "makes a Thread"),
    ("tiers/a.py", "from threading import Timer\nTimer(1, f)", "makes a Timer"),
    ("rpc/a.py", "from concurrent import futures\nfutures.ThreadPoolExecutor(4)", "makes a ThreadPoolExecutor"),
    ("tiers/a.py", "import threading\nclass Mover(threading.Thread): ...", "is a Thread"),
]


@pytest.mark.parametrize(("path", "source", "what"), BROKEN)
def test_a_broken_rule_is_found(path, source, what):
    found = violations(path, source)
    assert any(what in line for line in found), found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/a.py", "import hashlib\nimport xxhash\nfrom kvstore.core.keys import Tier\nfrom . import layout"),
        ("core/policies/a.py", "from .. import order\nfrom ..policy import Policy"),
        (
            "store/a.py",
            "from kvstore.tiers.disk import DiskTier\nfrom kvstore.core import planner\nimport kvstore.codec",
        ),
        ("cli/a.py", "def run():\n    from kvstore.engines.transformers import worker"),
        ("cli/demo.py", "def run():\n    import torch"),
        ("rpc/a.py", "import grpc\nfrom google.protobuf import message\nfrom kvstore.config import Config"),
        ("daemon/server.py", "import threading\nthreading.Thread()"),
        ("store/mover.py", "from threading import Thread\nThread()"),
        ("client/writer.py", "from threading import Thread\nThread()"),
        ("store/store.py", "import threading\nlock = threading.Lock()"),
        ("engines/a.py", "import torch\nmodel.eval()\ndef f():\n    import transformers"),
        ("codec/v4_formats.py", "import torch"),
        ("codec/lossless.py", "import zstandard"),
        ("tiers/disk.py", "import lmdb"),
        ("tiers/host.py", "from kvstore.version import VERSION\nimport torch"),
        ("config.py", "import tomllib\nfrom kvstore.core.errors import ConfigError"),
        ("__init__.py", "from kvstore.client.client import connect\nfrom kvstore.core import presets, errors"),
        ("version.py", "VERSION = '1'"),
    ],
)
def test_what_is_allowed_is_not_found(path, source):
    assert violations(path, source) == []


def test_relative_imports_are_resolved():
    tree = ast.parse("from . import a\nfrom .b import c\nfrom ..d.e import f\nimport g.h as i")
    assert [found.module for found in imported("core/policies/lru.py", tree)] == [
        "kvstore.core.policies.a", "kvstore.core.policies.b.c", "kvstore.core.d.e.f", "g.h",
    ]  # fmt: skip


def test_every_level_lies_below_the_one_before():
    assert LEVEL["cli"] < LEVEL["daemon"] == LEVEL["engines"] < LEVEL["client"] == LEVEL["kernels"] < LEVEL["store"]
    assert LEVEL["store"] == LEVEL["rpc"] < LEVEL["sim"] == LEVEL["tiers"] < LEVEL["codec"] < LEVEL["config"]
    assert LEVEL["config"] < LEVEL["core"]


def stray_entries(names: list[str]) -> set[str]:
    """Entries of the repository's top level that do not belong there; dotfiles may."""
    first = {name.split("/")[0] for name in names}
    return {name for name in first if not name.startswith(".")} - TOP_LEVEL


def test_the_top_level_holds_nothing_else():
    assert stray_entries(["setup.py", "kvstore/x.py", ".ci/run", "docs/a.md"]) == {"setup.py", "docs"}
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-C", REPOSITORY, "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert stray_entries(listed) == set()


@pytest.mark.parametrize("module", ["kvstore.daemon.server", "kvstore.cli.main", "kvstore.client", "kvstore"])
def test_torch_is_not_imported_where_it_is_not_needed(module):
    try:
        is_there = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        pytest.skip(f"{module} does not exist")
    script = f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr
