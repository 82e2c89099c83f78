"""`python -m streams.testing.broker` says what it is without starting anything."""

from __future__ import annotations

import pytest

from streams.testing.broker import HOW_TO_GET_ONE, main


def test_help_says_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and HOW_TO_GET_ONE[:40] in told
