"""Which tests run in one process, and which begin first."""

from __future__ import annotations

import zlib

from xdist.scheduler import LoadScopeScheduling

DEALT_OUT = "tests/loop/test_crash.py"
FIRST = (
    "tests/streams/test_crash_seeds.py",
    "tests/loop/test_hundred.py",
    "tests/graphs/chat/test_vllm_teacher.py",
    "tests/loop/offline/test_vllm.py",
    DEALT_OUT,
    "tests/streams/kafka/test_kafka_log.py",
    "tests/loop/demo/test_demo.py",
)


class ByFile(LoadScopeScheduling):
    """A file's tests stay together, since its fixtures are dear. All that need vLLM share one server, all
    that need Kafka one broker; the long crash tests are dealt out.

    pytest-xdist 3.8 has `loadgroup` for this, which has no effect under pytest 9.2: it marks the groups in a
    node id nobody reads.
    """

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)


def scope(nodeid: str) -> str:
    """What the test shares a process with."""
    file, _, test = nodeid.partition("::")
    if "vllm" in file:
        return "vllm"
    if "kafka_log" in file or "[kafka" in test:
        return "kafka"
    return f"{file} {zlib.crc32(test.encode()) % 3}" if file == DEALT_OUT else file


def begins_first(nodeid: str) -> bool:
    """Whether the test is one of those that take longest: no process should be left with it at the end."""
    return nodeid.partition("::")[0] in FIRST
