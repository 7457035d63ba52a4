"""`kvstore policy` as an operator sees it, against a real daemon."""

from __future__ import annotations

import json
import tomllib

import pytest
from cli_runner import run
from daemon_peer import Peer, body, config_at

from kvstore.cli.policy import shown, told
from kvstore.config import load_config
from kvstore.daemon.opening import open_daemon
from kvstore.rpc.generated import admin_pb2 as pb


@pytest.fixture
def address(tmp_path):
    tmp_path.chmod(0o700)
    daemon = open_daemon(config_at(tmp_path))
    peer = Peer(daemon.address.target)
    peer.say_hello()
    peer.put(peer.chain(5), [body(block) for block in range(5)])
    yield daemon.address.target
    peer.channel.close()
    daemon.stop(0.0)


def test_it_shows_changes_and_says_what_was_before(address):
    said = run("policy", "--connect", address)
    assert said.exit_code == 0, said.stderr
    assert said.stdout.splitlines() == [
        "policy        lru",
        "keep_seconds  0",
        "placement     adaptive",
        "replay        true",
        "it ranks all 5 objects",
        "the store chooses by itself",
    ]
    said = run("policy", "arc", "--keep-seconds", "60", "--connect", address)
    assert said.stdout.splitlines() == [
        "policy        arc, was lru",
        "keep_seconds  60, was 0",
        "placement     adaptive",
        "replay        true",
        "it ranks all 5 objects",
        'this ends with the daemon: to keep it, put into its config [evict] policy = "arc", [evict] keep_seconds = 60',
    ]
    assert "policy        arc\nkeep_seconds  60\n" in run("policy", "--connect", address).stdout
    assert "nothing changed: it was so before" in run("policy", "arc", "--connect", address).stdout


def test_json_says_all_that_the_daemon_said(address):
    facts = json.loads(run("policy", "--connect", address, "--json").stdout)
    assert set(facts) == set(pb.PolicyInCharge.DESCRIPTOR.fields_by_name)
    changed = json.loads(run("policy", "slru", "--no-replay", "--connect", address, "--json").stdout)
    assert (changed["before"], changed["now"]["policy"], changed["now"]["replay"]) == (facts, "slru", False)


def test_what_it_says_to_put_into_the_config_is_what_the_config_takes(address, tmp_path):
    said = run("policy", "ttl", "--keep-seconds", "1.5", "--placement", "interval:512", "--no-replay",
               "--connect", address).stdout  # fmt: skip
    keys = said.splitlines()[-1].partition("its config ")[2].split(", ")
    assert len(keys) == 4
    tree: dict[str, dict[str, object]] = {}
    for key in keys:
        for section, value in tomllib.loads(key.replace("] ", "]\n")).items():
            tree.setdefault(section, {}).update(value)
    lines = []
    for section, values in tree.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    (tmp_path / "c.toml").write_text("\n".join(lines))
    config = load_config(tmp_path / "c.toml", {})
    assert (config.evict.policy, config.evict.keep_seconds) == ("ttl", 1.5)
    assert (config.match.placement.text, config.match.placement.replay) == ("interval:512", False)


def test_errors_are_one_sentence(address, tmp_path):
    said = run("policy", "lfru", "--connect", address)
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr == "kvstore: no policy is called 'lfru': did you mean lru\n"
    said = run("policy", "--keep-seconds", "-3", "--connect", address)
    assert said.exit_code == 2 and "keep_seconds is -3: give it a number from 0 to 86400" in said.stderr
    said = run("policy", "lru", "--connect", f"unix:{tmp_path}/none.sock")
    assert said.exit_code == 2 and "no daemon answers" in said.stderr


def test_a_changeover_that_is_not_over_is_told():
    now = pb.PolicyInCharge(policy="arc", placement="ends", objects=1_000_000, left_to_move=400_000)
    told_of = "400000 of 1000000 objects are still ranked by the policy before: ask again"
    assert told_of in list(shown(now))
    assert told_of in list(told(pb.SetPolicyResponse(before=pb.PolicyInCharge(policy="lru"), now=now)))
