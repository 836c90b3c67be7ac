"""Find a model, a folder or a name on the Hugging Face hub, and say what is wrong with it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from verse.errors import UserError, first_line, is_of_the_system
from verse.files import missing_hint
from verse.params import Model


def origin(settings: Model, cache_dir: str | None) -> dict[str, Any]:
    """What every `from_pretrained` is told: where the files are, and whether their code may run.

    Raises UserError like `find_folder`.
    """
    return {
        "pretrained_model_name_or_path": find_folder(settings.name) or settings.name,
        "revision": settings.revision,
        "cache_dir": cache_dir,
        "trust_remote_code": settings.trust_remote_code,
    }


@contextmanager
def reading(part: str, settings: Model) -> Iterator[None]:
    """Turn whatever the libraries make of files that are not ours into a UserError.

    part: what is being read, such as "its tokenizer". Out of memory and errors of the system stay
    what they are.
    """
    try:
        yield
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # of a library written in Rust
        ours = isinstance(error, UserError) or not (panic or isinstance(error, Exception))
        if ours or is_of_the_system(error):
            raise
        said = explain(error, settings.revision, part)
        raise UserError(f"model.name {settings.name!r}: {said}") from error


def find_folder(name: str) -> Path | None:
    """The folder that a model's name stands for, None for a name on the hub.

    Raises UserError if there is no such folder, though the name can only be one.
    """
    path = Path(name)
    with suppress(RuntimeError):  # the home of an unknown user
        path = path.expanduser()
    if path.is_dir():
        return path
    # A hub name is one or two plain words; two whose first is a folder here are a path.
    here = "/" in name and path.parent.is_dir()
    if here or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model.name {name!r}: there is no such folder{missing_hint(path)}")
    return None


def check_reach(settings: Model, cache_dir: str | None) -> None:
    """Raise UserError unless the model's folder is there, or its config can be had from the hub."""
    if find_folder(settings.name):
        if settings.revision:
            raise UserError(
                "model.revision: of the hub, and model.name is a folder: set it to null"
            )
        return
    from huggingface_hub import hf_hub_download

    with reading("its config", settings):
        hf_hub_download(
            settings.name, "config.json", revision=settings.revision, cache_dir=cache_dir
        )


def explain(error: BaseException, revision: str | None, part: str) -> str:
    """What is wrong with a model, and what to do, from what the libraries raised."""
    from huggingface_hub import errors

    for raised in (error, error.__cause__):  # the hub's own, or what Transformers made of it
        match raised:
            case errors.GatedRepoError():
                return (
                    "gated: accept its licence on its page on huggingface.co, "
                    "and set HF_TOKEN to an access token"
                )
            case errors.RepositoryNotFoundError() | errors.HFValidationError():
                return (
                    "neither a folder nor a public model on huggingface.co: fix the name, "
                    "or set HF_TOKEN to an access token if it is private"
                )
            case errors.RevisionNotFoundError():
                return f"has no revision {revision!r}: fix model.revision, or set it to null"
            case errors.LocalEntryNotFoundError():
                return (
                    "no such folder, not downloaded yet, and huggingface.co cannot be reached: "
                    "check the network, or give the folder of a model"
                )
    if "trust_remote_code" in str(error):
        return "brings Python code of its own: set model.trust_remote_code to true to run it"
    return f"{part} cannot be read ({first_line(error).strip(' :.')})"
