"""Every path of the pipeline, as dvc.yaml has it, from the repository's root."""

CHECKED = "data/checked"
EMBEDDED = "data/embedded"
SOURCE = "data/source"
MODEL = "data/model"

RAW = "data/raw"
RAW_TRAIN, RAW_TEST = f"{RAW}/train.jsonl", f"{RAW}/test.jsonl"
PREPARED = "data/prepared"
TRAIN, VALIDATION, TEST = (f"{PREPARED}/{part}.jsonl" for part in ("train", "validation", "test"))

GENERATED = "data/generated"
BASE, TUNED = f"{GENERATED}/base.jsonl", f"{GENERATED}/tuned.jsonl"
ANSWERS = "data/answers"
ASKED = f"{ANSWERS}/contestants.json"
MARKS = "data/marks"
MARKED = f"{MARKS}/marks.jsonl"

MINI = "models/mini"
ADAPTER, MERGED, GGUF = "models/adapter", "models/merged", "models/gguf"

DATA_FIGURES, TRAINING_FIGURES = "metrics/data.json", "metrics/train.json"
SCORE, HEADLINES = "metrics/score.json", "metrics/headlines.json"
INTERVALS, GAINS, JUDGE = "metrics/intervals.json", "metrics/gains.json", "metrics/judge.json"
POEMS, REPORT = "metrics/poems.csv", "metrics/report.html"
SPEED = "metrics/speed.json"
PLOTS = "metrics/plots"
QUALITY, LINES = f"{PLOTS}/quality.csv", f"{PLOTS}/lines"
