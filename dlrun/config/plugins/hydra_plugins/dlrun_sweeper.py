"""What Hydra calls for `-m`: dlrun's sweeper names the points, its launcher composes them; the runs come later.

Hydra finds this file by the folder's name, which it insists on. Nothing is written here and no job is started, so
that all points can be checked before the first one trains.
"""

from collections.abc import Sequence
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from dlrun.config import search_space, sweep_points
from dlrun.config.composer import Composer


class DlrunSweeper(Sweeper):
    """All combinations of the values, in the order of the words; the last one varies fastest."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the sweep's config and make the launcher that it names."""
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Hand every point to the launcher."""
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(arguments)
        if self.config.sweep.search is not None:
            # The points of a search come later, one by one; these are to be checked.
            return [self.launcher.launch(search_space.read_space(overrides).list_corners(), 0)]
        sweep_points.refuse_many(overrides, self.config.sweep.max_jobs)
        return [self.launcher.launch(sweep_points.combine(overrides), 0)]


class DlrunLauncher(Launcher):
    """Composes each point and hands it to the task function."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the sweep's config and the task function."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Call the task function with each point's config; it records the requests, and nothing is run."""
        # list() would interpolate.
        hydra_overrides = cast(list[str], OmegaConf.to_container(self.config.hydra.overrides.hydra))
        config_name = str(self.config.hydra.job.config_name)
        composer = Composer(self.hydra_context.config_loader, hydra_overrides, self.config, config_name)
        for number, words in enumerate(job_overrides, initial_job_idx):
            self.task_function(composer.compose_point(words, number))
        return []


for kind, target in (("sweeper", DlrunSweeper), ("launcher", DlrunLauncher)):
    ConfigStore.instance().store(
        group=f"hydra/{kind}", name="dlrun", node={"_target_": f"{target.__module__}.{target.__name__}"}
    )
