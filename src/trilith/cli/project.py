"""The project folder around the current one, and what is composed from its conf/."""

from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trilith.model import ModelConfig
    from trilith.packed import PackConfig

PLAN_SECTIONS = ("model", "train", "pretrain", "pack")


def project_folder() -> Path | None:
    """Return the current folder, or the nearest above it, that holds conf/model."""
    here = Path.cwd()
    return next(
        (folder for folder in (here, *here.parents) if (folder / "conf/model").is_dir()), None
    )


def compose_model(overrides: Sequence[str]) -> "ModelConfig":
    """Compose the section `model` from conf/, params.yaml and overrides such as `model=nano`.

    Raises:
        ValueError: no project here, or an override that fits nothing; the text says which.
    """
    project = _project()
    content = _compose(project, overrides, sections=("model",))
    return _shape(content["model"], source=project / "conf")


def compose_plan(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose the sections that a memory plan reads; `model` comes as a ModelConfig.

    Raises:
        ValueError: as `compose_model`, or conf/ lacks one of these sections.
    """
    project = _project()
    content = _compose(project, overrides, sections=PLAN_SECTIONS)
    return content | {"model": _shape(content["model"], source=project / "conf")}


def compose_pack(given: dict[str, Any]) -> "PackConfig":
    """Return how to pack: what is given, and the section `pack` of conf/ and params.yaml.

    Args:
        given: values of PackConfig by key; a project is needed only for those that are missing.

    Raises:
        ValueError: as `compose_model`, or a value is not known.
    """
    from trilith.packed import PackConfig

    keys = {field.name for field in fields(PackConfig) if field.default is MISSING}
    section: dict[str, Any] = {}
    if keys - set(given):
        if project_folder() is None:
            raise ValueError(
                f"no folder conf/model in {Path.cwd()} or above says how to pack; change to a "
                f"project folder, or give {' and '.join(f'--{key}' for key in sorted(keys))}"
            )
        section = _compose(_project(), (), sections=("pack",))["pack"]
    if "embedding" in given:
        # Its head and groups, where they are not given too, are those of another choice.
        section = {key: value for key, value in section.items() if key in keys}
    try:
        return PackConfig(**(section | given))
    except TypeError as error:
        raise ValueError(f"section pack of the project: {error}") from None


def has_plan_sections() -> bool:
    """True if the project here has the primary file that names all sections of a plan."""
    project = project_folder()
    if project is None or not (project / "conf/config.yaml").is_file():
        return False
    return all((project / "conf" / group).is_dir() for group in ("quant", "train", "pack"))


def _project() -> Path:
    project = project_folder()
    if project is None:
        raise ValueError(
            f"no folder conf/model in {Path.cwd()} or above; change to a project folder, or give "
            "a packed file"
        )
    return project


def _compose(
    project: Path, overrides: Sequence[str], *, sections: tuple[str, ...]
) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    conf = project / "conf"
    primary = "config" if (conf / "config.yaml").is_file() else None
    try:
        given = [*_missing_choices(project, overrides), *overrides]
        if primary is None:
            # Without a primary file no group has a place yet: `+` makes one.
            given = [f"+{o}" if (conf / o.partition("=")[0]).is_dir() else o for o in given]
        with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            config = compose(primary, overrides=given)
        if "model" in sections and "model" not in config:
            raise ValueError("no model is chosen; give one, such as model=nano")
        missing = [name for name in sections if name not in config]
        if missing:
            raise ValueError(f"{conf} gives no section {', '.join(missing)}, which is read here")
        return {
            name: OmegaConf.to_container(config[name], resolve=True, throw_on_missing=True)
            for name in sections
        }
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"{' '.join(overrides)}: {error}") from None


def _missing_choices(project: Path, overrides: Sequence[str]) -> list[str]:
    """Choices of params.yaml for what the overrides leave open."""
    from omegaconf import OmegaConf

    path = project / "params.yaml"
    if not path.is_file():
        return []
    choices = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(choices, dict):
        raise ValueError(f"{path} does not map choices to values")
    more = [str(override) for override in choices.pop("overrides", None) or []]
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    chosen = [f"{key!s}={value}" for key, value in choices.items()]
    return [o for o in chosen + more if o.lstrip("+~").partition("=")[0] not in given]


def _shape(section: Any, *, source: Path) -> "ModelConfig":
    from trilith.model import ModelConfig

    known = {field.name for field in fields(ModelConfig)}
    needed = {field.name for field in fields(ModelConfig) if field.default is MISSING}
    found = set(section) if isinstance(section, dict) else set()
    if not needed <= found <= known:
        raise ValueError(
            f"section model of {source} lacks {sorted(needed - found)} and has the unknown keys "
            f"{sorted(found - known)}"
        )
    return ModelConfig(**section)
