"""Export the trained model for llama.cpp and Ollama: verse export gguf.

Merges the adapter as `verse merge` does, then writes models/gguf: the model as GGUF in float16,
its prompt as chat template, so that a user sends just a couplet, and a Modelfile for `ollama
create`. Where llama.cpp's llama-quantize is installed, the model in 4 bits (Q4_K_M) too. The
converter is llama.cpp's own, from the source package of llama-cpp-python, which pip downloads once
(77 MB).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from verse import paths
from verse.cli import merge
from verse.errors import UserError
from verse.files import cache_dir, locked, replacing, write_text
from verse.schema import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from verse.params import Params

TO = Path(paths.GGUF)
LOCK = Path("requirements/gguf.txt")
PARTS = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/")
"""Of llama.cpp's folder, what converts."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=["gguf"])


def main(options: argparse.Namespace) -> None:
    p = merge.read()
    program = converter()
    merge.main(options)

    from verse.model.encoding import load_tokenizer

    tokenizer = load_tokenizer(p.model, p.machine.cache_dir)
    before, after = around_couplet(p, tokenizer)
    with replacing(TO) as folder, tempfile.TemporaryDirectory() as temporary:
        folder.mkdir()
        source, whole = Path(temporary), folder / "verse-f16.gguf"
        for file in Path(paths.MERGED).resolve().iterdir():
            (source / file.name).symlink_to(file)
        describe(tokenizer, source, before, after)
        run(sys.executable, program, source, "--outfile", whole, "--outtype", "f16")
        smallest = whole
        if quantize := shutil.which("llama-quantize"):
            smallest = folder / "verse-Q4_K_M.gguf"
            run(quantize, whole, smallest, "Q4_K_M")
        write_text(folder / "Modelfile", modelfile(p, smallest.name, before, after))
        written = ", ".join(sorted(file.name for file in folder.iterdir()))
    print(f"written to {TO}: {written}")
    if not quantize:
        print("no 4 bits (Q4_K_M): that takes llama.cpp's llama-quantize, or ollama's --quantize")
    plain = {"no_repeat_ngram_size": 0, "candidates": 1, "constrain": [], "num_beams": 1}
    if lost := [key for key, value in plain.items() if getattr(p.decoding, key) != value]:
        print(f"decoding: Ollama has no {', '.join(lost)}: it writes other poems than verse write")
    print(
        f"next: ollama create poems -f {TO}/Modelfile && "
        "ollama run poems '白日依山盡，黃河入海流。'"
    )


def converter() -> Path:
    """llama.cpp's converter, fetched if need be. Raises UserError where pip cannot have it."""
    version = LOCK.read_text("utf-8").split("==")[1].split()[0]
    folder = cache_dir() / f"llama-cpp-python-{version}"
    program = folder / PARTS[0]
    with (
        locked(folder.with_name(f"{folder.name}.lock")),
        tempfile.TemporaryDirectory() as temporary,
    ):
        if program.exists():
            return program
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        options = ["--require-hashes", "--no-binary", "llama-cpp-python", "--dest", temporary]
        print("fetching llama.cpp's converter, 77 MB", flush=True)
        run(*pip, *options, "--requirement", LOCK)
        [archive] = Path(temporary).iterdir()
        with replacing(folder) as partial, tarfile.open(archive) as packed:
            for member in packed:
                name = member.name.partition("/vendor/llama.cpp/")[2]
                if name.startswith(PARTS) and (file := packed.extractfile(member)):
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    (partial / name).write_bytes(file.read())
    return program


def run(*command: str | Path) -> None:
    """Run a program; its last line becomes a UserError if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        raise UserError(f"{Path(command[0]).name} failed: {said[-1]}")


def around_couplet(p: "Params", tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str]:
    """What stands before and behind the couplet in a prompt."""
    from verse.cli.couplets import Library
    from verse.model.prompts import PROBE, prompt_writer

    poem = Library().poem(PROBE.couplet)
    before, _, after = prompt_writer(p.model.template, tokenizer)(poem).partition(poem.couplet)
    return before, after


def describe(tokenizer: "PreTrainedTokenizerBase", folder: Path, before: str, after: str) -> None:
    """Let a model's folder tell the converter its template, and whether its tokenizer begins a text
    with a space, as llama.cpp does with one that says nothing."""
    first = tokenizer.tokenize("山", add_special_tokens=False)[0]
    first_part, last_part = (json.dumps(text, ensure_ascii=False) for text in (before, after))
    file = folder / "tokenizer_config.json"
    config = read_json(file, TypeAdapter(dict[str, Any]), "run verse export gguf again") | {
        "add_prefix_space": first.startswith("▁"),
        "chat_template": f"{{{{ {first_part} + messages[-1]['content'] + {last_part} }}}}",
    }
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    write_text(file, json.dumps(config, ensure_ascii=False))


def modelfile(p: "Params", model: str, before: str, after: str) -> str:
    """What Ollama makes a model of, with the decoding of params.yaml."""
    d = p.decoding
    settings = {
        "temperature": d.temperature if d.do_sample else 0,
        "top_p": d.top_p,
        "top_k": d.top_k,
        "min_p": d.min_p,
        "repeat_penalty": d.repetition_penalty,
        "num_predict": d.max_new_tokens,
    }
    lines = [f"FROM ./{model}", f'TEMPLATE """{before}{{{{ .Prompt }}}}{after}"""']
    return "\n".join([*lines, *(f"PARAMETER {key} {value}" for key, value in settings.items()), ""])
