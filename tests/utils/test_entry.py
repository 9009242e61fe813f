"""The commands of an installed package."""

import tomllib

from src.utils.entry import CONFIGS, ROOT


def test_every_console_script_is_a_command_with_a_config():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(project["scripts"]) == len(list((ROOT / "src").glob("[a-z]*.py")))
    for target in project["scripts"].values():
        module, function = target.split(":")
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert f"def {function}(cfg" in source
        name = module.rpartition(".")[2]
        assert f'@command(config_name="{name}")' in source
        assert (CONFIGS / f"{name}.yaml").is_file()
