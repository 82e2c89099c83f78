"""The adapter store: a folder that vLLM servers read, with one folder for each adapter, named by its hash.

    STORE/3f9c.../adapter_config.json, adapter_model.safetensors, manifest.json

What is in it never changes: a server that needs memory drops an adapter and reads it again from here, and
vLLM keeps cache blocks under an adapter's name and path. So a name (`student-v3-3f9c1a2b`) and a path stand
for the same weights as long as a server lives. Publishing:

1. what vLLM cannot serve is refused (bias, DoRA, `modules_to_save`, rank, pickles, truncated files);
2. the adapter is loaded in PEFT on the base, which refuses one of another base, and gives the reference of
   the proof (`serving.proof`): the one time that the base is in this process's memory;
3. the two files are copied and hashed, the manifest is written last, and the folder is renamed into place.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from agent.items import Frozen
from serving.adapter_files import (
    ADAPTER_FILES,
    CorruptAdapter,
    adapter_sha256,
    rank_of,
    read_config,
    refuse_pickles,
    tensor_shapes,
)
from serving.engine import EngineError
from serving.proof import Reference
from streams.files import file_sha256, write_bytes, write_text

MANIFEST = "manifest.json"
HASH_IN_PATH, HASH_IN_NAME = 16, 8


class UnservableAdapter(EngineError):
    """An adapter that vLLM cannot serve, or must not read from where it lies; nothing was loaded."""


class AdapterManifest(Frozen):
    """What lies beside a published adapter: its hash, its files' hashes, its rank, and the proof's
    reference."""

    adapter_sha256: str
    files: Mapping[str, str]
    rank: int
    reference: Reference


@dataclass(frozen=True)
class Published:
    """A version's adapter in the store. `name` is what servers call it, `path` where they find it."""

    version: int
    name: str
    path: str
    directory: Path
    manifest: AdapterManifest


class AdapterStore:
    """The store in `root`; servers see it at `seen_at` ("": the same path). `prefix` begins the names.

    `reference(adapter)` computes the reference of the proof. Raises `CorruptAdapter`, `UnservableAdapter` and
    whatever `reference` raises.
    """

    def __init__(
        self, root: Path, seen_at: str, prefix: str, max_rank: int, reference: Callable[[Path], Reference]
    ) -> None:
        self._root = root
        self._seen_at = seen_at
        self._prefix = prefix
        self._max_rank = max_rank
        self._reference = reference

    def publish(self, version: int, adapter: Path) -> Published:
        """Put an adapter into the store, unless it is there, and give it a version's name."""
        self._refuse_unservable(adapter)
        sha256 = adapter_sha256(adapter)
        directory = self._root / sha256[:HASH_IN_PATH]
        if not (directory / MANIFEST).is_file():
            self._write(directory, adapter, sha256)
        place = f"{self._seen_at.rstrip('/') or self._root.resolve()}/{directory.name}"
        name = f"{self._prefix}-v{version}-{sha256[:HASH_IN_NAME]}"
        published = Published(version, name, place, directory, self._manifest(directory))
        self.check(published)
        return published

    def version_of(self, name: str) -> int | None:
        """The version in an adapter's name; None for a name that this store does not give."""
        match = re.fullmatch(rf"{re.escape(self._prefix)}-v(\d+)-[0-9a-f]{{{HASH_IN_NAME}}}", name)
        return int(match[1]) if match else None

    def check(self, published: Published) -> None:
        """Refuse what must not be loaded: files that are no longer those published, or lie elsewhere."""
        where = published.directory.resolve()
        if where.parent != self._root.resolve():
            raise UnservableAdapter(f"{published.directory} leads to {where}, out of the store {self._root}")
        links = [name for name in ADAPTER_FILES if (where / name).is_symlink()]
        if links:
            raise UnservableAdapter(f"{where} has links {links} instead of files; publish the adapter again")
        stored = adapter_sha256(where)
        if stored != published.manifest.adapter_sha256:
            raise CorruptAdapter(
                f"{where} was published with sha256 {published.manifest.adapter_sha256[:16]} and has "
                f"{stored[:16]} now; remove the folder, which publishes the adapter again"
            )

    def _refuse_unservable(self, adapter: Path) -> None:
        refuse_pickles(adapter)
        adapter_sha256(adapter)  # its two files are there
        rank = rank_of(read_config(adapter))
        if rank > self._max_rank:
            raise UnservableAdapter(
                f"the adapter in {adapter} has rank {rank}, the servers take up to {self._max_rank}: start "
                "them with --max-lora-rank and say so in engine.vllm.max_lora_rank, or train a smaller one"
            )
        tensor_shapes(adapter)

    def _write(self, directory: Path, adapter: Path, sha256: str) -> None:
        manifest = AdapterManifest(
            adapter_sha256=sha256,
            files={name: file_sha256(adapter / name) for name in ADAPTER_FILES},
            rank=rank_of(read_config(adapter)),
            reference=self._reference(adapter),
        )
        temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        for name in ADAPTER_FILES:
            write_bytes(temporary / name, (adapter / name).read_bytes())
        write_text(temporary / MANIFEST, manifest.model_dump_json())
        self._open_to_servers(temporary)
        try:
            temporary.rename(directory)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            if not (directory / MANIFEST).is_file():  # else another process was first
                raise

    def _open_to_servers(self, directory: Path) -> None:
        """Servers may run as other users, whom the umask of the command line shuts out."""
        directory.chmod(0o755)
        for path in directory.iterdir():
            path.chmod(0o644)
        if not any(self._root.glob(f"*/{MANIFEST}")):  # its first adapter: the folder may be ours, and new
            with contextlib.suppress(PermissionError):
                self._root.chmod(self._root.stat().st_mode | 0o055)

    def _manifest(self, directory: Path) -> AdapterManifest:
        try:
            return AdapterManifest.model_validate_json((directory / MANIFEST).read_bytes())
        except (OSError, ValidationError) as exc:
            raise CorruptAdapter(f"{directory / MANIFEST} cannot be read; remove the folder") from exc
