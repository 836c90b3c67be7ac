"""`verse.poems.sources`: every kind of source, and every way a file can be wrong."""

import functools
import hashlib
import http.server
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verse.errors import UserError
from verse.files import note_origin
from verse.poems import sources
from verse.poems.sources import INSTRUCTION, REFERENCES, TESTING, TRAINING, fetch

POEM = {
    "instruction": "續寫此詩。",
    "input": "白日依山盡，黃河入海流。",
    "output": "欲窮千里目，更上一層樓。",
}
OTHER = {"input": "床前明月光，疑是地上霜。", "output": "舉頭望明月，低頭思故鄉。"}
FILLED = {"instruction": INSTRUCTION} | OTHER


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """A working directory with embedded poems."""
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.chdir(repository)
    put("data/embedded/train.json", [POEM, POEM])
    put("data/embedded/test.json", [OTHER])
    return repository


def dump(content, **options):
    return json.dumps(content, ensure_ascii=False, **options)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def put(path, content):
    """Write bytes, text, or anything else as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes | str):
        content = dump(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def poems(source, *, embedded="data/embedded", hw5_url="http://nowhere.invalid", sha256=None):
    data = SimpleNamespace(source=str(source), sha256=sha256, hw5_url=hw5_url)
    return fetch(data, embedded=embedded, cache="cache")


def rows(poems):
    return [poem.row() for poem in poems]


def fails(source, *words, **options):
    with pytest.raises(UserError) as caught:
        poems(source, **options)
    line = str(caught.value)
    for word in words:
        assert word in line
    return line


@pytest.fixture
def serve(monkeypatch):
    """Serve a folder; gives its URL."""
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    def serve(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


# Kinds of sources


def test_embedded():
    got = poems("embedded")
    assert (rows(got.train), rows(got.test)) == ([POEM, POEM], [FILLED])
    assert got.origin == Path("data/embedded")


@pytest.mark.parametrize(
    "content",
    [
        [POEM, OTHER],
        json.dumps([POEM, OTHER], indent=2),
        json.dumps(POEM) + "\n" + json.dumps(OTHER) + "\n",
        "\r\n".join(["", dump(POEM), "", json.dumps(OTHER)]),
        b"\xef\xbb\xbf" + json.dumps([POEM, OTHER]).encode(),
        [POEM | {"author": "王之渙"}, OTHER | {"id": 7}],
    ],
)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_file(content, absolute):
    path = put("mine/poems.txt", content)
    got = poems(path.absolute() if absolute else path)
    assert (rows(got.train), rows(got.test)) == ([POEM, FILLED], [])


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = put(tmp_path / "poems.json", [POEM])
    assert poems("~/poems.json").origin == path


def test_line_separators_inside_a_poem_end_no_line():
    odd = POEM | {"output": "欲窮\u2028千里\x85目"}
    put("poems.jsonl", dump(odd))
    assert rows(poems("poems.jsonl").train) == [odd]


@given(st.lists(st.fixed_dictionaries(dict.fromkeys(POEM, st.text())), min_size=1))
def test_any_text_comes_back_unchanged_from_lines_and_lists(tmp_path_factory, wanted):
    folder = tmp_path_factory.mktemp("texts")
    lines = put(folder / "a", "".join(dump(row) + "\n" for row in wanted))
    assert rows(poems(lines).train) == wanted == rows(poems(put(folder / "b", wanted)).train)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("test", ["", "[]", json.dumps(OTHER), None])
def test_a_folder(suffix, test):
    put(f"mine/train.{suffix}", [POEM])
    if test is not None:
        put(f"mine/test.{suffix}", test)
    got = poems("mine")
    assert rows(got.train) == [POEM]
    assert rows(got.test) == ([FILLED] if test and "input" in test else [])


def test_a_url(serve, tmp_path):
    path = put(tmp_path / "web" / "poems.jsonl", json.dumps(OTHER))
    url, sha256 = f"{serve(path.parent)}/poems.jsonl", hashlib.sha256(path.read_bytes()).hexdigest()
    got = poems(url + "?key=secret")
    assert (rows(got.train), rows(got.test)) == ([FILLED], [])
    assert got.origin == {"source": url, "sha256": sha256}
    fails(url, "expected sha256", "got " + sha256, sha256="0" * 64)
    fails(path, "data.sha256: of a file behind a URL", "set it to null", sha256=sha256)


def test_a_pinned_url_works_offline(serve, tmp_path):
    path = put(tmp_path / "web" / "poems.json", [POEM])
    url, sha256 = f"{serve(path.parent)}/poems.json", hashlib.sha256(path.read_bytes()).hexdigest()
    first = poems(url, sha256=sha256)
    path.unlink()
    assert poems(url, sha256=sha256) == first
    fails(url, "404")


def test_errors_in_a_download_name_the_url(serve, tmp_path):
    path = put(tmp_path / "web" / "poems.json", [POEM, {"input": "a"}])
    url = f"{serve(path.parent)}/poems.json"
    assert "cache" not in fails(url, f"{url}, record 2: no 'output'")
    path.write_bytes(b"\xff\xfe")
    assert "cache" not in fails(url, f"{url}: not UTF-8")


# The homework


def put_homework(folder, references="欲窮千里目\t更上一層樓\n舉頭望明月\t低頭思故鄉", prompts=2):
    prompt = [{key: row[key] for key in ("instruction", "input")} for row in (POEM, FILLED)]
    put(folder / TRAINING, [POEM, FILLED])
    put(folder / TESTING, prompt[:prompts])
    put(folder / REFERENCES, references)
    return folder


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_the_homework_from_a_folder(tmp_path, end):
    folder = put_homework(tmp_path / "hw5")
    with (folder / REFERENCES).open("ab") as file:
        file.write(end.encode())
    got = poems(folder)
    assert rows(got.train) == rows(got.test) == [POEM, FILLED]
    assert got.origin == folder


def test_the_homework_from_a_mirror(serve, tmp_path, monkeypatch):
    folder = put_homework(tmp_path / "hw5")
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(sources, "HW5_SHA256", hashes)
    url = serve(tmp_path)
    got = poems("hw5", hw5_url=f"{url}/hw5/")
    assert rows(got.train) == rows(got.test) == [POEM, FILLED]
    assert got.origin == {"source": "hw5", "sha256": hashes}
    assert poems("hw5", hw5_url=f"{url}/gone") == got  # verified once, at hand ever after


def test_a_mirror_with_other_bytes_is_refused(serve, tmp_path):
    url = serve(put_homework(tmp_path / "hw5"))
    fails("hw5", f"{url}/{TRAINING}", sources.HW5_SHA256[TRAINING], hw5_url=url)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"references": "欲窮千里目\t更上一層樓"}, ("1 lines for the 2 prompts",)),
        ({"prompts": 1}, ("2 lines for the 1 prompts",)),
        ({"references": "欲窮千里目\n舉頭望明月\t低頭思故鄉"}, ("line 1", "even number")),
        ({"references": "欲窮千里目\t更上一層樓\n\n"}, ("1 lines for the 2 prompts",)),
        ({"references": "\n舉頭望明月\t低頭思故鄉"}, (", line 1:",)),
        ({"references": "欲窮千里目\t\t更上一層樓\t\n舉頭望明月\t低頭思故鄉"}, (", line 1:",)),
        ({"references": "欲窮千里目\t更上一層樓\n舉頭望明月，\t低頭思故鄉。"}, (", line 2:",)),
    ],
)
def test_references_that_do_not_fit(tmp_path, options, words):
    fails(put_homework(tmp_path / "hw5", **options), REFERENCES, *words)


@pytest.mark.parametrize("name", [TRAINING, TESTING, REFERENCES])
def test_a_homework_file_is_missing(tmp_path, name):
    folder = put_homework(tmp_path / "hw5")
    (folder / name).unlink()
    fails(folder, str(folder), f"{name} is missing")


@pytest.fixture
def homework():
    if not os.environ.get("VERSE_HW5"):
        pytest.skip("VERSE_HW5, the folder of the homework's three files, is not set")
    return Path(os.environ["VERSE_HW5"])


def test_the_real_homework(homework, serve):
    got = poems("hw5", hw5_url=serve(homework))  # the pinned hashes hold
    assert (len(got.train), len(got.test)) == (5001, 15)
    assert {poem.instruction for poem in got.train + got.test} == {INSTRUCTION}
    assert got.train[0].rest.startswith("綺殿千尋起，離宮百雉餘。")
    assert got.test[-1].rest == "八駿日行三萬裏，穆王何事不重來。"
    for poem in got.test:  # each reference fits its prompt, so the join is right
        width = poem.couplet.index("，") if "，" in poem.couplet else poem.couplet.index("？")
        verses = poem.rest.replace("。", "，").rstrip("，").split("，")
        assert {len(verse) for verse in verses} == {width}
    local = poems(homework)
    assert (local.train, local.test) == (got.train, got.test)


# Files that are wrong


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ("empty",)),
        (" \n", ("empty",)),
        ("[]", ("no poems",)),
        (dump([POEM])[:-5], ("line 1", "cut off")),
        (dump([POEM], indent=1)[:-3], ("line 6", "cut off")),
        (dump(POEM) + "\n" + dump(OTHER)[:-1], ("line 2", "cut off")),
        (json.dumps(POEM) + "\n\n{'input': 1}", ("line 3", "not JSON")),
        ("白日依山盡", ("line 1", "not JSON")),
        (dump(POEM, indent=2), ("a record spread over lines", "jq -c")),
        ("\n" + dump(POEM, indent=1) + "\n" + dump(OTHER, indent=1), ("spread over lines",)),
        ('{"data": [\n' + dump(POEM) + "\n]}", ("spread over lines",)),
        (f"<<<<<<< HEAD\n{dump(POEM)}\n=======\n", ("line 1", "conflict markers")),
        (f"[\n<<<<<<< HEAD\n{dump(POEM)}\n=======\n]", ("line 2", "conflict markers")),
        ("<!DOCTYPE html>", ("web page",)),
        (json.dumps([POEM]).encode("utf-16"), ("not UTF-8", "save the file as UTF-8")),
        ("白日依山盡".encode("big5"), ("not UTF-8",)),
        (b"\x1f\x8b\x08\x00", ("compressed (gzip)", "unpack it")),
        ("[" * 100_000, ("nested too deeply",)),
        ('{"a":' * 100_000, ("line 1", "nested too deeply")),
        ("[" + "1" * 5_000 + "]", ("number too long",)),
        ([POEM, 7], ("record 2", "a number, not an object")),
        ([None], ("record 1", "null")),
        ([[POEM]], ("record 1", "a list")),
        ({"data": [POEM]}, ("record 1", "no 'input'")),
        ([POEM, {"input": "a", "completion": "b"}], ("record 2", "no 'output'")),
        ([POEM | {"output": ["a"]}], ("record 1", "'output' is a list, not a string")),
        ([POEM | {"input": None}], ("record 1", "'input' is null, not a string")),
        ([POEM | {"instruction": True}], ("record 1", "'instruction' is a boolean")),
        ('[{"input": NaN, "output": "b"}]', ("record 1", "'input' is a number")),
        (r'[{"input": "\ud800", "output": "b"}]', ("record 1", "'input' holds half a surrogate")),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_a_wrong_file_is_one_clear_line(content, words):
    path = put("mine/poems.json", content)
    assert "\n" not in fails(path, str(path), *words)


@pytest.mark.parametrize(
    "source", ["nowhere.json", "no/where", "", " ", "a" * 5000, "a\0b", "~n/x"]
)
def test_a_source_that_is_not_there(source):
    fails(source, "data.source", "no such file or folder", "embedded, hw5")


def test_a_source_that_is_no_file():
    os.mkfifo("pipe")
    fails("pipe", "neither a file nor a folder")


def test_a_url_of_another_kind():
    fails("file:///etc/passwd", "only http and https")


def test_a_folder_without_poems():
    put("mine/poems.json", [POEM])
    fails("mine", "mine: holds no poems", "train.json")


def test_a_folder_that_leaves_a_choice():
    put("mine/train.json", [POEM])
    put("mine/train.jsonl", json.dumps(OTHER))
    fails("mine", "both train.json and train.jsonl")


def test_embedded_poems_are_missing():
    fails("embedded", "nowhere", embedded="nowhere")


# What is left behind


def test_a_local_source_is_linked(repository, tmp_path):
    at = Path("data/source")
    outside = put(tmp_path / "poems.json", [POEM])
    inside = put("mine/train.json", [POEM])
    for source in (outside, Path("../poems.json"), inside, inside.absolute(), Path("mine")):
        note_origin(poems(source).origin, at, "data.source")
        assert at.is_symlink()
        assert at.samefile(source)
        assert at.readlink().is_absolute() == source.is_absolute()
    note_origin(poems("embedded").origin, at, "data.source")
    assert str(at.readlink()) == "embedded"


def test_the_link_holds_where_data_is_itself_a_link(tmp_path):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    put("mine/poems.json", [POEM])
    Path("big").symlink_to(tmp_path / "disk" / "deep")
    note_origin(Path("mine/poems.json"), "big/source", "data.source")
    assert Path("big/source").samefile("mine/poems.json")


def test_recording_never_touches_the_users_files():
    folder, file = put("mine/poems.json", [POEM]).parent, put("own.json", [POEM])
    before = [file.stat(), (folder / "poems.json").stat()]
    for origin in (folder, file, {"source": "hw5"}, folder, {"source": "hw5"}, file):
        note_origin(origin, "data/source", "data.source")
    assert [file.stat(), (folder / "poems.json").stat()] == before
    assert names("data") == ["embedded", "source"]


def test_a_download_is_recorded_by_its_hash():
    Path("data/source").symlink_to("embedded")
    note_origin({"source": "hw5", "sha256": {"a": "b"}}, "data/source", "data.source")
    assert not Path("data/source").is_symlink()
    assert json.loads(Path("data/source").read_text()) == {"source": "hw5", "sha256": {"a": "b"}}
    assert names("data/embedded") == ["test.json", "train.json"]


@pytest.mark.parametrize(
    "origin", [".", "data", "../repository", "..", "data/source", "./data/source/train.json"]
)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_circle_is_refused(origin, absolute):
    note_origin(Path("data/embedded"), "data/source", "data.source")
    with pytest.raises(UserError, match="in a circle with data/source"):
        note_origin(
            Path(origin).absolute() if absolute else Path(origin), "data/source", "data.source"
        )
    assert str(Path("data/source").readlink()) == "embedded"
