"""Which rows train, validate and test: the end of the data section."""

from dlrun.eject.plain.source import Constant, Piece, filled
from dlrun.eject.plain.training_run import TrainingRun

STRATIFIED = """\
random, parts = np.random.default_rng(DATA_SEED), []
for label in range($classes):  # class by class, so that both parts have the same mix
    rows = random.permutation(np.flatnonzero(labels == label))
    parts.append(np.split(rows, [$share]))
test_rows, train_rows = (torch.tensor(np.sort(np.concatenate(rows))) for rows in zip(*parts, strict=True))
"""
DRAWN = """\
drawn = np.random.default_rng(DATA_SEED).permutation($count)
test_rows, train_rows = (torch.tensor(np.sort(rows)) for rows in np.split(drawn, [$share]))
"""
_PARTS = """\
order = torch.randperm(len($counted), generator=torch.Generator().manual_seed(DATA_SEED))  #? val
held_out = round(len(order) * VAL_FRACTION)  #? val
val_rows, train_rows = (rows.sort().values for rows in order.tensor_split([held_out]))  #? val & !indexed
val_rows, train_rows = (train_rows[rows.sort().values] for rows in order.tensor_split([held_out]))  #? val & indexed
train_rows = torch.arange(len(y))  #? few & !val & !indexed
train_rows = few(train_rows, TRAIN_ROWS)  #? cut
train_rows = few(train_rows, LIMIT_BATCHES * BATCH_SIZE)  #? limit
val_rows = few(val_rows, LIMIT_BATCHES * BATCH_SIZE)  #? limit & val
test_rows = few(test_rows, LIMIT_BATCHES * BATCH_SIZE)  #? limit & test & indexed
test_rows = few(torch.arange(len(test[-1])), LIMIT_BATCHES * BATCH_SIZE)  #? limit & test & !indexed
train = $columns  #? !chosen
$names = $one  #? chosen & alone
$names = (($one) for rows in ($rows))  #? chosen & !alone
test = tuple(column[test_rows] for column in test)  #? limit & test & !indexed
"""
_FEW = '''\
def few(rows, most):
    """At most so many of the rows, spread over all of them."""
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most).long()]
'''


def share(rows: str, careful: bool) -> str:
    """How many of some rows are held out for the test; careful: of so few that none might be left."""
    return f"min(max(round({rows} * TEST_FRACTION), 1), {rows} - 1)" if careful else f"round({rows} * TEST_FRACTION)"


def seeds(run: TrainingRun) -> dict[str, Constant]:
    """The constants of the parts."""
    keys, arguments = run.keys, run.data.arguments
    return {
        "DATA_SEED": Constant(int(arguments.get("seed") or 0), "draws the data or their parts, whatever SEED is"),
        "TEST_FRACTION": Constant(arguments.get("test_fraction")),
        "VAL_FRACTION": Constant(keys.val_fraction, "of the training rows, held out for validation"),
        "TRAIN_ROWS": Constant(keys.train_rows, "of all that there are"),
        "LIMIT_BATCHES": Constant(keys.limit_batches, "of each part"),
    }


def parted(run: TrainingRun, piece: Piece, indexed: bool = False) -> Piece:
    """The data section with its end: `train`, and `val` and `test` where there are such parts.

    piece: defines the columns, and `test` where the data have a test part of their own; indexed: or train_rows and
    test_rows.
    """
    keys = run.keys
    few = keys.train_rows is not None or keys.limit_batches is not None
    flags = {
        "val": run.has_val,
        "test": run.has_test,
        "indexed": indexed,
        "few": few,
        "cut": keys.train_rows is not None,
        "limit": keys.limit_batches is not None,
        "chosen": indexed or few or run.has_val,
    }
    constants = {**piece.constants, **seeds(run)}
    if run.simple and not flags["chosen"]:
        return Piece(piece.code, constants)
    names = ["train", *(["val"] if run.has_val else []), *(["test"] if run.has_test and indexed else [])]
    flags["alone"] = len(names) == 1
    rows = "train_rows" if flags["alone"] else "rows"
    columns = ", ".join(run.columns)
    ends = filled(
        _PARTS,
        flags,
        counted="train_rows" if indexed else "y",
        columns=columns,
        names=columns if run.simple else ", ".join(names),  # the columns themselves are all that trains
        one=", ".join(f"{column}[{rows}]" for column in run.columns),
        rows=", ".join(f"{name}_rows" for name in names),
    )
    return Piece(f"{piece.code}\n{ends}" if not few else f"{_FEW}\n{piece.code}\n{ends}", constants)
