"""What the poems stand on: no model library."""

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import verse.poems


def test_poems_import_no_model_library():
    modules = [module.name for module in pkgutil.iter_modules(verse.poems.__path__, "verse.poems.")]
    assert "verse.poems.dataset" in modules
    code = f"import json, sys, {', '.join(modules)}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert "pydantic" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "tokenizers", "peft"})
