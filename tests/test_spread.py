"""A file that moves must not lose its place in the order of the test run."""

from __future__ import annotations

from pathlib import Path

from tests.spread import DEALT_OUT, FIRST, LAST, ONE_VLLM, scope

ROOT = Path(__file__).parents[1]


def test_the_files_that_are_named_are_there() -> None:
    assert [file for file in (*FIRST, *LAST, *DEALT_OUT) if not (ROOT / file).exists()] == []


def test_tests_that_share_a_server_share_a_process() -> None:
    tests = (path for path in ROOT.glob("tests/*/**/test_*.py") if "vllm_url: str" in path.read_text())
    users = {str(path.relative_to(ROOT)) for path in tests}
    assert users == set(ONE_VLLM) and {scope(f"{file}::test") for file in users} == {"vllm"}
    assert scope("tests/streams/kafka/test_kafka_log.py::test") == scope(
        "tests/streams/test_event_log.py::test[kafka]"
    )
    assert scope("tests/streams/test_event_log.py::test[local]") == "tests/streams/test_event_log.py"
    assert len({scope(f"{DEALT_OUT[0]}::test[{number}]") for number in range(3)}) == 3
