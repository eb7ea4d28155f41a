"""Figures of matplotlib, and of what draws with it, as the SDK's charts: with exact values."""

from __future__ import annotations

from typing import Any

import pytest
from e2b_code_interpreter import Sandbox
from e2b_code_interpreter.charts import (
    BarChart,
    BoxAndWhiskerChart,
    Chart,
    ChartType,
    LineChart,
    PieChart,
    PointChart,
    ScaleType,
    ScatterChart,
    SuperChart,
)

from support.interpreter import only

IMPORTS = """
import datetime
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
"""

TABLE = (
    "pd.DataFrame({'day': ['Sun', 'Sun', 'Sat', 'Sat'], 'v': [1, 3, 5, 6], 'sex': list('mfmf')})"
)


def drawn(sandbox: Sandbox, code: str, kind: type[Chart] = Chart) -> Any:
    """The chart of the one figure that the code draws; the cell says nothing but that."""
    execution = sandbox.run_code(f"{IMPORTS}{code}\nplt.show()")
    assert (execution.logs.stdout, execution.logs.stderr) == ([], [])
    result = only(execution)
    assert result.png and not result.is_main_result
    assert result.chart is None or type(result.chart) is kind, result.chart
    return result.chart


def series(chart: PointChart) -> dict[str, list[tuple[Any, Any]]]:
    return {element.label: element.points for element in chart.elements}


def bars(chart: BarChart) -> list[tuple[Any, ...]]:
    return [(bar.label, bar.group, bar.value) for bar in chart.elements]


def boxes(chart: BoxAndWhiskerChart) -> list[tuple[Any, ...]]:
    return [
        (
            box.label,
            (box.min, box.first_quartile, box.median, box.third_quartile, box.max),
            box.outliers,
        )
        for box in chart.elements
    ]


# Rules: CHART-1, CHART-2
def test_a_line_chart_with_everything(interpreter: Sandbox) -> None:
    code = """
plt.plot([0, 1, 2], [0, 10, 40], label="car")
plt.plot([0, 1, 2], [0, 5, float("nan")])
plt.title("Distance")
plt.xlabel("Time (h)")
plt.ylabel("Way [km]")
plt.xticks([0, 1, 2], ["start", "later", "end"])
plt.yticks([0, 20, 40])
plt.legend()
"""
    chart = drawn(interpreter, code, LineChart)
    assert (chart.type, chart.title) == (ChartType.LINE, "Distance")
    assert (chart.x_label, chart.x_unit) == ("Time (h)", "h")
    assert (chart.y_label, chart.y_unit) == ("Way [km]", "km")
    assert series(chart) == {
        "car": [(0, 0), (1, 10), (2, 40)],
        "Line 1": [(0, 0), (1, 5), (2, None)],
    }
    assert (chart.x_ticks, chart.x_tick_labels) == ([0, 1, 2], ["start", "later", "end"])
    assert (chart.y_ticks, chart.y_tick_labels) == ([0, 20, 40], ["0", "20", "40"])
    assert (chart.x_scale, chart.y_scale) == (ScaleType.LINEAR, ScaleType.LINEAR)


# Rules: CHART-1
def test_what_a_figure_has_not_is_none(interpreter: Sandbox) -> None:
    chart = drawn(interpreter, "plt.plot([1, 2])", LineChart)
    assert chart.title is None
    assert (chart.x_label, chart.y_label, chart.x_unit, chart.y_unit) == (None, None, None, None)
    assert series(chart) == {"Line 0": [(0, 1), (1, 2)]}


# Rules: CHART-2
@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("[datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)]", ""),
        ("[datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 2)]", ""),
        ("pd.date_range('2024-01-01', periods=2)", ""),
        ("np.array(['2024-01-01', '2024-01-02'], dtype='datetime64[D]')", ""),
        ("pd.date_range('2024-01-01', periods=2, tz='UTC')", "+00:00"),
    ],
)
@pytest.mark.parametrize("call", ["plot", "scatter"])
def test_times_are_iso_strings(interpreter: Sandbox, call: str, given: str, read: str) -> None:
    kind = LineChart if call == "plot" else ScatterChart
    chart = drawn(interpreter, f"x = {given}\nplt.{call}(x, [1, 2])\nplt.xticks(x)", kind)
    times = [f"2024-01-01T00:00:00{read}", f"2024-01-02T00:00:00{read}"]
    (points,) = series(chart).values()
    assert points == [(times[0], 1), (times[1], 2)]
    assert (chart.x_scale, chart.x_ticks) == (ScaleType.DATETIME, times)


# Rules: CHART-2
def test_a_series_of_pandas_has_times(interpreter: Sandbox) -> None:
    code = "pd.Series([1, 2, 3], index=pd.date_range('2024-01-01', periods=3), name='n').plot();"
    chart = drawn(interpreter, code, LineChart)
    days = [f"2024-01-0{day}T00:00:00" for day in (1, 2, 3)]
    assert chart.x_scale == ScaleType.DATETIME
    assert [points for points in series(chart).values()] == [[*zip(days, [1, 2, 3], strict=True)]]


# Rules: CHART-2
@pytest.mark.parametrize(
    "code",
    [
        "plt.plot(np.array([1, 2, 3], dtype='timedelta64[s]'), [1, 2, 3])",
        "pd.Series([1, 2, 3], index=np.array([1, 2, 3], dtype='timedelta64[s]')).plot();",
    ],
    ids=["matplotlib", "pandas"],
)
def test_lengths_of_time_are_where_the_ticks_are(interpreter: Sandbox, code: str) -> None:
    chart = drawn(interpreter, code, LineChart)
    assert list(series(chart).values()) == [[(1, 1), (2, 2), (3, 3)]]
    assert (chart.x_scale, min(chart.x_ticks) <= 1 < 3 <= max(chart.x_ticks)) == ("linear", True)


# Rules: CHART-2
@pytest.mark.parametrize("call", ["plot", "scatter"])
def test_categories_are_strings(interpreter: Sandbox, call: str) -> None:
    kind = LineChart if call == "plot" else ScatterChart
    chart = drawn(interpreter, f"plt.{call}(['a', 'b'], [1, 2])", kind)
    assert list(series(chart).values()) == [[("a", 1), ("b", 2)]]
    assert (chart.x_scale, chart.x_ticks) == (ScaleType.CATEGORICAL, ["a", "b"])
    assert chart.x_tick_labels == ["a", "b"]


# Rules: CHART-2
@pytest.mark.parametrize(
    ("scale", "options"),
    [
        ("linear", ""),
        ("log", ""),
        ("symlog", ""),
        ("logit", ""),
        ("asinh", ""),
        ("function", ", functions=(np.sqrt, np.square)"),
    ],
)
def test_scales(interpreter: Sandbox, scale: str, options: str) -> None:
    code = f"plt.plot([0.1, 0.5], [0.1, 0.2])\nplt.yscale({scale!r}{options})"
    chart = drawn(interpreter, code, LineChart)
    assert (chart.x_scale, chart.y_scale) == (ScaleType.LINEAR, ScaleType(scale))
    assert len(chart.y_ticks) == len(chart.y_tick_labels)


# Rules: CHART-1, CHART-2
def test_scatter_plots(interpreter: Sandbox) -> None:
    code = "plt.scatter([1, 2], [3, 4], label='a')\nplt.scatter(np.array([5]), [6])"
    chart = drawn(interpreter, code, ScatterChart)
    assert chart.type == ChartType.SCATTER
    assert series(chart) == {"a": [(1, 3), (2, 4)], "Scatter 1": [(5, 6)]}


# Rules: CHART-2
def test_hues_of_seaborn_are_series(interpreter: Sandbox) -> None:
    expected = {"m": [(1, 1), (5, 5)], "f": [(3, 3), (6, 6)]}
    for call, kind in (("scatterplot", ScatterChart), ("lineplot", LineChart)):
        code = f"sns.{call}(data={TABLE}, x='v', y='v', hue='sex');"
        assert series(drawn(interpreter, code, kind)) == expected


# Rules: CHART-2
def test_what_is_only_decoration_is_no_series(interpreter: Sandbox) -> None:
    code = """
plt.errorbar([1, 2], [3, 4], yerr=0.1, capsize=3, label="measured")
plt.axhline(3)
plt.axvline(1)
plt.fill_between([1, 2], [2, 3], [4, 5])
plt.plot([1, 2], [9, 9], visible=False)
plt.text(1, 3, "note")
"""
    assert series(drawn(interpreter, code, LineChart)) == {"measured": [(1, 3), (2, 4)]}


# Rules: CHART-2
@pytest.mark.parametrize("call", ["plot", "scatter"])
def test_a_rectangle_in_a_plot_makes_no_bars_of_it(interpreter: Sandbox, call: str) -> None:
    code = f"plt.{call}([1, 2], [3, 4])\nplt.gca().add_patch(plt.Rectangle((1, 3), 1, 1))"
    chart = drawn(interpreter, code, LineChart if call == "plot" else ScatterChart)
    assert list(series(chart).values()) == [[(1, 3), (2, 4)]]


# Rules: CHART-3
def test_bars(interpreter: Sandbox) -> None:
    code = """
plt.bar(["a", "b"], [3, 4.5], label="sold")
plt.ylabel("Number (thousands)")
plt.title("Books")
"""
    chart = drawn(interpreter, code, BarChart)
    assert (chart.type, chart.title, chart.y_unit) == (ChartType.BAR, "Books", "thousands")
    assert bars(chart) == [("a", "sold", 3), ("b", "sold", 4.5)]


GROUPED = [("x", "a", 1), ("y", "a", 2), ("x", "b", 3), ("y", "b", 4)]


# Rules: CHART-3
@pytest.mark.parametrize(
    "code",
    [
        "plt.bar(['x', 'y'], [1, 2], label='a')\n"
        "plt.bar(['x', 'y'], [3, 4], bottom=[1, 2], yerr=[0.1, 0.2], label='b')",
        "at = np.arange(2)\nplt.bar(at - 0.2, [1, 2], 0.4, label='a')\n"
        "plt.bar(at + 0.2, [3, 4], 0.4, label='b')\nplt.xticks(at, ['x', 'y'])",
        "plt.barh(['x', 'y'], [1, 2], label='a')\n"
        "plt.barh(['x', 'y'], [3, 4], left=[1, 2], label='b')",
        "pd.DataFrame({'a': [1, 2], 'b': [3, 4]}, index=['x', 'y']).plot.bar();",
        "pd.DataFrame({'a': [1, 2], 'b': [3, 4]}, index=['x', 'y']).plot.barh(stacked=True);",
    ],
    ids=["stacked", "side by side", "lying", "pandas", "pandas, lying"],
)
def test_groups_of_bars(interpreter: Sandbox, code: str) -> None:
    assert bars(drawn(interpreter, code, BarChart)) == GROUPED


# Rules: CHART-3
@pytest.mark.parametrize(
    ("code", "labels"),
    [
        ("plt.bar(at - 0.135, [1, 2], 0.27)\nplt.bar(at + 0.135, [3, 4], 0.27)", ["0", "1"]),
        ("plt.barh(at - 0.2, [1, 2], 0.4)\nplt.barh(at + 0.2, [3, 4], 0.4)", ["0", "1"]),
        ("plt.hist([[1, 2, 2], [1, 1, 1, 2, 2, 2, 2]], bins=[0.5, 1.5, 2.5])", ["1", "2"]),
        ("plt.hist([[5, 15, 15], [5, 5, 5, 15, 15, 15, 15]], bins=[0, 10, 20])", ["5", "15"]),
        (
            "sns.histplot({'a': [1, 15, 15], 'b': [1, 1, 1, 15, 15, 15, 15]}, bins=[0, 10, 20],"
            " multiple='dodge', hue_order=['b', 'a']);",
            ["0 to 10", "10 to 20"],
        ),
    ],
    ids=["side by side", "lying", "histogram", "histogram of tens", "histogram of seaborn"],
)
def test_bars_side_by_side_have_one_label(
    interpreter: Sandbox, code: str, labels: list[str]
) -> None:
    found = bars(drawn(interpreter, f"at = np.arange(2)\n{code}", BarChart))
    assert [(label, value) for label, _, value in found] == [
        *zip(labels * 2, [1, 2, 3, 4], strict=True)
    ]


# Rules: CHART-3
def test_bars_at_different_places_have_different_labels(interpreter: Sandbox) -> None:
    code = "plt.bar([1, 3], [1, 3])\nplt.bar([2, 4], [2, 4])"
    found = bars(drawn(interpreter, code, BarChart))
    assert [(label, value) for label, _, value in found] == [("1", 1), ("3", 3), ("2", 2), ("4", 4)]
    code = "plt.hist([0, 2], bins=2)\nplt.hist([0.25, 2.25], bins=2)"
    found = bars(drawn(interpreter, code, BarChart))
    assert [label for label, *_ in found] == ["0 to 1", "1 to 2", "0.25 to 1.25", "1.25 to 2.25"]


# Rules: CHART-3
@pytest.mark.parametrize(
    ("code", "days"),
    [
        ("index=pd.date_range('2024-01-01', periods=2)).plot.bar();", ["01-01", "01-02"]),
        (
            "index=pd.date_range('2024-01-31', periods=2, freq='ME')).plot.bar();",
            ["01-01", "02-01"],
        ),
        ("index=pd.period_range('2024-01', periods=2, freq='M')).plot.bar();", ["01-01", "02-01"]),
    ],
    ids=["days", "months", "periods"],
)
def test_bars_of_pandas_have_times(interpreter: Sandbox, code: str, days: list[str]) -> None:
    chart = drawn(interpreter, f"pd.DataFrame({{'a': [1, 2], 'b': [3, 4]}}, {code}", BarChart)
    first, second = (f"2024-{day}T00:00:00" for day in days)
    assert bars(chart) == [(first, "a", 1), (second, "a", 2), (first, "b", 3), (second, "b", 4)]


# Rules: CHART-3
@pytest.mark.parametrize("lying", [False, True])
def test_bars_of_seaborn(interpreter: Sandbox, lying: bool) -> None:
    axis, other = ("y", "x") if lying else ("x", "y")
    code = f"sns.barplot(data={TABLE}, {axis}='day', {other}='v', hue='sex');"
    assert bars(drawn(interpreter, code, BarChart)) == [
        ("Sun", "m", 1),
        ("Sat", "m", 5),
        ("Sun", "f", 3),
        ("Sat", "f", 6),
    ]
    counted = bars(drawn(interpreter, f"sns.countplot(data={TABLE}, {axis}='day');", BarChart))
    assert [(label, value) for label, _, value in counted] == [("Sun", 2), ("Sat", 2)]


# Rules: CHART-3
def test_a_histogram_says_from_where_to_where(interpreter: Sandbox) -> None:
    chart = drawn(interpreter, "plt.hist([0, 1, 1, 2, 2, 3], bins=3, label='n')", BarChart)
    assert bars(chart) == [("0 to 1", "n", 1), ("1 to 2", "n", 2), ("2 to 3", "n", 3)]


# Rules: CHART-3
@pytest.mark.parametrize(
    ("code", "labels"),
    [
        ("plt.bar([1, 2], [1, 2], width=1.0)", ["1", "2"]),
        ("plt.bar([20240101, 20240102], [1, 2])", ["20240101", "20240102"]),
        ("sns.histplot([1, 2, 2], discrete=True);", ["1", "2"]),
        (
            "plt.bar(pd.date_range('2024-01-01', periods=2), [1, 2], width=1.0)",
            ["2024-01-01T00:00:00", "2024-01-02T00:00:00"],
        ),
    ],
    ids=["touching", "large", "counted", "days"],
)
def test_a_bar_at_a_whole_number_has_it_as_its_label(
    interpreter: Sandbox, code: str, labels: list[str]
) -> None:
    found = bars(drawn(interpreter, code, BarChart))
    assert [(label, value) for label, _, value in found] == [*zip(labels, [1, 2], strict=True)]


# Rules: CHART-3
def test_names_of_bars(interpreter: Sandbox) -> None:
    each = bars(drawn(interpreter, "plt.bar(['x', 'y'], [1, 2], label=['a', 'b'])", BarChart))
    assert each == [("x", "a", 1), ("y", "b", 2)]
    legend = "plt.bar([1, 2.5], [1, 2])\nplt.legend(['a'])"
    assert bars(drawn(interpreter, legend, BarChart)) == [("1", "a", 1), ("2.5", "a", 2)]
    loose = """
for at in range(2):
    plt.gca().add_patch(plt.Rectangle((at, 0), 0.5, at + 1))
plt.xlim(0, 2)
plt.ylim(0, 3)
"""
    found = [("0.25", "Group 0", 1), ("1.25", "Group 0", 2)]
    assert bars(drawn(interpreter, loose, BarChart)) == found


# Rules: CHART-3
def test_pies(interpreter: Sandbox) -> None:
    code = """
plt.pie([1, 1, 2], labels=["a", "b", "c"], autopct="%d%%", radius=0.5)
plt.title("Shares")
"""
    chart = drawn(interpreter, code, PieChart)
    assert (chart.type, chart.title) == (ChartType.PIE, "Shares")
    slices = [(slice.label, slice.angle, slice.radius) for slice in chart.elements]
    assert slices == [("a", 90, 0.5), ("b", 90, 0.5), ("c", 180, 0.5)]


BOXES = [("1", (1, 2, 3, 4, 4), [20]), ("2", (2, 3, 4, 5, 6), [])]


# Rules: CHART-3
@pytest.mark.parametrize("options", ["", "patch_artist=True", "orientation='horizontal'"])
@pytest.mark.parametrize("means", ["notch=True", "showmeans=True", "showmeans=True, meanline=True"])
def test_box_plots(interpreter: Sandbox, options: str, means: str) -> None:
    data = "[[1, 2, 3, 4, 20], [2, 3, 4, 5, 6]]"
    chart = drawn(interpreter, f"plt.boxplot({data}, {means}, {options})", BoxAndWhiskerChart)
    assert chart.type == ChartType.BOX_AND_WHISKER
    assert boxes(chart) == BOXES


# Rules: CHART-3
def test_what_is_drawn_over_a_box_is_no_outlier(interpreter: Sandbox) -> None:
    code = """
plt.boxplot([[1, 2, 3, 4, 20], [2, 3, 4, 5, 6]], showmeans=True)
plt.plot([1, 2], [30, 30], "r*")
plt.plot([2], [40], "b*")
"""
    assert boxes(drawn(interpreter, code, BoxAndWhiskerChart)) == BOXES


# Rules: CHART-3
def test_a_median_at_the_end_of_its_box_is_not_the_mean(interpreter: Sandbox) -> None:
    code = "plt.boxplot([1, 1, 1, 5, 9], showmeans=True, meanline=True)"
    assert boxes(drawn(interpreter, code, BoxAndWhiskerChart)) == [("1", (1, 1, 1, 5, 9), [])]


# Rules: CHART-3
@pytest.mark.parametrize(
    "code",
    [
        "pd.DataFrame({'1': [1, 2, 3, 4, 20], '2': [2, 3, 4, 5, 6]}).boxplot();",
        "sns.boxplot(data={'1': [1, 2, 3, 4, 20], '2': [2, 3, 4, 5, 6]});",
        "sns.boxplot(data={'1': [1, 2, 3, 4, 20], '2': [2, 3, 4, 5, 6]}, orient='h');",
        "sns.boxplot(data={'1': [1, 2, 3, 4, 20], '2': [2, 3, 4, 5, 6]}, showmeans=True);",
    ],
    ids=["pandas", "seaborn", "seaborn, lying", "seaborn, with means"],
)
def test_box_plots_of_others(interpreter: Sandbox, code: str) -> None:
    assert boxes(drawn(interpreter, code, BoxAndWhiskerChart)) == BOXES


# Rules: CHART-4
def test_several_axes_are_a_superchart(interpreter: Sandbox) -> None:
    code = """
figure, axes = plt.subplots(2, 2)
axes[0, 0].plot([1, 2])
axes[0, 0].set_title("line")
axes[0, 1].bar(["a"], [1])
axes[1, 0].imshow([[1, 2], [3, 4]])
figure.suptitle("All")
"""
    chart = drawn(interpreter, code, SuperChart)
    assert (chart.type, chart.title) == (ChartType.SUPERCHART, "All")
    kinds = [ChartType.LINE, ChartType.BAR, ChartType.UNKNOWN]
    assert [part.type for part in chart.elements] == kinds
    assert [part.title for part in chart.elements] == ["line", None, None]
    assert bars(chart.elements[1]) == [("a", "Group 0", 1)]


# Rules: CHART-4
def test_a_second_axis_is_a_chart_of_its_own(interpreter: Sandbox) -> None:
    code = "_, axes = plt.subplots()\naxes.plot([1, 2])\naxes.twinx().bar([0, 1], [3, 4])"
    chart = drawn(interpreter, code, SuperChart)
    assert [type(part) for part in chart.elements] == [LineChart, BarChart]


# Rules: CHART-4, CHART-5
def test_blank_axes_are_no_chart(interpreter: Sandbox) -> None:
    assert drawn(interpreter, "plt.subplots(1, 2)") is None
    chart = drawn(interpreter, "_, a = plt.subplots(1, 2)\na[1].plot([1, 2])", LineChart)
    assert series(chart) == {"Line 0": [(0, 1), (1, 2)]}


# Rules: CHART-5
@pytest.mark.parametrize(
    "code",
    [
        "plt.imshow([[1, 2], [3, 4]])\nplt.colorbar()",
        "sns.heatmap([[1, 2], [3, 4]]);",
        "plt.contourf([[1, 2], [3, 4]])",
        "plt.figure().add_subplot(projection='3d').plot([1, 2], [1, 2], [1, 2])",
        "plt.polar([1, 2], [1, 2])",
        "plt.stackplot([1, 2], [1, 2])",
        "plt.text(0, 0, 'only text')",
    ],
)
def test_what_is_no_such_plot_is_unknown(interpreter: Sandbox, code: str) -> None:
    chart = drawn(interpreter, f"{code}\nplt.title('t')" if "3d" not in code else code)
    assert (chart.type, chart.elements) == (ChartType.UNKNOWN, [])


# Rules: CHART-5, RES-6
def test_a_figure_with_too_many_points_is_a_picture_only(interpreter: Sandbox) -> None:
    assert drawn(interpreter, "plt.plot(np.arange(3_000_000))") is None
    assert drawn(interpreter, "plt.plot(np.arange(50_000))", LineChart).elements


# Rules: CHART-5
def test_a_chart_changes_nothing_in_the_picture(interpreter: Sandbox) -> None:
    code = """
figure, axes = plt.subplots()
axes.plot(pd.date_range("2024-01-01", periods=3), [1, 20, 300])
axes.set_yscale("log")
display(figure)
plt.close(figure)
figure
"""
    execution = interpreter.run_code(IMPORTS + code)
    first, second = execution.results
    assert second.is_main_result and not first.is_main_result
    assert first.png == second.png
    assert first.chart.to_dict() == second.chart.to_dict()
