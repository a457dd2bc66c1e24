"""From a training run to what ships: `python -m benchmarks.demo_policy.ship --run RUN --out edge_vla/demo/policy/base`.

With `--adapter`, the run is one of stage `adapt` and what is written is the adapter. Knows which file goes
where; the formats are `package`'s and `adapter`'s.
"""

import argparse
import logging
import sys
from pathlib import Path

from benchmarks.demo_policy import adapter, package, runs
from benchmarks.demo_policy.learner import Learner
from benchmarks.demo_policy.train import fresh
from edge_vla.errors import EdgeVLAError


def averaged(run: Path, learner: Learner) -> None:
    """The run's averaged weights into the learner. Frozen weights are not in the run: they are the base's."""
    weights = runs.load(run / "state.pt")["averaged"]
    learner.load_state_dict({**learner.state_dict(), **weights})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.ship", description=__doc__)
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--base", type=Path, help="with --adapter: the checkpoint it was trained on")
    parser.add_argument("--adapter", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.adapter:
        learner = Learner(package.read(arguments.base), prompts=1)
        wrapped = adapter.wrap(learner)
        averaged(arguments.run, learner)
        adapter.write(wrapped, arguments.out)
    else:
        learner = fresh(prompts=1)
        averaged(arguments.run, learner)
        package.write(learner.policy, arguments.out)
    logging.getLogger(__name__).info("wrote %s", arguments.out)


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"{type(error).__name__}: {error}")
