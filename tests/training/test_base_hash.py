"""The hash of a base student covers everything that decides what it is asked and answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.adapters import base_sha256


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "model.safetensors"])
def test_another_file_is_another_base(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    hashes = set()
    for text in ("one", "other"):
        (tmp_path / name).write_text(text)
        hashes.add(base_sha256(tmp_path))
    assert len(hashes) == 2


def test_what_is_not_the_students_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = base_sha256(tmp_path)
    (tmp_path / "README.md").write_text("read me")
    assert base_sha256(tmp_path) == before
