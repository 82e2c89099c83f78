"""The stranger's application: users' questions, the student's answers, and a teacher of their own.

    own_application.py answer FOLDER SERVERS [ADAPTER]   answers traffic.jsonl with the student (and an
        adapter), prints how many are right per skill, and writes a diagnosis of each answer to Kafka, as
        docs/events.md says; without SERVERS ("-") it only prints
    own_application.py wait SERVERS VERSION SECONDS      waits until this version is deployed

Nothing of skillloop is imported.
"""

from __future__ import annotations

import json
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

STUDENT, VERSION = "mathbot", 1


def answers(folder: Path, texts: list[str], adapter: str | None) -> list[str]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    model = AutoModelForCausalLM.from_pretrained(folder / "student").eval()
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).eval()
    replies: list[str] = []
    for start in range(0, len(texts), 220):
        chats = [[{"role": "user", "content": text}] for text in texts[start : start + 220]]
        prompts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        rows = tokenizer(prompts, return_tensors="pt", padding=True)
        rows.pop("token_type_ids", None)
        made = model.generate(**rows, max_new_tokens=24, do_sample=False)
        replies += tokenizer.batch_decode(made[:, rows["input_ids"].shape[1] :], skip_special_tokens=True)
    return replies


def answer(folder: Path, servers: str, adapter: str | None) -> None:
    rows = [json.loads(line) for line in (folder / "traffic.jsonl").read_text().splitlines()]
    replies = answers(folder, [row["question"] for row in rows], adapter)
    right = [
        re.findall(r"\d+", reply)[-1:] == [row["answer"]] for row, reply in zip(rows, replies, strict=True)
    ]
    for skill in sorted({row["skills"][0] for row in rows}):
        of_skill = [flag for row, flag in zip(rows, right, strict=True) if row["skills"] == [skill]]
        print(f"{skill:15} {sum(of_skill)} of {len(of_skill)} right")
    if servers != "-":
        diagnose(servers, rows, right)


def diagnose(servers: str, rows: list[dict[str, object]], right: list[bool]) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=servers)
    for row, correct in zip(rows, right, strict=True):
        verdict = "correct" if correct else "incorrect"
        event = {
            "event_id": f"{row['id']}/1", "occurred_at": datetime.now(UTC).isoformat(), "student": STUDENT,
            "student_version": VERSION, "verdict": verdict, "judged": verdict, "needed": row["skills"],
            "missing": [] if correct else row["skills"], "decided_by": "own tests", "teacher": "own",
            "bucket": 0,
        }  # fmt: skip
        producer.send(
            "diagnoses",
            json.dumps(event).encode(),
            key=f"{STUDENT}/{row['id']}".encode(),
            headers=[("ce_type", b"skillloop.diagnosed")],
        )
    producer.flush(30)
    producer.close()
    print(f"{len(rows)} diagnoses written")


def wait(servers: str, version: int, seconds: float) -> None:
    from kafka import KafkaConsumer

    consumer = KafkaConsumer("deployments", bootstrap_servers=servers, auto_offset_reset="earliest")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for records in consumer.poll(timeout_ms=1000).values():
            for record in records:
                event = json.loads(record.value)
                print(f"deployed: version {event['version']} ({event['action']})", flush=True)
                if event["version"] == version:
                    consumer.close()
                    return
    sys.exit(f"version {version} was not deployed within {seconds:.0f} s")


if __name__ == "__main__":
    if sys.argv[1] == "answer":
        answer(Path(sys.argv[2]), sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else None)
    else:
        wait(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
