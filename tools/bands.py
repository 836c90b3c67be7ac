"""Measure the bands of `surprise`, which stand as BANDS in verse/scoring/scoring.py.

    python -m tools.bands

For each number of characters that 200 embedded training poems or more have after the couplet: the
nats a character, to the plain embedded model, of the 2nd and the 92nd poem in a hundred.
"""

import json
from pathlib import Path

import numpy as np

from verse import params
from verse.model.surprise import surprises
from verse.poem import Poem

TRAIN = Path(__file__).parents[1] / "data/embedded/train.json"
MOST_BLAND, MOST_ODD = 2, 92
"""In a hundred. Of the bands that hold 90, this one leaves out the most nonsense."""
LEAST = 200


def main() -> None:
    rows = json.loads(TRAIN.read_text("utf-8"))
    poems = [(Poem(row["input"]).lines, Poem(row["output"]).lines) for row in rows]
    nats = np.array(surprises(poems, params.read().machine))
    sizes = np.array([len("".join(rest)) for _, rest in poems])
    for size in sorted(set(sizes.tolist())):
        some = nats[sizes == size]
        if len(some) >= LEAST:
            low, high = np.percentile(some, (MOST_BLAND, MOST_ODD))
            print(f"{size}: ({low:.2f}, {high:.2f})  # {len(some)} poems")


if __name__ == "__main__":
    main()
