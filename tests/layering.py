"""The rules of the house (STYLE sections 1, 2 and 8) as a checker of one source file.

`violations(path, source)` reads a module with `ast`: `path` is relative to kvstore/, e.g. "core/cost.py". Imports
are found wherever they stand, relative or plain, in functions and under TYPE_CHECKING too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

# Each room imports only rooms further down; neighbours on one line never import each other.
LEVELS = (
    ("cli",),
    ("daemon", "engines"),
    ("client", "kernels"),
    ("store", "rpc"),
    ("sim", "tiers"),
    ("codec",),
    ("config",),
    ("core",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
ANYONE_MAY_IMPORT = {"version"}
ROOT_MAY_IMPORT = ("kvstore.client", "kvstore.core.presets", "kvstore.core.errors", "kvstore.core.layout",
                   "kvstore.core.match", "kvstore.version")  # fmt: skip

# Who may import what: prefixes of paths below kvstore/.
IMPORTERS = {
    "grpc": ("rpc/", "daemon/", "client/"),
    "grpc_health": ("rpc/", "daemon/", "client/"),
    "grpc_reflection": ("rpc/", "daemon/", "client/"),
    "grpc_status": ("rpc/", "daemon/", "client/"),
    "google": ("rpc/", "daemon/", "client/"),
    "torch": ("tiers/gpu", "tiers/host", "codec/v4", "codec/lossy", "kernels/", "engines/", "cli/demo"),
    "transformers": ("engines/",),
    "vllm": ("engines/",),
    "sglang": ("engines/",),
    "lmcache": ("engines/",),
    "lmdb": ("tiers/disk", "tiers/manifest"),
    "zstandard": ("codec/",),
}
NOWHERE = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
NEVER_CALLED = {"eval", "exec", "__import__", "import_module"}
CORE_THIRD_PARTY = {"xxhash"}
# Doors to the world: clocks, threads, chance, files, sockets, processes, configuration, logging.
CORE_NEVER = {
    "argparse", "asyncio", "concurrent", "configparser", "ctypes", "datetime", "fcntl", "fileinput", "getpass", "glob",
    "http", "importlib", "io", "logging", "mmap", "multiprocessing", "os", "pathlib", "platform", "queue", "random",
    "resource", "sched", "secrets", "select", "selectors", "shutil", "signal", "socket", "socketserver", "sqlite3",
    "ssl", "subprocess", "sys", "tempfile", "threading", "time", "tomllib", "urllib", "uuid",
}  # fmt: skip
CORE_NEVER_CALLED = {"open", "print", "input", "breakpoint"}
LOCAL_IMPORTS_IN = (
    "cli/",  # as in pyproject: an optional engine is imported where it is asked for
    "engines/",
    "tiers/manifest_reader.py",  # a child process that finds lmdb on the path that its parent passed
)
THREAD_MAKERS = {"Thread", "Timer", "ThreadPoolExecutor", "ThreadPool", "start_new_thread"}
THREADS_IN = {"store/mover.py", "daemon/server.py", "daemon/signals.py", "client/copiers.py", "client/writer.py"}


class Imported(NamedTuple):
    """One imported module, absolute: `from kvstore.core import cost` gives kvstore.core.cost."""

    module: str
    line: int
    is_local: bool  # inside a function


def violations(path: str, source: str) -> list[str]:
    """Every broken rule, as `path:line: what`."""
    tree = ast.parse(source, path)
    imports = list(imported(path, tree))
    found = [
        *_order(path, imports),
        *_third_party(path, imports),
        *_core(path, imports, tree),
        *_local_imports(path, imports),
        *_calls(path, tree),
    ]
    return [f"{path}:{line}: {what}" for line, what in sorted(set(found))]


def room_of(path: str) -> str:
    """`core/policies/lru.py` is in core, `config.py` in config, `__init__.py` is the root."""
    first = PurePosixPath(path).parts[0]
    return first.removesuffix(".py")


def imported(path: str, tree: ast.AST) -> Iterator[Imported]:
    package = ["kvstore", *PurePosixPath(path).parts[:-1]]
    for node, is_local in _walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Imported(alias.name, node.lineno, is_local)
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                base = package[: len(package) - node.level + 1] + base
            for alias in node.names:
                yield Imported(".".join([*base, alias.name]), node.lineno, is_local)


def _walk(node: ast.AST, is_local: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    yield node, is_local
    inside = is_local or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, inside)


def _order(path: str, imports: list[Imported]) -> Iterator[tuple[int, str]]:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        for module, line, _ in imports:
            if room == "__init__" and module.startswith("kvstore.") and not module.startswith(ROOT_MAY_IMPORT):
                yield line, f"kvstore/__init__.py exports {module}: only client, presets and errors are for users"
        return
    if room not in LEVEL and room not in ANYONE_MAY_IMPORT:
        yield 1, f"{room} is not a room of the house"
        return
    for module, line, _ in imports:
        parts = module.split(".")
        if parts[0] != "kvstore":
            continue
        target = parts[1] if len(parts) > 1 else ""
        if target in ANYONE_MAY_IMPORT or (target == room and room in LEVEL):
            continue
        if target not in LEVEL:
            yield line, f"imports {module}: nobody inside imports the root"
        elif room not in LEVEL or LEVEL[target] <= LEVEL[room]:
            yield line, f"{room} imports {target}: imports point down and never to a neighbour"


def _third_party(path: str, imports: list[Imported]) -> Iterator[tuple[int, str]]:
    for module, line, _ in imports:
        top = module.split(".")[0]
        if top in NOWHERE:
            yield line, f"imports {top}: stored bytes are never code"
        allowed = IMPORTERS.get(top)
        if allowed is not None and not path.startswith(allowed):
            yield line, f"imports {top}: only {', '.join(allowed)} may"


def _core(path: str, imports: list[Imported], tree: ast.AST) -> Iterator[tuple[int, str]]:
    if room_of(path) != "core":
        return
    for module, line, _ in imports:
        top = module.split(".")[0]
        if top in CORE_NEVER:
            yield line, f"core imports {top}: it decides and does not touch the world"
        elif top not in sys.stdlib_module_names and top not in CORE_THIRD_PARTY and top != "kvstore":
            yield line, f"core imports {top}: only the standard library and xxhash"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CORE_NEVER_CALLED:
            yield node.lineno, f"core calls {node.func.id}()"


def _local_imports(path: str, imports: list[Imported]) -> Iterator[tuple[int, str]]:
    for module, line, is_local in imports:
        if is_local and not path.startswith(LOCAL_IMPORTS_IN):
            yield line, f"imports {module} inside a function"


def _calls(path: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = _name(node.func)
            is_bare = isinstance(node.func, ast.Name)
            if name in NEVER_CALLED and (is_bare or name == "import_module"):
                yield node.lineno, f"calls {name}(): imports and data are never strings to run"
            if name == "load" and isinstance(node.func, ast.Attribute) and _name(node.func.value) == "torch":
                yield node.lineno, "calls torch.load(): it unpickles"
            if name in THREAD_MAKERS and path not in THREADS_IN:
                yield node.lineno, f"makes a {name}: threads are made in {', '.join(sorted(THREADS_IN))} only"
        elif isinstance(node, ast.ClassDef) and path not in THREADS_IN:
            for base in node.bases:
                if _name(base) in THREAD_MAKERS:
                    yield node.lineno, f"class {node.name} is a {_name(base)}: threads are made elsewhere"


def _name(node: ast.expr) -> str:
    """Last name of a dotted expression: Thread of `threading.Thread`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
