"""The demo's texts: their length is a promise (18 blocks), and every token fits the model."""

from kvstore.cli.demo_text import AGENT_PROMPT_TOKENS, demo_texts, encode


def test_the_agent_prompt_is_eighteen_whole_blocks():
    assert len(demo_texts().agent_prompt) == AGENT_PROMPT_TOKENS == 18 * 128


def test_every_worker_asks_something_else_in_tokens_of_the_vocabulary():
    texts = demo_texts()
    assert len({tuple(question) for question in texts.questions.values()}) == 4
    for tokens in (texts.agent_prompt, texts.tool_result, *texts.questions.values()):
        assert all(0 <= token < 2048 for token in tokens)


def test_bytes_never_meet_markers():
    assert min(encode("\x00")) == 16 and max(encode("ÿ")) < 16 + 256
