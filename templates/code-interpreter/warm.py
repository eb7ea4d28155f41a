"""Does once, in the build, what would make the first cells of each sandbox slow.

Importing compiles what is imported, and proves that it can be; matplotlib lists the fonts.
"""

import importlib
import subprocess
from pathlib import Path

FONT = "WenQuanYi Micro Hei"
BOLD = Path("/usr/local/share/fonts/wqy-microhei-bold.ttf")

# What people import, with the submodules that they reach for.
MODULES = """
    ipykernel_launcher ipykernel.kernelapp IPython jupyter_client matplotlib_inline.backend_inline
    numpy numpy.random numpy.fft pandas pandas.plotting pandas.io.formats.style
    pyarrow.parquet pyarrow.csv pyarrow.dataset
    scipy.cluster.hierarchy scipy.fft scipy.integrate scipy.interpolate scipy.io scipy.linalg
    scipy.ndimage scipy.optimize scipy.signal scipy.sparse.linalg scipy.spatial scipy.special
    scipy.stats
    sklearn.cluster sklearn.compose sklearn.datasets sklearn.decomposition sklearn.ensemble
    sklearn.feature_extraction.text sklearn.impute sklearn.linear_model sklearn.manifold
    sklearn.metrics sklearn.model_selection sklearn.naive_bayes sklearn.neighbors
    sklearn.neural_network sklearn.pipeline sklearn.preprocessing sklearn.svm sklearn.tree
    statsmodels.api statsmodels.formula.api statsmodels.tsa.api
    matplotlib.pyplot matplotlib.animation matplotlib.backends.backend_agg
    matplotlib.backends.backend_svg matplotlib.backends.backend_pdf mpl_toolkits.mplot3d
    seaborn plotly.express plotly.graph_objects plotly.io plotly.subplots altair networkx sympy
    PIL.Image PIL.ImageDraw PIL.ImageFilter PIL.ImageFont cv2 skimage.filters skimage.io
    skimage.measure skimage.transform
    requests httpx aiohttp bs4 lxml.etree lxml.html openpyxl xlsxwriter docx pypdf yaml jinja2
    sqlalchemy sqlalchemy.orm sqlite3 tabulate tqdm nest_asyncio pytest pytz rich.console
    rich.table xlrd
    asyncio concurrent.futures csv dataclasses email http.server json multiprocessing unittest
    urllib.request venv xml.etree.ElementTree zipfile
"""


def make_bold_font() -> None:
    """Makes a bold face of the same outlines: matplotlib would complain of each bold title that
    there is none, whatever characters it has."""
    from fontTools.ttLib import TTCollection
    from matplotlib import font_manager

    font = TTCollection(font_manager.findfont(FONT, fallback_to_default=False)).fonts[0]
    font["OS/2"].usWeightClass = 700
    font["head"].macStyle |= 1
    for record in font["name"].names:
        if record.nameID in (2, 17):
            record.string = "Bold"
    BOLD.parent.mkdir(parents=True, exist_ok=True)
    font.save(BOLD)


def main() -> None:
    for name in MODULES.split():
        importlib.import_module(name)
    make_bold_font()
    # The list of fonts is kept in the home directory. Cells run as root, and commands as `user`.
    listing = "from matplotlib import font_manager as f; f._load_fontmanager(try_read_cache=False)"
    subprocess.run(["python3", "-c", listing], check=True)
    subprocess.run(["su", "-l", "user", "-c", f"python3 -c '{listing}'"], check=True)


if __name__ == "__main__":
    main()
