"""Hydra's own part of a composed config, which points of a sweep share but for four values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from dlrun.config import hydra_internals
from dlrun.config.callbacks import SECTION as CALLBACKS
from dlrun.config.files import has_own_files
from dlrun.core.format import format_folder_name

# As config.yaml has it; Hydra's resolver takes a millisecond a point for it.
_SUBFOLDER = "${hydra.job.num}_${dlrun.folder_name:${hydra.job.override_dirname}}"


class HydraPart:
    """What `HydraConfig.get()` returns, as plain values that are read once for many points."""

    def __init__(self, settings: DictConfig) -> None:
        """settings: changed by `set_point`, and by nothing else from now on."""
        self.settings = settings
        self.has_own_files = has_own_files(settings)
        self.is_multirun = settings.mode == RunMode.MULTIRUN
        self._plain = cast(dict[str, Any], OmegaConf.to_container(settings, resolve=False, enum_to_str=True))

        self.choices: dict[str, str] = {}
        for group, option in settings.runtime.choices.items():
            # The config itself says which callbacks there are.
            if option is not None and group != CALLBACKS and not group.startswith("hydra"):
                self.choices[group] = format_option(option)

    @property
    def words(self) -> list[str]:
        """The overrides, as they were typed."""
        return list(self._plain["overrides"]["task"])

    def set_point(self, words: Sequence[str], overrides: Sequence[Override], number: int) -> None:
        """Name the point. words: as they were typed; overrides: the same, parsed."""
        job = self._plain["job"]
        folder = hydra_internals.format_override_dirname(overrides, job["config"]["override_dirname"])
        of_job = {"override_dirname": folder, "num": number, "id": number}
        # Interpolations in a config read them here.
        for key, value in of_job.items():
            hydra_internals.set_value(self.settings.job, key, value)
        hydra_internals.set_value(self.settings.overrides, "task", list(words))
        self._plain = self._plain | {
            "job": job | of_job,
            "overrides": self._plain["overrides"] | {"task": list(words)},
        }

    def get_folder(self) -> Path | None:
        """The folder of the point, or of the run; None if Hydra is to make none."""
        if not self.is_multirun:
            folder = str(self.settings.run.dir)
            return None if folder == "." else Path(folder)

        job = self._plain["job"]
        if self._plain["sweep"]["subdir"] == _SUBFOLDER and "override_dirname" in job:
            name = f"{job['num']}_{format_folder_name(job['override_dirname'])}"
        else:
            name = str(self.settings.sweep.subdir)
        return self.get_sweep_folder() / name

    def get_sweep_folder(self) -> Path:
        """The folder of the sweep."""
        folder = str(self._plain["sweep"]["dir"])
        return Path(self.settings.sweep.dir if "${" in folder else folder)

    def to_plain(self) -> dict[str, Any]:
        """All of it, with interpolations as they are; sections are shared between points."""
        return dict(self._plain)


def format_option(value: Any) -> str:
    """The choice of a group as it is typed: an option, or several as [a,b]."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple | ListConfig) else str(value)
