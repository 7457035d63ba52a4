"""Made-up traffic with known structure, one file a workload: what the model's report describes, without its prompts."""

from __future__ import annotations

from difflib import get_close_matches

from kvstore.core.errors import InvalidInput
from kvstore.sim.workloads.agentic_search import AGENTIC_SEARCH
from kvstore.sim.workloads.chat import CHAT
from kvstore.sim.workloads.code_agent import CODE_AGENT
from kvstore.sim.workloads.mixed import MIXED
from kvstore.sim.workloads.office_zh import OFFICE_ZH
from kvstore.sim.workloads.rag import RAG
from kvstore.sim.workloads.think_high import THINK_HIGH
from kvstore.sim.workloads.think_max import THINK_MAX
from kvstore.sim.workloads.workload import Workload, trace_of, whole_sessions

__all__ = ["WORKLOADS", "Workload", "trace_of", "whole_sessions", "workload_named"]

WORKLOADS = {one.name: one for one in (CHAT, THINK_HIGH, THINK_MAX, AGENTIC_SEARCH, RAG, CODE_AGENT, OFFICE_ZH, MIXED)}


def workload_named(name: str) -> Workload:
    """InvalidInput names the nearest where there is none of that name."""
    if name in WORKLOADS:
        return WORKLOADS[name]
    near = get_close_matches(name, WORKLOADS, 1)
    remedy = f"did you mean {near[0]}?" if near else f"choose {', '.join(WORKLOADS)}"
    raise InvalidInput(f"workload {name} is unknown: {remedy}")
