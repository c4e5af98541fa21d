"""The data that are read from files of the user's own, by their `_target_`; the published sets are not among them."""

TABLE_TARGET = "dlrun.data.tables.table"
TEXT_TARGET = "dlrun.data.text.text"
SERIES_TARGET = "dlrun.data.series.series"
CSV_TARGET = "dlrun.data.tabular.csv"
ARRAYS_TARGET = "dlrun.data.arrays.arrays"
IMAGE_FOLDER_TARGET = "dlrun.data.folders.image_folder"
WEBDATASET_TARGET = "dlrun.data.shards.webdataset"
HUGGINGFACE_TARGET = "dlrun.data.hub_sets.huggingface"

PICTURE_TARGETS = (IMAGE_FOLDER_TARGET, WEBDATASET_TARGET, HUGGINGFACE_TARGET)
FILE_TARGETS = (TABLE_TARGET, TEXT_TARGET, SERIES_TARGET, CSV_TARGET, ARRAYS_TARGET, *PICTURE_TARGETS)
