"""Train, evaluate and picture one run, or with -m a sweep: see --help."""

import logging
import sys
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from meta_exp import cli
from meta_exp.config.overrides import check_words
from meta_exp.installation import CONF
from meta_exp.runs import names  # noqa: F401 - Hydra asks names for the folders of a sweep


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> float:
    """Run ``cfg`` in its folder; the imports stand here so that --help answers at once."""
    with cli.quick_imports():
        from meta_exp.runs.folder import Refused, remove_unbegun
        from meta_exp.runs.train import train

    try:
        return train(cfg)
    except Refused:  # the folder, with its log, is not ours
        raise
    except Exception:
        if not remove_unbegun(Path(HydraConfig.get().runtime.output_dir)):
            logging.getLogger("meta_exp.failure").exception("the run failed")
        raise


def command() -> None:
    """Look at the command's words before Hydra does, which says of a slip neither where it is nor what to do."""
    known, behind = get_args_parser().parse_known_args(sys.argv[1:])
    overrides = known.overrides + [word for word in behind if not word.startswith("-")]
    for word in overrides:  # a=1 -m b=2 as well: of words on both sides of its options Hydra knows the first ones only
        sys.argv.remove(word)
    sys.argv += overrides
    check_words(overrides, CONF)
    main()


if __name__ == "__main__":
    cli.run(command)
