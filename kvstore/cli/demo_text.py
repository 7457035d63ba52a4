"""The demo's texts as token ids: one id a byte, and a few markers. Shipped with the package, pure.

The agent prompt (system prompt and tool definitions) is 2,304 tokens with its first marker: 18 blocks of 128, and
the breakpoint that every request names.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import NamedTuple

START, USER, ASSISTANT, TOOL = 0, 2, 3, 4  # 1 ends a text; the demo's model never stops at it
BYTE_OFFSET = 16  # ids below are markers

AGENT_PROMPT_TOKENS = 2304


class DemoTexts(NamedTuple):
    """Token ids of everything that the demo says."""

    agent_prompt: list[int]
    questions: dict[str, list[int]]  # by worker, markers included: the user's turn, then the assistant's mark
    tool_result: list[int]


def demo_texts() -> DemoTexts:
    """Read the shipped texts.

    >>> texts = demo_texts()
    >>> len(texts.agent_prompt), sorted(texts.questions)
    (2304, ['a', 'b', 'c', 'd'])
    """
    folder = files("kvstore.cli")
    requests: dict[str, str] = json.loads(folder.joinpath("demo_requests.json").read_text("utf-8"))
    tool_result = requests.pop("tool_result")
    agent_prompt = [START, *encode(folder.joinpath("demo_prompt.txt").read_text("utf-8"))]
    assert len(agent_prompt) == AGENT_PROMPT_TOKENS
    questions = {name: [USER, *encode(text), ASSISTANT] for name, text in requests.items()}
    return DemoTexts(agent_prompt, questions, [TOOL, *encode(tool_result), ASSISTANT])


def encode(text: str) -> list[int]:
    """One token a byte of UTF-8.

    >>> encode("Hi")
    [88, 121]
    """
    return [byte + BYTE_OFFSET for byte in text.encode()]
