"""Every representation of a result that the SDK knows, as common libraries make them."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from e2b_code_interpreter import Context, Sandbox

from support.interpreter import only, out, value

PNG = b"\x89PNG\r\n\x1a\n"

TABLE = """
import datetime, decimal
import numpy as np
import pandas as pd
"""


def formats(sandbox: Sandbox, code: str) -> list[str]:
    return list(only(sandbox.run_code(code)).formats())


# Rules: RES-1
@pytest.mark.parametrize(
    ("media", "name"),
    [
        ("text/plain", "text"),
        ("text/html", "html"),
        ("text/markdown", "markdown"),
        ("image/svg+xml", "svg"),
        ("image/png", "png"),
        ("image/jpeg", "jpeg"),
        ("application/pdf", "pdf"),
        ("text/latex", "latex"),
        ("application/javascript", "javascript"),
    ],
)
def test_media_types_have_names(interpreter: Sandbox, media: str, name: str) -> None:
    result = only(interpreter.run_code(f"display({{{media!r}: 'YQ=='}}, raw=True)"))
    assert (list(result.formats()), result[name]) == ([name], "YQ==")
    assert not result.is_main_result


# Rules: RES-1
def test_other_media_types_are_extra(interpreter: Sandbox) -> None:
    result = only(interpreter.run_code("display({'text/x-own': 'a', 'text/html': 'b'}, raw=True)"))
    assert (result.html, result.extra) == ("b", {"text/x-own": "a"})
    assert list(result.formats()) == ["html", "text/x-own"]


# Rules: RES-1
@pytest.mark.parametrize(
    ("code", "name", "content"),
    [
        ("Markdown('# a')", "markdown", "# a"),
        ("HTML('<b>a</b>')", "html", "<b>a</b>"),
        ("Latex('$a$')", "latex", "$a$"),
        ("Javascript('a()')", "javascript", "a()"),
        ("JSON({'a': [1]})", "json", {"a": [1]}),
    ],
)
def test_objects_of_ipython(interpreter: Sandbox, code: str, name: str, content: Any) -> None:
    result = only(interpreter.run_code(f"import IPython.display\nIPython.display.{code}"))
    assert result.is_main_result and list(result.formats()) == ["text", name]
    assert result[name] == content


# Rules: RES-1
def test_svg_audio_and_pretty(interpreter: Sandbox) -> None:
    svg = "SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"><g/></svg>')"
    result = only(interpreter.run_code(f"import IPython.display as d\nd.{svg}"))
    assert result.svg and result.svg.startswith("<svg")
    code = "import IPython.display as d\nd.Audio(b'RIFF', rate=8000, autoplay=False)"
    assert "<audio" in str(only(interpreter.run_code(code)).html)
    assert formats(interpreter, "import IPython.display as d\nd.Pretty('p')") == ["text"]


# Rules: RES-2
def test_a_data_frame(interpreter: Sandbox) -> None:
    code = (
        TABLE
        + """
pd.DataFrame({
    "whole": [1, 2],
    "real": [1.5, np.nan],
    "text": ["a", None],
    "time": [pd.Timestamp("2024-01-01 12:00"), pd.NaT],
    "zoned": pd.to_datetime(["2024-01-01", "2024-01-02"], utc=True),
    "missing": pd.array([True, None], dtype="boolean"),
    "kind": pd.Categorical(["x", "y"]),
    "money": [decimal.Decimal("1.25"), None],
    "day": [datetime.date(2024, 1, 1), None],
    "span": [pd.Interval(0, 1), pd.Timedelta("1h")],
    "list": [[1, np.int64(2)], {"a": np.inf}],
})
"""
    )
    result = only(interpreter.run_code(code))
    assert list(result.formats()) == ["text", "html", "data"]
    assert "<table" in str(result.html)
    assert result.data == {
        "whole": [1, 2],
        "real": [1.5, None],
        "text": ["a", None],
        "time": ["2024-01-01T12:00:00", None],
        "zoned": ["2024-01-01T00:00:00+00:00", "2024-01-02T00:00:00+00:00"],
        "missing": [True, None],
        "kind": ["x", "y"],
        "money": [1.25, None],
        "day": ["2024-01-01", None],
        "span": ["(0, 1]", "P0DT1H0M0S"],
        "list": [[1, 2], {"a": None}],
    }


# Rules: RES-2
@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ("['a', 'a']", ["a", "a.1"]),
        ("[1, 2.5]", ["1.0", "2.5"]),
        ("pd.MultiIndex.from_tuples([('a', 'x'), ('a', 'y')])", ["a, x", "a, y"]),
    ],
)
def test_names_of_columns(interpreter: Sandbox, columns: str, names: list[str]) -> None:
    result = only(interpreter.run_code(f"{TABLE}pd.DataFrame([[1, 2]], columns={columns})"))
    assert result.data == {names[0]: [1], names[1]: [2]}


# Rules: RES-2, RES-6
def test_a_huge_data_frame_has_no_data(interpreter: Sandbox) -> None:
    result = only(interpreter.run_code(f"{TABLE}pd.DataFrame(np.zeros((1_000_000, 10)))"))
    assert result.data is None
    assert "1000000 rows" in str(result.text) and "1000000 rows" in str(result.html)


# Rules: RES-3
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("[1, 2.5, 'a', None, True]", [1, 2.5, "a", None, True]),
        ("{'a': {'b': [1]}}", {"a": {"b": [1]}}),
        ("[np.int64(1), np.float32(0.5), np.bool_(True)]", [1, 0.5, True]),
        ("[np.array([[1, 2], [3, 4]])]", [[[1, 2], [3, 4]]]),
        ("[np.nan, np.inf, float('nan')]", [None, None, None]),
        ("{1: 'a', 2.5: 'b', None: 'c', True: 'd'}", {"1": "d", "2.5": "b", "null": "c"}),
        ("{np.int64(7): 1}", {"7": 1}),
        ("[pd.Timestamp('2024-01-01'), pd.NaT]", ["2024-01-01T00:00:00", None]),
        ("[datetime.date(2024, 1, 1), (1, 2)]", ["2024-01-01", [1, 2]]),
    ],
)
def test_lists_and_dictionaries_are_json(interpreter: Sandbox, code: str, expected: Any) -> None:
    result = only(interpreter.run_code(TABLE + code))
    assert (result.json, list(result.formats())) == (expected, ["text", "json"])


# Rules: RES-3, RES-6
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("[1 + 2j]", "[(1+2j)]"),
        ("{(1, 2): 3}", "{(1, 2): 3}"),
        ("[{1, 2}]", "[{1, 2}]"),
        ("a = []; a.append(a); a", "[[...]]"),
        ("'only text'", "only text"),
        ("(1, 2)", "(1, 2)"),
    ],
)
def test_what_is_no_json_is_text(interpreter: Sandbox, code: str, text: str) -> None:
    result = only(interpreter.run_code(code))
    assert (result.text, result.json, list(result.formats())) == (text, None, ["text"])


# Rules: RES-6
def test_no_value_is_cut_short(interpreter: Sandbox) -> None:
    text = value(interpreter.run_code("list(range(5000))"))
    assert text is not None
    assert text.replace("\n", "") == str(list(range(5000)))


# Rules: RES-4
def test_a_figure_is_shown_once(interpreter: Sandbox) -> None:
    code = "from matplotlib import pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    result = only(interpreter.run_code(code))
    assert list(result.formats()) == ["text", "png", "chart"]
    assert base64.b64decode(str(result.png)).startswith(PNG)
    assert only(interpreter.run_code(code.removesuffix("plt.show()") + "None")).png


# Rules: RES-4
def test_a_figure_that_is_shown_and_the_value(interpreter: Sandbox) -> None:
    code = "from matplotlib import pyplot as plt\nf, a = plt.subplots()\na.plot([1])\nplt.show()\nf"
    shown, main = interpreter.run_code(code).results
    assert (shown.is_main_result, main.is_main_result) == (False, True)
    assert shown.png and main.png and shown.chart and main.chart


# Rules: RES-4
def test_two_figures_are_two_results(interpreter: Sandbox) -> None:
    code = """
from matplotlib import pyplot as plt
plt.figure(); plt.plot([1, 2])
plt.figure(); plt.bar(["a"], [1])
plt.show()
"""
    kinds = [result.chart.type.value for result in interpreter.run_code(code).results]
    assert kinds == ["line", "bar"]
    # They are closed: the next cell begins with none.
    assert out(interpreter.run_code("print(plt.get_fignums())")) == "[]\n"


# Rules: RES-4, RES-6
def test_characters_of_east_asia_are_drawn(interpreter: Sandbox) -> None:
    code = """
import seaborn
from matplotlib import pyplot as plt
seaborn.set_theme()
plt.title("图表 グラフ 차트")
plt.plot([1, 2])
plt.show()
"""
    execution = interpreter.run_code(code)
    assert execution.logs.stderr == []
    assert only(execution).chart.title == "图表 グラフ 차트"


# Rules: RES-5
def test_an_image_of_pil(interpreter: Sandbox) -> None:
    code = "from PIL import Image\nimage = Image.new('RGB', (2, 2), 'red')\n"
    assert only(interpreter.run_code(code + "image")).is_main_result
    saved = only(interpreter.run_code(code + "image.save('/tmp/red.png')\nimage.show()"))
    assert not saved.is_main_result
    assert base64.b64decode(str(saved.png)).startswith(PNG)
    assert interpreter.files.read("/tmp/red.png", format="bytes").startswith(PNG)


# Rules: RES-5
@pytest.mark.parametrize("last", ["figure", "figure.show()"])
def test_a_figure_of_plotly(interpreter: Sandbox, last: str) -> None:
    code = f"import plotly.express as px\nfigure = px.line(x=[1, 2], y=[3, 4])\n{last}"
    result = only(interpreter.run_code(code))
    media = "application/vnd.plotly.v1+json"
    assert (result.extra or {})[media]["data"][0]["type"] == "scatter"
    assert "plotly" in str(result.html)
    assert media in result.formats()


# Rules: RES-5
def test_a_chart_of_altair(interpreter: Sandbox) -> None:
    code = """
import altair, pandas
altair.Chart(pandas.DataFrame({"a": [1, 2]})).mark_point().encode(x="a")
"""
    result = only(interpreter.run_code(code))
    assert "vega" in str(result.html) + str(result.extra)


# Rules: RES-6
@pytest.mark.parametrize("module", ["auto", "notebook"])
def test_a_progress_bar_is_text(interpreter: Sandbox, context: Context, module: str) -> None:
    """There are no widgets to draw it with, and no need to say so."""
    code = f"from tqdm.{module} import tqdm, trange\nfor _ in tqdm(range(3)): pass\nsum(trange(3))"
    execution = interpreter.run_code(code, context=context)
    assert only(execution).text == "3"
    shown = "".join(execution.logs.stderr)
    assert shown.count("100%") == 2 and "3/3" in shown
    assert "Warning" not in shown


# Rules: RES-5
def test_a_formula_of_sympy(interpreter: Sandbox) -> None:
    result = only(interpreter.run_code("import sympy\nsympy.sqrt(sympy.Symbol('x'))"))
    assert (result.text, result.latex) == ("sqrt(x)", r"$\displaystyle \sqrt{x}$")


# Rules: RES-6
def test_a_representation_that_fails_leaves_the_others(interpreter: Sandbox) -> None:
    code = """
class Odd:
    def __repr__(self): return "odd"
    def _repr_html_(self): raise ValueError("no html")
Odd()
"""
    execution = interpreter.run_code(code)
    # It is told, as IPython does.
    assert (execution.error.name, execution.error.value) == ("ValueError", "no html")
    (result,) = execution.results
    assert (result.text, list(result.formats())) == ("odd", ["text"])


# Rules: RES-6
def test_half_a_surrogate_pair_fails_nothing(interpreter: Sandbox) -> None:
    assert out(interpreter.run_code(r"print('a\ud800b')")) == "a\\ud800b\n"
    assert value(interpreter.run_code(r"['\ud800', 'after'][1]")) == "after"
    assert interpreter.run_code("raise ValueError(chr(0xd800))").error.name == "ValueError"


# Rules: RES-6
def test_help_is_a_result(interpreter: Sandbox) -> None:
    assert "Return the number of items" in str(only(interpreter.run_code("len?")).text)
