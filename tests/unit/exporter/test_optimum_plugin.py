"""`optimum-cli export packlight`: registered by installing packlight, and the same verb as `packlight export`."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PLUGIN = ROOT / "exporter/integrations/optimum/commands/register/register_packlight.py"

# The console script optimum-cli; argv[0] is what the shell would have put there.
_OPTIMUM_CLI = "import sys; sys.argv[0] = 'optimum-cli'; from optimum.commands.optimum_cli import main; main()"


def optimum_cli(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _OPTIMUM_CLI, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


def packlight(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.argv[0] = 'packlight'; from exporter.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def plugin():
    spec = importlib.util.spec_from_file_location("register_packlight", PLUGIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("optimum_has", "packlight_gets"),
    [
        ("m -o out --quant q8_0", "m -o out --quant q8_0"),
        ("m --quant q8_0 --out=out", "m --quant q8_0 --out=out"),
        ("-qo out m", "-qo out m"),
        ("m out", "-o out m"),
        ("m --quant q8_0 out", "-o out m --quant q8_0"),
        ("--model m --quant q8_0 out", "-o out m --quant q8_0"),
        ("--quant q8_0 --model=m out", "-o out m --quant q8_0"),
        ("-m m -o out", "m -o out"),
        # OUT is missing: what is left is for packlight to refuse
        ("m", "m"),
        ("m --overwrite", "m --overwrite"),
        ("--model", "--model"),
        ("--help", "--help"),
    ],
)
def test_arguments(plugin, optimum_has, packlight_gets):
    assert plugin.packlight_arguments(optimum_has.split()) == packlight_gets.split()


def test_optimums_own_loader_finds_the_command(tmp_path):
    code = """if True:
        import sys
        from optimum.commands.optimum_cli import load_optimum_namespace_cli_commands
        found = [(c.COMMAND.name, p.__name__) for c, p in load_optimum_namespace_cli_commands()]
        # optimum-cli loads this at every start: nothing of packlight with it
        print(found, sorted({"exporter", "targets", "runtime", "typer", "torch"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.stdout.strip(), done.stderr) == ("[('packlight', 'ExportCommand')] []", "")


def test_help(tmp_path):
    done = optimum_cli("export", "--help", cwd=tmp_path)
    assert "packlight" in done.stdout
    done = optimum_cli("export", "packlight", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("optimum-cli export packlight MODEL [OPTIONS] OUT\n")
    assert done.stdout.endswith(packlight("export", "--help", cwd=tmp_path).stdout)
    assert optimum_cli("export", "packlight", cwd=tmp_path).stdout == done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        ("./missing -q out", 2, "error: ./missing: no such directory"),
        ("missing --no-such out", 2, "error: No such option: --no-such"),
        ("missing", 2, "error: Missing option '--out'"),
        ("missing --quant q8_0", 2, "error: Option '--quant' requires an argument"),
    ],
)
def test_errors_and_exit_status_are_packlights(tmp_path, arguments, status, line):
    done = optimum_cli("export", "packlight", *arguments.split(), cwd=tmp_path)
    assert done.returncode == status
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_a_tiny_model(tiny_llama, tmp_path):
    options = ("--quant", "q8_0", "--no-verify", "--no-measure", "--json", "-q")
    done = optimum_cli("export", "packlight", "--model", tiny_llama, *options, "out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["provenance"]["command"] == f"packlight export -o out {tiny_llama} {' '.join(options)}"
    theirs = (tmp_path / "out" / report["artifact"]["entry"]).read_bytes()
    assert theirs[:4] == b"GGUF"

    done = packlight("export", tiny_llama, *options, "-o", "again", cwd=tmp_path)
    assert theirs == (tmp_path / "again" / json.loads(done.stdout)["artifact"]["entry"]).read_bytes()


@pytest.mark.slow
def test_a_wheel_holds_the_plugin_and_nothing_else_of_optimum(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("exporter", "targets", "runtime"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("packlight-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    # An __init__.py anywhere in it would hide optimum itself.
    assert [name for name in names if "optimum" in name] == ["optimum/commands/register/register_packlight.py"]
    assert "exporter/pipeline.py" in names
    assert "targets/devices/pixel-8.toml" in names
