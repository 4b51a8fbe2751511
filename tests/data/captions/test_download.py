"""Downloads from a server on this machine that behaves well and badly."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from PIL import Image

from data.captions import fetch as captions_fetch
from data.captions.download import Settings, get_images, main
from data.captions.fetch import (
    Limits,
    LostError,
    ascii_url,
    download,
    image_size,
    is_temporary,
)
from data.captions.jobs import Job, Jobs
from data.captions.manifest import (
    Entry,
    Manifest,
    address_sum,
    read_manifest,
)
from data.captions.table import TableLine
from tests.paths import ROOT


def image(width: int = 40, height: int = 30, kind: str = "JPEG", **options: Any) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), (200, 40, 10)).save(data, kind, **options)
    return data.getvalue()


GOOD = image()


class Handler(BaseHTTPRequestHandler):
    """Answers by the path; the server counts the requests by path."""

    server: Server

    def do_GET(self) -> None:  # noqa: N802 (the name that the base class calls)
        with self.server.lock:
            self.server.asked[self.path] += 1
            self.server.agents.add(self.headers["User-Agent"])
            nth = self.server.asked[self.path]
        with suppress(BrokenPipeError, ConnectionResetError):
            self.answer(self.path.strip("/").partition("?")[0], nth)

    def answer(self, name: str, nth: int) -> None:
        if name.startswith("code"):
            self.reply(int(name[4:7]), b"no")
        elif name == "busy":
            self.reply(500, b"later") if nth < 3 else self.reply(200, GOOD)
        elif name == "limited":
            self.reply(429, b"later", {"Retry-After": "0"}) if nth < 2 else self.reply(200, GOOD)
        elif name == "moved":
            self.reply(302, b"", {"Location": "/good/moved"})
        elif name == "loop":
            self.reply(302, b"", {"Location": "/loop"})
        elif name == "to_file":
            self.reply(302, b"", {"Location": "file:///etc/hostname"})
        elif name == "slow":
            self.server.free.wait(5)
        elif name == "drip":
            self.send_response(200)
            self.end_headers()
            while not self.server.free.wait(0.02):
                self.wfile.write(b"x")
        elif name == "cut":
            self.reply(200, GOOD[:-5], length=len(GOOD))
        elif name == "lies":
            self.reply(200, b"", length=1 << 40)
        elif name == "endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(40):
                self.wfile.write(bytes(1 << 16))
        elif name == "html":
            self.reply(200, b"<html>gone</html>")
        elif name == "torn":
            self.reply(200, GOOD[: len(GOOD) // 2])
        elif name == "tiny":
            self.reply(200, image(9, 30))
        elif name == "long":
            self.reply(200, image(10_001, 12, "PNG"))
        elif name == "wait":
            with self.server.busy():  # ends before the reply, after which the client may ask again
                time.sleep(0.1)
            self.reply(200, GOOD)
        elif name == "held":  # until the test says so
            self.server.free.wait(20)
            self.reply(200, GOOD)
        else:
            self.reply(200, image(20 + nth, 20))

    def reply(self, code: int, data: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.free = threading.Lock(), Event()
        self.asked: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.now = self.most = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Counts the requests that are answered at the same time."""
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        yield
        with self.lock:
            self.now -= 1


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    captions_fetch._opener.cache_clear()
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.free.set()
        server.shutdown()
        thread.join()


FAST = Limits(timeout=0.3, deadline=0.6, max_bytes=1 << 20)


class TestFetch:
    def test_an_image_and_the_user_agent(self, server: Server) -> None:
        assert download(f"{server.url}/good", Limits(user_agent="me")) == (image(21, 20), 200)
        assert server.agents == {"me"}

    def test_a_redirection_is_followed(self, server: Server) -> None:
        assert download(f"{server.url}/moved", FAST)[0] == image(21, 20)
        assert server.asked["/good/moved"] == 1

    @pytest.mark.parametrize(
        ("name", "reason", "http"),
        [
            ("code404", "HTTP 404", 404),
            ("code410", "HTTP 410", 410),
            ("code503", "HTTP 503", 503),
            ("loop", "HTTP 302", 302),
            ("to_file", "HTTP 302", 302),
            ("slow", "timeout", None),
            ("drip", "timeout", 200),
            ("cut", "cut off", 200),
            ("lies", "too many bytes", 200),
            ("endless", "too many bytes", 200),
        ],
    )
    def test_reasons(self, server: Server, name: str, reason: str, http: int | None) -> None:
        with pytest.raises(LostError) as lost:
            download(f"{server.url}/{name}", FAST)
        assert (lost.value.reason, lost.value.http) == (reason, http)

    def test_nobody_listens(self, server: Server) -> None:
        with pytest.raises(LostError) as lost:
            download("http://127.0.0.1:9/a.jpg", FAST)
        assert lost.value.reason == "connection failed"

    @pytest.mark.parametrize(
        "url", ["file:///etc/hostname", "ftp://x.org/a.jpg", "a.jpg", "http://", "http://h:port/a", "data:image/png,x"]
    )
    def test_other_addresses_are_refused(self, url: str) -> None:
        with pytest.raises(LostError) as lost:
            download(url, FAST)
        assert lost.value.reason == "bad address"

    def test_addresses_on_the_wire(self) -> None:
        assert ascii_url("http://bücher.example/ä b.jpg?q=é&r=%20#x") == (
            "http://xn--bcher-kva.example/%C3%A4%20b.jpg?q=%C3%A9&r=%20"
        )
        assert ascii_url("https://EXAMPLE.org:81/a%20b.jpg") == "https://example.org:81/a%20b.jpg"
        assert ascii_url("http://[::1]:8/a") == "http://[::1]:8/a"

    def test_which_reasons_may_pass(self) -> None:
        passing = ["timeout", "connection failed", "no such host", "cut off", "HTTP 429", "HTTP 500", "HTTP 503"]
        final = ["HTTP 404", "HTTP 410", "HTTP 403", "HTTP 501", "bad address", "not an image", "TLS failed"]
        assert all(map(is_temporary, passing)) and not any(map(is_temporary, final))

    def test_sizes(self) -> None:
        assert image_size(image(10, 10)) == (10, 10)
        assert image_size(image(10_000, 10, "PNG")) == (10_000, 10)
        for data, reason in (
            (image(9, 10), "a side outside 10..10000 px"),
            (image(10_001, 10, "PNG"), "a side outside 10..10000 px"),
            (GOOD[:-20], "not an image"),
            (b"", "not an image"),
        ):
            with pytest.raises(LostError) as lost:
                image_size(data)
            assert lost.value.reason == reason

    def test_an_image_is_not_turned(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # show it turned by a quarter
        assert image_size(image(40, 30, exif=exif)) == (40, 30)


class TestJobs:
    @staticmethod
    def jobs(hosts: str, per_host: int, ahead: int = 100) -> Jobs:
        rows = (TableLine(i, "c", f"http://{host}/{i}") for i, host in enumerate(hosts))
        return Jobs((Job(row) for row in rows), per_host, ahead)

    def test_hosts_take_turns(self) -> None:
        jobs = self.jobs("aaabb", per_host=2)
        taken = [jobs.take(0) for _ in range(5)]
        assert [job and job.row.number for job in taken] == [0, 1, 3, 4, None] and jobs.is_waiting
        assert taken[0] and taken[2]
        jobs.done(taken[2])
        assert jobs.take(0) is None
        jobs.done(taken[0])
        job = jobs.take(0)
        assert job and job.row.number == 2 and not jobs.is_waiting

    def test_no_more_than_ahead_wait_for_their_host(self) -> None:
        jobs = self.jobs("aaaab", per_host=1, ahead=2)
        assert jobs.take(0) and jobs.take(0) is None  # b is behind, and not looked for

    def test_later_ones_come_when_due(self) -> None:
        jobs = self.jobs("a", per_host=1)
        job = jobs.take(0)
        assert job
        jobs.again(job, 10)
        assert jobs.take(9.9) is None and jobs.is_waiting and jobs.take(10) is job and not jobs.is_waiting


class TestManifest:
    ENTRY = Entry(3, "http://x/ä", "ok", 200, "ab", 12, 40, 30, 1)

    def test_torn_and_damaged_lines(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "m.jsonl"
        with Manifest(path) as manifest:
            manifest.add(self.ENTRY)
        whole = path.read_bytes()
        path.write_bytes(whole + b"\0\0\0\n[1]\n" + whole[:-9])
        with Manifest(path) as manifest:
            manifest.add(Entry(4, "http://x/b", "timeout", tries=3))
        known = read_manifest(path)
        assert [(i, k.status, k.bytes) for i, k in known.items()] == [(3, "ok", 12), (4, "timeout", 0)]
        assert known[3].url == address_sum("http://x/ä")
        assert "3 damaged lines skipped, the first is line 2" in caplog.text
        assert path.read_bytes().startswith(whole)

    def test_the_last_entry_counts(self, tmp_path: Path) -> None:
        with Manifest(tmp_path / "m.jsonl") as manifest:
            manifest.add(Entry(3, "http://x/ä", "timeout", tries=3))
            manifest.add(self.ENTRY)
            assert manifest.counts() == {"ok": 1}
        assert read_manifest(tmp_path / "m.jsonl")[3].status == "ok"

    def test_one_process_at_a_time(self, tmp_path: Path) -> None:
        with Manifest(tmp_path / "m.jsonl"), pytest.raises(BlockingIOError, match="another download is writing to it"):
            Manifest(tmp_path / "m.jsonl")


class Table:
    """A table of addresses on the server, and the folder that they go to."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.path, self.out, self.server = folder / "t.tsv", folder / "cc", server

    def write(self, *names: str, end: str = "\n") -> Table:
        lines = [
            name if "\t" in name or not name else f"caption of {name} .\t{self.server.url}/{name}" for name in names
        ]
        self.path.write_text("\n".join(lines) + end)
        return self

    def args(self, *more: str) -> list[str]:
        base = ["--tsv", str(self.path), "--out", str(self.out), "--split", "train", "--backoff", "0.01"]
        return [*base, "--timeout", "0.4", "--deadline", "0.8", "--max-megabytes", "1", *more]

    def lines(self, name: str) -> list[Any]:
        return [json.loads(line) for line in (self.out / name).read_text().splitlines()]

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.out / "train_download_report.json").read_text())

    @property
    def images(self) -> list[str]:
        return sorted(path.name for path in (self.out / "train_image").iterdir())


@pytest.fixture
def table(tmp_path: Path, server: Server) -> Table:
    return Table(tmp_path, server)


class TestRun:
    def test_all_kinds_at_once(self, table: Table, capsys: pytest.CaptureFixture[str]) -> None:
        names = ["good", "moved", "code404", "busy", "no tab", "slow", "cut", "html", "lies", "tiny", "long"]
        names += ["dog ä.jpg", "code410", "code500", "limited", "a\tb\tc", "torn", "\thttp://x/", "good", "good/last"]
        names[4] = ""
        table.write(*names, end="")
        assert main(table.args()) == 0
        valid = [0, 1, 3, 11, 14, 18, 19]
        assert table.images == [f"{i:08d}.jpg" for i in valid]
        assert table.report | {"bytes": 0} == {
            "table": "t.tsv",
            "complete": True,
            "rows": 20,
            "valid": 7,
            "bytes": 0,
            "lost": {
                "malformed row": 3,
                "not an image": 2,
                "a side outside 10..10000 px": 2,
                "HTTP 404": 1,
                "HTTP 410": 1,
                "HTTP 500": 1,
                "timeout": 1,
                "cut off": 1,
                "too many bytes": 1,
            },
            "malformed": [
                "line 5: 1 columns, expected 2: caption TAB address",
                "line 16: 3 columns, expected 2: caption TAB address",
                "line 18: no caption",
            ],
        }
        out = capsys.readouterr().out
        assert "7 of 20 images are there (35.0%)" in out and "malformed line 18: no caption" in out
        asked = table.server.asked
        assert [asked[f"/{n}"] for n in ("code404", "code410", "html", "code500", "slow", "cut", "busy")] == [
            1, 1, 1, 3, 3, 3, 3,
        ]  # fmt: skip
        assert asked["/good"] == 2  # rows are independent, also those with one address
        entries = {entry["id"]: entry for entry in table.lines("train_download.jsonl")}
        assert len(entries) == 17
        data = (table.out / "train_image/00000019.jpg").read_bytes()
        assert entries[19] == {
            "id": 19,
            "url": f"{table.server.url}/good/last",
            "status": "ok",
            "http": 200,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "width": 21,
            "height": 20,
            "tries": 1,
            "detail": "",
        }
        assert entries[3]["tries"] == 3 and entries[2]["http"] == 404
        records = table.lines("train_frcnn.json")
        assert [record["image"][-12:-4] for record in records] == [f"{i:08d}" for i in valid]
        assert records[-1] == {
            "image": "train_image.zip@/00000019.jpg",
            "caption": ["caption", "of", "good/last", "."],
            "frcnn": "train_frcnn.zip@/00000019.json",
        }

    def test_a_second_run_asks_for_nothing(self, table: Table) -> None:
        table.write("a", "code404", "html")
        assert main(table.args()) == main(table.args()) == 0
        assert table.server.asked == {"/a": 1, "/code404": 1, "/html": 1} and len(table.images) == 1

    @pytest.mark.parametrize(("retry", "asked"), [("temporary", [1, 2]), ("all", [2, 2])])
    def test_lost_ones_again(self, table: Table, retry: str, asked: list[int]) -> None:
        table.write("code404", "code500")
        main(table.args("--tries", "1"))
        main(table.args("--tries", "1", "--retry", retry))
        assert [table.server.asked[f"/{name}"] for name in ("code404", "code500")] == asked

    def test_files_without_an_entry_are_taken_in(self, table: Table) -> None:
        """Killed between the file and the entry, or got by another program."""
        table.write("a", "b", "c")
        folder = table.out / "train_image"
        folder.mkdir(parents=True)
        (folder / "00000000.jpg").write_bytes(GOOD)
        (folder / "00000001.jpg").write_bytes(GOOD[:50])
        assert main(table.args("--offline")) == 0
        assert not table.server.asked and table.report["lost"] == {"not tried": 2}
        assert main(table.args()) == 0
        assert table.server.asked == {"/b": 1, "/c": 1}
        assert [entry["tries"] for entry in sorted(table.lines("train_download.jsonl"), key=lambda e: e["id"])] == [
            0,
            1,
            1,
        ]

    def test_a_lost_or_torn_file_is_got_again(self, table: Table) -> None:
        table.write("a", "b", "c")
        main(table.args())
        (table.out / "train_image/00000000.jpg").unlink()
        (table.out / "train_image/00000001.jpg").write_bytes(b"torn")
        assert main(table.args()) == 0
        assert table.server.asked == {"/a": 2, "/b": 2, "/c": 1} and table.report["valid"] == 3

    def test_limit_and_the_rest(self, table: Table) -> None:
        table.write("a", "b", "c")
        assert main(table.args("--limit", "1")) == 0
        assert table.report["lost"] == {"not tried": 2} and not table.report["complete"]
        assert main(table.args()) == 0 and table.report["valid"] == 3 and table.report["complete"]

    def test_another_table(self, table: Table, capsys: pytest.CaptureFixture[str]) -> None:
        main(table.write("a", "b").args())
        assert main(table.write("a", "x").args()) == 2
        assert "t.tsv, line 2: the address is not that of the earlier run" in capsys.readouterr().err

    def test_no_table(self, table: Table, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(table.args()) == 2 and "t.tsv" in capsys.readouterr().err
        assert not table.out.exists()

    def test_a_host_is_not_crowded(self, table: Table) -> None:
        table.write(*(f"wait?{i}" for i in range(8)))
        assert main(table.args("--per-host", "2", "--threads", "8")) == 0
        assert table.server.most == 2 and len(table.images) == 8

    def test_a_full_disk_ends_the_run(self, table: Table, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        """And is not counted as a loss of the image."""

        def full(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("data.captions.download.atomic_write", full)
        assert main(table.write("a", "b").args()) == 2
        assert "No space left" in capsys.readouterr().err
        assert read_manifest(table.out / "train_download.jsonl") == {}
        monkeypatch.undo()
        assert main(table.args()) == 0 and len(table.images) == 2

    def test_stopping_keeps_what_is_there(self, tmp_path: Path, server: Server) -> None:
        stop = Event()
        rows = (Job(TableLine(i, "c", f"{server.url}/{i}")) for i in range(1000))
        done = []
        for entry in get_images(rows, lambda row: tmp_path / row.name, Settings(threads=2), stop):
            done.append(entry.id)
            stop.set()
        assert 1 <= len(done) <= 3 and sorted(done) == sorted(int(path.name) for path in tmp_path.iterdir())


def _wait_until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end, "the program did not get there"
        time.sleep(0.02)


@pytest.mark.parametrize(("kind", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_interrupted_and_resumed(table: Table, kind: str, status: int) -> None:
    """As a process of its own: it is ended while one image is under way and others are done."""
    table.write("a", "b", "held", "code404")
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    command = [sys.executable, "-m", "data.captions_download", *table.args("--timeout", "20", "--deadline", "20")]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    manifest = table.out / "train_download.jsonl"
    _wait_until(lambda: manifest.is_file() and manifest.read_bytes().count(b"\n") == 3)
    process.send_signal(getattr(signal, kind))
    if kind != "SIGKILL":
        time.sleep(0.3)  # the signal is taken before the image goes on
        table.server.free.set()
    out, _ = process.communicate(timeout=60)
    table.server.free.set()
    assert process.returncode == status
    if kind != "SIGKILL":
        assert b"the same command continues from here" in out and not table.report["complete"]
        assert table.report["lost"].get("HTTP 404") == 1 and not (table.out / "train.json").exists()
    before = dict(table.server.asked)
    assert main(table.args()) == 0
    assert table.images == ["00000000.jpg", "00000001.jpg", "00000002.jpg"]
    again = {path: n - before.get(path, 0) for path, n in table.server.asked.items() if n != before.get(path)}
    assert again in ({"/held": 1}, {})  # {}: what was under way was still taken in
    assert len(table.lines("train_frcnn.json")) == 3
