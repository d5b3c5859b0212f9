"""One `map(function, tasks)` for work that is cut into tasks: here, in processes, or on a cluster.

>>> from catwise.engines import IN_PROCESS, open_engine
>>> list(IN_PROCESS.map(abs, [-3, 2]))
[3, 2]
>>> with open_engine(None) as engine:
...     list(engine.map(abs, [-1]))
[1]

Results come in the order of the tasks, while others run. A task whose worker was killed runs again;
an error of a task is raised when its turn comes, as if it had run here. Bytes do not depend on the
engine: workers compute with as many threads as the caller (`torch.get_num_threads()`).
"""

from typing import TYPE_CHECKING

from catwise._lazy import attach

if TYPE_CHECKING:
    from catwise.engines.base import IN_PROCESS as IN_PROCESS
    from catwise.engines.base import Engine as Engine
    from catwise.engines.choosing import open_engine as open_engine
    from catwise.engines.local import LocalEngine as LocalEngine
    from catwise.engines.ray_engine import RayEngine as RayEngine

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "catwise.engines.base": "Engine IN_PROCESS",
        "catwise.engines.choosing": "open_engine",
        "catwise.engines.local": "LocalEngine",
        "catwise.engines.ray_engine": "RayEngine",
    },
)
