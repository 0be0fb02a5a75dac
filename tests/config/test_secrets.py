"""Settings that may hold secrets stay out of what is written."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from study.config.errors import UserError
from study.config.secrets import SECRET_SETTINGS, hide_secret_settings, is_secret_setting
from study.plan.loading import load_study, read_study_file
from study.record.environment import format_command
from study.record.layout import StudyFolder
from study.sweep.study_file import check_folder, write_study

SECRET = "s3cret"
SETTINGS = [
    f'launch.setup=["export PGPASSWORD={SECRET}"]',
    f'setup=["export TOKEN={SECRET}"]',
    f"address=ray://me:{SECRET}@head",
    f"launch.sbatch.export=ALL,KEY={SECRET}",
    f"launch={{sbatch: {{export: 'KEY={SECRET}'}}}}",
    f"sbatch={{export: {SECRET}}}",
]


def test_the_fields_that_may_hold_secrets() -> None:
    assert {"sbatch", "setup", "address"} == SECRET_SETTINGS


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("joined", [False, True])
def test_a_recorded_command_names_the_setting_without_its_value(setting: str, joined: bool) -> None:
    arguments = [f"--set={setting}"] if joined else ["--set", setting]
    line = format_command(hide_secret_settings(["--study", "x", *arguments, "--set", "epochs=3"]))
    assert SECRET not in line
    key = setting.partition("=")[0]
    assert f"{key}=***" in shlex.split(line)[-3]
    assert shlex.split(line)[-2:] == ["--set", "epochs=3"]


@pytest.mark.parametrize("setting", ["launch.minutes=3", "epochs=3", "depth=[8]", "tracking.mode=offline", "x.setup=1"])
def test_other_settings_are_recorded(setting: str) -> None:
    assert not is_secret_setting(setting)
    assert hide_secret_settings(["--set", setting]) == ["--set", setting]


def test_a_hidden_setting_cannot_be_used_by_mistake() -> None:
    with pytest.raises(UserError, match="not valid YAML"):
        load_study("depth_vs_batch", "smoke", ["launch.setup=***"])


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_study_on_record_has_no_secret_and_is_resumed_with_it(tmp_path: Path, setting: str) -> None:
    study, folder = load_study("depth_vs_batch", "smoke", [setting]), StudyFolder(tmp_path)
    assert SECRET in repr(study.launch)
    write_study(study, folder, {"command": format_command(hide_secret_settings(["--set", setting]))})
    assert SECRET not in folder.config.read_text()
    assert "setup" not in yaml.safe_load(folder.config.read_text())["study"]["launch"]
    assert read_study_file(folder.config).study.launch.minutes == study.launch.minutes
    check_folder(study, folder)
