"""params.yaml: every key's type and range, all faults in one line, before anything heavy."""

import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from verse.errors import ParameterError, printable
from verse.files import parse_yaml
from verse.params import RESERVED_NAMES, Params, parse, read
from verse.poems.contestants import CONTESTANTS, SCRAMBLED

ROOT = Path(__file__).parents[2]
DEFAULTS = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
STAGES = (
    ["stages.fetch"],
    ["stages.prepare"],
    ["stages.train"],
    ["stages.generate", "base"],
    ["stages.generate", "tuned"],
    ["stages.ask"],
    ["stages.judge"],
    ["stages.score"],
)

TEXT = (["x", "x; touch y", "詩"], ["", " ", 1, True, None, ["x"], {"x": 1}])
TEXT_OR_NULL = ([*TEXT[0], None], [v for v in TEXT[1] if v is not None])
TRUTH = ([True, False], [None, 0, 1, "true", "yes", []])
COUNT = ([1, 2, 2**31 - 1], [0, -1, 2**31, 10**400, 1.0, 1.5, "1", True, None, [1], {}])
COUNT_OR_0 = ([0, *COUNT[0]], [v for v in COUNT[1] if type(v) is not int or v != 0])
SHARE = ([0, 0.0, 0.999, "1e-3"], [1, 1.0, -0.001, "x", True, None, [0.5], float("nan")])
FACTOR = ([1, 1e-6, 1e6, "1e-3"], [0, 1e-7, 1e7, -1.0, float("inf"), "x", False, None, 10**400])


def names(*good):
    return list(good), ["", "x", "Auto", None, 1, True, [good[0]]]


# For each key values that fit, the ends of the range among them, and values that do not.
VALUES = {
    "seed": ([0, 2**32 - 1], [-1, 2**32, 1.0, "1", True, None, [1]]),
    "data.source": TEXT,
    "data.sha256": (
        ["0" * 64, "aF" * 32, None],
        ["0" * 63, "0" * 65, "g" * 64, "0" * 64 + "\n", "", 0, True],
    ),
    "data.hw5_url": TEXT,
    "prepare.test_poems": COUNT,
    "prepare.validation_poems": COUNT,
    "prepare.max_train": ([*COUNT[0], None], [v for v in COUNT[1] if v is not None]),
    "prepare.max_dropped": ([0, 0.5, 1, "1e-1"], [-0.1, 1.1, "half", "1_0", "٧", None]),
    "model.name": TEXT,
    "model.revision": TEXT_OR_NULL,
    "model.trust_remote_code": TRUTH,
    "model.quantization": names("nf4", "none"),
    "model.dtype": names("auto", "bfloat16", "float16", "float32"),
    "model.template": names("auto", "plain", "homework", "chat"),
    "train.epochs": ([1, 1000], [1001, *COUNT[1]]),
    "train.learning_rate": ([1, 1e-9, "3e-4"], [0, 1e-10, -1e-3, 1.001, "x", True, None]),
    "train.warmup": SHARE,
    "train.weight_decay": ([0, 10, "1e-3"], [11, *FACTOR[1][2:]]),
    "train.max_grad_norm": FACTOR,
    "train.batch_size": COUNT,
    "train.eval_every": COUNT,
    "train.lora.r": ([1, 1024], [0, -1, 1025, 1.0, "1", True, None]),
    "train.lora.alpha": FACTOR,
    "train.lora.dropout": SHARE,
    "train.lora.target_modules": (
        ["all-linear", ["q_proj"], ["q_proj", "v_proj"]],
        ["q_proj", "(", [], [1], ["q_proj", ""], None, True, {"q_proj": 1}],
    ),
    "decoding.do_sample": TRUTH,
    "decoding.temperature": (
        [0.01, 1, 100, "0.7"],
        [0, 0.0, 1e-40, 101, -0.1, float("inf"), "hot", True, None],
    ),
    "decoding.top_p": ([1, 1e-3, 0.5], [0, 1e-40, 1.001, -1, "x", True, None]),
    "decoding.top_k": COUNT_OR_0,
    "decoding.min_p": ([0, 0.05, 1], [-0.1, 1.1, "x", True, None]),
    "decoding.repetition_penalty": ([1, 0.01, 1.2, 100], [0, -1, 101, "x", True, None]),
    "decoding.max_new_tokens": COUNT,
    "decoding.num_beams": ([1, 128], [129, *COUNT[1]]),
    "decoding.no_repeat_ngram_size": COUNT_OR_0,
    "decoding.candidates": ([1, 1000], [1001, *COUNT[1]]),
    "decoding.constrain": (
        [[], ["form"], ["tone", "form"], ["form", "rhyme", "tone"]],
        [None, "form", ["rhyme"], ["form", "form"], ["from"], {"form": True}, True],
    ),
    "contestants": (
        [[]],
        [None, {}, "kimi", 1, [None], ["kimi"], [[]]],
    ),
    "judge": ([None], [[], "kimi", 1, True]),
    "score.bootstrap": ([100, 10**6], [0, 99, 10**6 + 1, 100.0, "100", True, None]),
    "machine.device": names("auto", "cpu", "cuda", "mps"),
    "machine.processes": (["auto", *COUNT[0]], COUNT[1]),
    "machine.launch": ([None, "torchrun --nnodes 2"], ["", 5, ["torchrun"]]),
    "machine.threads": ([1, 1024], [0, -1, 1025, 1.0, "1", True, None]),
    "machine.memory": (
        ["auto", 8, 0.5, "7.5", 100_000],
        [0, -1, 100_001, "low", "8 GiB", "", float("nan"), True, None, [8]],
    ),
    "machine.cache_dir": TEXT_OR_NULL,
    "machine.checkpoint_every": COUNT,
    "machine.batch_size": COUNT,
    "machine.max_concurrent_requests": ([1, 256], [0, -1, 257, 1.0, "1", True, None]),
    "machine.timeout": ([1, 0.5, "30", 3600], [0, -1, 3601, "x", float("inf"), True, None]),
    "machine.report_to": (
        [[], ["wandb"], ["tensorboard", "wandb", "studio"]],
        [None, "wandb", ["WandB"], [1], {"wandb": True}, True],
    ),
}


def leaves(schema, prefix=""):
    """Every key that holds a value: "seed", "train.lora.r"."""
    for name, field in schema.model_fields.items():
        inner = field.annotation
        section = isinstance(inner, type) and issubclass(inner, BaseModel)
        yield from leaves(inner, f"{prefix}{name}.") if section else [f"{prefix}{name}"]


def changed(**values):
    """The defaults with some values changed; `...` removes a key. Dots are written __."""
    result = deepcopy(DEFAULTS)
    for key, value in values.items():
        *sections, name = key.replace("__", ".").split(".")
        section = result
        for one in sections:
            section = section[one]
        if value is ...:
            del section[name]
        else:
            section[name] = value
    return result


def faults(values):
    with pytest.raises(ParameterError) as error:
        parse(values)
    where, _, line = str(error.value).partition(": ")
    assert where == "params.yaml"
    return line.split("; ")


def test_the_defaults_fit():
    assert parse(DEFAULTS).model_dump() == DEFAULTS
    assert list(VALUES) == list(leaves(Params)), "every key is tried below"


@pytest.mark.parametrize(
    ("key", "value"), [(k, v) for k, (good, _) in VALUES.items() for v in good]
)
def test_values_that_fit(key, value):
    parsed = parse(changed(**{key: value}))
    for name in key.split("."):
        parsed = getattr(parsed, name)
    wanted = float(value) if isinstance(parsed, float) else value
    assert parsed == wanted and type(parsed) is type(wanted)


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, (_, bad) in VALUES.items() for v in bad])
def test_values_that_do_not_fit(key, value):
    (fault,) = faults(changed(**{key: value}))
    assert re.match(rf"{key}(\[0\])? must be ", fault) and len(fault) < 200


@pytest.mark.parametrize("key", [*VALUES, "data", "train", "train.lora"])
def test_a_missing_key(key):
    assert faults(changed(**{key: ...})) == [f"missing key {key}"]


@pytest.mark.parametrize("key", VALUES)
def test_a_misspelled_key(key):
    section, dot, name = key.rpartition(".")
    typo = f"{section}{dot}{name}x"
    assert set(faults(changed(**{key: ..., typo: 1}))) == {
        f"missing key {key}",
        f"unknown key {typo} (did you mean {key}?)",
    }


def test_a_key_with_a_dot_in_it():
    """As `-S` takes it, which a file does not."""
    assert faults(DEFAULTS | {"data.source": "hw5"}) == ["unknown key 'data.source'"]
    assert faults(DEFAULTS | {"mode.l": 1}) == ["unknown key 'mode.l' (did you mean model?)"]


@pytest.mark.parametrize("section", ["data", "model", "train", "train.lora", "decoding"])
@pytest.mark.parametrize("value", [None, 1, "x", [], [1]])
def test_a_section_that_is_none(section, value):
    fault = f"{section} must be a mapping of keys to values, not {value!r}"
    assert faults(changed(**{section: value})) == [fault]


@pytest.mark.parametrize("values", [None, 1, "x", [], [{}]])
def test_a_file_that_is_no_mapping(values):
    assert faults(values) == [f"the file must be a mapping of keys to values, not {values!r}"]


@pytest.mark.parametrize("key", [1, None, True, 1.5, (1, 2), "\x1b[2J", "a" * 10_000])
def test_strange_keys(key):
    (fault,) = faults(DEFAULTS | {key: 1})
    assert fault.startswith("unknown key ") and len(fault) < 200 and fault.isprintable()


def test_a_likeliest_answer_needs_no_temperature():
    parse(changed(decoding__do_sample=False, decoding__temperature=0))


def test_all_faults_at_once():
    values = changed(
        seed="x",
        data__sha256="abc",
        prepare__max_train=0,
        train__lora__r=-1,
        train__lora__alpha=...,
        decoding__temperature=0,
        decoding__top_p=2,
    )
    values["train"]["epoch"] = 1
    assert [fault.split(" must")[0] for fault in faults(values)] == [
        "seed",
        "data.sha256",
        "prepare.max_train",
        "train.lora.r",
        "missing key train.lora.alpha",
        "unknown key train.epoch (did you mean train.epochs?)",
        "decoding.temperature",
        "decoding.top_p",
    ]


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("seed", True, "a whole number, not True"),
        ("data.sha256", "abc", "64 hexadecimal digits or null, not 'abc'"),
        ("data.source", " ", "text, not ' '"),
        ("model.revision", "", "text or null, not ''"),
        ("model.dtype", "int8", "'auto', 'bfloat16', 'float16' or 'float32', not 'int8'"),
        ("train.epochs", 0, "greater than or equal to 1, not 0"),
        ("train.warmup", "1e0", "less than 1, not '1e0'"),
        ("train.weight_decay", float("inf"), "a finite number, not inf"),
        ("train.lora.alpha", False, "a number, not False"),
        ("train.lora.target_modules", ["q", ""], "all-linear or a list of names, not ['q', '']"),
        ("decoding.do_sample", 1, "true or false, not 1"),
        ("decoding.temperature", 0, "0.01 or more, or 0 where decoding.do_sample is false, not 0"),
        ("machine.processes", 0, "'auto' or greater than or equal to 1, not 0"),
        ("machine.processes", "two", "'auto' or a whole number, not 'two'"),
    ],
)
def test_a_fault_says_what_fits(key, value, fault):
    assert faults(changed(**{key: value})) == [f"{key} must be {fault}"]


def test_nothing_can_be_set_later():
    with pytest.raises(ValidationError, match="frozen"):
        parse(DEFAULTS).train.lora.r = 4


# Servers, which have keys that may be left out

SERVER = {"base_url": "https://api.example.org/v1", "model": "m"}
SECRET = "sk-do-not-tell"
OPTIONS: dict[str, tuple] = {
    "base_url": (
        *(["https://a.b/v1", "https://a.b:8443", "http://127.0.0.1:8000/v1", "http://localhost"],),
        [
            *("http://a.b/v1", "http://localhost.a.b", "http://0.0.0.0", "http://2130706433"),
            *("https://li:bai@a.b", "https://a.b/v1?key=x", "https://a.b/#x", "ftp://a.b", "a.b"),
            *("https://", "https://a.b:99999", "https://[", "https://a b", "", None, 1, []),
        ],
    ),
    "model": TEXT,
    "key_env": (["OPENAI_API_KEY", "K", None], [SECRET, "key", "", "A-B", "1A", 1, True]),
    "temperature": ([0, 2, "0.7", None], [-0.1, 2.1, "hot", True, [], float("nan")]),
    "top_p": ([1, 0.1, None], [0, 1.1, "x", True]),
    "max_tokens": ([*COUNT[0], None], [v for v in COUNT[1] if v is not None]),
    "system": TEXT_OR_NULL,
    "options": (
        [{}, {"max_completion_tokens": 9}, {"thinking": {"type": "disabled"}, "stop": ["a"]}],
        [None, [], 1, {"model": "m"}, {"stream": True}, {"api_key": SECRET}, {"a": {1, 2}}],
    ),
    "headers": (
        [{}, {"X-Title": "verse"}, {"api-key": "$AZURE_KEY"}],
        [None, [], {"api-key": SECRET}, {"Authorization": f"Bearer {SECRET}"}, {"a": True}],
    ),
    "query": (
        [{}, {"api-version": "2025-04-01"}, {"key": "$KEY"}, {"api-version": "2024.10"}],
        [None, 1, {"key": SECRET}, *({"api-version": v} for v in (2024.10, 1e3, 0x10, None))],
    ),
}
NAMES = (
    *(["kimi", "gpt-4.1", "月之暗面", "a" * 40],),
    ["", ".", "../x", "a/b", "a b", "a" * 41, "-x", "base", "Tuned", "reference", None, 1, True],
)


@pytest.mark.parametrize(
    ("key", "value"), [(k, v) for k, (good, _) in OPTIONS.items() for v in good]
)
def test_servers_that_fit(key, value):
    p = parse(
        changed(contestants=[SERVER | {"name": "kimi", key: value}], judge=SERVER | {key: value})
    )
    wanted = float(value) if isinstance(value, str) and key == "temperature" else value
    assert getattr(p.contestants[0], key) == getattr(p.judge, key) == wanted


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, (_, bad) in OPTIONS.items() for v in bad])
def test_servers_that_do_not_fit(key, value):
    told = faults(changed(contestants=[SERVER | {"name": "kimi", key: value}]))
    told += faults(changed(judge=SERVER | {key: value}))
    places = [fault.partition(" must be ")[0] for fault in told]
    assert places == [f"contestants[0].{key}", f"judge.{key}"]


def test_names_of_contestants():
    for name in NAMES[0]:
        assert parse(changed(contestants=[SERVER | {"name": name}])).contestants[0].name == name
    for name in NAMES[1]:
        (fault,) = faults(changed(contestants=[SERVER | {"name": name}]))
        assert re.match(r"contestants(\[0\]\.name)? must be ", fault)
    twice = [SERVER | {"name": "kimi"}, SERVER | {"name": "Kimi"}]
    assert faults(changed(contestants=twice)) == [
        f"contestants must be of different names, none of {', '.join(RESERVED_NAMES)}"
    ]


def test_no_contestant_has_the_name_of_one_of_the_pipeline():
    for name in (*CONTESTANTS, SCRAMBLED):
        assert faults(changed(contestants=[SERVER | {"name": name}]))


def test_other_faults_of_servers():
    assert faults(changed(contestants=[SERVER])) == ["missing key contestants[0].name"]
    assert faults(changed(judge={"model": "m"})) == ["missing key judge.base_url"]
    assert faults(changed(judge=SERVER | {"poem": 3})) == [
        "unknown key judge.poem (did you mean judge.poems?)"
    ]
    assert faults(changed(contestants=[SERVER | {"name": "a", "top_q": 1}])) == [
        "unknown key contestants[0].top_q (did you mean contestants[0].top_p?)"
    ]
    assert parse(changed(judge=SERVER)).judge.poems == 50
    dated = yaml.safe_load("{api-version: 2024-10-21}")
    assert (
        parse(changed(judge=SERVER | {"query": dated})).judge.query["api-version"] == "2024-10-21"
    )
    assert parse(changed(judge=SERVER)).judge.temperature == 1


@pytest.mark.parametrize("key", ["base_url", "model", "key_env", "temperature", "api_key"])
def test_a_key_that_stands_in_the_file_is_not_told(key):
    entry = SERVER | {"name": "a", key: [SECRET], "poems": SECRET}
    for values in (
        *({"contestants": [entry]}, {"contestants": entry}, {"contestants": [SECRET]}),
        *({"judge": entry}, {"judge": SECRET}, {"judge": [entry]}),
        {"judge": SERVER | {"base_url": f"https://{SECRET}@a.b"}},
    ):
        assert SECRET not in str(faults(changed(**values)))


def test_the_ready_made_entries_fit():
    """Uncommented as the file says."""
    text = (ROOT / "params.yaml").read_text("utf-8")
    text = re.sub(r"^contestants: \[\].*", "contestants:", text, flags=re.MULTILINE)
    text = re.sub(r"^# (- \{)", r"  \1", text, flags=re.MULTILINE)
    text = re.sub(r"^judge: null.*\n# judge", "judge", text, flags=re.MULTILINE)
    p = parse(yaml.safe_load(text))
    assert [one.name for one in p.contestants] == ["chatgpt", "kimi"]
    assert p.judge.poems == 50 and p.judge.model == "gpt-6-luna"


# The file


@pytest.fixture
def file(tmp_path):
    return tmp_path / "params.yaml"


def test_a_file_is_what_its_values_are(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert read() == read(ROOT / "params.yaml") == parse(DEFAULTS)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", "'0.0001'", ".0001"])
def test_a_number_however_it_is_written(file, text):
    content = (ROOT / "params.yaml").read_text("utf-8")
    file.write_text(re.sub("(?<=learning_rate: )[^ ]+", text, content), "utf-8")
    assert read(file).train.learning_rate == 1e-4


def test_yaml_is_read_as_dvc_reads_it(file):
    """Else a result would be filed under the parameters of another."""
    texts = "052 08 0o52 0x1F 0b11 1_000 +3 -0 1:30 no yes on off True tRue 1e-3 1E5 .5 5. +.5 1.e2"
    texts += " -08 1_ 0o9 1e 1.2.3 .inf -.INF .NaN . ~ Null 2024-01-01 0.1_5 3e-4"
    content = "".join(f"{number}: {text}\n" for number, text in enumerate(texts.split()))
    assert repr(parse_yaml(content, file)) == repr(dict(YAML(typ="safe").load(content)))
    content = (ROOT / "params.yaml").read_text("utf-8")
    file.write_text(content.replace("seed: 42 ", "seed: 052 "), "utf-8")
    assert read(file).seed == 52
    file.write_text(content.replace("do_sample: true ", "do_sample: yes "), "utf-8")
    with pytest.raises(ParameterError, match="do_sample must be true or false, not 'yes'"):
        read(file)


def test_what_dvc_writes_for_set_param(file):
    """`dvc exp run -S` rewrites the whole file."""
    shutil.copy(ROOT / "params.yaml", file)
    overrides = ["train.learning_rate=1e-5", "train.lora.alpha=32", "machine.memory=7.5"]
    apply_overrides(file, [*overrides, "train.lora.target_modules=[q_proj]", "data.sha256=null"])
    p = read(file)
    assert (p.train.learning_rate, p.train.lora.alpha, p.machine.memory) == (1e-5, 32, 7.5)
    assert p.train.lora.target_modules == ["q_proj"] and p.data == parse(DEFAULTS).data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: [\n", "line 2: not YAML"),
        (b"seed: 1\n  data: 2\n", "line 2: not YAML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"seed: \x00", "not YAML"),
        (b"", "must be a mapping"),
        (b"seed: 2024-99-99", "cannot make sense"),
        (b"seed: !!int x", "cannot make sense"),
        (b"seed: !!bool x", "cannot make sense"),
        (b"seed: !!timestamp x", "cannot make sense"),
        (b"seed: " + b"9" * 5_000, "cannot make sense"),
        (b"[" * 5_000, "cannot make sense"),
        (b"seed: !!python/object/apply:os.system [touch hacked]", "not YAML"),
        (b"seed: 0x" + b"f" * 9_000, "seed must be less than"),
        (b"&a {seed: *a}", "seed must be a whole number"),
    ],
)
def test_a_file_that_cannot_be_read(file, content, message):
    file.write_bytes(content)
    with pytest.raises(ParameterError) as error:
        read(file)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{file}") and len(str(error.value)) < 1_000


def test_no_file(file):
    with pytest.raises(ParameterError, match="no such file"):
        read(file)


def test_aliases_do_not_explode(file):
    """Ten lines of YAML that stand for 10^9 values."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    file.write_text("\n".join([*lines, "seed: *a8"]))
    with pytest.raises(ParameterError, match="seed must be") as error:
        read(file)
    assert len(str(error.value)) < 2_000


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.dates()
    | st.binary(max_size=9)
    | st.sampled_from([value for good, bad in VALUES.values() for value in good + bad])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(sorted({part for key in VALUES for part in key.split(".")}))
            | st.text(max_size=8)
            | st.integers(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@st.composite
def nearly_right(draw):
    """The true file with some keys changed, removed or added."""
    values = deepcopy(DEFAULTS)
    for key in draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4)):
        *sections, name = key.split(".")
        section = values
        for one in sections:
            section = section.setdefault(one, {})
            if not isinstance(section, dict):
                break
        else:
            if draw(st.booleans()):
                section[name] = draw(ANYTHING)
            else:
                section.pop(name, None)
                section[draw(st.text(max_size=6))] = 1
    return values


def as_yaml(values):
    return yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")


@st.composite
def cut(draw):
    """The true file with a piece of its bytes gone and another put in."""
    content = (ROOT / "params.yaml").read_bytes()
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(start + 50, len(content))))
    piece = draw(st.binary(max_size=5) | st.sampled_from([b"!!", b"&a", b"*a", b"%", b"? ", b"\t"]))
    return content[:start] + piece + content[end:]


@given(st.binary() | ANYTHING.map(as_yaml) | nearly_right().map(as_yaml) | cut())
@example(b"%YAML 9.9\n---\n")
@example(b"seed: !!int ''")
@example(b"? !!set {a}\n: 1")
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_bytes_are_parameters_or_one_line(file, content):
    file.write_bytes(content)
    try:
        assert isinstance(parse(yaml.safe_load(content)), Params)
        return
    except Exception:
        pass
    with pytest.raises(ParameterError) as error:
        read(file)
    assert str(error.value).startswith(str(file)) and printable(str(error.value)).isprintable()


# The stages


FORBIDDEN = ("torch", "transformers", "peft", "bitsandbytes", "numpy", "safetensors")


@pytest.fixture
def work(tmp_path):
    """A working directory with the outputs of an earlier run and packages that must stay shut."""
    for out in (
        *("data/raw/train.jsonl", "data/prepared/test.jsonl", "data/generated/base.jsonl"),
        *("data/generated/tuned.jsonl", "models/adapter/README.md", "metrics/score.json"),
    ):
        (tmp_path / "work" / out).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / out).write_text("{}\n")
    for package in FORBIDDEN:
        trap = tmp_path / "traps" / f"{package}.py"
        trap.parent.mkdir(exist_ok=True)
        trap.write_text(f"raise SystemExit('{package} was imported')")
    return tmp_path / "work"


def contents(folder):
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("stage", STAGES, ids=" ".join)
def test_every_stage_checks_the_whole_file_first(work, stage):
    values = changed(seed=-1, data__source=1, train__epochs=0, decoding__temperature=-1)
    (work / "params.yaml").write_text(yaml.safe_dump(values))
    before = contents(work)
    done = subprocess.run(
        [sys.executable, "-m", *stage],
        cwd=work,
        env=os.environ | {"PYTHONPATH": f"{work.parent / 'traps'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    name = stage[0].removeprefix("stages.")
    line = re.fullmatch(rf"{name}: params\.yaml: (.+)\n", done.stderr)[1]
    assert [fault.split(" must")[0] for fault in line.split("; ")] == [
        "seed",
        "data.source",
        "train.epochs",
        "decoding.temperature",
    ]
    assert contents(work) == before
