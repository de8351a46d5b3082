"""What pruning did on this server: counters in vLLM's ``/metrics``, and one log line for each interval with images.

Requests are counted in the process that reads them, which is the one that answers ``/metrics``. What is only seen in
the engine (non-finite images) is counted in a file that the processes share.
"""

from __future__ import annotations

import atexit
import logging
import os
import tempfile
import threading
from collections import Counter
from pathlib import Path

import prometheus_client

INTERVAL = 10.0  # seconds, as long as between vLLM's own lines
_FILE = "FOVEATE_NON_FINITE"  # in the environment of a server's processes: the file whose bytes are counted

logger = logging.getLogger("vllm.foveate")  # below vLLM's own, so that its handlers write it

_LABELS = ("model_name", "method", "modality")
_images = prometheus_client.Counter("foveate_images", "Images and clips in prompts", _LABELS)
_before = prometheus_client.Counter("foveate_visual_tokens", "Visual tokens of images before pruning", _LABELS)
_kept = prometheus_client.Counter("foveate_visual_tokens_kept", "Visual tokens of images after pruning", _LABELS)
_refused = prometheus_client.Counter(
    "foveate_requests_refused", "Requests whose pruning was refused with status 400", ("model_name", "reason")
)
_non_finite = prometheus_client.Gauge(
    "foveate_images_non_finite",
    "Images whose features were not finite, so that their first tokens were kept",
    multiprocess_mode="mostrecent",
)


class Metrics:
    """Counts of one server process.

    Args:
        model_name: the name under which the model is served, a label of all counters.
        interval: seconds between log lines; a line is written only after images or refusals.
    """

    def __init__(self, model_name: str, interval: float = INTERVAL) -> None:
        self.model_name = model_name
        self._interval = interval
        self._lock = threading.Lock()
        self._since: Counter[str] = Counter()
        self._timer: threading.Timer | None = None

    def count_image(self, method: str, modality: str, before: int, kept: int) -> None:
        """Count one image or clip of a prompt.

        Args:
            method: its name; ``"none"`` where everything is kept.
            modality: ``"image"`` or ``"video"``.
            before: its visual tokens before pruning.
            kept: its visual tokens in the prompt.
        """
        labels = self.model_name, method, modality
        _images.labels(*labels).inc()
        _before.labels(*labels).inc(before)
        _kept.labels(*labels).inc(kept)
        self._note(images=1, before=before, kept=kept)

    def count_refusal(self, error: Exception) -> None:
        """Count a request that is refused; the class of the error is the label ``reason``."""
        _refused.labels(self.model_name, type(error).__name__).inc()
        self._note(refused=1)

    def _note(self, **counts: int) -> None:
        _non_finite.set(non_finite())
        with self._lock:
            self._since.update(counts)
            if self._timer is None:
                self._timer = threading.Timer(self._interval, self._write_line)
                self._timer.daemon = True
                self._timer.start()

    def _write_line(self) -> None:
        with self._lock:
            since, self._since, self._timer = self._since, Counter(), None
        _non_finite.set(non_finite())
        logger.info("%s", summary(since, non_finite()))


def summary(counts: Counter[str], broken: int) -> str:
    """The log line of an interval.

    Args:
        counts: ``images``, tokens ``before`` and ``kept``, requests ``refused``, in the interval.
        broken: non-finite images since the server started.
    """
    before, kept = counts["before"], counts["kept"]
    share = f" ({kept / before:.0%})" if before else ""
    text = f"foveate: {counts['images']} images, {kept} of {before} visual tokens kept{share}"
    text += f", {counts['refused']} requests refused" if counts["refused"] else ""
    return text + (f", {broken} images non-finite since the start" if broken else "")


def share_counts() -> None:
    """Make the file that the processes of a server share; called before vLLM starts its engine."""
    if _FILE not in os.environ:
        number, os.environ[_FILE] = tempfile.mkstemp(prefix="foveate-", suffix=".count")
        os.close(number)
        atexit.register(Path(os.environ[_FILE]).unlink, missing_ok=True)


def count_non_finite(images: int) -> None:
    """Count images with non-finite features, in whichever process meets them: one byte an image."""
    if _FILE in os.environ:
        with open(os.environ[_FILE], "ab") as file:
            file.write(bytes(images))


def non_finite() -> int:
    """Non-finite images since the server started, over all its processes on this machine."""
    path = os.environ.get(_FILE)
    return Path(path).stat().st_size if path and Path(path).exists() else 0
