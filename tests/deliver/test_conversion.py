"""Conversion runs in a process of its own, whose end is told."""

import importlib.util
import os
import signal
import subprocess
import sys

import pytest

from keras_pcp.deliver import conversion


def program(tmp_path, monkeypatch, text):
    """Lets the process run something else than the conversion."""
    (tmp_path / "program.py").write_text(text)
    monkeypatch.setattr(conversion, "__file__", str(tmp_path / "program.py"))
    return conversion.Converter()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", "crashed \\(SIGSEGV\\)"),
        ("import os; os.kill(os.getpid(), 9)", "crashed \\(SIGKILL, usually because memory ran out\\)"),
        ("import sys; sys.exit(3)", "ended with exit code 3"),
        ("input(); print('\"no such operation\"')", "no such operation"),
    ],
)
def test_how_the_process_ended_is_said(text, message, tmp_path, monkeypatch):
    converter = program(tmp_path, monkeypatch, text)
    with pytest.raises(RuntimeError, match=message):
        converter.convert("folder", "int8")
    converter.stop()


def test_a_process_that_has_ended_itself_is_started_again(tmp_path, monkeypatch):
    converter = program(tmp_path, monkeypatch, "input(); print('null')")  # as one that has been idle
    processes = []
    for _ in range(2):
        converter.convert("folder", "int8")
        processes.append(converter.process.pid)
        converter.process.wait()
    converter.stop()
    assert processes[0] != processes[1]


def test_an_interrupt_ends_the_process(tmp_path, monkeypatch):
    converter = program(tmp_path, monkeypatch, "import time; time.sleep(60)")

    def interrupt(*args):
        process.append(converter.process)
        raise KeyboardInterrupt

    process, old = [], signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            converter.convert("folder", "int8")
    finally:
        signal.signal(signal.SIGALRM, old)
    assert process[0].returncode == -signal.SIGKILL
    assert converter.process is None


def test_the_main_module_is_not_run_again_and_no_process_is_left(tmp_path):
    path = importlib.util.find_spec("keras_pcp.deliver.conversion").origin
    (tmp_path / "program.py").write_text("import os\nfor _ in iter(input, ''): print(os.getpid(), flush=True)")
    (tmp_path / "script.py").write_text(
        "import runpy\n"
        "print('once')\n"
        f"module = runpy.run_path({path!r})\n"
        f"module['Converter'].convert.__globals__['__file__'] = {str(tmp_path / 'program.py')!r}\n"
        "try: module['Converter']().convert('folder', 'int8')\n"
        "except RuntimeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
    once, pid = done.stdout.split()
    assert (once, done.stderr) == ("once", "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
