"""From a training run to what ships: `python -m benchmarks.demo_policy.ship --run RUN --out edge_vla/demo/policy/base`.

With `--adapter` the run is one of stage `adapt`, and the adapter is written.
"""

import argparse
import logging
from pathlib import Path
from typing import Final

from benchmarks import study
from benchmarks.demo_policy import adapter, package, runs
from benchmarks.demo_policy.learner import Learner
from benchmarks.demo_policy.train import fresh

LOG: Final = logging.getLogger("benchmarks.demo_policy.ship")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.ship", description=__doc__)
    parser.add_argument("--run", required=True, type=Path, help="directory of the finished run")
    parser.add_argument("--out", required=True, type=Path, help="directory of the checkpoint or adapter")
    parser.add_argument("--base", type=Path, help="with --adapter: the checkpoint it was trained on")
    parser.add_argument("--adapter", action="store_true")
    given = parser.parse_args()
    if given.adapter and given.base is None:
        parser.error("--adapter needs --base: the checkpoint that the adapter was trained on")
    if given.adapter:
        learner = Learner(package.read(given.base), prompts=1)
        wrapped = adapter.wrap(learner)
        runs.load_averaged(given.run, learner)
        adapter.write(wrapped, given.out)
    else:
        learner = fresh(prompts=1)
        runs.load_averaged(given.run, learner)
        package.write(learner.policy, given.out)
    LOG.info("wrote %s", given.out)


if __name__ == "__main__":
    study.run(main)
