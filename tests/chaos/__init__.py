"""Atoll is killed again and again under a client that keeps sandboxes busy.

`make chaos` runs it; `python -m chaos --help` has the options. What was acknowledged must hold,
what is in doubt (its answer was cut off) may have happened whole or not at all, no sandbox may be
lost or stuck, and in the end the host is as it was.

- `agent`: what runs inside each sandbox: it counts, and remembers what it is told, in memory and in
  a file.
- `client`: requests, and which of their answers were cut off.
- `belief`: what a sandbox must be like, as far as can be known from outside.
- `hand`: what can be done to a sandbox, and what each answer lets one believe.
- `worker`: one of the thirty: a sandbox of its own, and what it does with it.
- `victim`: `atoll up`, and when it is killed.
"""
