"""The registry in MLflow: one experiment and one registered model per student (runs: `training.runs`).

MLflow's aliases have no compare-and-set. So:
1. a version is looked up by its round_id tag before it is created;
2. one promoter writes the aliases: `previous` first, then `champion`; every call can be repeated.
Version 1 is always the base student itself, without weights, so the champion alias always points somewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from training.adapters import base_name, base_sha256
from training.artifacts import ADAPTER, stored_name
from training.errors import NothingRegistered, RegistryError
from training.runs import MlflowRuns, create_unless_there, translated
from training.versions import Alias, Lineage, VersionInfo

BASE_ROUND = "base"
ABOUT = (
    "Versions of the student {student!r}, made by skillloop. Version 1 is the untrained base; every other "
    "one is a LoRA adapter that one round trained, and its run says why, on what, and how it was judged. "
    "`champion` is served, `challenger` was judged last, `previous` is where `skillloop rollback` leads."
)


class MlflowRegistry(MlflowRuns):
    """The `training.versions.Registry` in MLflow. Without `create` it is only looked at (`MlflowRuns`)."""

    def __init__(
        self, tracking_uri: str, student: str, artifact_root: Path | None = None, create: bool = True
    ) -> None:
        super().__init__(tracking_uri, student, artifact_root, create)
        with translated(f"open {student!r}"):
            about = ABOUT.format(student=student)
            if not create:
                if not self._client.search_registered_models(f"name = '{student}'"):
                    raise NothingRegistered(f"MLflow has no registered model {student!r}")
                return
            create_unless_there(lambda: self._client.create_registered_model(student, description=about))

    def register_base(self, base_dir: Path) -> VersionInfo:
        """Make the base student version 1 and champion, unless it already is. Raises `RegistryError` for
        another base."""
        sha256 = base_sha256(base_dir)
        known = self.versions()
        if not known:
            run_id = self.start_run(BASE_ROUND)
            self.log_params(run_id, {"base_dir": base_dir.resolve(), "base_sha256": sha256})
            about = f"The untrained base student, from `{base_name(base_dir).name}`."
            self.describe_run(run_id, about, {"kind": "base", "base_sha256": sha256})
            with translated("register the base"):
                self._client.log_dict(
                    run_id, {"base_dir": str(base_dir.resolve()), "base_sha256": sha256}, "base/base.json"
                )
                tags = {"kind": "base", "round_id": BASE_ROUND, "base_sha256": sha256}
                self._client.create_model_version(
                    self._student, f"runs:/{run_id}/base", run_id, tags=tags, description=about
                )
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

    def create_version(
        self, round_id: str, run_id: str, lineage: Lineage, description: str = ""
    ) -> VersionInfo:
        """The version of a round, created once, and `challenger` pointing to it."""
        known = {info.round_id: info for info in self.versions()}
        if not known:
            raise RegistryError(
                f"student {self._student!r} has no base version yet; call register_base first"
            )
        if round_id not in known:
            tags = {
                "kind": ADAPTER,
                "round_id": round_id,
                **{key: str(value) for key, value in vars(lineage).items()},
            }
            with translated(f"create the version of round {round_id}"):
                source = f"runs:/{run_id}/{stored_name(ADAPTER, lineage.adapter_sha256)}"
                self._client.create_model_version(
                    self._student, source, run_id, tags=tags, description=description
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

    def rollback(self, version: int, to: int | None = None) -> VersionInfo:
        """Take `version` back: `to` (None: `previous`) becomes champion again, and `previous` the version
        that it was trained on. Nothing happens when `version` is not the champion.

        Raises `RegistryError` when there is nothing to go back to.
        """
        champion, previous = self.alias("champion"), self.alias("previous")
        target = previous if to is None else self.version(to).version
        if champion == version:
            if target is None or target == version:
                raise RegistryError(
                    f"version {version} of {self._student!r} has no predecessor to roll back to"
                    if to is None
                    else f"version {version} of {self._student!r} is the champion already"
                )
            self._point("champion", target)
            champion = target
        restored = self.champion()
        if previous == champion or to == champion:
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
        with translated(f"read version {version}"):
            return self._info(self._client.get_model_version(self._student, str(version)))

    def versions(self) -> tuple[VersionInfo, ...]:
        """All versions, ascending."""
        with translated("list the versions"):
            found = list(self._client.search_model_versions(f"name = '{self._student}'", max_results=10_000))
            return tuple(sorted((self._info(entry) for entry in found), key=lambda info: info.version))

    def alias(self, alias: Alias) -> int | None:
        """The version an alias points to, or None."""
        with translated(f"read alias {alias}"):
            version = self._client.get_registered_model(self._student).aliases.get(alias)
        return None if version is None else int(version)

    def download(self, version: int, directory: Path) -> Path | None:
        """A verified copy of a version's adapter in `directory` (None for the base). A whole copy already
        there is kept; workers that share the directory may fetch at once.

        Raises `CorruptAdapter` when the stored bytes are not those registered; nothing is left behind then.
        """
        info = self.version(version)
        if info.kind == "base":
            return None
        return self._adapter(info.run_id, info.artifact, directory, info.sha256)

    def _info(self, entry: Any) -> VersionInfo:
        tags = entry.tags
        base = tags["kind"] == "base"
        artifact = "/".join(str(entry.source).split("/")[2:])  # runs:/<id>/<artifact>
        return VersionInfo(
            version=int(entry.version),
            kind="base" if base else "adapter",
            round_id=tags["round_id"],
            run_id=entry.run_id,
            sha256=tags["base_sha256"] if base else tags["adapter_sha256"],
            base_sha256=tags["base_sha256"],
            parent=None if base else int(tags["parent"]),
            artifact=artifact,
            adapter_dir=None if base else self._local_adapter(entry.run_id, artifact),
        )

    def _local_adapter(self, run_id: str, artifact: str) -> Path | None:
        location = urlparse(self._client.get_run(run_id).info.artifact_uri)
        path = Path(unquote(location.path)) / artifact
        return path if location.scheme in {"", "file"} and path.is_dir() else None

    def _point(self, alias: Alias, version: int) -> None:
        with translated(f"set alias {alias} to version {version}"):
            self._client.set_registered_model_alias(self._student, alias, str(version))

    def _drop(self, alias: Alias) -> None:
        with translated(f"remove alias {alias}"):
            self._client.delete_registered_model_alias(self._student, alias)
