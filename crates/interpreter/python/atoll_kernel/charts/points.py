"""Line and scatter plots."""

from __future__ import annotations

from .names import Names

# Stands for the name of a line that only ends an error bar.
CAP = object()


def extract(axes, x, y, names: Names, limit):
    """Lines, or, if there are any, scattered points together with the lines among them."""
    if any(image.get_visible() for image in axes.images):
        return None
    bars = _error_bars(axes)
    lines = {line for line in axes.lines if _is_series(line, axes) and bars.get(line) != CAP}
    clouds = {cloud for cloud in axes.collections if _is_cloud(cloud, axes)}
    if not lines and not clouds:
        return None
    artists = [artist for artist in axes.get_children() if artist in lines or artist in clouds]
    series: list[dict] = []
    for artist in artists:
        if artist in lines:
            series += _line(artist, bars.get(artist), x, y, names, limit, len(series))
        else:
            series += _cloud(artist, x, y, names, limit, len(series))
    return ("scatter" if clouds else "line"), series


def has_series(axes) -> bool:
    """Whether there is a line or a scatter plot."""
    return any(_is_series(line, axes) for line in axes.lines) or any(
        _is_cloud(collection, axes) for collection in axes.collections
    )


def is_data(artist, axes) -> bool:
    """Whether it is seen, and at positions of both axes: a line across the whole width is not."""
    return artist.get_visible() and all(
        artist.get_transform().contains_branch_seperately(axes.transData)
    )


def _is_series(line, axes) -> bool:
    return is_data(line, axes) and type(line).__name__ != "AxLine" and len(line.get_xdata()) > 0


def _is_cloud(collection, axes) -> bool:
    """A scatter plot, and not what else is made of the same class, as contours once were."""
    if type(collection).__name__ != "PathCollection" or not collection.get_visible():
        return False
    transform = collection.get_offset_transform()
    return all(transform.contains_branch_seperately(axes.transData)) and len(
        collection.get_offsets()
    )


def _error_bars(axes) -> dict:
    """Lines of error bars: for one with data its name, [`CAP`] for those without."""
    found = {}
    for container in axes.containers:
        if type(container).__name__ == "ErrorbarContainer":
            data, caps, _ = container.lines
            found.update(dict.fromkeys(caps, CAP))
            if data is not None:
                found[data] = container.get_label()
    return found


def _line(line, label, x, y, names: Names, limit, number: int) -> list[dict]:
    limit.spend(len(line.get_xdata(orig=False)))
    columns = []
    for axis, get in ((x, line.get_xdata), (y, line.get_ydata)):
        placed, given = get(orig=False), get(orig=True)
        # What was given says more than where it was put: its time zone, its category.
        values = given if _says_more(given) and len(given) == len(placed) else placed
        columns.append(axis.values(values))
    label = names.of(label or line.get_label(), line, f"Line {number}")
    return [{"label": label, "points": [list(point) for point in zip(*columns)]}]


def _says_more(values) -> bool:
    """Whether it can be gone through one by one: is no table, and no lengths of time, of which
    matplotlib makes numbers without a converter."""
    is_column = hasattr(values, "__len__") and getattr(values, "ndim", 1) == 1
    return is_column and getattr(getattr(values, "dtype", None), "kind", None) != "m"


def _cloud(cloud, x, y, names: Names, limit, number: int) -> list[dict]:
    offsets = cloud.get_offsets()
    limit.spend(len(offsets))
    points = [list(point) for point in zip(x.values(offsets[:, 0]), y.values(offsets[:, 1]))]
    groups = _by_colour(cloud, names, points)
    if groups:
        return [{"label": label, "points": members} for label, members in groups.items()]
    return [{"label": names.of(cloud.get_label(), cloud, f"Scatter {number}"), "points": points}]


def _by_colour(cloud, names: Names, points: list) -> dict | None:
    """The points of a cloud by the legend's entry with their colour; None if one has no entry."""
    colours = cloud.get_facecolors()
    if not names or len(colours) != len(points) or len(points) < 2:
        return None
    groups: dict = {}
    for colour, point in zip(colours, points):
        label = names.of_colour(colour)
        if label is None:
            return None
        groups.setdefault(label, []).append(point)
    return groups
