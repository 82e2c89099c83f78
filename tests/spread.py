"""Which tests run in one process, and which begin first."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

DEALT_OUT = (
    "tests/loop/test_crash.py",
    "tests/streams/test_crash_seeds.py",
    "tests/attacks/test_campaign.py",
)
ONE_VLLM = ("tests/graphs/chat/test_vllm_teacher.py", "tests/loop/offline/test_vllm.py")
FIRST = (
    "tests/graphs/chat/test_vllm_teacher.py",
    "tests/loop/demo/test_demo_vllm.py",
    "tests/loop/test_hundred.py",
    "tests/loop/test_crash.py",
    "tests/streams/kafka/test_kafka_log.py",
    "tests/loop/demo/test_demo.py",
)
LAST = ("tests/streams/test_crash_seeds.py", "tests/attacks/test_campaign.py")


class ByFile(LoadScopeScheduling):
    """A file's tests stay together, since its fixtures are dear. All that need a teacher's vLLM share one,
    all that need Kafka one broker; tests of crashes are dealt out one by one.

    pytest-xdist 3.8 has `loadgroup` for this, which has no effect under pytest 9.2: it marks the groups in a
    node id nobody reads.
    """

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)


def scope(nodeid: str) -> str:
    """What the test shares a process with."""
    file, _, test = nodeid.partition("::")
    if file in ONE_VLLM:
        return "vllm"
    if "kafka_log" in file or "[kafka" in test:
        return "kafka"
    return nodeid if file in DEALT_OUT else file


def begins(nodeid: str) -> int:
    """0 for what takes longest, which no process should be left with at the end; 2 for what may be left out
    when there is no time."""
    file = nodeid.partition("::")[0]
    return 0 if file in FIRST else 2 if file in LAST else 1
