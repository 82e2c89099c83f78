"""The registry in MLflow: one experiment and one registered model per student. Only importer of mlflow.

MLflow cannot do a step exactly once: creating a run by tag races, and aliases have no compare-and-set. So:
1. the caller keeps UNIQUE(round_id) -> run_id in its own store and passes the run_id back when it resumes;
2. a run created just before a crash is found again by its round_id tag and adopted;
3. a version is looked up by its round_id tag before it is created;
4. one promoter writes the aliases: `previous` first, then `champion`; every call can be repeated.
Version 1 is always the base student itself, without weights, so the champion alias always points somewhere.
"""

from __future__ import annotations

import fcntl
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from serving.adapter_files import ADAPTER_FILES, CorruptAdapter, adapter_sha256
from training.adapters import base_sha256, load_check
from training.errors import RegistryError, RegistryUnavailable
from training.evaluate import Evaluation
from training.gate import GateVerdict
from training.mix import DatasetManifest
from training.versions import Alias, Lineage, VersionInfo

BASE_ROUND = "base"
ARTIFACT = "adapter"
BATCH = 100
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

for _name in ("alembic", "mlflow.store.db", "mlflow.tracking"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@contextmanager
def _tables_made_once(tracking_uri: str) -> Iterator[None]:
    """Workers that start together each find an empty SQLite file, and MLflow's migrations fail when two of
    them run: one process at a time opens the file. The lock goes with its process."""
    if not tracking_uri.startswith("sqlite:"):
        yield
        return
    database = Path(unquote(urlparse(tracking_uri).path).removeprefix("/"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class MlflowRegistry:
    """The `training.versions.Registry` in MLflow.

    `tracking_uri` is `sqlite:////absolute/mlflow.db` or a server's address; `artifact_root` (embedded only)
    is the folder for artifacts, None where a server decides. Raises `RegistryUnavailable` (retry) and
    `RegistryError` (do not) everywhere.
    """

    def __init__(self, tracking_uri: str, student: str, artifact_root: Path | None = None) -> None:
        if not _PLAIN.fullmatch(student):
            raise RegistryError(
                f"student name {student!r} may hold letters, digits, dot, dash and underscore only"
            )
        if not re.match(r"sqlite:////|postgresql(\+\w+)?://|https?://", tracking_uri):
            raise RegistryError(
                f"tracking URI {tracking_uri!r} is neither "
                "an absolute sqlite:////path, PostgreSQL, nor a server"
            )
        self._student = student
        with _translated(f"open {student!r}"), _tables_made_once(tracking_uri):
            self._client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
            self._experiment = self._experiment_id(artifact_root)
            self._create_unless_there(lambda: self._client.create_registered_model(student))

    def register_base(self, base_dir: Path) -> VersionInfo:
        """Make the base student version 1 and champion, unless it already is. Raises `RegistryError` for
        another base."""
        sha256 = base_sha256(base_dir)
        known = self.versions()
        if not known:
            run_id = self.start_run(BASE_ROUND)
            self.log_params(run_id, {"base_dir": base_dir.resolve(), "base_sha256": sha256})
            with _translated("register the base"):
                self._client.log_dict(
                    run_id, {"base_dir": str(base_dir.resolve()), "base_sha256": sha256}, "base/base.json"
                )
                tags = {"kind": "base", "round_id": BASE_ROUND, "base_sha256": sha256}
                self._client.create_model_version(self._student, f"runs:/{run_id}/base", run_id, tags=tags)
            self.finish_run(run_id)
            known = self.versions()
        base = known[0]
        if base.kind != "base" or base.base_sha256 != sha256:
            raise RegistryError(
                f"student {self._student!r} was registered with base {base.base_sha256[:12]}, "
                f"not {sha256[:12]}; use another name"
            )
        if self.alias("champion") is None:
            self._point("champion", base.version)
        return base

    def start_run(self, round_id: str, run_id: str | None = None) -> str:
        """The round's run: the given one resumed, else one found by its round_id tag, else a new one."""
        if not _PLAIN.fullmatch(round_id):
            raise RegistryError(
                f"round id {round_id!r} may hold letters, digits, dot, dash and underscore only"
            )
        with _translated(f"start the run of round {round_id}"):
            if run_id is None:
                query = f"tags.round_id = '{round_id}'"
                found = self._client.search_runs(
                    [self._experiment], query, max_results=1, order_by=["attributes.start_time ASC"]
                )
                run_id = found[0].info.run_id if found else None
            if run_id is None:
                tags = {"round_id": round_id, "student": self._student}
                return str(
                    self._client.create_run(self._experiment, tags=tags, run_name=round_id).info.run_id
                )
            if self._client.get_run(run_id).data.tags.get("round_id") != round_id:
                raise RegistryError(f"run {run_id} does not belong to round {round_id}")
            self._client.update_run(run_id, status="RUNNING")
            return run_id

    def finish_run(self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Close a run; `start_run` opens it again."""
        with _translated(f"finish run {run_id}"):
            self._client.set_terminated(run_id, status)

    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        """Write parameters. The same values again have no effect; another value for a known name is a
        `RegistryError`."""
        rows = [Param(metric_name(key), str(value)) for key, value in params.items()]
        with _translated(f"log parameters of run {run_id}"):
            for start in range(0, len(rows), BATCH):
                self._client.log_batch(run_id, params=rows[start : start + BATCH])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write metrics at a step. They carry the run's start as their time, so that writing them again has
        no effect."""
        with _translated(f"log metrics of run {run_id}"):
            moment = self._client.get_run(run_id).info.start_time
            rows = [Metric(metric_name(key), float(value), moment, step) for key, value in metrics.items()]
            for start in range(0, len(rows), BATCH):
                self._client.log_batch(run_id, metrics=rows[start : start + BATCH])

    def log_evaluation(self, run_id: str, phase: Literal["before", "after"], evaluation: Evaluation) -> None:
        """Write accuracies as `before/skill/add`, `before/stratum/mix_original`, `before/accuracy`, and all
        outcomes as JSON."""
        metrics = {f"{phase}/skill/{skill}": value for skill, value in evaluation.accuracy_by_skill().items()}
        metrics |= {
            f"{phase}/stratum/{stratum}": value for stratum, value in evaluation.accuracy_by_stratum().items()
        }
        self.log_metrics(run_id, metrics | {f"{phase}/accuracy": evaluation.accuracy()})
        self._log_json(run_id, evaluation.model_dump(mode="json"), f"evaluation/{phase}.json")

    def log_manifest(self, run_id: str, manifest: DatasetManifest) -> None:
        """Write what the round trained on; the data itself stays where it is."""
        self._log_json(run_id, manifest.model_dump(mode="json"), "data/manifest.json")

    def log_verdict(self, run_id: str, verdict: GateVerdict) -> None:
        """Write the gate's verdict with its table."""
        self._log_json(run_id, verdict.model_dump(mode="json"), "gate/verdict.json")

    def log_adapter(self, run_id: str, adapter_dir: Path) -> str:
        """Store the adapter's two files with the run; returns their hash. Raises `CorruptAdapter`."""
        load_check(adapter_dir)
        with _translated(f"store the adapter of run {run_id}"):
            for name in ADAPTER_FILES:
                self._client.log_artifact(run_id, str(adapter_dir / name), ARTIFACT)
        return adapter_sha256(adapter_dir)

    def create_version(self, round_id: str, run_id: str, lineage: Lineage) -> VersionInfo:
        """The version of a round, created once, and `challenger` pointing to it."""
        known = {info.round_id: info for info in self.versions()}
        if not known:
            raise RegistryError(
                f"student {self._student!r} has no base version yet; call register_base first"
            )
        if round_id not in known:
            tags = {
                "kind": ARTIFACT,
                "round_id": round_id,
                **{key: str(value) for key, value in vars(lineage).items()},
            }
            with _translated(f"create the version of round {round_id}"):
                self._client.create_model_version(
                    self._student, f"runs:/{run_id}/{ARTIFACT}", run_id, tags=tags
                )
            known = {info.round_id: info for info in self.versions()}
        info = known[round_id]
        if info.sha256 != lineage.adapter_sha256:
            raise RegistryError(
                f"round {round_id} is version {info.version} with adapter {info.sha256[:12]}, "
                f"not {lineage.adapter_sha256[:12]}"
            )
        champion = self.alias("champion")
        if champion is None or champion < info.version:
            self._point("challenger", info.version)
        return info

    def promote(self, version: int) -> VersionInfo:
        """Make a version champion and its predecessor `previous`. Promoting the champion again changes
        nothing."""
        info, champion = self.version(version), self.alias("champion")
        if champion != version:
            if champion is not None:
                self._point("previous", champion)
            self._point("champion", version)
        if self.alias("challenger") == version:
            self._drop("challenger")
        return info

    def rollback(self, version: int) -> VersionInfo:
        """Take `version` back: `previous` becomes champion again. Nothing happens when `version` is not the
        champion.

        Raises `RegistryError` when there is nothing to go back to.
        """
        champion, previous = self.alias("champion"), self.alias("previous")
        if champion == version:
            if previous is None or previous == version:
                raise RegistryError(
                    f"version {version} of {self._student!r} has no predecessor to roll back to"
                )
            self._point("champion", previous)
            champion = previous
        restored = self.champion()
        if previous == champion:
            if restored.parent is None:
                self._drop("previous")
            else:
                self._point("previous", restored.parent)
        return restored

    def champion(self) -> VersionInfo:
        """The version that should be served. Raises `RegistryError` before `register_base`."""
        version = self.alias("champion")
        if version is None:
            raise RegistryError(f"student {self._student!r} has no champion yet; call register_base first")
        return self.version(version)

    def version(self, version: int) -> VersionInfo:
        """One version. Raises `RegistryError` when there is none of that number."""
        with _translated(f"read version {version}"):
            return self._info(self._client.get_model_version(self._student, str(version)))

    def versions(self) -> tuple[VersionInfo, ...]:
        """All versions, ascending."""
        with _translated("list the versions"):
            found = list(self._client.search_model_versions(f"name = '{self._student}'", max_results=10_000))
            return tuple(sorted((self._info(entry) for entry in found), key=lambda info: info.version))

    def alias(self, alias: Alias) -> int | None:
        """The version an alias points to, or None."""
        with _translated(f"read alias {alias}"):
            version = self._client.get_registered_model(self._student).aliases.get(alias)
        return None if version is None else int(version)

    def download(self, version: int, directory: Path) -> Path | None:
        """A verified copy of a version's adapter in `directory` (None for the base). A whole copy already
        there is kept.

        Raises `CorruptAdapter` when the stored bytes are not those registered; nothing is left behind then.
        """
        info = self.version(version)
        if info.kind == "base":
            return None
        if (
            directory.is_dir()
            and all((directory / name).is_file() for name in ADAPTER_FILES)
            and adapter_sha256(directory) == info.sha256
        ):
            return directory
        temporary = directory.with_name(f".{directory.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with _translated(f"download version {version}"):
            fetched = Path(self._client.download_artifacts(info.run_id, ARTIFACT, str(temporary)))
        found = adapter_sha256(fetched)
        if found != info.sha256:
            shutil.rmtree(temporary)
            raise CorruptAdapter(
                f"version {version} was registered with sha256 {info.sha256}, "
                f"the store holds {found}; do not serve it"
            )
        shutil.rmtree(directory, ignore_errors=True)
        fetched.rename(directory)
        shutil.rmtree(temporary, ignore_errors=True)
        return directory

    def _info(self, entry: Any) -> VersionInfo:
        tags = entry.tags
        base = tags["kind"] == "base"
        return VersionInfo(
            version=int(entry.version),
            kind="base" if base else "adapter",
            round_id=tags["round_id"],
            run_id=entry.run_id,
            sha256=tags["base_sha256"] if base else tags["adapter_sha256"],
            base_sha256=tags["base_sha256"],
            parent=None if base else int(tags["parent"]),
            adapter_dir=None if base else self._local_adapter(entry.run_id),
        )

    def _local_adapter(self, run_id: str) -> Path | None:
        location = urlparse(self._client.get_run(run_id).info.artifact_uri)
        path = Path(unquote(location.path)) / ARTIFACT
        return path if location.scheme in {"", "file"} and path.is_dir() else None

    def _experiment_id(self, artifact_root: Path | None) -> str:
        found = self._client.get_experiment_by_name(self._student)
        if found is None:
            location = (
                (artifact_root / self._student).resolve().as_uri() if artifact_root is not None else None
            )
            self._create_unless_there(
                lambda: self._client.create_experiment(self._student, artifact_location=location)
            )
            found = self._client.get_experiment_by_name(self._student)
        if found.lifecycle_stage != "active":
            raise RegistryError(
                f"experiment {self._student!r} was deleted in MLflow; restore it or use another student name"
            )
        return str(found.experiment_id)

    @staticmethod
    def _create_unless_there(create: Any) -> None:
        try:
            create()
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _log_json(self, run_id: str, value: dict[str, Any], path: str) -> None:
        with _translated(f"write {path} of run {run_id}"):
            self._client.log_dict(run_id, value, path)

    def _point(self, alias: Alias, version: int) -> None:
        with _translated(f"set alias {alias} to version {version}"):
            self._client.set_registered_model_alias(self._student, alias, str(version))

    def _drop(self, alias: Alias) -> None:
        with _translated(f"remove alias {alias}"):
            self._client.delete_registered_model_alias(self._student, alias)


def metric_name(text: str) -> str:
    """A name MLflow accepts: anything but letters, digits, `_`, `-`, `.`, blank and `/` becomes `_`.

    >>> metric_name("before/stratum/mix:original")
    'before/stratum/mix_original'
    """
    return re.sub(r"[^\w\-. /]", "_", text, flags=re.ASCII)


@contextmanager
def _translated(action: str) -> Iterator[None]:
    """MLflow's failures as ours: server errors, lost connections and locked databases may pass, refusals do
    not."""
    try:
        yield
    except MlflowException as exc:
        status = exc.get_http_status_code()
        if status >= 500 or status == 429:
            raise RegistryUnavailable(
                f"cannot {action}: MLflow is not available now ({exc}); retry with back-off"
            ) from exc
        raise RegistryError(f"cannot {action}: MLflow refused ({exc})") from exc
    except OSError as exc:
        raise RegistryUnavailable(
            f"cannot {action}: MLflow or its artifact store cannot be reached ({exc}); retry with back-off"
        ) from exc
    except KeyError as exc:
        raise RegistryError(
            f"cannot {action}: a version lacks the tag {exc}; it was not registered by skillloop"
        ) from exc
