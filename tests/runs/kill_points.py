"""Kill a run at each of its calls that change files, start it again, and compare the end with an uninterrupted run.

    python tests/runs/kill_points.py FOLDER --method lts --dataset CARD.toml --data-root ROOT ... [every=N]

The options are those of `risbench run`. Every kill point has a process of its own, which is forked from this one; it
ends at once before the N-th call. The run is then started again: as the line of a plan, or with --resume.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import risbench.render
import risbench.runs.evaluation
import risbench.runs.plan_runner
import risbench.runs.training
import risbench.tables.comparison  # noqa: F401  the forked processes need not import it
from risbench.cli import app

KILLED = 137
_CALLS = ("replace", "rename", "mkdir", "unlink", "rmdir", "fsync", "open")


def main() -> None:
    """Print each kill point with a wrong end, and at last the counts; exit with 1 if there are any."""
    every = max([int(word.removeprefix("every=")) for word in sys.argv if word.startswith("every=")], default=1)
    work, options = Path(sys.argv[1]).resolve(), [word for word in sys.argv[2:] if not word.startswith("every=")]
    work.mkdir(parents=True, exist_ok=True)
    (work / "plan.txt").write_text(shlex.join(["risbench", "run", *options]) + "\n", encoding="utf-8")
    num_calls = int(_run(work / "whole", work, ["--plan", str(work / "plan.txt")]))
    whole = _result(work / "whole")
    points = range(1, num_calls + 1, every)
    wrong, resumed = 0, 0
    for point in points:
        folder = work / f"{point}"
        code = _run(folder, work, ["--plan", str(work / "plan.txt")], point)
        runs = [path for path in folder.glob("runs/*") if not path.name.startswith(".")]
        resumes = bool(runs) and point % 2 == 0
        resumed += resumes
        again = ["--resume", str(runs[0])] if resumes else ["--plan", str(work / "plan.txt")]
        calls = _run(folder, work, again)
        if code != str(KILLED) or not calls.isdecimal() or _result(folder) != whole:
            wrong += 1
            log = (folder / "log.txt").read_text(encoding="utf-8")
            print(f"point {point} ({code}, {calls}): {_result(folder)}, not {whole}\n{log}", flush=True)
        shutil.rmtree(folder)
    print(f"{len(points)} of {num_calls} kill points, {resumed} of them continued by --resume: {wrong} end wrongly")
    sys.exit(wrong > 0)


def _run(folder: Path, work: Path, options: list[str], kill_at: int = 0) -> str:
    """Run risbench in a folder; return the number of its calls, or how it ended otherwise."""
    folder.mkdir(exist_ok=True)
    counted = work / "calls.txt"
    counted.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _run_in_child(folder, ["risbench", "run", *options], kill_at, counted)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return counted.read_text() if code == 0 else str(code) if code == KILLED else f"exit {code}"


def _run_in_child(folder: Path, command: list[str], kill_at: int, counted: Path) -> None:
    code: Any = 1
    try:
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = command
        calls = _count_calls(folder / "runs", kill_at)
        try:
            app.main()
        except SystemExit as exit_:
            code = exit_.code or 0
        counted.write_text(str(len(calls)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _count_calls(below: Path, kill_at: int) -> list[str]:
    """Count the calls of this process that change files below a folder, and end it before one of them."""
    calls: list[str] = []

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, *arguments: Any, **options: Any) -> Any:
            if _changes(name, path, arguments, options, below):
                calls.append(name)
                if len(calls) == kill_at:
                    os._exit(KILLED)
            return call(path, *arguments, **options)

        return counted

    for name in _CALLS:
        setattr(os, name, counting(name, getattr(os, name)))
    os.remove = os.unlink
    builtins.open = io.open = counting("file", open)
    return calls


def _changes(name: str, path: Any, arguments: tuple[Any, ...], options: dict[str, Any], below: Path) -> bool:
    if name == "file":
        mode = str(options.get("mode", arguments[0] if arguments else "r"))
        if not set(mode) & set("wax+"):
            return False
    if name == "open" and not (arguments and arguments[0] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)):
        return False
    if isinstance(path, int):
        return name == "fsync"
    where = options.get("dir_fd")
    start = os.readlink(f"/proc/self/fd/{where}") if where is not None else os.getcwd()
    return Path(start, os.fsdecode(path)).is_relative_to(below)


def _result(folder: Path) -> dict[str, Any]:
    """Return what must not depend on a kill: the weights, and the names of all files but the runs' times."""
    folders = sorted(path for path in folder.glob("runs/*") if path.suffix != ".lock")  # hidden ones, too
    names = sorted(str(path.relative_to(each)) for each in folders for path in each.rglob("*") if path.is_file())
    facts = [json.loads(file.read_bytes()) for each in folders for file in sorted(each.rglob("checkpoint.json"))]
    logs = [file.read_text(encoding="utf-8").count("\n") for each in folders for file in each.glob("log.jsonl")]
    return {"folders": len(folders), "files": names, "weights": [fact["sha256"] for fact in facts], "log": logs}


if __name__ == "__main__":
    main()
