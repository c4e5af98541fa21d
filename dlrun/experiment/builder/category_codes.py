"""Tables for a model that embeds categories: codes in place of a 0 or 1 for each."""

import dataclasses
from collections.abc import Sequence

from dlrun.config.settings import Settings
from dlrun.core.errors import DlrunError
from dlrun.experiment.builder import targets


def choose_codes(settings: Settings, trusted_modules: Sequence[str] | None) -> Settings:
    """Settings of data whose categories are codes, where the data can and the model takes them, else the same."""
    # Codes are no quantities that could be given back.
    if settings.task.kind == "autoencoder":
        return settings
    try:
        model = targets.resolve(str(settings.model.target), "model._target_", trusted_modules)
        data = targets.resolve(str(settings.data.target), "data._target_", trusted_modules)
    except DlrunError:
        # The builders of data and model report it.
        return settings
    if not getattr(model, "takes_codes", False) or not targets.has_argument(data, "category_codes"):
        return settings
    arguments = {**settings.data.arguments, "category_codes": True}
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, arguments=arguments))
