"""Stage configure: conf/ and the choices of params.yaml to one resolved file for all stages."""

import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from root import ROOT
from schema import check, check_inputs
from stage import explain, load_choices
from trilith.files import replacing


def main() -> int:
    """Compose, check every section, and write reports/config.yaml."""
    out = Path("reports/config.yaml")
    try:
        choices, overrides = load_choices(Path("params.yaml"))
        chosen = [f"{key}={value}" for key, value in choices.items()]
        places = ["out_dir=???", "metrics_dir=???"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("config", overrides=[*chosen, *overrides, *places])
        content = OmegaConf.to_container(config, resolve=True)
        check_inputs(check(content))
        with replacing(out) as partial:
            partial.write_text(OmegaConf.to_yaml(content, sort_keys=False))
    except (Exception, KeyboardInterrupt) as error:
        status, text = explain(error)
        if text is None:
            raise
        print(f"configure: {text}", file=sys.stderr)
        return status
    print(f"configure: {', '.join(chosen + overrides)} -> {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
