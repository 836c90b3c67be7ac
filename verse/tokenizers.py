"""Load a tokenizer, and say in one line what to do where that fails."""

from verse.errors import UserError
from verse.hub import find_folder, origin, reading
from verse.params import Model


def load_tokenizer(settings: Model):
    """The tokenizer of a model: a folder, or one on the Hugging Face hub.

    Of the settings it takes name, revision, cache_dir and trust_remote_code. Raises UserError:
    no such folder or model or revision, no tokenizer in it, one that cannot be read, gated, no
    network.
    """
    # Imported here, since it takes seconds: a stage checks its parameters first.
    from transformers import AutoTokenizer

    folder = find_folder(settings.name)
    if folder and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*")):
        raise UserError(
            f"model.name {settings.name!r}: no tokenizer in this folder: "
            "put the model's tokenizer files there, such as tokenizer.json"
        )
    with reading("its tokenizer", settings):
        return AutoTokenizer.from_pretrained(**origin(settings))


def adds_bos(tokenizer) -> bool:
    """Whether `tokenizer(text)` by itself puts the start token before the text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("一")["input_ids"][:1] == [bos]
