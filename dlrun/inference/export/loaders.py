"""The loader written beside an ONNX export: plain Python, one part per kind of input and one per task."""

_HEAD = '''\
"""Predict with this export, without dlrun: python load_onnx.py [FILE]"""
{first}import json
{dates}import sys{library}{later}
from pathlib import Path

{imports}

here = Path(__file__).parent
about = json.loads((here / "model.json").read_text(encoding="utf-8"))
how, dtype = about["preprocessing"], about["inputs"][0]["dtype"]
file = sys.argv[1] if len(sys.argv) > 1 else here / about["example"]["file"]

'''

# Kind of raw input -> code from `file` to `inputs`, a list of arrays.
_READ = {
    "picture": """\
image = Image.open(file)
if "pixel_range" in how and image.mode[0] in "IF":  # grey of more than 8 bits
    low, high = how["pixel_range"]
    values = ((np.asarray(image, np.float64) - low) / (high - low)).clip(0, 1) * how["divide_by"]
    image = Image.fromarray(values.astype(np.float32))
else:
    image = image.convert(how["mode"])
image = ImageOps.fit(image, (how["width"], how["height"]), Image.Resampling.BILINEAR)
pixels = np.asarray(image, dtype).reshape(how["height"], how["width"], -1).transpose(2, 0, 1) / how["divide_by"]
mean, std = (np.array(how[key], dtype).reshape(-1, 1, 1) for key in ("mean", "std"))
inputs = [((pixels - mean) / std).astype(dtype)[None]]
""",
    "table": """\
rows = np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2)  # without the target column
inputs = [((rows - how["mean"]) / how["std"]).astype(dtype)]
""",
    "columns": """\
with Path(file).open(encoding="utf-8-sig", newline="") as opened:
    names, *rows = [row for row in csv.reader(opened) if row]  # columns by name, the target may be among them
if not any(column["name"] in names for column in how["columns"]):  # other names: in the order of training
    names = [column["name"] for column in how["columns"]]
DATE = re.compile(r"(\\d{1,4})[-/.](\\d{1,2})[-/.](\\d{1,4})(?:[ T]+(\\d{1,2}):.*)?")
STAMP = re.compile(r"([1-4]\\d{9})(\\d{3})?(?:\\.\\d*)?")


def number(cell, decimal):
    text = re.sub(r"[$€£¥%\\s'’]", "", cell).replace("," if decimal == "." else ".", "")
    return float(text.replace(",", "."))


def date(cell, day_first):
    if stamp := STAMP.fullmatch(cell):  # Unix time, in seconds or milliseconds
        whole = datetime.fromtimestamp(int(stamp[1]), timezone.utc)
    elif match := DATE.fullmatch(cell):
        first, middle, last, hour = (int(part or 0) for part in match.groups())
        year, month, day = last, first, middle
        if len(match[1]) == 4:
            year, month, day = first, middle, last
        elif day_first:
            year, month, day = last, middle, first
        year += (1900 if year >= 69 else 2000) if year < 100 else 0
        whole = datetime(year, month, day, hour)
    else:  # Tue, 15 Nov 1994 12:45:26 +0000
        whole = datetime(*parsedate_tz(cell)[:6])
    return {part: getattr(whole, part) for part in ("year", "month", "day", "hour")} | {"weekday": whole.weekday()}


features = []
for column in how["columns"]:
    there = column["name"] in names
    cells = [row[names.index(column["name"])].strip() if there else "" for row in rows]
    gaps = [cell.lower() in how["gaps"] for cell in cells]
    if column["kind"] == "category":
        texts = [how["gap_category"] if gap else cell for cell, gap in zip(cells, gaps)]
        if column.get("has_codes"):  # from 1, and 0 for what training did not have
            numbers = {category: i for i, category in enumerate(column["categories"], 1)}
            features.append([numbers.get(text, 0) for text in texts])
            continue
        features += [[text == category for text in texts] for category in column["categories"]]
        continue
    if column["kind"] == "number":
        scales = {"number": column["scale"]}
        parsed = [None if gap else {"number": number(cell, column["decimal"])} for cell, gap in zip(cells, gaps)]
    else:
        scales = column["parts"]
        parsed = [None if gap else date(cell, column["day_first"]) for cell, gap in zip(cells, gaps)]
    for part, (fill, mean, std) in scales.items():
        features.append([((fill if entry is None else entry[part]) - mean) / std for entry in parsed])
    if column["has_indicator"]:
        features.append(gaps)
inputs = [np.array(features, dtype).T]
""",
    "series": """\
with Path(file).open(encoding="utf-8-sig", newline="") as opened:
    rows = [[float(row[name]) for name in how["features"]] for row in csv.DictReader(opened)]
if len(rows) < how["window"]:  # in the order of time, without gaps
    sys.exit(f"{file} has {len(rows)} rows, and the model looks at {how['window']}")
inputs = [((np.array(rows[-how["window"] :]) - how["mean"]) / how["std"]).astype(dtype)[None]]
""",
    "text": """\
code = {entry: i for i, entry in enumerate(how["vocabulary"]) if entry}
texts = []
for line in Path(file).read_text(encoding="utf-8").splitlines():
    if not how["words"] and not set(line) <= code.keys():  # é becomes e
        line = "".join(c for c in unicodedata.normalize("NFKD", line) if not unicodedata.combining(c))
    texts.append(line.split() if how["words"] else list(line))
lengths = np.array([len(text) for text in texts])
codes = np.full((len(texts), max(lengths.max(), how["pad_to"])), how["padding"])
for row, text in zip(codes, texts):
    row[: len(text)] = [code[entry] if entry in code else code["?"] for entry in text]
inputs = [codes, lengths]
""",
    "document": """\
code = {entry: i for i, entry in enumerate(how["vocabulary"]) if entry}
texts = []
for line in Path(file).read_text(encoding="utf-8").splitlines():
    line = unicodedata.normalize("NFC", line.lower() if how["lower_case"] else line)
    tokens = re.findall(how["pattern"], line) if how["unit"] == "words" else list(" ".join(line.split()))
    texts.append(tokens[: how["max_length"]])
lengths = np.array([len(text) for text in texts])
codes = np.full((len(texts), max(lengths.max(), how["pad_to"])), how["padding"])
for row, text in zip(codes, texts):
    row[: len(text)] = [code.get(entry, how["unknown"]) for entry in text]
inputs = [codes, lengths]
""",
    "array": """\
inputs = [np.load(file).astype(dtype)]
""",
}

# From `inputs` to `outputs`, an array.
_RUN = """\
session = onnxruntime.InferenceSession(here / about["model_file"])
(outputs,) = session.run(None, {entry["name"]: x for entry, x in zip(about["inputs"], inputs)})
"""

# Task -> code that prints `outputs`, a line per input.
_PRINT = {
    "regression": """\
scale = about.get("output_to_value")
if isinstance(scale, dict):
    outputs = outputs * scale["std"] + scale["mean"]
for row in outputs:
    print(*row)
""",
    "binary": """\
p = outputs[:, 0] if about["output_to_probability"] == "identity" else 1 / (1 + np.exp(-outputs[:, 0]))
for probability in p:
    print(about["class_names"][int(probability > 0.5)], f"{max(probability, 1 - probability):.4f}")
""",
    "multitask": """\
for row in outputs:
    answers = []
    for column in about["columns"]:
        values = row[column["from"] : column["to"]]
        if column["task"] == "binary":
            values = np.array([0.5 if column["output_to_probability"] == "identity" else 0, values[0]])
        if column["class_names"]:
            answers.append(f"{column['name']} {column['class_names'][values.argmax()]}")
        else:
            answers.append(f"{column['name']} {' '.join(map(str, values))}")
    print(*answers, sep=", ")
""",
    "multilabel": """\
p = outputs if about["output_to_probability"] == "identity" else 1 / (1 + np.exp(-outputs))
for row in p:
    print(*(f"{name} {probability:.4f}" for name, probability in zip(about["class_names"], row)))
""",
    "multiclass": """\
p = np.exp(outputs - outputs.max(1, keepdims=True))
p /= p.sum(1, keepdims=True)
for row in p:
    print(about["class_names"][row.argmax()], f"{row.max():.4f}")
""",
    "tagging": """\
for row, length in zip(outputs, inputs[1]):
    print(*(about["class_names"][tag] for tag in row[:length].argmax(1)))
""",
}

# Of a forecast a line per step, with the value of each target.
_PRINT_STEPS = """\
scale = about.get("output_to_value")
if isinstance(scale, dict):
    outputs = outputs * scale["std"] + scale["mean"]
for step in outputs.reshape(how["horizon"], -1):
    print(*step)
"""


def render_loader(kind: str, task: str) -> str:
    """Return the source of load_onnx.py for one kind of raw input, an `Example.kind`, and one task."""
    # Only what this kind of input needs: the loader is read by people, and run elsewhere.
    imports = ["import numpy as np", "import onnxruntime"]
    if kind == "picture":
        imports.append("from PIL import Image, ImageOps")

    head = _HEAD.format(
        imports="\n".join(imports),
        library={"text": "\nimport unicodedata", "document": "\nimport unicodedata"}.get(kind, ""),
        first="import csv\n" if kind in ("columns", "series") else "",
        dates="import re\n" if kind in ("columns", "document") else "",
        later="\nfrom datetime import datetime, timezone\nfrom email.utils import parsedate_tz"
        if kind == "columns"
        else "",
    )
    printing = _PRINT_STEPS if kind == "series" else _PRINT[task]
    return head + _READ[kind] + _RUN + printing
