"""Workers that start at the same moment set up once what they share."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, ClassVar

from agent.catalog import SkillCatalog
from graphs.testing.scripted import ScriptedTeacher
from loop.backends import prepare
from loop.config import load
from loop.doors import REGISTRIES
from loop.tasks.task import Task
from loop.wiring import open_services, set_up_student
from loop.workers.services import Ports
from serving.scripted_engine import ScriptedEngine


class Careless:
    """A registry that, like MLflow, breaks when two processes make its tables, or its first version, at
    once."""

    made: ClassVar[list[str]] = []
    inside = 0

    def __init__(self) -> None:
        self._slowly("tables")

    def register_base(self, base_dir: Path) -> Any:
        self._slowly("base")
        return type("Base", (), {"version": 1})

    def _slowly(self, what: str) -> None:
        if what in Careless.made:
            return
        Careless.inside += 1
        time.sleep(0.05)
        assert Careless.inside == 1, f"two make the {what}"
        Careless.made.append(what)
        Careless.inside -= 1


REGISTRIES.add("careless", lambda section, student, root: Careless())  # type: ignore[arg-type, return-value]


def test_the_registry_is_opened_and_the_base_registered_by_one_process_at_a_time(tmp_path: Path) -> None:
    config = load(None, {"SKILLLOOP_REGISTRY__KIND": "careless"})
    task = Task(SkillCatalog.of(("add", "")), (), (), lambda right, answer: None, ScriptedTeacher(), tmp_path)
    engine, trainer = ScriptedEngine(lambda prompt, version, sample: ""), type("NoTrainer", (), {})
    ports = Ports(task=task, engine=engine, trainer=trainer)  # type: ignore[arg-type]
    together, routes = threading.Barrier(3), []

    def start() -> None:
        together.wait()
        with open_services(config, tmp_path, ports) as services:
            set_up_student(services)
            routes.append(services.rounds.route(services.student))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert routes == [(1, None)] * 3 and Careless.made == ["tables", "base"]


def test_a_directory_can_be_prepared_by_many_at_once(tmp_path: Path) -> None:
    together, prepared = threading.Barrier(6), []

    def start() -> None:
        together.wait()
        prepared.extend(prepare(tmp_path / "run") for _ in range(200))

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(prepared) == 1200 and not list((tmp_path / "run").iterdir())
