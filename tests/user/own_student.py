"""What a stranger brings: a student of their own, questions with their own labels, and users' questions.

Usage: own_student.py FOLDER. Writes FOLDER/student (a causal language model of 0.4 million parameters that
was taught addition and subtraction, and never multiplication), pool.jsonl, held_out.jsonl and traffic.jsonl.
Nothing of skillloop is imported: these are files as anybody could have them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Row = dict[str, object]
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jo", "Kim", "Leo", "Mia", "Ned")
POOL_THINGS = ("pears", "nuts", "books", "pens", "cups", "stones", "shells", "cards", "beads", "cakes")
GATE_THINGS = ("apples", "coins", "stamps", "eggs")
USER_THINGS = ("plums", "balls", "keys", "roses")
FORMS = {
    "addition": "{name} has {a} {things} and buys {b} more. How many {things} does {name} have?",
    "subtraction": "{name} has {a} {things} and gives {b} away. How many {things} are left?",
    "multiplication": "{name} has {a} boxes of {b} {things} each. How many {things} are there?",
}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
STEPS, BATCH = 260, 64


def question(skill: str, things: tuple[str, ...], dice: Random) -> Row:
    a, b = dice.randint(1, 9), dice.randint(1, 9)
    a, b = (max(a, b), min(a, b)) if skill == "subtraction" else (a, b)
    answer = {"addition": a + b, "subtraction": a - b, "multiplication": a * b}[skill]
    text = FORMS[skill].format(name=dice.choice(NAMES), things=dice.choice(things), a=a, b=b)
    solution = f"The result is {answer}.\n\nThe final answer is $\\boxed{{{answer}}}$."
    return {"question": text, "solution": solution, "answer": str(answer), "skills": [skill]}


def questions(counts: dict[str, int], things: tuple[str, ...], seed: str) -> list[Row]:
    """So many different questions of each skill."""
    rows: dict[object, Row] = {}
    for skill, count in counts.items():
        dice, wanted = Random(f"{seed}:{skill}"), len(rows) + count
        while len(rows) < wanted:
            row = question(skill, things, dice)
            rows.setdefault(row["question"], {"id": f"{seed}-{len(rows)}", **row})
    return list(rows.values())


def write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        chat_template=TEMPLATE,
    )


def build_student() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A student that adds and subtracts, trained from nothing."""
    dice = Random("pretraining")
    everything = (*POOL_THINGS, *GATE_THINGS, *USER_THINGS)
    seen = [question(skill, everything, dice) for skill in FORMS for _ in range(2000)]
    tokenizer = build_tokenizer([f"{row['question']}\n{row['solution']}" for row in seen])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=3, num_key_value_heads=3, head_dim=32, max_position_embeddings=256,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = (torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0), torch.optim.AdamW(others, lr=3e-3))
    for step in range(STEPS):
        rows = [question(dice.choice(("addition", "subtraction")), everything, dice) for _ in range(BATCH)]
        loss = model(**batch(rows, tokenizer), use_cache=False).loss
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("peak", group["lr"]) * (STEPS - step) / STEPS
            optimizer.step()
        model.zero_grad(set_to_none=True)
        if step % 100 == 0:
            print(f"own student: step {step} of {STEPS}, loss {loss.item():.3f}", flush=True)
    return model.eval(), tokenizer


def batch(rows: list[Row], tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """Questions and solutions as padded rows; only solutions are learned."""
    asked = [tokenizer(f"{row['question']}\n")["input_ids"] for row in rows]
    told = [[*tokenizer(str(row["solution"]))["input_ids"], 2] for row in rows]
    width = max(len(q) + len(s) for q, s in zip(asked, told, strict=True))
    ids, labels, mask = (torch.full((len(rows), width), fill) for fill in (0, -100, 0))
    for at, (q, s) in enumerate(zip(asked, told, strict=True)):
        end = len(q) + len(s)
        ids[at, :end] = torch.tensor(q + s)
        labels[at, len(q) : end] = torch.tensor(s)
        mask[at, :end] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    write(
        folder / "pool.jsonl",
        questions({"addition": 250, "subtraction": 250, "multiplication": 80}, POOL_THINGS, "pool"),
    )
    write(folder / "held_out.jsonl", questions(dict.fromkeys(FORMS, 120), GATE_THINGS, "gate"))
    write(folder / "traffic.jsonl", questions(dict.fromkeys(FORMS, 220), USER_THINGS, "user"))
    if (folder / "student").is_dir():
        return
    model, tokenizer = build_student()
    model.save_pretrained(folder / "student")
    tokenizer.save_pretrained(folder / "student")
    print(f"own student: {model.num_parameters()} parameters in {folder / 'student'}")


if __name__ == "__main__":
    main()
