"""Install PyTorch's CPU build, where it is the one to have, before pip installs the rest.

    .venv/bin/python tools/torch_build.py

On Linux the torch of pip's default index brings gigabytes of CUDA. Without an NVIDIA GPU, torch
alone is taken from PyTorch's CPU index, if that answers within seconds; requirements/torch.txt
then finds its pin satisfied. An environment in which pip has indexes of its own is left as it is.
Says what will be downloaded, and in one line what it chose. Standard library only: nothing is
installed yet.
"""

import re
import subprocess
import sys
from pathlib import Path
from shutil import which

INDEX = "https://download.pytorch.org/whl/cpu"
SIZES = (
    "to download: 160 MB of packages, and PyTorch: 190 MB its CPU build, 2.7 GB that with CUDA, "
    "110 MB on a Mac; with the CPU build all of it takes 1.5 GB in .venv"
)
SECONDS = 10  # within which the index must answer
REQUIREMENTS = Path(__file__).parent.parent / "requirements/torch.txt"
OWN = re.compile(r"^[^=]*\.(extra-index-url|find-links|index-url|no-index)=", re.MULTILINE)


def main() -> None:
    (version,) = re.findall(r"^torch==(\S+)", REQUIREMENTS.read_text("utf-8"), re.MULTILINE)
    own = sorted(set(OWN.findall(pip("config", "list") or "")))
    print(SIZES, flush=True)
    if own:
        print(f"torch {version}: from where pip is set up to look ({', '.join(own)})")
    elif sys.platform != "linux":
        print(f"torch {version}: pip's default index has the build for {sys.platform}")
    elif nvidia_gpu():
        print(f"torch {version}: an NVIDIA GPU is here, so the build with CUDA")
    elif not offers(version):
        print(f"torch {version}: no NVIDIA GPU, but {INDEX} does not offer it: the build with CUDA")
    else:
        print(f"torch {version}: no NVIDIA GPU, so the CPU build of {INDEX}", flush=True)
        options = ("--disable-pip-version-check", "--no-deps", "--index-url", INDEX)
        if not install(*options, f"torch=={version}"):
            print(f"torch {version}: {INDEX} failed: the build with CUDA from pip's default index")


def nvidia_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU with a driver, in a container or in WSL too."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    listing = which("nvidia-smi") or which("nvidia-smi", path="/usr/lib/wsl/lib")
    return listing is not None and "GPU 0" in (run(listing, "-L", seconds=SECONDS) or "")


def offers(version: str) -> bool:
    """Whether the CPU index answers in time, with this version for this Python."""
    options = ("--timeout", str(SECONDS), "--retries", "0")
    told = pip("index", "versions", "torch", "--index-url", INDEX, *options, seconds=SECONDS)
    return re.search(rf"\b{re.escape(version)}\+cpu(,|\s|$)", told or "") is not None


def install(*arguments: str) -> bool:
    """Whether pip installs, with its progress on the terminal."""
    return subprocess.run((sys.executable, "-m", "pip", "install", *arguments)).returncode == 0


def pip(*arguments: str, seconds: int | None = None) -> str | None:
    """What pip prints, with its own settings for proxies and certificates; None if it fails."""
    return run(sys.executable, "-m", "pip", *arguments, seconds=seconds)


def run(*command: str, seconds: int | None = None) -> str | None:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=seconds
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


if __name__ == "__main__":
    main()
