"""Where the plugin logs."""

import logging

LOGGER = logging.getLogger("vllm.foveate")  # vLLM shows what is logged below its own name, and nothing else
