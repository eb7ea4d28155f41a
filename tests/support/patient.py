"""HTTP requests that wait as long as a loaded machine may take."""

from functools import partial

import httpx

#: Seconds; httpx's own are 5.
PATIENCE = 60

get = partial(httpx.get, timeout=PATIENCE)
post = partial(httpx.post, timeout=PATIENCE)
put = partial(httpx.put, timeout=PATIENCE)
