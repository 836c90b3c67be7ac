"""`stages.fetch`: from data.source to data/raw, whole or not at all."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from stages import fetch
from verse.errors import UserError
from verse.files import cache_dir, read_jsonl

ROOT = Path(__file__).parents[3]
TOWER = {"input": "白日依山盡，黃河入海流。", "output": "欲窮千里目，更上一層樓。"}
MOON = {"input": "床前明月光，疑是地上霜。", "output": "舉頭望明月，低頭思故鄉。"}


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """A working directory with embedded poems and the default parameters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    embedded = tmp_path / "data" / "embedded"
    embedded.mkdir(parents=True)
    (embedded / "train.json").write_text(json.dumps([TOWER, MOON]), "utf-8")
    (embedded / "test.json").write_text(json.dumps([MOON]), "utf-8")
    choose("embedded")
    return tmp_path


def choose(source, **data):
    values = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    values["data"] |= {"source": str(source)} | data
    Path("params.yaml").write_text(yaml.safe_dump(values), "utf-8")


def raw():
    return {path.name: read_jsonl(path) for path in sorted(Path("data/raw").iterdir())}


def run():
    return subprocess.run(
        [sys.executable, "-m", "stages.fetch"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_embedded_poems(capsys):
    fetch.main()
    assert list(raw()) == ["test.jsonl", "train.jsonl"]
    train, test = raw()["train.jsonl"], raw()["test.jsonl"]
    assert [row["input"] for row in train] == [TOWER["input"], MOON["input"]]
    assert [row["output"] for row in test] == [MOON["output"]]
    assert Path("data/source").resolve() == Path("data/embedded").resolve()
    assert capsys.readouterr().out == "2 training and 1 test poems from data/embedded\n"


def test_a_file_takes_the_place_of_what_was_there(capsys):
    fetch.main()
    Path("data/raw/stray.txt").write_text("")
    Path("mine.jsonl").write_text(json.dumps(TOWER, ensure_ascii=False) + "\n", "utf-8")
    choose("mine.jsonl")
    fetch.main()
    assert list(raw()) == ["test.jsonl", "train.jsonl"]
    assert (len(raw()["train.jsonl"]), len(raw()["test.jsonl"])) == (1, 0)
    assert Path("data/source").resolve() == Path("mine.jsonl").resolve()
    assert capsys.readouterr().out.endswith("1 training and 0 test poems from mine.jsonl\n")


def test_a_source_that_fails_leaves_what_was_there():
    fetch.main()
    before = raw()
    choose("no/such/file.json")
    with pytest.raises(UserError, match=r"no/such/file\.json"):
        fetch.main()
    assert raw() == before
    assert Path("data/source").resolve() == Path("data/embedded").resolve()


class Site(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/poems.json" else 404)
        self.end_headers()
        self.wfile.write(json.dumps([TOWER]).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_url(site, repository, capsys):
    choose(f"{site}/poems.json")
    fetch.main()
    assert len(raw()["train.jsonl"]) == 1
    assert json.loads(Path("data/source").read_text("utf-8"))["source"] == f"{site}/poems.json"
    assert capsys.readouterr().out == f"1 training and 0 test poems from {site}/poems.json\n"
    assert any((repository / "cache" / "verse" / "downloads").iterdir())


def test_a_url_is_held_to_its_hash(site):
    choose(f"{site}/poems.json", sha256="0" * 64)
    with pytest.raises(UserError, match="0" * 64):
        fetch.main()
    assert not Path("data/raw").exists()


def test_the_homework_is_asked_of_the_mirror(site):
    choose("hw5", hw5_url=f"{site}/mirror")
    with pytest.raises(UserError, match=f"{site}/mirror/Tang_training_data.json"):
        fetch.main()


def test_the_homeworks_folder(capsys):
    if "VERSE_HW5" not in os.environ:
        pytest.skip("needs the homework's three files: set VERSE_HW5 to their folder")
    choose(os.environ["VERSE_HW5"])
    fetch.main()
    assert capsys.readouterr().out.startswith("5001 training and 15 test poems from ")


def test_the_command():
    assert run().stdout == "2 training and 1 test poems from data/embedded\n"


def test_a_wrong_parameter_is_one_line_and_exit_status_2():
    Path("params.yaml").write_text("seed: -1\n", "utf-8")
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fetch: params.yaml: ") and done.stderr.count("\n") == 1
    assert not Path("data/raw").exists()


def test_the_cache_is_the_users(repository, monkeypatch):
    assert cache_dir() == repository / "cache" / "verse"
    monkeypatch.setenv("HOME", str(repository))
    for unset in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_dir() == repository / ".cache" / "verse"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == repository / ".cache" / "verse"


def test_no_home_folder_is_one_clear_line(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        cache_dir()
