"""`mixed`: all the others at once, each session routed to V4-Flash or V4-Pro; `layout_of` tells which.

Routing, after the advice of the model's report: the simple and frequent to Flash, the hardest and the agents' long work
to Pro. The shares are assumptions. Caches of the two models share nothing, so neither do ids here: a shared system
prompt has one chain a layout. A request's kind is `chat@v4-flash`, so a table by kind is one by layout too; simulate
the two parts on their own (`kvstore workload mixed --layout v4-pro`), because one store's bytes hold both but one
simulation has one layout.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from kvstore.sim.trace import Trace, TraceRequest
from kvstore.sim.workloads.agentic_search import AGENTIC_SEARCH
from kvstore.sim.workloads.chat import CHAT
from kvstore.sim.workloads.code_agent import CODE_AGENT
from kvstore.sim.workloads.office_zh import OFFICE_ZH
from kvstore.sim.workloads.rag import RAG
from kvstore.sim.workloads.think_high import THINK_HIGH
from kvstore.sim.workloads.think_max import THINK_MAX
from kvstore.sim.workloads.workload import Place, Workload

FLASH, PRO = "v4-flash", "v4-pro"
LAYOUTS = (FLASH, PRO)


class Share(NamedTuple):
    workload: Workload
    sessions: float  # of all sessions
    flash: float  # of these, served by Flash


SHARES = (
    Share(CHAT, 0.45, 1.0),
    Share(RAG, 0.2, 1.0),
    Share(OFFICE_ZH, 0.12, 0.8),
    Share(THINK_HIGH, 0.12, 0.5),
    Share(AGENTIC_SEARCH, 0.06, 0.5),
    Share(CODE_AGENT, 0.03, 0.3),
    Share(THINK_MAX, 0.02, 0.0),
)


def session(place: Place) -> None:
    chosen = place.chance.choices(SHARES, [share.sessions for share in SHARES])[0]
    layout = FLASH if place.chance.random() < chosen.flash else PRO
    chosen.workload.session(replace(place, layout=layout))


def layout_of(request: TraceRequest) -> str:
    """Which model serves a request of `mixed`; empty for other traces."""
    return request.kind.partition("@")[2]


def only(trace: Trace, layout: str) -> Trace:
    """The requests that one model serves, at the times of the whole trace counted from the first of them."""
    kept = [request for request in trace.requests if layout_of(request) == layout]
    first = kept[0].at if kept else 0.0
    return replace(trace, requests=[replace(one, at=round(one.at - first, 3)) for one in kept])


MIXED = Workload("mixed", "all of these, routed to Flash and Pro", session, sessions_a_second=1.0)
