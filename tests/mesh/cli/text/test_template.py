"""The Go template subset, and tables."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.cli.text import TextError
from mesh.cli.text.table import printable, shorten, table
from mesh.cli.text.template import Record, parse_template

DATA = Record(
    ID="abc",
    Name="api",
    Labels={"zone": "a", "b": "c"},
    Ports=["80", "81"],
    Self=True,
    Count=3,
    Ratio=0.5,
    Nothing=None,
    update_status=Record(state="paused"),
)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("", ""),
        ("plain", "plain"),
        ("{{.Name}} {{.ID}}", "api abc"),
        (r"{{.ID}}\t{{.Name}}\n", "abc\tapi\n"),
        ("{{ .Name }}", "api"),
        ("{{.name}}{{.UpdateStatus.State}}{{.update_status.state}}", "apipausedpaused"),
        ("{{json .Labels}}", '{"zone":"a","b":"c"}'),
        ("{{.Labels.zone}}|{{.Labels.none}}", "a|"),
        ('{{index .Labels "b"}}{{index .Ports 1}}', "c81"),
        ("{{.Labels}} {{.Ports}}", "map[b:c zone:a] [80 81]"),
        ("{{.Self}} {{.Count}} {{.Ratio}} {{.Nothing}}", "true 3 0.5 <no value>"),
        ('{{.Name | upper | printf "%s!"}}', "API!"),
        ('{{join .Ports ","}} {{len .Ports}} {{title .Name}}', "80,81 2 Api"),
        ("{{range .Ports}}<{{.}}>{{end}}", "<80><81>"),
        ("{{range .Nothing}}x{{else}}none{{end}}", "none"),
        ("{{range .Ports}}{{.}}:{{$.Name}} {{end}}", "80:api 81:api "),
        ("{{range .Labels}}{{.}}{{end}}", "ac"),
        ("{{if .Self}}*{{else}} {{end}}", "*"),
        ("{{if .Nothing}}*{{else if .Self}}+{{else}}-{{end}}", "+"),
        ('{{if eq .Name "x" "api"}}1{{end}}{{if ne .Count 3}}2{{end}}{{if not .Self}}3{{end}}', "1"),
        ('{{if and .Self (gt .Count 2)}}y{{end}}{{or .Nothing "d"}}', "yd"),
        ("{{with .UpdateStatus}}{{.State}}{{end}}{{with .Nothing}}x{{else}}y{{end}}", "pausedy"),
        ("a {{- .Name -}} b {{- /* c */ -}} d", "aapibd"),
        ("{{/* comment */}}{{.ID}}", "abc"),
        ('{{printf "%-5s|%5d|%q|%%" .Name .Count .ID}}', 'api  |    3|"abc"|%'),
        ("{{println .Name 1}}", "api 1\n"),
        ('{{truncate .Name 2}}{{pad .Name 1 2}}{{split "a,b" ","}}', "ap api  [a b]"),
        ("{{`raw`}}{{true}}", "rawtrue"),
    ],
)
def test_render(template: str, text: str) -> None:
    assert parse_template(template).render(DATA) == text


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            "{{.Foo}}",
            "template: no field Foo: there are ID, Name, Labels, Ports, Self, Count, Ratio, Nothing, update_status",
        ),
        ("{{.Name.First}}", "template: api has no field First"),
        ("{{.Name", "template: {{ without }}"),
        ("{{end}}", "template: {{end}} without a beginning"),
        ("{{if .Self}}x", "template: {{if .Self}} without {{end}}"),
        ("{{if .Self}}x{{else}}y{{else}}z{{end}}", "template: {{if .Self}} without {{end}}"),
        ("{{}}", "template: cannot read {{}}"),
        ("{{$x := .Name}}", "template: cannot read {{$x := .Name}}"),
        ("{{.Name .ID}}", "template: cannot read {{.Name .ID}}"),
        ("{{(.Name}}", "template: cannot read {{(.Name}}"),
        ("{{.Name | .ID}}", "template: {{.Name | .ID}}: only a function can follow |"),
        ("{{range .Name}}{{end}}", "template: range over api, which is no list"),
        ("{{upper .Ports}}", "template: upper cannot be used like this"),
        ("{{index .Ports 9}}", "template: index cannot be used like this"),
        ("{{len}}", "template: len cannot be used like this"),
        ("{{if .Self}}" * 40, "template: nested deeper than 32"),
        ("{{" + "(" * 40 + ".ID" + ")" * 40 + "}}", "template: nested deeper than 32"),
        ("x" * 20000, "the template is longer than 16384 characters"),
    ],
)
def test_mistakes(template: str, sentence: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_template(template).render(DATA)
    assert str(caught.value) == sentence


def test_unknown_functions_list_the_known_ones() -> None:
    with pytest.raises(TextError, match=r'^template: no function "exec": there are json, upper, lower, '):
        parse_template("{{exec .}}")


@given(st.text(alphabet='{}-.|()"$ aNme019i\\', max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_template_renders_or_is_refused(template: str) -> None:
    with contextlib.suppress(TextError):
        parse_template("{{" + template + "}}").render(DATA)


def test_tables_are_aligned_like_dockers() -> None:
    assert table(
        ["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"],
        [["17hgvuiex283", "web", "replicated", "2/2", "bb:1", ""]],
    ) == (
        "ID             NAME      MODE         REPLICAS   IMAGE     PORTS\n"
        "17hgvuiex283   web       replicated   2/2        bb:1\n"
    )


def test_tables_count_columns_of_the_terminal() -> None:
    assert table(["A", "B"], [["漢字漢字漢", "x"], ["é" * 5, "y"]]) == (
        "A            B\n漢字漢字漢   x\nééééé        y\n"
    )


def test_words_of_others_cannot_move_the_cursor() -> None:
    assert printable("a\x1b[2J\nb") == "a\\x1b[2J\\nb"
    assert shorten("abcdef", 4) == "abc…"
    assert shorten("abcd", 4) == "abcd"
