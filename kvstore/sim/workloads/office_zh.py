"""`office-zh`: Chinese white-collar document tasks over shared templates; all of its tokens are real Chinese text.

A company's rules and one of eight templates (`office_text.py`, sentences of our own) stand in front and are shared;
then come material of the task and a wish; revisions follow. Thinking without tools, so each turn strips the reasoning
of the one before it: V4-CACHE section 6. Assumptions: Think High in a 128K window; one token a character; six
companies, each with its own name in its rules; templates popular by Zipf; material of 2,500 characters in the median;
reasoning of 800 tokens and documents of 1,200 in the median; three turns a task; pauses as in `chat`.
"""

from __future__ import annotations

from functools import lru_cache

from kvstore.core.match import InferenceMode
from kvstore.sim.workloads import office_text
from kvstore.sim.workloads.chance import Quantiles, drawn, popular, tokens
from kvstore.sim.workloads.content import written
from kvstore.sim.workloads.measured import USER_PAUSE
from kvstore.sim.workloads.session import Conversation, Who
from kvstore.sim.workloads.workload import Place, Workload

WINDOW = 128 << 10
COMPANIES = ("华远制造", "南星物流", "启明软件", "和康医药", "东岭能源", "百川商贸")
GOES_ON = 0.67
MATERIAL: Quantiles = ((0.0, 400), (0.5, 2500), (0.9, 12_000), (1.0, 40_000))
REASONING: Quantiles = ((0.0, 100), (0.5, 800), (0.9, 4000), (1.0, 12_000))
DOCUMENT: Quantiles = ((0.0, 150), (0.5, 1200), (0.9, 3500), (1.0, 8000))
TITLES = tuple(office_text.TEMPLATES)


def session(place: Place) -> None:
    chance = place.chance
    who = Who(place.session, "office-zh", InferenceMode.THINK_HIGH, WINDOW, layout=place.layout)
    talked = Conversation(place.scribe, who)
    talked.add(rules(COMPANIES[popular(chance, len(COMPANIES))]))
    talked.shared_until_here()
    title = TITLES[popular(chance, len(TITLES))]
    talked.add(template(title))
    talked.shared_until_here()
    said = f"材料如下：\n{office_text.prose(chance, tokens(chance, MATERIAL), title)}\n"
    at = place.start
    while True:
        said += office_text.wish(chance, title, is_first=not talked.turn)
        reasoning = office_text.prose(chance, tokens(chance, REASONING), title)
        document = office_text.prose(chance, tokens(chance, DOCUMENT), title)
        ended = talked.ask(at, written(said), written(reasoning), written(document))
        if ended is None or chance.random() >= GOES_ON:
            return
        at, said = ended + drawn(chance, USER_PAUSE), ""


@lru_cache(maxsize=len(COMPANIES))
def rules(company: str) -> bytes:
    return written(f"{company}公司文书规范\n" + "\n".join(office_text.RULES) + "\n")


@lru_cache(maxsize=len(TITLES))
def template(title: str) -> bytes:
    return written(office_text.template_text(title))


OFFICE_ZH = Workload("office-zh", "Chinese document tasks over shared templates", session, sessions_a_second=0.3)
