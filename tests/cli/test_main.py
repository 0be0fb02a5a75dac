"""The command line itself: verbs and flags, help, the three ways to start it, exit codes and one-line errors."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from study.__main__ import main as program
from study.cli import commands
from study.cli.arguments import FLAGS, HINTS, VERBS, parse_arguments
from study.cli.main import main
from study.record.layout import StudyFolder
from tests.cli.conftest import STUDY
from tests.conftest import ROOT, Command, Run


def test_the_command_line_is_a_frozen_set() -> None:
    assert sorted(FLAGS) == [
        "--compare", "--detach", "--help", "--launcher", "--no-images", "--out", "--retry-failed", "--scale",
        "--serve", "--set", "--storage", "--study", "--version", "--watch", "--workers",
    ]  # fmt: skip
    assert list(VERBS) == ["run", "plan", "status", "report", "sync", "dashboard", "diff", "show", "bench"]
    assert [*commands.COMMANDS, "bench"] == list(VERBS)


@pytest.mark.parametrize("start", ["run_study.py", "-m study", "run-study"])
def test_three_programs_are_one(start: str, tmp_path: Path) -> None:
    module, function = re.findall(r'^run-study = "(.+):(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
    script = tmp_path / "run-study"  # as an installer writes it
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    program = {"run_study.py": [str(ROOT / "run_study.py")], "-m study": ["-m", "study"], "run-study": [str(script)]}
    listed, refused = (
        subprocess.run([sys.executable, *program[start], *arguments], capture_output=True, text=True, cwd=tmp_path,
                       env={**os.environ, "PYTHONPATH": str(ROOT)})
        for arguments in ([], ["--study", "nothing"])
    )  # fmt: skip
    assert listed.returncode == 0, listed.stderr
    for word in ("depth_vs_batch", "distinct", "smoke", "laptop", "workstation", "paper"):
        assert re.search(rf"^  {word} ", listed.stdout, re.MULTILINE)
    hint = "run-study --study NAME" if start == "run-study" else "python run_study.py --study NAME"
    assert f"To run one: {hint}" in listed.stdout
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)


def test_an_empty_variable_of_wandb_is_as_good_as_none(tmp_path: Path) -> None:
    """In a process of its own, because W&B reads its variables once."""
    code = (
        "import os; from study.cli.main import main; assert main([]) == 0; "
        "from wandb.sdk import wandb_setup; settings = wandb_setup.singleton().settings; "
        "assert settings.project == 'mine'; print(settings.mode, settings.base_url)"
    )
    empty = {"WANDB_MODE": "", "WANDB_BASE_URL": "", "WANDB_PROJECT": "mine", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **empty}
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^online https?://", done.stdout, re.MULTILINE)


def test_an_interpreter_without_the_dependencies_is_one_line() -> None:
    program = [sys.executable, "-S", str(ROOT / "run_study.py")]  # -S: without the packages of this environment
    done = subprocess.run(program, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    for words in (f"error: {sys.executable} has no module ", "source .venv/bin/activate", "pip install -e ."):
        assert words in done.stderr


LINES = ["", "--help", "bench", f"plan {' '.join(STUDY)}", f"status {' '.join(STUDY)}"]


@pytest.mark.parametrize("line", LINES)
def test_a_reader_that_leaves_ends_the_program_quietly(line: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, str(ROOT / "run_study.py"), *line.split()]
    done = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("line", LINES[::4])
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "2>&-"])
def test_closed_streams_change_no_exit_code(line: str, closed: str) -> None:
    program = f"'{sys.executable}' '{ROOT / 'run_study.py'}' {line} {closed}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_arguments_default_to_those_of_the_process(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.setattr(sys, "argv", ["run-study", "--version"])
    assert main() == 0
    assert re.fullmatch(r"normalizer-study \S+( \(commit [0-9a-f]{40}(\+changes)?\))?\n", command("--version").out)


@pytest.mark.parametrize(
    "line",
    ["status --watch --study x", "--study x status --watch", "--watch --study x status", "status --study=x --watch"],
)
def test_flags_may_come_before_and_after_the_verb(line: str) -> None:
    options = parse_arguments(line.split())
    assert (options.verb, options.study, options.watch, options.scale) == ("status", "x", True, None)


def test_settings_add_up_wherever_they_stand() -> None:
    options = parse_arguments(["--set", "a=1", "diff", "x-r0", "--set", "b=2", "--study", "s", "y-r1", "--set", "c=3"])
    assert (options.set, options.trials) == (["a=1", "b=2", "c=3"], ["x-r0", "y-r1"])


def test_every_verb_accepts_the_flags_of_a_run() -> None:
    line = "--study x --launcher slurm --workers 2 --storage sqlite:///x.db --retry-failed --detach"
    for verb in ("plan", "status", "report", "dashboard"):
        assert parse_arguments([verb, *line.split()]).verb == verb


def test_the_help_of_a_verb_shows_its_own_flags(command: Command) -> None:
    every = command("--help").out
    assert all(name in every for name in (*VERBS, *FLAGS))
    for line in ("status --help", "--help status", "status -h --study x"):
        shown = command(*line.split()).out
        assert {"--study", "--watch"} <= set(re.findall(r"--[\w-]+", shown))
        assert not {"--serve", "--detach", "--workers"} & set(re.findall(r"--[\w-]+", shown))


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys\nfrom study.cli.main import main\n"
        "assert main(['--help']) == main(['plan', '--help']) == 0\n"
        "assert not {'torch', 'pandas', 'optuna', 'wandb', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--study", "depth_vs_batc"), ["unknown study", "nearest: depth_vs_batch"]),
        (("--study", "distinct", "--scale", "laptp"), ["unknown scale", "nearest: laptop"]),
        ((*STUDY, "--set", "epocs=1"), ["unknown key", "nearest: epochs"]),
        ((*STUDY, "--set", "dataset=fashion_mnist", "--set", "data_root=nowhere"), ["nowhere", "no such folder"]),
        ((*STUDY, "--set", "batch_size=4096"), ["gradient batch 32768"]),
        (("--stdy", "x"), ["unknown flag", "nearest: --study"]),
        (("runn", "--study", "distinct"), ["unknown verb", "nearest: run"]),
        (("--study", "distinct", "bench"), ["bench: must come first"]),
        (("status", "x-r0", *STUDY), ["x-r0: unexpected argument; status takes no trials"]),
        (("status", "epochs=3", *STUDY), ["a setting is given as --set epochs=3"]),
        (("epochs=3", *STUDY), ["unknown verb; a setting is given as --set epochs=3"]),
        (("distinct",), ["unknown verb; a study is named by --study distinct"]),
        (("plan", "distinct"), ["distinct: unexpected argument; a study is named by --study distinct"]),
        *(
            ((*STUDY, "--set", f"{key}=1"), ["unknown key; docs/configuration.md lists the keys"])
            for key in ("x", "qqqqqqqq", "foo.bar", "base.x", "joint.norm.sn.x")
        ),
        ((*STUDY, "--set", "BATCH_SIZE=2"), ["unknown key; nearest: batch_size"]),
        ((*STUDY, "--set", "dataset=CIFAR10"), ["'CIFAR10'", "nearest: cifar10"]),
        *(
            ((*STUDY, "--set", f"{key}={{}}"), [f"no keys, so this changes nothing; to change one: --set {key}.NAME="])
            for key in ("factors", "run", "joint", "base", "analysis.margins", "search")
        ),
        *(((*STUDY, "--set", f"{key}=[]"), [": []: expected keys and values"]) for key in ("run", "joint", "search")),
        *(
            ((*STUDY, "--set", f"{key}=[scratch]"), ["base.start_rule: ['scratch']: expected one value, not a list; "])
            for key in ("start_rule", "start.rule")
        ),
        ((*STUDY, "--set", "device=[cpu]"), ["run.device: ['cpu']: expected one value, not a list\n"]),
        ((*STUDY, "--set", "scale=paper"), ["--set scale=paper: is a flag: --scale paper"]),
        (("report", *STUDY), ["no study has been run"]),
        (("report", "--study", "distnct"), ["unknown study", "nearest: distinct"]),
        (("diff", *STUDY, "a", "b"), ["no study has been run here"]),
        (("show", "--study", "distnct", "a"), ["unknown study", "nearest: distinct"]),
        (("report", *STUDY, "--watch"), ["--watch: belongs to status, not to report"]),
        ((*STUDY, "--set", "tracking.project=a/b"), ["tracking.project: 'a/b': W&B allows"]),
        ((*STUDY, "--set", f"tracking.project={'x' * 129}"), ["W&B allows 1 to 128 characters"]),
        (("plan",), ["--study is required"]),
        (("plan", *STUDY, "--watch"), ["--watch: belongs to status, not to plan; nearest: status --watch"]),
        ((*STUDY, "--serve"), ["--serve: belongs to report, not to run; nearest: report --serve"]),
        (("report", *STUDY, "--serve"), ["no study has been run here"]),
        ((*STUDY, "--set", "precision=float16", "--set", "device=cpu"), ["float16", "CUDA"]),
        ((*STUDY, "--storage", "nonsense"), ["--storage nonsense", "cannot be opened"]),
        (("--study", "learning_rates", "--scale", "smoke", "--set", "batch_size=[4096]"), ["gradient batch 32768"]),
        (
            ("plan", "--study", "learning_rates", "--scale", "smoke", "--set", "batch_size=[4096]"),
            ["gradient batch 32768"],
        ),
        (
            ("--study", "learning_rates", "--scale", "smoke", "--set", "task=segmentation", "--set", "dataset=scenes"),
            ["search.objective=val_accuracy", "segmentation has no accuracy", "allowed: val_score"],
        ),
        ((*STUDY, "--out", "a\udc80"), ["a\\udc80: contains a character that is not allowed"]),
        ((*STUDY, "--out", ""), ["--out: an empty value is not allowed"]),
        ((*STUDY, "--out="), ["--out: an empty value is not allowed"]),
        (("bench", "norms", "--json", ""), ["--json: an empty value is not allowed"]),
        *(
            ((*STUDY, "--workers", text), [f"--workers {text}: expected a whole number from 1 to 1024"])
            for text in ("0", "-1", "007", "1_0", "1e1", "٣", "1025")
        ),
        (("bench", "recipes", "--workers", "02"), ["--workers 02: expected a whole number from 1 to 1024"]),
        (("bench", "recipes", "--replicates", "0"), ["--replicates 0: expected a whole number from 1 to 900"]),
        ((*STUDY, "--launcher", "slrm"), ["--launcher slrm", "nearest: slurm"]),
        ((*STUDY, "--launcher", "ray", "--workers", "2"), ["--workers", "local"]),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    for part in parts:
        assert part in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_title_in_any_script_is_shown_on_any_terminal(
    encoding: str, tmp_path: Path, run_study: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "scripts.yaml"
    text = "title: Größe 規範\nquestion: q\nfactors: {learning_rate: [0.1]}\nsearch: {sampler: random, n_trials: 1}\n"
    study.write_text(text, encoding="utf-8")
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    planned = run_study("plan", "--study", str(study), "--scale", "smoke")
    assert planned.returncode == 0, planned.stderr


@pytest.mark.parametrize("words", HINTS)
def test_words_that_are_no_verbs_lead_to_what_there_is(words: tuple[str, ...], command: Command) -> None:
    assert [command(word, *STUDY).err for word in words] == [
        f"error: {word}: unknown verb; {HINTS[words]}\n" for word in words
    ]


def test_an_unknown_key_names_the_nearest_ones_only(command: Command) -> None:
    error = command("plan", *STUDY, "--set", "learning_rat=1").err
    assert "nearest: learning_rate, " in error
    assert len(error) < 200


OUT_OF_REACH = {  # folders that even root cannot make
    "a file in its place": "file", "below a file": "file/below", "a name too long": "x" * 300, "no disk": "/proc/x",
}  # fmt: skip


@pytest.mark.bad_input
@pytest.mark.parametrize("arguments", [STUDY, (*STUDY, "--detach"), ("bench", "faults", "--quick")], ids=" ".join)
@pytest.mark.parametrize("out", OUT_OF_REACH.values(), ids=OUT_OF_REACH)
def test_a_folder_that_cannot_be_made_is_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("not a folder")
    done = command(*arguments, "--out", out)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"error: {out.removesuffix('/below')}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("verb", ["status", "report", "diff", "show"])
@pytest.mark.parametrize("out", ["file", "file/below"])
def test_no_results_are_looked_for_below_a_file(command: Command, tmp_path: Path, verb: str, out: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = command(verb, *STUDY, "--out", str(tmp_path / out))
    assert (done.code, done.out, done.err) == (2, "", f"error: {tmp_path / 'file'}: is a file, not a folder\n")


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_is_no_error(closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, closed, None)
    monkeypatch.setattr(sys, "argv", ["run-study", "--version"])
    assert program() == 0


@pytest.mark.bad_input
def test_a_report_that_cannot_be_written_is_one_line(finished: StudyFolder, command: Command) -> None:
    shutil.rmtree(finished.report)
    finished.report.write_text("not a folder")
    done = command("report", *STUDY, "--out", str(finished.path.parent))
    assert (done.code, done.err) == (2, f"error: {finished.report}: is a file, not a folder\n")


def test_a_full_disk_is_one_line_and_exit_code_1(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    def write(options: object) -> int:
        raise OSError(28, "No space left on device", "runs/x/result.json")

    monkeypatch.setitem(commands.COMMANDS, "run", write)
    done = command(*STUDY)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "no space left on runs/x/result.json" in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_once(number: int, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    def wait(options: object) -> int:
        try:
            os.kill(os.getpid(), number)
        finally:
            if number != signal.SIGINT:
                os.kill(os.getpid(), signal.SIGTERM)  # while trials save, a second signal changes nothing
        return 0

    monkeypatch.setitem(commands.COMMANDS, "run", wait)
    done = command(*STUDY)
    assert (done.code, done.err) == (130, "Interrupted. Run the same command again to continue.\n")


def test_a_hang_up_that_nohup_ignores_stays_ignored(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    def wait(options: object) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return 0

    monkeypatch.setitem(commands.COMMANDS, "run", wait)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert command(*STUDY).code == 0


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_signal_while_modules_are_imported_is_one_line(name: str) -> None:
    code = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "pydantic":
            os.kill(os.getpid(), signal.SIG{})
            return None
sys.meta_path.insert(0, Interrupt())
from study.__main__ import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 130
    assert done.stderr == "Interrupted. Run the same command again to continue.\n"


@pytest.mark.parametrize("name", ["TERM", "HUP"])
def test_a_signal_after_the_command_does_not_change_its_exit_code(name: str) -> None:
    code = """
import atexit, os, signal, sys
from study.__main__ import start
from study.cli import main
def command():
    atexit.register(lambda: os.kill(os.getpid(), signal.SIG{}))
    print("done")
    return 1
main.main = command
start()
"""
    done = subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (1, "done\n", "")
