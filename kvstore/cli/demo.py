"""`kvstore demo`: two DeepSeek-V4 workers share an agent prompt through a real daemon, and every answer is checked.

Starts `kvstore serve` on a Unix socket in a temporary folder and four worker processes; tells them what to ask, stops
the daemon, starts it again, and kills it in the middle of a request. Each answer is compared, bit for bit, with the
cold run of the same worker. Exit code 0 if all are identical and every hit came from where it should.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.status import Status
from rich.table import Table

from kvstore.cli.demo_processes import DaemonProcess, DemoFailed, WorkerProcess
from kvstore.cli.demo_text import AGENT_PROMPT_TOKENS, DemoTexts, demo_texts
from kvstore.core.sizes import format_size

BLOCK_TOKENS = 128
FIRST_ANSWER_TOKENS = 220  # A's: ends beyond a boundary inside the output, where its next turn resumes
ANSWER_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Step:
    """One answered request. Tokens and seconds."""

    name: str
    prompt_tokens: int
    resumed_tokens: int
    recomputed_tokens: int
    tier: str | None  # the coldest that was read; None where nothing was
    ttft_s: float
    cold_ttft_s: float
    output_tokens: int
    identical: bool  # tokens and every bit of all logits equal the cold run's
    expected: bool  # it resumed where, and was read from where, this demo says
    note: str
    shared_bytes: int  # of the hit, copied out of memory shared with the daemon
    streamed_bytes: int  # of the hit, over gRPC


def demo_command(
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Run the whole path on this machine: daemon, disk, four workers, a restart and a kill. About a minute."""
    raise typer.Exit(demo(json_output))


def demo(json_output: bool) -> int:
    """Run the demo and print what came of it; the process's exit code."""
    told = Console(stderr=True)
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        told.print(f"kvstore demo needs {' and '.join(missing)}: pip install 'kvstore[demo]'", markup=False)
        return 1
    began = time.perf_counter()
    try:
        with told.status("starting the daemon and four workers ...") as status, _folder() as folder:
            steps, ready_s = _run(folder, status)
    except DemoFailed as failure:
        told.print(f"kvstore demo stopped: {failure}", markup=False)
        return 1
    identical = all(step.identical for step in steps)
    if json_output:
        print(json.dumps(_report(steps, identical, ready_s, time.perf_counter() - began)))
    else:
        _print_table(steps, time.perf_counter() - began)
    for step in steps:
        if not step.expected:
            told.print(f"{step.name}: expected to be {step.note}; it was not", markup=False)
    return 0 if identical and all(step.expected for step in steps) else 1


def _run(folder: Path, status: Status) -> tuple[list[Step], float]:
    """The six steps of the story; the answered ones, and how long the daemon took to be ready."""
    texts = demo_texts()
    with ExitStack() as stack:
        daemon = stack.enter_context(DaemonProcess(folder))
        workers = {name: stack.enter_context(WorkerProcess(name, daemon.address, folder)) for name in "abcd"}
        ready_s = daemon.wait_until_ready()
        for worker in workers.values():
            worker.wait_until_ready()

        status.update("worker A reads the agent prompt cold and answers ...")
        first = _ask(workers["a"], _prompt(texts, "a"), FIRST_ANSWER_TOKENS)
        steps = [_step("A, first turn", first, 0, None, "cold")]

        status.update("worker B asks another question under the same agent prompt ...")
        second = _ask(workers["b"], _prompt(texts, "b"), ANSWER_TOKENS)
        steps.append(_step("B, same prompt", second, AGENT_PROMPT_TOKENS, "host", "resumed at the agent prompt's end"))

        status.update("worker A goes on with a tool result ...")
        transcript = _prompt(texts, "a") + [int(token) for token in _list(first, "output")]
        third = _ask(workers["a"], transcript + texts.tool_result, ANSWER_TOKENS)
        inside_output = len(transcript) // BLOCK_TOKENS * BLOCK_TOKENS
        steps.append(_step("A, next turn", third, inside_output, "host", "resumed inside its first output"))

        status.update("the daemon stops and starts again; worker C asks ...")
        daemon.stop()
        daemon.start()
        daemon.wait_until_ready()
        fourth = _ask(workers["c"], _prompt(texts, "c"), ANSWER_TOKENS)
        steps.append(_step("C, restarted", fourth, AGENT_PROMPT_TOKENS, "disk", "resumed from disk"))

        status.update("the daemon is killed in the middle of worker D's request ...")
        workers["d"].ask(_request("d", _prompt(texts, "d"), ANSWER_TOKENS, pause=True))
        looked_up = workers["d"].told("looked up")
        daemon.kill()
        workers["d"].go_on()
        fifth = workers["d"].told("done")
        planned = looked_up.get("planned_tokens") == AGENT_PROMPT_TOKENS
        step = _step("D, store killed", fifth, 0, None, "promised a hit, and cold after the kill", planned)
        return [*steps, step], ready_s


def _prompt(texts: DemoTexts, worker: str) -> list[int]:
    return texts.agent_prompt + texts.questions[worker]


def _request(session: str, prompt: list[int], count: int, *, pause: bool) -> dict[str, object]:
    return {"prompt": prompt, "max_new_tokens": count, "session": session, "pause": pause}


def _ask(worker: WorkerProcess, prompt: list[int], count: int) -> dict[str, object]:
    worker.ask(_request(worker.name, prompt, count, pause=False))
    return worker.told("done")


def _step(name: str, done: dict[str, object], resumed: int, tier: str | None, note: str, planned: bool = True) -> Step:
    return Step(
        name=name,
        prompt_tokens=_int(done, "prompt_tokens"),
        resumed_tokens=_int(done, "resumed_tokens"),
        recomputed_tokens=_int(done, "recomputed_tokens"),
        tier=None if done["tier"] is None else str(done["tier"]),
        ttft_s=_float(done, "ttft_s"),
        cold_ttft_s=_float(done, "cold_ttft_s"),
        output_tokens=len(_list(done, "output")),
        identical=done["identical"] is True,
        expected=planned and done["resumed_tokens"] == resumed and done["tier"] == tier,
        note=note,
        shared_bytes=_int(done, "shared_bytes"),
        streamed_bytes=_int(done, "streamed_bytes"),
    )


def _int(done: dict[str, object], key: str) -> int:
    value = done[key]
    assert isinstance(value, int)
    return value


def _float(done: dict[str, object], key: str) -> float:
    value = done[key]
    assert isinstance(value, float)
    return value


def _list(done: dict[str, object], key: str) -> list[int]:
    value = done[key]
    assert isinstance(value, list)
    return value


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="kvstore-demo-"))  # short: a Unix socket's path has about 100 bytes
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _report(steps: list[Step], identical: bool, ready_s: float, seconds: float) -> dict[str, object]:
    return {
        "identical": identical,
        "steps": [asdict(step) for step in steps],
        "agent_prompt_tokens": AGENT_PROMPT_TOKENS,
        "shared_bytes": sum(step.shared_bytes for step in steps),
        "streamed_bytes": sum(step.streamed_bytes for step in steps),
        "daemon_ready_s": ready_s,
        "seconds": seconds,
    }


def _print_table(steps: list[Step], seconds: float) -> None:
    # 80 columns hold it: no inner lines, headings on two rows; TTFT is from the call to the first token
    table = Table(
        title=f"An agent prompt of {AGENT_PROMPT_TOKENS:,} tokens, shared by four workers",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("who", no_wrap=True)
    for column in ("prompt\ntokens", "resumed", "recomputed"):
        table.add_column(column, justify="right")
    table.add_column("tier")
    for column in ("TTFT ms\ncold", "TTFT ms\nstore"):
        table.add_column(column, justify="right")
    table.add_column("identical")
    for step in steps:
        table.add_row(
            step.name,
            f"{step.prompt_tokens:,}",
            f"{step.resumed_tokens:,}",
            f"{step.recomputed_tokens:,}",
            step.tier or "-",
            f"{step.cold_ttft_s * 1000:,.0f}",
            f"{step.ttft_s * 1000:,.0f}",
            "yes" if step.identical else "NO",
        )
    Console(file=sys.stdout).print(table)
    shared = format_size(sum(step.shared_bytes for step in steps))
    streamed = format_size(sum(step.streamed_bytes for step in steps))
    print(f"The hits' bytes: {shared} copied out of memory shared with the daemon, {streamed} streamed over gRPC.")
    print(f"Identical: tokens and every bit of all logits equal the cold run's. Took {seconds:.0f} s.")
