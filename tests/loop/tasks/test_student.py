"""The form in which a student is asked."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from transformers import AutoTokenizer

from loop.tasks.student import TOLD_DAY, chat_prompt
from tests.students import build_student

DATED = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "Today: {{ date_string }}\n{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
)


def test_a_template_that_tells_the_day_always_tells_the_same(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(build_student(tmp_path, "llama"))
    tokenizer.chat_template = DATED
    assert chat_prompt(tokenizer, "2+2?") == "Today: 26 Jul 2024\nuser: 2+2?\n"
    by_itself = tokenizer.apply_chat_template([{"role": "user", "content": "2+2?"}], tokenize=False)
    assert str(datetime.now(UTC).year) in by_itself and str(TOLD_DAY.year) not in by_itself
