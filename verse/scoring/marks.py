"""What a judge's marks say of the poems, and what they say of the judge."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field, TypeAdapter

from verse.poems.contestants import SCRAMBLED
from verse.schema import Record, iter_records

RULES = ("tone", "rhyme")


class Marks(Record):
    """A row of data/marks/marks.jsonl."""

    contestant: str
    poem: int
    question: str
    scores: list[Annotated[float, Field(ge=0, le=10)] | None]


def read(path: str) -> pd.DataFrame:
    """The table of a file of marks. Raises UserError for a row that is none."""
    return table(row.model_dump() for row in iter_records(path, TypeAdapter(Marks)))


def table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Marks as a table: a row a contestant, poem and question, with their `mean` and `best`.

    rows: of data/marks/marks.jsonl. A mark that could not be read counts for nothing; where none of
    the three could be, so does the row.
    """
    found = []
    for row in rows:
        if scores := [score for score in row["scores"] if score is not None]:
            means = {"mean": sum(scores) / len(scores), "best": max(scores)}
            found.append({key: row[key] for key in ("contestant", "poem", "question")} | means)
    return pd.DataFrame(found, columns=["contestant", "poem", "question", "mean", "best"])


def summarise(marks: pd.DataFrame, *, seed: int, resamples: int) -> dict[str, dict[str, float]]:
    """For each contestant its mean marks, 0 to 10, each with `_ci95`.

    `judge_<question>` is the mean of all marks, `judge_<question>_best` the mean of the best of
    each poem's. `_ci95` is half the width of the 95% percentile interval of a bootstrap over poems.
    """
    metrics: dict[str, dict[str, float]] = {}
    for (name, question), ones in marks.groupby(["contestant", "question"], sort=False):
        for kind, key in (("mean", f"judge_{question}"), ("best", f"judge_{question}_best")):
            values = ones[kind].to_numpy(dtype=float)
            random = np.random.default_rng(seed)
            drawn = random.choice(values, (resamples, len(values))).mean(axis=1)
            low, high = np.quantile(drawn, (0.025, 0.975))
            metrics.setdefault(str(name), {}).update(
                {key: round(values.mean(), 4), f"{key}_ci95": round(float(high - low) / 2, 4)}
            )
    return metrics


def measure(marks: pd.DataFrame, poems: pd.DataFrame) -> dict[str, Any]:
    """How far a judge is to be trusted; empty without marks.

    poems: a row a `contestant` and `poem` of the answers that have a line, with the rule metrics
    `tone` and `rhyme`. The others' marks are none of the judge's: 0, so that none is first.

    `agreement`: Spearman's rank correlation, -1 to 1, of the mark for prosody with each rule
    metric, over the poems of all contestants, save where either is the same for all. `true_first`:
    the share of poems whose true rest has the highest sum of both marks among the answers; ties
    share. `scrambled`, `reference`: mean marks of poems without sense, and of the true ones.
    """
    if marks.empty:
        return {}
    both = marks.pivot_table("mean", ["contestant", "poem"], "question")
    both = both.reindex(columns=["prosody", "fluency"])
    ruled = both.join(poems.set_index(["contestant", "poem"])[list(RULES)], how="inner")
    ranks = ruled.rank()
    agreement = {rule: ranks["prosody"].corr(ranks[rule].astype(float)) for rule in RULES}
    totals = both.sum(axis=1, min_count=2).drop(SCRAMBLED, errors="ignore").unstack("contestant")
    totals = totals.dropna()
    top = totals.eq(totals.max(axis=1), axis=0)
    first = top["reference"] if "reference" in top else pd.Series(0.0, index=top.index)
    means = both.groupby("contestant").mean()
    return {
        "poems": len(totals),
        "agreement": {rule: round(r, 4) for rule, r in agreement.items() if not pd.isna(r)},
        "true_first": round((first / top.sum(axis=1)).sum() / max(len(top), 1), 4),
        **{
            str(name): {question: round(mean, 4) for question, mean in of_one.dropna().items()}
            for name, of_one in means.iterrows()
            if name in (SCRAMBLED, "reference")
        },
    }
