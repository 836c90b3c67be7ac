"""What people ask for in place of params.yaml."""

from typing import Any

from verse import params
from verse.params import Decoding, Params


def adjusted(p: Params, source: str, **changes: Any) -> Decoding:
    """The decoding of params.yaml with what is given in place of it; temperature 0 samples nothing.

    source: who gave it, for the ParameterError that names what is out of range.
    """
    values = p.model_dump()
    given = {name: value for name, value in changes.items() if value is not None}
    values["decoding"] |= given
    if "temperature" in given:
        values["decoding"]["do_sample"] = given["temperature"] != 0
    return params.parse(values, source).decoding
