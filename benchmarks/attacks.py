"""Every attack by name, with its figure before it was mended and what its tests see now.

    KAFKA_HOME=... python -m benchmarks.attacks [WORDS]

The figures of before are those that were measured when the attack was found. The tests are in tests/attacks/
and beside the code that they attack; they run against a real Kafka and PostgreSQL where an attack needs one,
and in CI with all others. With WORDS only the attacks whose names contain one of them run. The exit status
says whether all held; an attack whose tests were skipped has not held.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from rich.console import Console
from rich.table import Table

A = "tests/attacks"
CONSUME = "tests/streams/test_consume.py"
KAFKA = "tests/streams/kafka/test_kafka_log.py"


@dataclass(frozen=True)
class Attack:
    """One attack: its point, what it did, what it does, and the tests that show it."""

    point: int
    name: str
    before: str
    now: str
    tests: tuple[str, ...]


ATTACKS = (
    Attack(
        1,
        "poison letter",
        "monitor exits 1 at every start",
        "letter bounded, row set aside",
        (
            f"{A}/test_poison_letters.py::test_every_letter_fits_into_its_topic",
            f"{A}/test_poison_letters.py::test_one_row_that_the_log_refuses_stops_nothing_else",
            f"{A}/test_poison_letters.py::test_an_outbox_id_that_is_not_text_is_looked_over",
            f"{KAFKA}::test_a_record_larger_than_the_topic_takes_is_refused_and_the_next_one_passes",
        ),
    ),
    Attack(
        2,
        "codecs",
        "snappy, lz4: error at every start",
        "4 of 4 codecs read",
        (
            f"{KAFKA}::test_records_in_every_codec_are_read",
            f"{A}/test_compressed_batches.py::test_every_codec_unpacks_up_to_its_limit",
            f"{A}/test_compressed_batches.py::test_no_codec_is_missing_with_the_kafka_extra",
        ),
    ),
    Attack(
        3,
        "PostgreSQL restarts",
        "53 of 64 dead-lettered",
        "0 of 64",
        (f"{A}/test_outages.py::test_a_database_that_restarts_makes_no_dead_letter",),
    ),
    Attack(
        3,
        "full disk under the reply cache",
        "40 of 40 dead-lettered",
        "0 of 40",
        (f"{A}/test_outages.py::test_a_full_disk_under_the_reply_cache_makes_no_dead_letter",),
    ),
    Attack(
        3,
        "unreadable pauses and bills of a teacher",
        "all dead-lettered",
        "waits, asks again",
        (
            f"{A}/test_a_hostile_teacher.py::test_no_pause_that_a_server_asks_for_holds_anybody_up",
            f"{CONSUME}::test_a_transient_failure_pauses_and_never_makes_a_dead_letter",
        ),
    ),
    Attack(
        3,
        "log away when a monitor starts",
        "monitor exits 1",
        "waits and says so",
        (f"{A}/test_servers_that_are_away_at_the_start.py",),
    ),
    Attack(
        3,
        "members polled seldom after an outage",
        "100 rebalances, no record for 3 min",
        "at rest within 30 polls",
        (f"{A}/test_an_expelled_member.py",),
    ),
    Attack(
        4,
        "topic made anew",
        "200 of 300 lost in silence",
        "stops, adopted knowingly",
        (
            f"{A}/test_topics_made_anew.py",
            f"{KAFKA}::test_a_topic_made_anew_has_another_identity_and_stops_its_reader",
        ),
    ),
    Attack(
        5,
        "bomb of 700 MiB",
        "2.2 GiB of memory",
        "< 150 MiB, a dead letter",
        (
            f"{A}/test_compressed_batches.py::test_a_bomb_becomes_one_record_that_says_so_and_the_next_batch_is_read",
        ),
    ),
    Attack(5, "a long answer", "11 s for 8 KB", "linear", (f"{A}/test_long_answers.py",)),
    Attack(
        5,
        "a million headers, 256 failures",
        "quadratic",
        "linear",
        (
            f"{A}/test_compressed_batches.py::test_a_million_empty_headers_are_read_in_linear_time",
            f"{A}/test_many_failures.py",
        ),
    ),
    Attack(
        6,
        "a reply that drips",
        "outlives timeout_s",
        "given up in time",
        (f"{A}/test_a_hostile_teacher.py::test_a_reply_that_drips_is_given_up_after_the_time_limit",),
    ),
    Attack(6, "SIGTERM", "67 s in training, 98 s without MLflow", "< 10 s", (f"{A}/test_sigterm.py",)),
    Attack(
        7,
        "undecided answers, evaluations of others",
        "0 %, identical challenger promoted",
        "left out; measured anew",
        (
            f"{A}/test_evaluations_of_others.py",
            "tests/training/test_gate.py::test_undecided_answers_are_not_wrong_ones",
        ),
    ),
    Attack(
        8,
        "secrets in messages, folders, redirects",
        "printed",
        "masked, 0700, not followed",
        (
            f"{A}/test_secrets.py",
            "tests/loop/test_config.py::test_a_secret_may_look_like_a_number_and_is_never_shown",
            f"{A}/test_a_hostile_teacher.py::test_the_key_and_the_texts_follow_no_redirect",
        ),
    ),
    Attack(
        9,
        'source = "diagnoses"',
        "year 9999 stops all rounds",
        "refused alone",
        (
            "tests/loop/workers/test_external.py",
            "tests/loop/workers/test_decide.py::test_a_bucket_outside_of_time_does_not_stop_the_policy",
        ),
    ),
    Attack(
        10,
        "dlq redrive",
        "4 letters become 256",
        "4 stay 4",
        (f"{A}/test_poison_letters.py::test_six_redrives_of_four_failing_letters_leave_four",),
    ),
    Attack(
        11,
        "two students number from 1",
        "100 of 200 lost",
        "0 of 200",
        (f"{A}/test_two_students_with_the_same_ids.py",),
    ),
    Attack(
        12,
        "clocks",
        "0.5 s last 3,602 s; 5 rows sent as 10",
        "0.5 s; 5",
        (f"{A}/test_clocks.py",),
    ),
    Attack(
        12,
        "curate without a teacher",
        "2,000 answers a second again",
        "once",
        (f"{A}/test_a_teacher_that_is_away.py",),
    ),
    Attack(
        13,
        "ingest of files that change",
        "2 of 3; 99 of 150 lost",
        "0 lost",
        (f"{A}/test_files_that_change.py",),
    ),
    Attack(
        14,
        "a reply without usage",
        "booked as 0",
        "booked as reserved",
        (
            f"{A}/test_a_hostile_teacher.py::test_a_call_without_a_bill_is_booked_at_the_most_it_can_have_cost",
        ),
    ),
    Attack(
        15,
        "a step with a long history",
        "1.08 s at 200,000 rows",
        "reads new rows only",
        (
            "tests/loop/workers/test_watch.py::test_a_look_reads_only_rows_that_are_new",
            "tests/loop/cli/test_cli_store.py",
            "tests/streams/state/test_seen.py",
        ),
    ),
    Attack(16, "unicode in fences", "fence imitated", "never", (f"{A}/test_unicode_fences.py",)),
)


@dataclass(eq=False)
class Outcomes:
    """A pytest plugin that keeps what each test did."""

    seen: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst outcome of a test's phases, its time, and the figure that it measured."""
        name = report.nodeid
        self.seconds[name] = self.seconds.get(name, 0.0) + report.duration
        if report.outcome != "passed" or name not in self.seen:
            self.seen[name] = report.outcome
        for key, value in report.user_properties:
            if key == "measured":
                self.measured[name] = str(value)

    def of(self, attack: Attack) -> list[str]:
        """The tests of an attack that ran."""
        return [name for name in self.seen if any(belongs(name, test) for test in attack.tests)]


def belongs(name: str, test: str) -> bool:
    """Whether a test is, or is a case of, or is in the file `test`."""
    return name == test or name.startswith((f"{test}::", f"{test}["))


def row(attack: Attack, outcomes: Outcomes) -> tuple[list[str], bool]:
    """An attack's line, and whether it held."""
    names = outcomes.of(attack)
    passed = sum(outcomes.seen[name] == "passed" for name in names)
    held = bool(names) and passed == len(names)
    figure = "; ".join(outcomes.measured[name] for name in names if name in outcomes.measured)
    seconds = sum(outcomes.seconds[name] for name in names)
    shown = f"{passed} of {len(names)} in {seconds:.1f} s"
    return [str(attack.point), attack.name, attack.before, figure or attack.now, shown], held


def main(words: Sequence[str]) -> int:
    """Run the tests once, then print the table."""
    chosen = [attack for attack in ATTACKS if not words or any(word in attack.name for word in words)]
    tests = sorted({test for attack in chosen for test in attack.tests})
    outcomes = Outcomes()
    quiet = ["-q", "-rfEs", "--tb=short", "--no-header", "--continue-on-collection-errors"]
    pytest.main([*quiet, "-p", "no:cacheprovider", *tests], plugins=[outcomes])
    table = Table("point", "attack", "before", "now", "tests", "", title="attacks of issue 12")
    held = []
    for attack in chosen:
        cells, holds = row(attack, outcomes)
        table.add_row(*cells, "ok" if holds else "NO")
        held.append(holds)
    Console(width=120).print(table)
    return int(not all(held))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
