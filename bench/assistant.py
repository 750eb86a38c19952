"""An assistant that is taught ten tasks, one command at a time, in the shapes that data has; what became of each.

    python -m bench.assistant --out bench/results/assistant.json --folder runs/assistant

One of the commands is killed by SIGKILL and repeated, one trains on JAX. Stored are the table that `crma status` shows,
the seconds of each command, and an answer of each task to a question that is in no data. Source: ours.
"""

import argparse
import csv
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import program
from bench.machine import machine_kind, versions

SEED, ROWS, PASSES, PROMISE = 5, 96, 3, 1.0
KILLED, ON_JAX = "Code", "Science"
Rows = list[tuple[str, str]]


def _json_lines(path: Path, rows: Rows) -> None:
    _write(path, "".join(json.dumps({"prompt": ask, "response": reply, "source": 1}) + "\n" for ask, reply in rows))


def _messages(path: Path, rows: Rows) -> None:
    turns = [[{"role": "user", "content": ask}, {"role": "assistant", "content": reply}] for ask, reply in rows]
    _write(path, json.dumps([{"messages": each} for each in turns]))


def _share_gpt(path: Path, rows: Rows) -> None:
    turns = [[{"from": "human", "value": ask}, {"from": "gpt", "value": reply}] for ask, reply in rows]
    path.write_bytes(gzip.compress("".join(json.dumps({"conversations": each}) + "\n" for each in turns).encode()))


def _instruction(path: Path, rows: Rows) -> None:
    _write(path, json.dumps({"data": [{"instruction": a, "input": "", "output": r} for a, r in rows]}))


def _table(path: Path, rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer"), *rows])


def _own_columns(path: Path, rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([("Frage", "Antwort"), *rows])


def _parquet(path: Path, rows: Rows) -> None:
    from datasets import Dataset

    Dataset.from_list([{"prompt": ask, "completion": reply} for ask, reply in rows]).to_parquet(path)


def _saved(path: Path, rows: Rows) -> None:
    from datasets import Dataset

    Dataset.from_list([{"prompt": ask, "answer": reply} for ask, reply in rows]).save_to_disk(path)


def _texts(path: Path, rows: Rows) -> None:
    _write(path, "".join(json.dumps({"text": f"{ask} {reply}"}) + "\n" for ask, reply in rows))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


#: file, writer, further options, and a question that is in no data
TASKS: dict[str, tuple[str, Callable[[Path, Rows], None], list[str], str]] = {
    "Medical": ("medical.jsonl", _json_lines, [], "What does it mean when a patient has an enlarged spleen?"),
    "Legal": ("legal.json", _messages, [], "May I sell copies of software that is under this licence?"),
    "Financial": ("financial.jsonl.gz", _share_gpt, [], "What does the ratio of debt to equity tell me?"),
    "Code": ("code.json", _instruction, [], "How do I read a text file line by line?"),
    "Science": ("science.csv", _table, [], "Why is a unit needed beside a number?"),
    "fictional-0": ("f0.tsv", _own_columns, ["--columns", "prompt=Frage", "response=Antwort"], ""),
    "fictional-1": ("f1.parquet", _parquet, [], ""),
    "fictional-2": ("f2", _saved, [], ""),
    "another-0": ("another.jsonl", _json_lines, [], ""),
    "another-1": ("texts.jsonl", _texts, [], ""),
}


def main(arguments: list[str] | None = None) -> int:
    """Teach, and store what became of it. Raises: SystemExit for a wrong option."""
    options = _parser().parse_args(arguments)
    return program.measure("assistant", options, lambda: _taught(options))


def _taught(options: argparse.Namespace) -> dict[str, Any]:
    from backends.finetune.learning.status import HEADINGS, row_of
    from backends.finetune.runs.assistant_folder import AssistantFolder

    folder = Path(options.folder)
    seconds, questions = {}, {}
    with tempfile.TemporaryDirectory() as data:
        for name, (file, write, more, asked) in list(TASKS.items())[: options.tasks]:
            rows, natural = _rows(name, options.rows)
            questions[name] = asked or natural
            write(Path(data) / file, rows)
            command = [sys.executable, "-m", "backends.finetune.cli", "learn", str(Path(data) / file)]
            command += ["--into", str(folder), "--name", name, "--threads", str(options.threads), *more]
            command += ["--model", options.model, "--promise", str(PROMISE)]
            command += [part for setting in options.set for part in ("--set", setting)]
            command += ["--backend", "jax-cpu"] if name == ON_JAX else []
            start = time.monotonic()
            if name == KILLED:
                _start_and_kill(command, folder)
            subprocess.run(command, check=True)
            seconds[name] = round(time.monotonic() - start, 1)
    found = AssistantFolder(folder).read()
    return {
        "machine": machine_kind("cpu", threads=options.threads),
        "versions": versions("torch", "transformers", "peft", "jax"),
        "model": found.model,
        "rows": options.rows,
        "promise_percent": PROMISE,
        "seconds": seconds,
        "status": [dict(zip(HEADINGS, row_of(name, task, found), strict=True)) for name, task in found.tasks.items()],
        "losses": {
            name: {
                "bare": task.record.bare.loss,
                "own": task.record.own.loss,
                "now": task.now.loss,
                "after_each_phase": [
                    record.checked[name].now.loss for record in found.learned if name in record.checked
                ],
            }
            for name, task in found.tasks.items()
        },
        "answers": {name: _answer(folder, name, asked, options.threads) for name, asked in questions.items()},
    }


def _rows(name: str, count: int) -> tuple[Rows, str]:
    """Prompts and responses of a task; and, of an invented domain, a wording of one of its facts that is in no data."""
    from backends.finetune.tasks.domains import load_domain
    from backends.finetune.tasks.fictional import FICTIONAL, load_fictional

    kind, _, number = name.partition("-")
    if number:
        seed = SEED if kind == "fictional" else SEED + 1
        task = load_fictional(FICTIONAL[int(number)], train=count, holdout=1, canaries=0, seed=seed)
        return [(e.prompt, e.response) for e in task.train], task.holdout[0].prompt
    task = load_domain(name, train=count, holdout=0, seed=SEED)
    return [(example.prompt, example.response) for example in task.train], ""


def _start_and_kill(command: list[str], folder: Path) -> None:
    """Start a command, and kill it once it has written its first checkpoint."""
    process = subprocess.Popen(command)
    while process.poll() is None and not (folder / "checkpoint.safetensors").exists():
        time.sleep(0.1)
    process.kill()
    process.wait()


def _answer(folder: Path, task: str, asked: str, threads: int) -> dict[str, str]:
    command = [
        sys.executable,
        "-m",
        "backends.finetune.cli",
        "generate",
        str(folder),
        "--task",
        task,
        "--prompt",
        asked,
    ]
    done = subprocess.run([*command, "--threads", str(threads)], check=True, capture_output=True, text=True)
    return {"question": asked, "answer": "\n".join(done.stdout.splitlines()[1:])}


def _parser() -> argparse.ArgumentParser:
    parser = program.parser("assistant", __doc__)
    parser.add_argument("--folder", default="runs/assistant", help="the assistant's folder, which must not exist")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, default=ROWS, help="examples a task, held-out ones included")
    parser.add_argument("--tasks", type=int, default=len(TASKS), help="the first so many")
    parser.add_argument(
        "--set", nargs="*", default=[f"epochs={PASSES}"], metavar="FIELD=VALUE", help="as for `crma learn`"
    )
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
