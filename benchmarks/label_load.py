"""Raters over HTTP against a labelling server that is killed: is anything lost, doubled or asked too often?

    python benchmarks/label_load.py                                   # 60 raters, 20,000 tasks x 3, SQLite, 5 kills
    python benchmarks/label_load.py --db postgresql://postgres@127.0.0.1:5432
    python benchmarks/label_load.py --tasks 100000 --stop-after 3000 --kills 0      # the latency of the next task

Every rater is a process that claims, thinks, and submits until the server has acknowledged, with the same client key.
What was acknowledged is written down by the rater and compared with the database at the end.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from postgrad.config.queue import QueueConfig
from postgrad.db.engine import sqlite_url
from postgrad.feedback.people import OPERATOR, People
from postgrad.feedback.queue import LabelQueue
from postgrad.feedback.records import Sample
from postgrad.feedback.store import LabelStore
from postgrad.feedback.tasks import NewTask
from postgrad.types import Conversation, Example, Message, SamplingParams

ROUND = "0001-load"


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        url, drop = database(args.db, Path(folder))
        try:
            run(args, url, Path(folder))
        finally:
            drop()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--db", help="URL of a PostgreSQL server; SQLite in a temporary folder if left out")
    parser.add_argument("--raters", type=int, default=60)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--overlap", type=int, default=3)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--think", type=float, default=0.5, help="mean seconds between a task and its answer")
    parser.add_argument("--lease", type=float, default=20.0, help="seconds")
    parser.add_argument("--stop-after", type=int, help="labels after which to stop, if not all")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def database(server: str | None, folder: Path) -> tuple[str, Any]:
    if server is None:
        return sqlite_url(folder / "labels.db"), lambda: None
    name = f"postgrad_load_{secrets.token_hex(4)}"
    engine = create_engine(
        f"{server}/postgres".replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))

    def drop() -> None:
        with engine.connect() as connection:
            connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))

    return f"{server}/{name}", drop


def run(args: argparse.Namespace, url: str, folder: Path) -> None:
    began = time.monotonic()
    tokens = fill(url, args)
    print(f"{args.tasks} tasks x {args.overlap} stored in {time.monotonic() - began:.0f} s", flush=True)
    config = folder / "queue.toml"
    config.write_text(f"lease_s = {args.lease}\ngold_frac = 0\nrepeat_frac = 0\n", encoding="utf-8")
    port = free_port()
    server = start(url, config, port)
    began = time.monotonic()
    raters = [
        multiprocessing.Process(target=rate, args=(port, token, folder / f"rater-{i}.jsonl", args.think, i, args.seed))
        for i, token in enumerate(tokens)
    ]
    for process in raters:
        process.start()
    dice = random.Random(args.seed)
    wanted = args.stop_after or args.tasks * args.overlap
    kills = sorted(dice.uniform(0.1, 0.9) * wanted for _ in range(args.kills))
    gaps: list[float] = []
    while any(p.is_alive() for p in raters) and (acknowledged := count(folder)) < wanted:
        if kills and acknowledged >= kills[0]:
            kills.pop(0)
            server.send_signal(signal.SIGKILL)
            server.wait()
            down = time.monotonic()
            server = start(url, config, port)
            gaps.append(time.monotonic() - down)
            print(f"killed at {acknowledged} labels, back after {gaps[-1]:.1f} s", flush=True)
        time.sleep(0.5)
    took = time.monotonic() - began
    for process in raters:
        process.terminate()
        process.join()
    time.sleep(args.lease + 6 if args.stop_after is None else 0)
    server.send_signal(signal.SIGTERM)
    server.wait()
    report(args, url, folder, took, gaps)


def fill(url: str, args: argparse.Namespace) -> list[str]:
    """Tasks, accounts and an API token for each rater."""
    with LabelStore(url) as store:
        store.add_round(ROUND, recipe="load")
        for start_at in range(0, args.tasks, 2000):
            names = [f"p{i}" for i in range(start_at, min(args.tasks, start_at + 2000))]
            store.add_prompts(Example(n, Conversation((Message("user", f"Question {n}?"),))) for n in names)
            ids = store.add_samples(sample(n, side) for n in names for side in "ab")
            pairs = [ids[i : i + 2] for i in range(0, len(ids), 2)]
            comparisons = store.ask(pairs, purpose="train", round_id=ROUND)
            LabelQueue(store, QueueConfig()).add(
                [NewTask("compare", c, overlap=args.overlap) for c in comparisons], round_id=ROUND
            )
        people = People(store)
        return [token_for(people, f"rater{i}") for i in range(args.raters)]


def token_for(people: People, name: str) -> str:
    account = people.add(name, secrets.token_urlsafe(12), "labeler", by=OPERATOR)
    return people.make_token("load", "labeler", 1, by=account)


def sample(prompt_id: str, side: str) -> Sample:
    return Sample(
        prompt_id=prompt_id,
        round_id=ROUND,
        stage="initial",
        checkpoint="0" * 64,
        policy_version=0,
        params=SamplingParams(max_tokens=64),
        seed=0,
        text=f"Answer {side} to {prompt_id}. " * 20,
        token_ids=(),
        finish_reason="stop",
    )


def start(url: str, config: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "postgrad", "label", "serve", "--accounts", "--db", url, "--config", str(config)]
    process = subprocess.Popen([*command, "--port", str(port)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            return process
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def rate(port: int, token: str, log: Path, think: float, number: int, seed: int) -> None:
    """One rater's shift."""
    dice = random.Random(f"{seed}|{number}")
    client = Client(port, token)
    with log.open("w", encoding="utf-8") as file:
        time.sleep(dice.random() * think * 2)
        while True:
            began = time.monotonic()
            status, got = client.call("POST", "/api/claim")
            waited = time.monotonic() - began
            if status != 200 or got["task"] is None:
                if status == 200 and "nothing" in got["reason"]:
                    time.sleep(1.0)
                continue
            time.sleep(dice.expovariate(1 / think))
            better = dice.randrange(2)
            body = {"value": {"tiers": [[better], [1 - better]], "strength": 2}, "client_key": uuid.uuid4().hex}
            began = time.monotonic()
            status, receipt = client.call("POST", f"/api/assignments/{got['task']['assignment_id']}/submit", body)
            if status == 200:
                line = {
                    "label": receipt["label_id"],
                    "key": body["client_key"],
                    "claim_s": waited,
                    "submit_s": time.monotonic() - began,
                    "tries": client.tries,
                }
                file.write(json.dumps(line) + "\n")
                file.flush()


class Client:
    """Keeps one connection, and asks again for as long as it takes."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._headers = port, {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._connection: http.client.HTTPConnection | None = None
        self.tries = 0

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        self.tries = 0
        while True:
            self.tries += 1
            try:
                if self._connection is None:
                    self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
                self._connection.request(method, path, json.dumps(body or {}), self._headers)
                response = self._connection.getresponse()
                answer = json.loads(response.read())
                if response.status < 500 and response.status != 429:
                    return response.status, answer
            except (OSError, http.client.HTTPException, ValueError):
                self._connection = None
            time.sleep(0.2)


def count(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("rater-*.jsonl"))


def report(args: argparse.Namespace, url: str, folder: Path, took: float, gaps: list[float]) -> None:
    lines = [json.loads(line) for path in folder.glob("rater-*.jsonl") for line in path.read_text().splitlines()]
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:

        def ask(query: str) -> Any:
            return connection.execute(text(query)).scalar()

        stored = {
            row.client_key: row.id
            for row in connection.execute(text("SELECT client_key, id FROM labels WHERE undone_at IS NULL"))
        }
        doubled = ask("SELECT count(*) FROM (SELECT 1 FROM labels GROUP BY task_id, rater_id HAVING count(*) > 1) AS d")
        over = ask(
            "SELECT count(*) FROM tasks WHERE done > overlap OR free < 0 OR overlap <"
            " (SELECT count(*) FROM labels WHERE labels.task_id = tasks.id)"
        )
        leased = ask("SELECT count(*) FROM assignments WHERE state = 'leased'")
        unfinished = ask("SELECT count(*) FROM tasks WHERE done < overlap")
        waiting = ask("SELECT count(*) FROM tasks WHERE free > 0")
    first = [line for line in lines if line["tries"] == 1]
    print(
        json.dumps(
            {
                "database": url.split(":")[0],
                "raters": args.raters,
                "tasks": args.tasks,
                "overlap": args.overlap,
                "think_s": args.think,
                "acknowledged": len(lines),
                "stored": len(stored),
                "acknowledged_but_lost": sum(stored.get(line["key"]) != line["label"] for line in lines),
                "doubled": doubled,
                "tasks_over_overlap": over,
                "leases_left": leased,
                "tasks_unfinished": unfinished,
                "tasks_waiting": waiting,
                "kills": len(gaps),
                "seconds": round(took, 1),
                "labels_per_s": round(len(lines) / took, 1),
                "claim_ms": quantiles([1000 * line["claim_s"] for line in first]),
                "submit_ms": quantiles([1000 * line["submit_s"] for line in first]),
            },
            indent=1,
        )
    )


def quantiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    return {"p50": round(cuts[49], 1), "p95": round(cuts[94], 1), "p99": round(cuts[98], 1)}


if __name__ == "__main__":
    main()
