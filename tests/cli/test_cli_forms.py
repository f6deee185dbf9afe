import pytest
import yaml
from jsonargparse import get_loader
from programs import call, program, seen  # noqa: F401  (the fixture)

from elegy.cli.forms import YAML, flow_yaml, register, with_own_keys, with_text_keys

RUN = ("--trainer.run_dir", "run", "--fit.epochs", "1", "--fit.verbose", "0")


@pytest.mark.parametrize("text", ["{10: 0.1, null: 2, '3': 4}", "[{1: {2: '1e3'}}]"])
def test_keys_that_are_not_strings_are_the_same_after_a_run(program, text):  # noqa: F811
    expected = yaml.safe_load(text)
    call("fit", program, "--build.extra", text, *RUN)
    assert seen()["build"]["extra"] == expected
    for argv in (["evaluate", "run"], ["fit", "--resume", "run", "--fit.epochs", "2", "--fit.verbose", "0"]):
        call(*argv)
        assert seen()["build"]["extra"] == expected


def test_a_configuration_file_keeps_the_kinds_of_keys_and_of_strings(program, tmp_path, capsys):  # noqa: F811
    (tmp_path / "a.yaml").write_text("build: {extra: {10: '1e3', '10': 1e3}}\ndata: {names: {1: 2}}\n")
    with pytest.raises(SystemExit):
        call("fit", program, "--config", "a.yaml", "--print_config")
    (tmp_path / "b.yaml").write_text(capsys.readouterr().out)
    for name in ("a.yaml", "b.yaml"):
        call("fit", program, "--config", name, "--fit.max_steps", "1", "--fit.verbose", "0")
        assert seen()["build"]["extra"] == {10: "1e3", "10": 1000.0}
        assert seen()["data"]["names"] == {"1": 2}  # dict[str, int]


STRINGS = [
    "1e3",
    "1e400",
    "1.5",
    "007",
    "0x1f",
    "1_000",
    "null",
    "~",
    "true",
    "yes",
    "",
    " a",
    "a: b",
    "{",
    "é",
    "a\nb",
    "2026-11-29",
    "-",
]


def test_what_is_written_is_read_as_the_same_values():
    register()
    import jsonargparse

    parser = jsonargparse.ArgumentParser(parser_mode=YAML)
    parser.add_argument("--value", type=list)
    values = [*STRINGS, 1, 1e3, 1e-7, 1e20, float("inf"), None, True, {text: text for text in STRINGS}, {1: 2, None: 3}]
    read = get_loader("yaml")
    for text in (parser.dump(jsonargparse.Namespace(value=values)), f"value: {flow_yaml(values)}"):
        assert repr(read(text)["value"]) == repr(values)
    assert repr(with_own_keys(with_text_keys(values))) == repr(values)
