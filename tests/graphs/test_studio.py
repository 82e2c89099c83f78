"""The graphs of langgraph.json run on a sample, as `langgraph dev` runs them: JSON in and out, with a
checkpointer of the server's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import MemorySaver

from graphs import studio

ROOT = Path(__file__).parents[2]
INSIDE = {
    "catalog": {"name", "gather", "cluster", "relabel", "assemble"},
    "monitor": {"assess", "diagnose", "record"},
    "curate": {"write", "sieve", "rewrite", "solve", "filter", "assemble"},
    "teach": {"standing", "decide", "open"},
}
NAMED: dict[str, str] = json.loads((ROOT / "langgraph.json").read_text())["graphs"]


def run(name: str, given: dict[str, Any]) -> Any:
    path, factory = NAMED[name].split(":")
    assert (ROOT / path).samefile(studio.__file__)
    graph = getattr(studio, factory)()
    assert graph.name == name and {f"run:{node}" for node in INSIDE[name]} <= set(
        graph.get_graph(xray=True).nodes
    )
    assert graph.get_input_jsonschema()["properties"] and graph.get_context_jsonschema() is None
    graph.checkpointer = MemorySaver()
    thread = {"configurable": {"thread_id": "1"}}
    ended = graph.invoke(given, thread)
    assert graph.get_state(thread).values == json.loads(json.dumps(ended))
    return ended


@pytest.mark.parametrize("name", NAMED)
def test_each_graph_runs_on_its_own_sample(name: str) -> None:
    ended = run(name, {})
    if name == "catalog":
        assert ended["result"]["labels"]["0"] == ["addition"] and not ended["result"]["unlabelled"]
    elif name == "monitor":
        verdicts = [result["verdict"] for result in ended["results"]]
        assert verdicts == ["correct", "correct", "incorrect", "correct", "incorrect"]
        assert ended["results"][2]["missing"] == ["multiplication"]
    elif name == "teach":
        assert ended["decision"]["kind"] == "select"
        assert [target["skill"] for target in ended["decision"]["skills"]] == ["division"]
    else:
        assert {example["provenance"]["strategy"] for example in ended["result"]["examples"]} == {
            "select",
            "synthesize",
        }


def test_a_graph_runs_on_what_it_is_given() -> None:
    ended = run("monitor", {"outputs": [{"question": "What is 3 * 3?", "answer": "6"}]})
    assert [(result["verdict"], result["missing"]) for result in ended["results"]] == [
        ("incorrect", ["multiplication"])
    ]
