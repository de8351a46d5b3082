"""What pruning did on this server: counters in vLLM's ``/metrics``, and one log line for each interval with images.

Requests are counted in the process that reads them, which is the one that answers ``/metrics``. What is only seen in
the engine (images at fault) is counted in a file that the processes share.
"""

from __future__ import annotations

import threading
from collections import Counter

import prometheus_client

from .faults import count_faults
from .log import LOGGER

INTERVAL = 10.0  # seconds, as long as between vLLM's own lines

_COUNTED = "__foveate_counted__"  # marks an error that was counted on its way to the client
_LABELS = ("model_name", "method", "modality")
_images = prometheus_client.Counter("foveate_images", "Images and clips in prompts", _LABELS)
_before = prometheus_client.Counter("foveate_visual_tokens", "Visual tokens of images before pruning", _LABELS)
_kept = prometheus_client.Counter("foveate_visual_tokens_kept", "Visual tokens of images after pruning", _LABELS)
_refused = prometheus_client.Counter(
    "foveate_requests_refused", "Requests whose pruning was refused with status 400", ("model_name", "reason")
)
_faults = prometheus_client.Gauge(
    "foveate_images_at_fault",
    "Images that kept their first tokens, because their numbers were not finite or their method raised",
    multiprocess_mode="mostrecent",
)


class Metrics:
    """Counts of one server process.

    Args:
        interval: seconds between log lines; a line is written only after images or refusals.
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        self._interval = interval
        self._lock = threading.Lock()
        self._since: Counter[str] = Counter()
        self._timer: threading.Timer | None = None

    def count_image(self, model_name: str, method: str, modality: str, before: int, kept: int) -> None:
        """Count one image or clip of a prompt.

        Args:
            model_name: under which the model is served.
            method: its name; ``"none"`` where everything is kept.
            modality: ``"image"`` or ``"video"``.
            before: its visual tokens before pruning.
            kept: its visual tokens in the prompt.
        """
        labels = model_name, method, modality
        _images.labels(*labels).inc()
        _before.labels(*labels).inc(before)
        _kept.labels(*labels).inc(kept)
        self._note(images=1, before=before, kept=kept)

    def count_refusal(self, model_name: str, error: Exception) -> None:
        """Count a request that is refused, once however often it is caught; its error's class is the ``reason``."""
        if not hasattr(error, _COUNTED):
            setattr(error, _COUNTED, True)
            _refused.labels(model_name, type(error).__name__).inc()
            self._note(refused=1)

    def _note(self, **counts: int) -> None:
        _faults.set(count_faults())
        with self._lock:
            self._since.update(counts)
            if self._timer is None:
                self._timer = threading.Timer(self._interval, self._write_line)
                self._timer.daemon = True
                self._timer.start()

    def _write_line(self) -> None:
        with self._lock:
            since, self._since, self._timer = self._since, Counter(), None
        faults = count_faults()
        _faults.set(faults)
        LOGGER.info("%s", summary(since, faults))


METRICS = Metrics()


def summary(counts: Counter[str], faults: int) -> str:
    """The log line of an interval.

    Args:
        counts: ``images``, tokens ``before`` and ``kept``, requests ``refused``, in the interval.
        faults: images at fault since the server started.
    """
    before, kept = counts["before"], counts["kept"]
    share = f" ({kept / before:.0%})" if before else ""
    text = f"foveate: images {counts['images']}, visual tokens {before} to {kept}{share}"
    text += f", requests refused {counts['refused']}" if counts["refused"] else ""
    return text + (f", images at fault since the start {faults}" if faults else "")
