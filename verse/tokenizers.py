"""Load a tokenizer, and say in one line what to do where that fails."""

from verse.errors import UserError
from verse.hub import explain, find_folder


def load_tokenizer(
    name: str,
    revision: str | None = None,
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
):
    """The tokenizer of a model: `name` is a folder, or a model on the Hugging Face hub.

    revision: commit, tag or branch on the hub. cache_dir: where its downloads are kept, None
    for Hugging Face's own place. trust_remote_code: run Python code that comes with the model.

    Raises UserError: no such folder or model or revision, no tokenizer in it, one that cannot
    be read, gated, no network.
    """
    # Imported here, since it takes seconds: a stage checks its parameters first.
    from transformers import AutoTokenizer

    folder = find_folder(name)
    if folder and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*")):
        raise UserError(
            f"model.name {name!r}: no tokenizer in this folder: "
            "put the model's tokenizer files there, such as tokenizer.json"
        )
    try:
        return AutoTokenizer.from_pretrained(
            folder or name,
            revision=revision,
            cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:  # whatever the libraries make of files that are not ours
        raise UserError(
            f"model.name {name!r}: {explain(error, revision, 'its tokenizer')}"
        ) from error


def adds_bos(tokenizer) -> bool:
    """Whether `tokenizer(text)` by itself puts the start token before the text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("一")["input_ids"][:1] == [bos]
