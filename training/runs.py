"""Runs in MLflow: one per round, with its parameters, curves, files and description.

MLflow cannot create a run exactly once (search by tag, then create, races). So the caller keeps
UNIQUE(round_id) -> run_id in its own store and passes the run_id back when it resumes, and a run created just
before a crash is found again by its round_id tag and adopted. Everything else can be repeated: parameters and
metrics have fixed times, files lie under their hash (`training.artifacts`).
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote, urlparse

import sqlalchemy as sa
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_RUN_NOTE

from agent.errors import masked
from agent.items import JsonObject
from serving.adapter_files import ADAPTER_FILES, CorruptAdapter, adapter_sha256
from streams.files import file_sha256
from training.adapters import load_check
from training.artifacts import ADAPTER, stored_name
from training.errors import ArtifactError, NothingRegistered, RegistryError, RegistryUnavailable
from training.evaluate import Evaluation
from training.flavor import MODEL_FILE, mlmodel
from training.gate import GateVerdict
from training.trainer import CurvePoint
from training.versions import TrainedData

BATCH = 100
METRIC_BATCH = 1000
DIGEST_DIGITS = 32
"""Of a data set's hash; MLflow takes 36 characters."""
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

for _name in ("alembic", "mlflow.store.db", "mlflow.tracking"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class MlflowRuns:
    """The runs of one student, in one experiment of its name.

    `tracking_uri` is `sqlite:////absolute/mlflow.db` or a server's address; `artifact_root` (embedded only)
    is the folder for artifacts, None where a server decides. Without `create` nothing is made, and where
    there is nothing of this student, `NothingRegistered` is raised. Raises `RegistryUnavailable` (retry) and
    `RegistryError` (do not) everywhere.
    """

    def __init__(
        self, tracking_uri: str, student: str, artifact_root: Path | None = None, create: bool = True
    ) -> None:
        if not PLAIN.fullmatch(student):
            raise RegistryError(
                f"student name {student!r} may hold letters, digits, dot, dash and underscore only"
            )
        if not re.match(r"sqlite:////|postgresql(\+\w+)?://|https?://", tracking_uri):
            raise RegistryError(
                f"tracking URI {masked(tracking_uri)!r} is neither "
                "an absolute sqlite:////path, PostgreSQL, nor a server"
            )
        self._student, self._tracking_uri = student, tracking_uri
        with translated(f"open {student!r}"):
            if not create:
                require_database(tracking_uri)
            self._client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
            self._experiment = self._experiment_id(artifact_root, create)

    def start_run(self, round_id: str, run_id: str | None = None) -> str:
        """The round's run: the given one resumed, else one found by its round_id tag, else a new one."""
        if not PLAIN.fullmatch(round_id):
            raise RegistryError(
                f"round id {round_id!r} may hold letters, digits, dot, dash and underscore only"
            )
        with translated(f"start the run of round {round_id}"):
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
        with translated(f"finish run {run_id}"):
            self._client.set_terminated(run_id, status)

    def drop_other_runs(self, round_id: str, run_id: str) -> None:
        """Delete the runs of a round but the one that it is tied to (MLflow keeps them until `mlflow gc`)."""
        with translated(f"drop the runs of round {round_id} but {run_id}"):
            for run in self._client.search_runs([self._experiment], f"tags.round_id = '{round_id}'"):
                if run.info.run_id != run_id:
                    self._client.delete_run(run.info.run_id)

    def describe_run(self, run_id: str, note: str, tags: Mapping[str, str]) -> None:
        """Write the description of a run's page (Markdown) and its tags."""
        rows = [RunTag(key, value) for key, value in {MLFLOW_RUN_NOTE: note, **tags}.items()]
        with translated(f"describe run {run_id}"):
            self._client.log_batch(run_id, tags=rows)

    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        """Write parameters. The same values again have no effect; another value for a known name is a
        `RegistryError`."""
        rows = [Param(metric_name(key), str(value)) for key, value in params.items()]
        with translated(f"log parameters of run {run_id}"):
            for start in range(0, len(rows), BATCH):
                self._client.log_batch(run_id, params=rows[start : start + BATCH])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write metrics at a step. They carry the run's start as their time, so that writing them again has
        no effect."""
        with translated(f"log metrics of run {run_id}"):
            moment = self._client.get_run(run_id).info.start_time
            self._log_metrics(
                run_id, [Metric(metric_name(key), float(v), moment, step) for key, v in metrics.items()]
            )

    def log_curve(self, run_id: str, curve: Sequence[CurvePoint]) -> None:
        """Write what the trainer reported by step, as `train/loss`, `train/learning_rate`, `train/grad_norm`
        and `train/tokens_per_s`."""
        with translated(f"log the curves of run {run_id}"):
            rows = [
                Metric(f"train/{name}", value, point.at_ms, point.step)
                for point in curve
                for name, value in _figures(point).items()
            ]
            self._log_metrics(run_id, rows)

    def log_evaluation(self, run_id: str, phase: Literal["before", "after"], evaluation: Evaluation) -> None:
        """Write accuracies as `before/skill/add`, `before/stratum/mix_original`, `before/accuracy`."""
        metrics = {f"{phase}/skill/{skill}": value for skill, value in evaluation.accuracy_by_skill().items()}
        metrics |= {
            f"{phase}/stratum/{stratum}": value for stratum, value in evaluation.accuracy_by_stratum().items()
        }
        self.log_metrics(run_id, metrics | {f"{phase}/accuracy": evaluation.accuracy()})

    def log_verdict(self, run_id: str, verdict: GateVerdict) -> None:
        """Write the gate's verdict with its table, for programs."""
        with translated(f"write the verdict of run {run_id}"):
            self._client.log_dict(run_id, verdict.model_dump(mode="json"), "gate/verdict.json")

    def log_text(self, run_id: str, text: str, artifact: str) -> None:
        """Write a page for people, in place of an earlier one."""
        with translated(f"write {artifact} of run {run_id}"):
            self._client.log_text(run_id, text, artifact)

    def log_data(self, run_id: str, data: TrainedData) -> None:
        """Name the stored data as the run's input (`mlflow.log_input`), by its hash."""
        with translated(f"name the data of run {run_id}"):
            kind, source = self._source(run_id, stored_name(data.artifact, data.sha256))
            columns = ("prompt", "completion")
            dataset = Dataset(
                name=data.name,
                digest=data.sha256[:DIGEST_DIGITS],
                source_type=kind,
                source=_json(source),
                schema=_json({"mlflow_colspec": [{"name": c, "type": "string"} for c in columns]}),
                profile=_json({"num_rows": data.examples, "sha256": data.sha256}),
            )
            inputs = [DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])]
            self._client.log_inputs(run_id, inputs)

    def put_file(self, run_id: str, path: Path, artifact: str) -> str:
        """Store a file with the run, under its hash, which is returned; one that is there is left alone."""
        sha256 = file_sha256(path)
        place = PurePosixPath(stored_name(artifact, sha256))
        with translated(f"store {artifact} of run {run_id}"):
            if self._stored(run_id, place) != path.stat().st_size:
                self._upload(run_id, {place: path})
        return sha256

    def get_file(self, run_id: str, path: Path, artifact: str, sha256: str) -> Path:
        """`path`, fetched unless the file there has this hash already.

        Raises `ArtifactError` when the run has no such file or the store holds other bytes; nothing is left
        behind then.
        """
        if path.is_file() and file_sha256(path) == sha256:
            return path
        place = PurePosixPath(stored_name(artifact, sha256))
        with self._fetched(run_id, [place], path) as folder:
            fetched = folder / place.name
            if (other := file_sha256(fetched)) != sha256:
                raise ArtifactError(f"run {run_id} holds {place} with sha256 {other}, not {sha256}")
            fetched.replace(path)
        return path

    def log_adapter(self, run_id: str, adapter_dir: Path) -> str:
        """Store the adapter's two files with the run, and what MLflow needs to load them; returns their hash.
        Raises `CorruptAdapter`."""
        config, sha256 = load_check(adapter_dir), adapter_sha256(adapter_dir)
        folder = PurePosixPath(stored_name(ADAPTER, sha256))
        with translated(f"store the adapter of run {run_id}"), tempfile.TemporaryDirectory() as temporary:
            described = Path(temporary) / MODEL_FILE
            described.write_text(mlmodel(config, run_id, str(folder)), encoding="utf-8")
            files = {folder / name: adapter_dir / name for name in ADAPTER_FILES}
            files[folder / MODEL_FILE] = described
            sizes = self._sizes(run_id, str(folder))
            missing = {
                place: path for place, path in files.items() if sizes.get(str(place)) != path.stat().st_size
            }
            self._upload(run_id, missing)
        return sha256

    def get_adapter(self, run_id: str, directory: Path, sha256: str) -> Path:
        """`directory` with the run's adapter of this hash, fetched unless it is there. Raises `ArtifactError`
        and `CorruptAdapter`; nothing is left behind then."""
        return self._adapter(run_id, stored_name(ADAPTER, sha256), directory, sha256)

    def _adapter(self, run_id: str, artifact: str, directory: Path, sha256: str) -> Path:
        if _holds(directory, sha256):
            return directory
        places = [PurePosixPath(artifact, name) for name in ADAPTER_FILES]
        with self._fetched(run_id, places, directory) as folder:
            if (other := adapter_sha256(folder)) != sha256:
                raise CorruptAdapter(
                    f"the adapter of run {run_id} was registered with sha256 {sha256}, "
                    f"the store holds {other}; do not serve it"
                )
            _put(folder, directory, sha256)
        return directory

    @contextmanager
    def _fetched(self, run_id: str, places: Sequence[PurePosixPath], target: Path) -> Iterator[Path]:
        """Some files of one folder of a run, in a folder beside `target` that is deleted afterwards."""
        with translated(f"fetch {places[0]} of run {run_id}"):
            sizes = self._sizes(run_id, str(places[0].parent))
            missing = [str(place) for place in places if str(place) not in sizes]
            if missing:
                raise ArtifactError(f"run {run_id} of {self._student!r} has no {missing[0]}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                prefix=".fetch-", dir=target.parent, ignore_cleanup_errors=True
            ) as temporary:
                fetched = [
                    Path(self._client.download_artifacts(run_id, str(place), temporary)) for place in places
                ]
                yield fetched[0].parent

    def _upload(self, run_id: str, files: Mapping[PurePosixPath, Path]) -> None:
        """Store files under other names: MLflow keeps a file's own."""
        with tempfile.TemporaryDirectory() as temporary:
            for place, path in files.items():
                named = Path(temporary) / place.name
                named.symlink_to(path.resolve())
                self._client.log_artifact(run_id, str(named), str(place.parent))

    def _stored(self, run_id: str, place: PurePosixPath) -> int | None:
        return self._sizes(run_id, str(place.parent)).get(str(place))

    def _sizes(self, run_id: str, folder: str) -> dict[str, int]:
        """The files of a folder of a run, with their sizes in bytes."""
        listed = self._client.list_artifacts(run_id, folder)
        return {entry.path: int(entry.file_size or 0) for entry in listed if not entry.is_dir}

    def _source(self, run_id: str, artifact: str) -> tuple[str, dict[str, str]]:
        """Where MLflow finds a stored file: a proxied store is behind its server's address."""
        root = str(self._client.get_run(run_id).info.artifact_uri)
        scheme = urlparse(root).scheme
        if scheme == "mlflow-artifacts":
            place = f"get-artifact?path={quote(artifact)}&run_uuid={run_id}"
            return "http", {"url": f"{self._tracking_uri.rstrip('/')}/{place}"}
        return scheme if scheme not in {"", "file"} else "local", {"uri": f"{root}/{artifact}"}

    def _log_metrics(self, run_id: str, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), METRIC_BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + METRIC_BATCH])

    def _experiment_id(self, artifact_root: Path | None, create: bool) -> str:
        found = self._client.get_experiment_by_name(self._student)
        if found is None and not create:
            raise NothingRegistered(f"MLflow has no experiment {self._student!r}")
        if found is None:
            location = (
                (artifact_root / self._student).resolve().as_uri() if artifact_root is not None else None
            )
            create_unless_there(
                lambda: self._client.create_experiment(self._student, artifact_location=location)
            )
            found = self._client.get_experiment_by_name(self._student)
        if found.lifecycle_stage != "active":
            raise RegistryError(
                f"experiment {self._student!r} was deleted in MLflow; restore it or use another student name"
            )
        return str(found.experiment_id)


def _figures(point: CurvePoint) -> dict[str, float]:
    return {
        "loss": point.loss,
        "learning_rate": point.learning_rate,
        "grad_norm": point.grad_norm,
        "tokens_per_s": point.tokens_per_s,
    }


def create_unless_there(create: Any) -> None:
    """Call `create`; what another process created first is as good."""
    try:
        create()
    except MlflowException as exc:
        if exc.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def require_database(tracking_uri: str) -> None:
    """MLflow makes its tables in any database that it opens. Raises `NothingRegistered` where there are none,
    `RegistryUnavailable` where the database does not answer."""
    url = sa.make_url(tracking_uri) if not tracking_uri.startswith("http") else None
    if url is None:
        return
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise NothingRegistered(f"there is no MLflow database {url.database}")
    engine = sa.create_engine(url)
    try:
        there = sa.inspect(engine).has_table("experiments")
    except sa.exc.DBAPIError as exc:
        raise RegistryUnavailable(
            f"cannot look into {masked(tracking_uri)}: {masked(exc)}; retry with back-off"
        ) from exc
    finally:
        engine.dispose()
    if not there:
        raise NothingRegistered(f"{masked(tracking_uri)} has no tables of MLflow's")


def metric_name(text: str) -> str:
    """A name MLflow accepts: anything but letters, digits, `_`, `-`, `.`, blank and `/` becomes `_`.

    >>> metric_name("before/stratum/mix:original")
    'before/stratum/mix_original'
    """
    return re.sub(r"[^\w\-. /]", "_", text, flags=re.ASCII)


@contextmanager
def translated(action: str) -> Iterator[None]:
    """MLflow's failures as ours: server errors, lost connections and locked databases may pass, refusals do
    not."""
    try:
        yield
    except MlflowException as exc:
        status = exc.get_http_status_code()
        if status >= 500 or status == 429:
            raise RegistryUnavailable(
                f"cannot {action}: MLflow is not available now ({masked(exc)}); retry with back-off"
            ) from exc
        raise RegistryError(f"cannot {action}: MLflow refused ({masked(exc)})") from exc
    except OSError as exc:
        raise RegistryUnavailable(
            f"cannot {action}: MLflow or its artifact store cannot be reached ({masked(exc)});"
            " retry with back-off"
        ) from exc
    except KeyError as exc:
        raise RegistryError(
            f"cannot {action}: a version lacks the tag {exc}; it was not registered by skillloop"
        ) from exc


def _json(value: JsonObject) -> str:
    return json.dumps(value, sort_keys=True)


def _holds(directory: Path, sha256: str) -> bool:
    """Whether the adapter with this hash lies there, whole."""
    return all((directory / name).is_file() for name in ADAPTER_FILES) and adapter_sha256(directory) == sha256


def _put(fetched: Path, directory: Path, sha256: str) -> None:
    """Move a whole copy into place, unless another worker was first; what lies there in pieces goes."""
    try:
        fetched.rename(directory)
    except OSError:  # there is something already: a directory with files in it is never replaced
        if _holds(directory, sha256):
            return
        shutil.rmtree(directory, ignore_errors=True)
        fetched.rename(directory)
