"""Download of the images of a table of captions and addresses, such as Conceptual Captions.

    python -m data.captions_download --tsv Train_GCC-training.tsv --out data/conceptual-captions --split train

Writes `<split>_image/<line of the table, 8 digits>.jpg`, and at the end `<split>.json` and `<split>_frcnn.json` for the
images that are there. `<split>_download.jsonl` has the outcome of every image: the same command continues a stopped run
and requests no image twice. `<split>_download_report.json` counts the lost images by reason. Ctrl-C and SIGTERM end the
run in order. Exit status: 0 if all lines were tried, however many images are lost; 128 + signal; 2 for an error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from tqdm import tqdm

from common.files.atomic import atomic_write, write_text
from data.captions.fetch import (
    STOPPED,
    USER_AGENT,
    Limits,
    LostError,
    download,
    image_size,
    is_temporary,
    is_worth_retrying,
)
from data.captions.files import (
    SPLITS,
    image_file,
    manifest_file,
    write_records,
)
from data.captions.jobs import Job, Jobs
from data.captions.manifest import (
    OK,
    Entry,
    Known,
    Manifest,
    address_sum,
)
from data.captions.table import TableLine, count_rows, read_table

NOT_TRIED = "not tried"
MALFORMED = "malformed row"
SHOWN = 20  # malformed lines that are printed; the report has more
LISTED = 1000
POLL = 0.2  # seconds between two looks at signals and due attempts


@dataclass(frozen=True)
class Settings:
    """threads: images at a time. per_host: images of one host at a time. tries: attempts for each image.

    backoff: seconds before the second attempt, doubled for each further one. offline: no requests, only files on disk.
    """

    limits: Limits = field(default_factory=Limits)
    threads: int = 32
    per_host: int = 4
    tries: int = 3
    backoff: float = 1.0
    offline: bool = False


def get_images(
    source: Iterator[Job], path_of: Callable[[TableLine], Path], settings: Settings, stop: Event
) -> Iterator[Entry]:
    """Yields the outcome of each job, in no particular order. Ends early, in order, once `stop` is set.

    A file is written before its entry is yielded. Raises OSError if a file cannot be written.
    """
    jobs = Jobs(source, settings.per_host)
    running: dict[Future[Entry | LostError], Job] = {}
    with ThreadPoolExecutor(settings.threads) as pool:
        try:
            while True:
                while len(running) < settings.threads and not stop.is_set() and (job := jobs.take(time.monotonic())):
                    job.tries += 1
                    running[pool.submit(_get, job, path_of(job.row), settings, stop)] = job
                if not running and (stop.is_set() or not jobs.is_waiting):
                    return
                if not running:
                    stop.wait(POLL)
                for future in wait(running, POLL, FIRST_COMPLETED).done:
                    job = running.pop(future)
                    entry = _settle(jobs, job, future.result(), settings)
                    if entry is not None:
                        yield entry
        except BaseException:
            stop.set()  # ends the threads soon
            raise


def _settle(jobs: Jobs, job: Job, result: Entry | LostError, settings: Settings) -> Entry | None:
    """Returns the final entry of a job, or None for a job that is tried again or gets no entry."""
    if isinstance(result, Entry):
        jobs.done(job)
        return result
    if is_worth_retrying(result.reason) and job.tries < settings.tries:
        pause = settings.backoff * 2 ** (job.tries - 1) if result.wait is None else result.wait
        jobs.again(job, time.monotonic() + pause)
        return None
    jobs.done(job)
    if result.reason in (STOPPED, NOT_TRIED):
        return None
    return Entry(job.row.number, job.row.url, result.reason, result.http, tries=job.tries, detail=result.detail)


def _get(job: Job, path: Path, settings: Settings, stop: Event) -> Entry | LostError:
    """Runs in a thread. A valid file on disk is not requested again."""
    with suppress(FileNotFoundError, LostError):
        return _entry(job.row, path.read_bytes(), None, 0)
    if settings.offline:
        return LostError(NOT_TRIED)
    try:
        if stop.is_set():
            raise LostError(STOPPED)
        data, code = download(job.row.url, settings.limits, stop)
        try:
            entry = _entry(job.row, data, code, job.tries)
        except LostError as lost:
            lost.http = code
            raise
    except LostError as lost:
        return lost
    # Not synced: after a power cut the next run finds a torn file by its length.
    with atomic_write(path, sync=False) as file:
        file.write(data)
    return entry


def _entry(row: TableLine, data: bytes, code: int | None, tries: int) -> Entry:
    """Returns the entry of a good image. Raises LostError for a bad one."""
    width, height = image_size(data)
    return Entry(row.number, row.url, OK, code, hashlib.sha256(data).hexdigest(), len(data), width, height, tries)


# Work that is left, and the report


def left_to_do(
    table: Path, known: dict[int, Known], path_of: Callable[[TableLine], Path], retry: str, limit: int | None
) -> Iterator[Job | TableLine]:
    """Yields a Job for each line of the table that needs work, and the line itself for the others.

    Raises ValueError for a line whose address differs from the one in the manifest: then the table is another one.
    """
    for row in read_table(table):
        if limit is not None and row.number >= limit:
            return
        before = known.get(row.number)
        if row.fault:
            yield row
        elif before is None:
            yield Job(row)
        elif before.url != address_sum(row.url):
            raise ValueError(
                f"{table}, line {row.number + 1}: the address is not that of the earlier run into this folder; "
                f"use another --out or --split for another table"
            )
        elif before.status == OK:
            yield row if _has_size(path_of(row), before.bytes) else Job(row)
        else:
            yield Job(row) if retry == "all" or (retry == "temporary" and is_temporary(before.status)) else row


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def report(table: Path, manifest: Manifest, faults: Sequence[TableLine], rows: int, complete: bool) -> dict[str, Any]:
    """Counts the images on disk, and the lost ones by reason, the most frequent first."""
    counts = manifest.counts()
    valid = counts.pop(OK, 0)
    if faults:
        counts[MALFORMED] = len(faults)
    if rest := rows - valid - counts.total():
        counts[NOT_TRIED] = rest
    return {
        "table": table.name,
        "complete": complete,
        "rows": rows,
        "valid": valid,
        "bytes": sum(known.bytes for known in manifest.known.values() if known.status == OK),
        "lost": dict(counts.most_common()),
        "malformed": [f"line {row.number + 1}: {row.fault}" for row in faults[:LISTED]],
    }


def show(result: dict[str, Any]) -> None:
    rows, valid = result["rows"], result["valid"]
    print(f"{valid} of {rows} images are there ({valid / max(rows, 1):.1%}), {result['bytes'] / 1e9:.3f} GB")
    for reason, count in result["lost"].items():
        print(f"{count:>9}  {reason}")
    for line in result["malformed"][:SHOWN]:
        print(f"malformed {line}")
    if len(result["malformed"]) > SHOWN:
        print(f"... {result['lost'][MALFORMED] - SHOWN} more malformed lines")


# Command line


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    limits = Limits(args.timeout, args.deadline, int(args.max_megabytes * 2**20), args.user_agent)
    settings = Settings(limits, args.threads, args.per_host, args.tries, args.backoff, args.offline)
    warnings.filterwarnings("ignore", module="PIL")  # Pillow warns of odd but readable images by the thousand
    try:
        with stop_by_signal() as stopped:
            return run(args.tsv, args.out, args.split, settings, args.retry, args.limit, stopped)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # the second signal; the manifest keeps the outcomes so far
        return 128 + signal.SIGINT


@dataclass
class Stopped:
    """event: set by the first signal. signum: its number, 0 before."""

    event: Event = field(default_factory=Event)
    signum: int = 0


@contextmanager
def stop_by_signal() -> Iterator[Stopped]:
    """Sets the event on SIGINT and SIGTERM. A second SIGINT raises KeyboardInterrupt."""
    stopped = Stopped()
    before = {}

    def ask(signum: int, frame: Any) -> None:
        stopped.signum = signum
        stopped.event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for kind in (signal.SIGINT, signal.SIGTERM):
        before[kind] = signal.signal(kind, ask)
    try:
        yield stopped
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def run(table: Path, out: Path, split: str, settings: Settings, retry: str, limit: int | None, stopped: Stopped) -> int:
    """Downloads the images of a table. Returns the exit status. Raises ValueError and OSError for errors of the
    user."""
    rows = count_rows(table)
    faults: list[TableLine] = []

    def path_of(row: TableLine) -> Path:
        return image_file(out, split, row.name)

    with Manifest(manifest_file(out, split)) as manifest, tqdm(total=rows, unit="image", desc=split) as progress:

        def jobs() -> Iterator[Job]:
            for item in left_to_do(table, manifest.known, path_of, retry, limit):
                if stopped.event.is_set():
                    return
                if isinstance(item, Job):
                    yield item
                    continue
                if item.fault:
                    faults.append(item)
                progress.update()

        good = 0
        for entry in get_images(jobs(), path_of, settings, stopped.event):
            manifest.add(entry)
            good += entry.status == OK
            progress.set_postfix(new=good, refresh=False)
            progress.update()
        if stopped.signum:
            faults = [row for row in read_table(table) if row.fault]
        result = report(table, manifest, faults, rows, complete=not stopped.signum and limit is None)
    write_text(out / f"{split}_download_report.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    show(result)
    if stopped.signum:
        print("stopped; the same command continues from here")
        return 128 + stopped.signum
    print(f"{write_records(table, out, split)} records in {out / split}.json and {out / split}_frcnn.json")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data.captions_download",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default, limits = Settings(), Limits()
    parser.add_argument("--tsv", type=Path, required=True, help="lines of caption TAB address")
    parser.add_argument("--out", type=Path, required=True, help="folder of the data, DATASET_PATH of a config")
    parser.add_argument("--split", required=True, choices=SPLITS, help="part of the data set")
    parser.add_argument("--threads", type=_positive(int), default=default.threads, help="images at a time")
    parser.add_argument(
        "--per-host", type=_positive(int), default=default.per_host, help="images of one host at a time"
    )
    parser.add_argument("--timeout", type=_positive(float), default=limits.timeout, help="seconds without an answer")
    parser.add_argument("--deadline", type=_positive(float), default=limits.deadline, help="seconds for an image")
    parser.add_argument("--tries", type=_positive(int), default=default.tries, help="attempts for an image")
    parser.add_argument(
        "--backoff", type=float, default=default.backoff, help="seconds before the second attempt, then twice"
    )
    parser.add_argument("--max-megabytes", type=_positive(float), default=limits.max_bytes / 2**20, help="of an image")
    parser.add_argument("--user-agent", default=USER_AGENT)
    parser.add_argument(
        "--retry",
        choices=("none", "temporary", "all"),
        default="none",
        help="which images that an earlier run lost are requested again",
    )
    parser.add_argument("--limit", type=int, help="only the first N rows")
    parser.add_argument("--offline", action="store_true", help="no requests: take the valid images on disk")
    return parser


def _positive(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        if (value := kind(text)) <= 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = kind.__name__  # argparse names the type by it
    return parse


if __name__ == "__main__":
    sys.exit(main())
